"""One raw row -> one record, by the roles of its columns. A row that cannot be one raises BadRow with the reason."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.base.records import Kind, Message, Record
from tuneloop.data.kinds import KINDS
from tuneloop.data.reading.keys import PICTURES, BadRow, Notes, empty, text, thought
from tuneloop.data.reading.shapes import VERDICTS, as_row, layout
from tuneloop.data.reading.thoughts import spelled, spelled_after
from tuneloop.data.reading.turns import answer, is_spoken, needed, tool_list, turn_list, unfolded

Roles = Mapping[str, str]
"""Role -> column."""
NumberedRow = tuple[int, Any]
"""Line or row number, from 1, and raw row."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A row that could not be parsed out of its file."""

    reason: str
    detail: str


class Filled(dict[str, str]):
    """A row of a sheet with the values of merged cells that begin above filled in; `columns` names these cells."""

    __slots__ = ("columns",)

    def __init__(self, row: Mapping[str, str], columns: Sequence[str]) -> None:
        super().__init__(row)
        self.columns = columns


def convert(
    row: Any,
    kind: Kind = "chat",
    columns: Roles | None = None,
    file: str = "",
    line: int = 0,
    notes: Notes | None = None,
) -> Record:
    """The record of a row of a file of `kind`. `columns` (role -> column) overrules looking; `notes` are filled.

    Raises BadRow where the row is no such record. Emptiness and order of turns are not judged here.
    """
    if isinstance(row, Flaw):
        raise BadRow(row.reason, row.detail)
    row = as_row(row)
    if not isinstance(row, dict):
        raise BadRow("empty row" if row in (None, "", []) else "not an object", type(row).__name__)
    if not any(v.strip() if isinstance(v, str) else v not in (None, [], {}) for v in row.values()):
        raise BadRow("empty row")
    roles = columns or _roles(row, kind)
    if not PICTURES.isdisjoint(row):
        _check_pictures(row, roles)
    notes = Notes() if notes is None else notes
    if isinstance(row, Filled):
        notes.filled |= {name: None for name in row.columns if name in roles.values()}
    if not KINDS[kind].dialogue:
        return _labelled(row, roles, kind, file, line, notes)
    tools = tool_list(row.get(roles["tools"])) if "tools" in roles else ()
    rejected: tuple[Message, ...] = ()
    label = ""
    if "rejected" in roles:
        messages, rejected = _preference(row, roles, kind, notes)
    else:
        messages = tuple(_dialogue(row, roles, notes))
    messages, rejected = spelled(messages, notes), spelled_after(messages, rejected, notes)
    _check_marks((*messages, *rejected))
    if KINDS[kind].label == "verdict":
        label = _verdict(row, roles["label"])
    _check_sound((*messages, *rejected), tools)
    return Record(messages, file, line, tools, kind, label, rejected, notes=notes.entries(file, line))


def _check_pictures(row: Mapping[str, Any], roles: Roles) -> None:
    """Raise BadRow for a row with images, audio or video: its text refers to what is not read."""
    for column in row:
        if column in PICTURES and column not in roles.values() and not empty(row[column]):
            raise BadRow("part not text", column)


_PICTURE = r"<\|?(?:image|video|audio)(?:[ _]?\d+|_pad)?\|?>"
_MARK = re.compile(rf"\A\s*{_PICTURE}|{_PICTURE}\s*\Z")
_MARKUP = re.compile(r"html|svg|xml|css|</|\btags?\b|\belements?\b|标签|元素|标记", re.IGNORECASE)


def _check_marks(messages: Sequence[Message]) -> None:
    """Raise BadRow where a question begins or ends with a media placeholder, unless the dialogue is about markup."""
    matches = (_MARK.search(m.content) for m in messages if m.role == "user" and "<" in m.content)
    if (placeholder := next(filter(None, matches), None)) and not any(_MARKUP.search(m.content) for m in messages):
        raise BadRow("part not text", placeholder[0].strip())


def _roles(row: Mapping[str, Any], kind: Kind) -> Roles:
    """The column roles of this one row: rows of a file may be of different shapes, but not of different kinds."""
    shape = layout(tuple(k for k, v in row.items() if v is not None), kind)
    if shape.kind is None:
        shape = layout(tuple(row), kind)
    if shape.kind is None:
        raise BadRow("other shape", ", ".join(map(str, row)))
    return shape.roles


def _labelled(row: Mapping[str, Any], roles: Roles, kind: Kind, file: str, line: int, notes: Notes) -> Record:
    labelled = bool(KINDS[kind].label)
    wanted = ("text", "text_pair") if labelled else ("text",)
    texts = [text(needed(row, roles[role], notes), roles[role], notes) for role in wanted if role in roles]
    if not all(body.strip() for body in texts):
        raise BadRow("no text")
    messages = tuple(Message("user" if labelled else "assistant", body) for body in texts)
    label = _label(row, roles["label"]) if labelled else ""
    _check_sound((*messages, Message("user", label)), ())
    return Record(messages, file, line, kind=kind, label=label, notes=notes.entries(file, line))


