"""One raw row -> one record, by the roles of its columns. A row that cannot be one raises BadRow with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.data.reading.shapes import VERDICTS, layout
from tuneloop.data.reading.turns import BadRow, needed, text, tool_list, turn_list
from tuneloop.records import Kind, Message, Record

Roles = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Flaw:
    """A row that could not even be taken out of its container."""

    reason: str
    detail: str


def convert(row: Any, kind: Kind = "chat", columns: Roles | None = None, file: str = "", line: int = 0) -> Record:
    """The record of a row of a file of `kind`. `columns` (role -> column) overrules looking.

    Raises BadRow where the row is no such record. Emptiness and order of turns are not judged here.
    """
    if isinstance(row, Flaw):
        raise BadRow(row.reason, row.detail)
    if not isinstance(row, dict):
        raise BadRow("empty row" if row in (None, "", []) else "not an object", type(row).__name__)
    if not any(v.strip() if isinstance(v, str) else v not in (None, [], {}) for v in row.values()):
        raise BadRow("empty row")
    roles = columns or _roles(row, kind)
    if kind in ("text", "label"):
        return _labelled(row, roles, kind, file, line)
    tools = tool_list(row.get(roles["tools"])) if "tools" in roles else ()
    rejected: tuple[Message, ...] = ()
    label = ""
    if "rejected" in roles:
        messages, rejected = _preference(row, roles, kind)
    else:
        messages = tuple(_dialogue(row, roles))
    if kind == "judged":
        label = _verdict(row, roles["label"])
    _check_sound((*messages, *rejected), tools)
    return Record(messages, file, line, tools, kind, label, rejected)


def _roles(row: Mapping[str, Any], kind: Kind) -> Roles:
    """The roles in this very row: rows of one file may be of different shapes, but not of different kinds."""
    shape = layout(tuple(k for k, v in row.items() if v is not None), kind)
    if shape.kind is None:
        shape = layout(tuple(row), kind)
    if shape.kind is None:
        raise BadRow("other shape", ", ".join(map(str, row)))
    return shape.roles


def _labelled(row: Mapping[str, Any], roles: Roles, kind: Kind, file: str, line: int) -> Record:
    body = text(needed(row, roles["text"]), roles["text"])
    if not body.strip():
        raise BadRow("no text")
    if kind == "text":
        message, label = Message("assistant", body), ""
    else:
        message, label = Message("user", body), _label(row, roles["label"])
    _check_sound((message, Message("user", label)), ())
    return Record((message,), file, line, kind=kind, label=label)


def _label(row: Mapping[str, Any], column: str) -> str:
    """A label as text, without the blanks around it: "    0", 0, 0.0 and "0.0" are one label."""
    value = row.get(column)
    if value is None or value == "":
        raise BadRow("missing value", column)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow("NaN or infinity", column)
        value = int(value) if value.is_integer() else value
    if not isinstance(value, str | int | float):
        raise BadRow("no single label", type(value).__name__)
    label = str(value).lower() if isinstance(value, bool) else str(value).strip()
    if label.endswith(".0") and label[:-2].lstrip("-").isdecimal():  # a column of numbers in which one was missing
        label = label[:-2]
    if not label:
        raise BadRow("missing value", column)
    return label


def _verdict(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise BadRow("missing value", column)
    verdict = VERDICTS.get(str(value).strip().casefold())
    if verdict is None:
        raise BadRow("no verdict", str(value))
    return verdict


def _dialogue(row: Mapping[str, Any], roles: Roles) -> list[Message]:
    turns = turn_list(row.get(roles["messages"])) if "messages" in roles else _pair(row, roles)
    return _with_system(row, roles, turns)


def _with_system(row: Mapping[str, Any], roles: Roles, turns: list[Message]) -> list[Message]:
    system = _optional(row, roles, "system")
    if system.strip() and Message("system", system) not in turns[:1]:
        return [Message("system", system), *turns]
    return turns


def _question(row: Mapping[str, Any], roles: Roles) -> list[Message]:
    """History and question of a row with one question."""
    past = row.get(roles["history"]) if "history" in roles else None
    out = turn_list(past) if past not in (None, "", []) else []
    question = needed(row, roles["user"] if "user" in roles else roles["prompt"])
    if isinstance(question, list):
        return out + turn_list(question)
    extra = _optional(row, roles, "input")
    return [*out, Message("user", "\n".join(p for p in (question, extra) if p.strip()))]


def _pair(row: Mapping[str, Any], roles: Roles) -> list[Message]:
    answer_column = roles["assistant"] if "assistant" in roles else roles["chosen"]
    question, answer = _question(row, roles), needed(row, answer_column)
    if isinstance(answer, list):
        return question + turn_list(answer)
    return [*question, Message("assistant", answer, _optional(row, roles, "reasoning"))]


def _preference(row: Mapping[str, Any], roles: Roles, kind: Kind) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What is asked and the better answer; the worse answer."""
    if "chosen" in roles:
        better, worse = (_answer(row.get(roles[role]), roles[role]) for role in ("chosen", "rejected"))
        if better[0].role == "assistant" == worse[0].role:
            if "messages" in roles and row.get(roles["messages"]):
                asked = turn_list(row[roles["messages"]])
            elif "prompt" in roles or "user" in roles:
                asked = _question(row, roles)
            else:
                raise BadRow("missing value", "prompt")
        else:
            asked, better, worse = _common(better, worse)
    else:  # a dialogue, and the answer that would be worse than its last one
        turns = turn_list(row.get(roles["messages"])) if "messages" in roles else _pair(row, roles)
        end = len(turns)
        while end and turns[end - 1].role == "assistant":
            end -= 1
        asked, better, worse = turns[:end], turns[end:], _answer(row.get(roles["rejected"]), roles["rejected"])
    if kind == "preference" and better == worse:
        raise BadRow("equal answers")
    return tuple([*_with_system(row, roles, asked), *better]), tuple(worse) if kind == "preference" else ()


def _answer(value: Any, column: str) -> list[Message]:
    """An answer that is a text, one turn, or a list of turns."""
    if value is None:
        raise BadRow("missing value", column)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return turn_list(value)
    return [Message("assistant", text(value, column))]


def _common(better: list[Message], worse: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """What two dialogues begin with, and how each goes on with the assistant."""
    end = 0
    while end < min(len(better), len(worse)) - 1 and better[end] == worse[end]:
        end += 1
    if better[end].role != "assistant" or worse[end].role != "assistant":
        raise BadRow("answers to different questions")
    return better[:end], better[end:], worse[end:]


def _optional(row: Mapping[str, Any], roles: Roles, role: str) -> str:
    value = row.get(roles[role]) if role in roles else None
    return "" if value is None else text(value, roles[role])


def _check_sound(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> None:
    """Raise BadRow unless the record can be written as JSON in UTF-8."""
    try:
        for m in messages:
            m.content.encode()
            m.reasoning.encode()
            if m.tool_calls:
                json.dumps(m.tool_calls, ensure_ascii=False, allow_nan=False).encode()
        if tools:
            json.dumps(tools, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise BadRow("invalid Unicode", near) from error
    except ValueError as error:
        raise BadRow("NaN or infinity", str(error)) from error
    except (TypeError, RecursionError) as error:
        raise BadRow("not JSON data", str(error)) from error
