"""What a row means: the columns of a row -> the turns of a dialogue.

`recognise` looks at a few rows and names their shape; `convert` reads one row. Both use the tables below, so what is
recognised is what is read. Files, encodings and line numbers are not known here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.records import Message

Fields = dict[str, tuple[str, ...]]

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs")
"""Columns that hold a list of turns."""

PAIRS: dict[str, Fields] = {
    "question_cot_response": {
        "user": ("Question", "question", "问题"),
        "reasoning": ("Complex_CoT", "complex_cot", "reasoning", "cot"),
        "assistant": ("Response", "response", "Answer", "answer"),
    },
    "alpaca": {"user": ("instruction",), "assistant": ("output", "response")},
    "query_response": {"user": ("query",), "assistant": ("response",)},
    "prompt_completion": {"user": ("prompt",), "assistant": ("completion", "response")},
    "question_answer": {"user": ("question", "问题", "提问"), "assistant": ("answer", "response", "回答", "答案")},
    "input_output": {"user": ("input",), "assistant": ("output",)},
    "user_assistant": {"user": ("user", "human"), "assistant": ("assistant",)},
}
"""One question and one answer a row, tried in this order; all of a shape's columns are needed."""

OPTIONAL: Fields = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
    "input": ("input", "context"),
    "reasoning": ("reasoning", "reasoning_content"),
}
"""Columns that are read beside a pair or a list of turns, where they exist."""

PREFERENCE = ({"chosen", "rejected"}, {"chosen_messages", "rejected_messages"})
TEXT = ("text", "text_a", "review", "sentence", "content", "comment", "raw_content")
LABEL = ("label", "labels", "sentiment", "class", "category", "rating", "stars", "polarity")
REFUSED = ("preference", "labelled", "text", "unknown")
ROLE_NAMES = ("user", "assistant", "messages", *OPTIONAL)
"""The roles that `columns:` of a recipe can name."""