def _label(row: Mapping[str, Any], column: str) -> str:
    """A label as text, without the blanks around it: "    0", 0, 0.0 and "0.0" are one label."""
    cell = row.get(column)
    if cell is None or cell == "":
        raise BadRow("missing value", column)
    if isinstance(cell, float):
        if not math.isfinite(cell):
            raise BadRow("NaN or infinity", column)
        cell = int(cell) if cell.is_integer() else cell
    if not isinstance(cell, str | int | float):
        raise BadRow("no single label", type(cell).__name__)
    label = str(cell).lower() if isinstance(cell, bool) else str(cell).strip()
    if label.endswith(".0") and label[:-2].lstrip("-").isdecimal():  # a column of numbers in which one was missing
        label = label[:-2]
    if not label:
        raise BadRow("missing value", column)
    return label


def _verdict(row: Mapping[str, Any], column: str) -> str:
    cell = row.get(column)
    if cell is None:
        raise BadRow("missing value", column)
    verdict = VERDICTS.get(str(cell).strip().casefold())
    if verdict is None:
        raise BadRow("no verdict", str(cell))
    return verdict


def _dialogue(row: Mapping[str, Any], roles: Roles, notes: Notes) -> list[Message]:
    turns = turn_list(row.get(roles["messages"]), notes) if "messages" in roles else _pair(row, roles, notes)
    return _with_system(row, roles, turns, notes)


def _with_system(row: Mapping[str, Any], roles: Roles, turns: list[Message], notes: Notes) -> list[Message]:
    system = _optional(row, roles, "system", notes)
    if system.strip() and Message("system", system) not in turns[:1]:
        return [Message("system", system), *turns]
    return turns


def _question(row: Mapping[str, Any], roles: Roles, notes: Notes) -> list[Message]:
    """The prompt of a single-turn row: history and question."""
    past = row.get(roles["history"]) if "history" in roles else None
    out = turn_list(past, notes) if past not in (None, "", []) else []
    question = needed(row, roles["user"] if "user" in roles else roles["prompt"], notes)
    if isinstance(question, list):
        return out + turn_list(question, notes)
    extra = _optional(row, roles, "input", notes)
    return [*out, Message("user", "\n".join(p for p in (question, extra) if p.strip()))]


def _pair(row: Mapping[str, Any], roles: Roles, notes: Notes) -> list[Message]:
    column = roles["assistant"] if "assistant" in roles else roles["chosen"]
    question, reply = _question(row, roles, notes), unfolded(row.get(column))
    reply = [reply] if isinstance(reply, dict) and is_spoken(reply) else reply
    if reply is None:
        raise BadRow("missing value", column)
    if isinstance(reply, list) and reply and all(isinstance(one, dict) for one in reply):
        return question + turn_list(reply, notes)
    thoughts = row.get(roles["reasoning"]) if "reasoning" in roles else None
    return [*question, Message("assistant", answer(reply, column, notes), thought(thoughts))]


def _preference(
    row: Mapping[str, Any], roles: Roles, kind: Kind, notes: Notes
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The prompt with the chosen answer, and the rejected answer."""
    if "chosen" in roles:
        better, worse = (_answer(row.get(roles[role]), roles[role], notes) for role in ("chosen", "rejected"))
        if better[0].role == "assistant" == worse[0].role:
            if "messages" in roles and row.get(roles["messages"]):
                prompt = turn_list(row[roles["messages"]], notes)
            elif "prompt" in roles or "user" in roles:
                prompt = _question(row, roles, notes)
            else:
                raise BadRow("missing value", "prompt")
        else:
            prompt, better, worse = _common(better, worse)
    else:  # a dialogue, and the answer that would be worse than its last one
        turns = turn_list(row.get(roles["messages"]), notes) if "messages" in roles else _pair(row, roles, notes)
        end = len(turns)
        while end and turns[end - 1].role == "assistant":
            end -= 1
        prompt, better = turns[:end], turns[end:]
        worse = _answer(row.get(roles["rejected"]), roles["rejected"], notes)
    compared = KINDS[kind].encoding == "alternatives"
    if compared and better == worse:
        raise BadRow("equal answers")
    return tuple([*_with_system(row, roles, prompt, notes), *better]), tuple(worse) if compared else ()


def _answer(reply: Any, column: str, notes: Notes) -> list[Message]:
    """An answer that is a text, one turn, or a list of turns."""
    reply = unfolded(reply)
    if reply is None:
        raise BadRow("missing value", column)
    if isinstance(reply, dict):
        reply = [reply]
    if isinstance(reply, list):
        return turn_list(reply, notes)
    return [Message("assistant", text(reply, column, notes))]


def _common(better: list[Message], worse: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """The common prefix (prompt) of two dialogues, and the answer of each behind it."""
    end = 0
    while end < min(len(better), len(worse)) - 1 and better[end] == worse[end]:
        end += 1
    if better[end].role != "assistant" or worse[end].role != "assistant":
        raise BadRow("answers to different questions")
    return better[:end], better[end:], worse[end:]


def _optional(row: Mapping[str, Any], roles: Roles, role: str, notes: Notes) -> str:
    cell = row.get(roles[role]) if role in roles else None
    return "" if cell is None else text(cell, roles[role], notes)


def _check_sound(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> None:
    """Raise BadRow unless the record can be written as JSON in UTF-8."""
    try:
        for m in messages:
            m.content.encode()
            m.reasoning.encode()
            m.name.encode()
            m.tool_call_id.encode()
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