_SPEAKERS = {
    **dict.fromkeys(("user", "human", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "counselor", "counsellor", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_PAIR_TURNS = (("input", "output"), ("human", "assistant"), ("query", "response"), ("user", "assistant"),
               ("question", "answer"), ("prompt", "response"))  # fmt: skip


class BadRow(ValueError):
    """A row that is no dialogue; `reason` is a phrase of `ledger.words()`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape's name, which column plays which role, and the share of the rows looked at that have it."""

    name: str
    roles: dict[str, str]
    share: float


def recognise(rows: Iterable[Any]) -> Shape:
    """The shape of most rows; `unknown` where there is none.

    >>> recognise([{"instruction": "1+1", "output": "2"}]).name
    'alpaca'
    """
    found = [shape_of(row) if isinstance(row, dict) else ("unknown", {}) for row in rows]
    if not found:
        return Shape("unknown", {}, 0.0)
    name, count = Counter(name for name, _ in found).most_common(1)[0]
    roles: dict[str, str] = {}
    for other, columns in found:
        roles |= columns if other == name else {}
    return Shape(name, roles, count / len(found))


def shape_of(row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The shape of one row and its role -> column. A column that is null counts only if nothing else fits."""
    filled = [k for k, v in row.items() if v is not None]
    for keys in (filled, list(row)):
        name, roles = _shape(row, keys)
        if name != "unknown":
            return name, roles
    return "unknown", {}


def _shape(row: Mapping[str, Any], keys: Collection[str]) -> tuple[str, dict[str, str]]:
    folded = {k.casefold() for k in keys}
    optional = {role: column for role, names in OPTIONAL.items() if (column := _find(keys, names))}
    turns = _find(keys, TURNS)
    if any(pair <= folded for pair in PREFERENCE):
        return "preference", {}
    # beside an answer, a label of yes or no says whether it was a good one: half of them must not be learned
    judged = "kto_tag" in folded or str(row.get("label")).casefold() in ("0", "1", "true", "false")
    if turns:
        if judged:
            return "preference", {}
        # `input` and `reasoning` belong to one question; beside a list of turns they mean something else
        kept = {r: c for r, c in optional.items() if r in ("system", "tools")}
        return _style(row[turns]), {"messages": turns, **kept}
    for name, fields in PAIRS.items():
        roles = {role: column for role, names in fields.items() if (column := _find(keys, names))}
        if len(roles) == len(fields):
            if judged:
                return "preference", {}
            used = set(roles.values())
            return name, roles | {r: c for r, c in optional.items() if r not in roles and c not in used}
    if folded & set(TEXT):
        return ("labelled" if folded & set(LABEL) else "text"), {}
    return "unknown", {}


def _find(keys: Collection[str], names: Sequence[str]) -> str:
    """The first of `names` among `keys`, as written if possible, else whatever its case."""
    for name in names:
        if name in keys:
            return name
    folded = {k.casefold(): k for k in reversed(list(keys))}
    return next((folded[n.casefold()] for n in names if n.casefold() in folded), "")


def _style(value: Any) -> str:
    """How the turns of a list are written; only for the report, `_turn` reads them all."""
    try:
        turns = _as_list(value, "no turns")
    except BadRow:
        return "messages"
    keys = set(turns[0]) if turns and isinstance(turns[0], dict) else set()
    if "from" in keys:
        return "sharegpt"
    if "role" in keys:
        roles = {turn.get("role") for turn in turns[:8] if isinstance(turn, dict) and isinstance(turn.get("role"), str)}
        return "client_counselor" if roles & {"client", "counselor"} else "messages"
    return next((f"{a}_{b}_turns" for a, b in _PAIR_TURNS if {a, b} <= keys), "messages")


def known(columns: Collection[str]) -> bool:
    """Whether these names look like the header of a table of dialogues or of labelled texts."""
    return shape_of(dict.fromkeys(columns))[0] not in ("unknown", "text")


def unused(shape: Shape, columns: Iterable[str]) -> list[str]:
    return [c for c in columns if c not in shape.roles.values()]


def convert(
    row: Any, columns: Mapping[str, str] | None = None
) -> tuple[tuple[Message, ...], tuple[dict[str, Any], ...]]:
    """The turns and the tools of a row. `columns` (role -> column) overrules looking.

    Raises BadRow where the row is no dialogue. Emptiness and order of turns are not judged here.
    """
    if not isinstance(row, dict):
        raise BadRow("empty row" if row in (None, "", []) else "not an object", type(row).__name__)
    if not any(v.strip() if isinstance(v, str) else v not in (None, [], {}) for v in row.values()):
        raise BadRow("empty row")
    roles = columns
    if not roles:
        name, roles = shape_of(row)
        if name in REFUSED:
            raise BadRow("other shape", ", ".join(map(str, row)))
    tools = _tools(row.get(roles["tools"])) if "tools" in roles else ()
    turns = _turn_list(row.get(roles["messages"])) if "messages" in roles else _pair(row, roles)
    system = _optional_text(row, roles, "system")
    if system.strip() and Message("system", system) not in turns[:1]:
        turns = [Message("system", system), *turns]
    return tuple(turns), tools


def _pair(row: Mapping[str, Any], roles: Mapping[str, str]) -> list[Message]:
    past = row.get(roles["history"]) if "history" in roles else None
    out = _turn_list(past) if past not in (None, "", []) else []
    question, answer = (_needed(row, roles[r]) for r in ("user", "assistant"))
    extra = _optional_text(row, roles, "input")
    if isinstance(question, list):
        out += _turn_list(question)
    else:
        out.append(Message("user", "\n".join(p for p in (question, extra) if p.strip())))
    if isinstance(answer, list):
        return out + _turn_list(answer)
    return [*out, Message("assistant", answer, _optional_text(row, roles, "reasoning"))]


def _needed(row: Mapping[str, Any], column: str) -> str | list[Any]:
    """The text of a column, or its list of turns; a list of one text is that text."""
    value = row.get(column)
    if value is None:
        raise BadRow("missing value", column)
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        if value and all(isinstance(v, dict) for v in value):
            return value
    return _text(value, column)


def _optional_text(row: Mapping[str, Any], roles: Mapping[str, str], role: str) -> str:
    value = row.get(roles[role]) if role in roles else None
    return "" if value is None else _text(value, roles[role])


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("NaN or infinity", what)
    raise BadRow("not text", f"{what}: {type(value).__name__}")


def _as_list(value: Any, reason: str) -> list[Any]:
    """A list, also where it is written as a JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise BadRow(reason, str(error)) from error
    if not isinstance(value, list):
        raise BadRow(reason, type(value).__name__)
    return value


def _turn_list(value: Any) -> list[Message]:
    turns = _as_list(value, "no turns")
    if not turns:
        raise BadRow("no turns")
    out: list[Message] = []
    for turn in turns:
        for message in _turn(turn):
            # EmoLLM may repeat the system prompt in every turn: it is one prompt
            if message.role == "system" and message in out:
                continue
            out.append(message)
    return out


def _turn(turn: Any) -> list[Message]:
    if isinstance(turn, list | tuple) and len(turn) == 2:
        return [Message("user", _text(turn[0], "history")), Message("assistant", _text(turn[1], "history"))]
    if not isinstance(turn, dict):
        raise BadRow("unknown turn", type(turn).__name__)
    if "role" in turn or "from" in turn:
        return [_spoken(turn)]
    for ask, reply in _PAIR_TURNS:
        if ask in turn and reply in turn:
            system = turn.get("system")
            head = [Message("system", _text(system, "system"))] if system not in (None, "") else []
            question, answer = (_text(_needed(turn, k), k) for k in (ask, reply))
            return [*head, Message("user", question), Message("assistant", answer)]
    raise BadRow("unknown turn", ", ".join(map(str, turn)))


def _spoken(turn: dict[str, Any]) -> Message:
    """A turn with a speaker: OpenAI's role and content, or ShareGPT's from and value."""
    name = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(name.casefold()) if isinstance(name, str) else None
    content = next((turn[k] for k in ("content", "value", "text") if turn.get(k) is not None), None)
    if role == "call":
        return Message("assistant", "", tool_calls=_calls(content))
    text, reasoning, calls = _content(content)
    if (reasoning or calls) and role != "assistant":
        raise BadRow("part not text", str(name))
    if role == "user":
        return Message("user", text)
    if role == "system":
        return Message("system", text)
    if role == "tool":
        return Message("tool", text)
    if role != "assistant":
        raise BadRow("unknown role", str(name))
    if any(turn.get(k) not in (None, 1) for k in ("weight", "loss_weight")):
        raise BadRow("loss weight")
    thought = next((turn[k] for k in ("reasoning_content", "reasoning") if turn.get(k) is not None), "")
    asked = turn.get("tool_calls") or turn.get("function_call")
    return Message(
        "assistant", text, reasoning or _text(thought, "reasoning"), calls + (_calls(asked) if asked else ())
    )


def _content(value: Any) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a content that is a text, null, or a list of typed parts."""
    if value is None:
        return "", "", ()
    if not isinstance(value, list):
        return _text(value, "content"), "", ()
    text, reasoning = "", ""
    calls: tuple[dict[str, Any], ...] = ()
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else ""
        body = part if isinstance(part, str) else None
        if isinstance(part, dict) and isinstance(kind, str):
            body = next((part[k] for k in ("text", "value", kind) if part.get(k) is not None), None)
        if isinstance(part, str) or kind in ("text", "input_text", "output_text"):
            text += _text(body, "text")
        elif kind in ("reasoning", "thinking"):
            reasoning += _text(body, "reasoning")
        elif kind == "tool_call":
            calls += _calls(body)
        else:
            raise BadRow("part not text", str(kind))
    return text, reasoning, calls


def _calls(value: Any) -> tuple[dict[str, Any], ...]:
    """Tool calls in OpenAI's form, their arguments always an object, whatever they were encoded as."""
    value = _decoded(value)
    calls = value if isinstance(value, list) else [value]
    return tuple(_call(_decoded(call)) for call in calls)


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise BadRow("broken tool call", type(call).__name__)
    inner = call.get("function")
    body = inner if isinstance(inner, dict) else call
    name, arguments = body.get("name"), _decoded(body.get("arguments", body.get("parameters")))
    arguments = {} if arguments in (None, "") else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise BadRow("broken tool call", f"{name}: {type(arguments).__name__}")
    head = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**head, "type": "function", "function": {"name": name, "arguments": arguments}}


def _decoded(value: Any) -> Any:
    """JSON text -> data, also where it was encoded twice; anything else as it is."""
    for _ in range(2):
        if not isinstance(value, str) or not value.strip():
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("broken tool call", str(error)) from error
    return value


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools offered, each {"type": "function", "function": schema}."""
    out = []
    for tool in _as_list([] if value is None else value, "broken tools"):
        if isinstance(tool, str):
            tool = (_as_list(f"[{tool}]", "broken tools") or [None])[0]
        if not isinstance(tool, dict):
            raise BadRow("broken tools", type(tool).__name__)
        out.append(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
    return tuple(out)
