"""Turns: a list of them in any of the known spellings -> messages, with thoughts, tool calls and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tuneloop.data.reading.shapes import PAIR_TURNS
from tuneloop.records import Message

_SPEAKERS = {
    **dict.fromkeys(("user", "human", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "counselor", "counsellor", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}


class BadRow(ValueError):
    """A row that cannot be a record; `reason` is a phrase of `ledger.words()`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def text(value: Any, what: str) -> str:
    """The value if it is a text; raises BadRow."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("NaN or infinity", what)
    raise BadRow("not text", f"{what}: {type(value).__name__}")


def needed(row: Mapping[str, Any], column: str) -> str | list[Any]:
    """The text of a column, or its list of turns; a list of one text is that text."""
    value = row.get(column)
    if value is None:
        raise BadRow("missing value", column)
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        if value and all(isinstance(v, dict) for v in value):
            return value
    return text(value, column)


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


def turn_list(value: Any) -> list[Message]:
    """The messages of a list of turns, or of its JSON text; raises BadRow."""
    turns = _as_list(value, "no turns")
    if not turns:
        raise BadRow("no turns")
    out: list[Message] = []
    for turn in turns:
        if isinstance(turn, dict) and ("role" in turn or "from" in turn):
            message = _spoken(turn)
            if message.role != "system" or message not in out:
                out.append(message)
            continue
        for message in _pair(turn):
            # EmoLLM may repeat the system prompt in every turn: it is one prompt
            if message.role != "system" or message not in out:
                out.append(message)
    return out


def _pair(turn: Any) -> list[Message]:
    if isinstance(turn, list | tuple) and len(turn) == 2:
        return [Message("user", text(turn[0], "history")), Message("assistant", text(turn[1], "history"))]
    if not isinstance(turn, dict):
        raise BadRow("unknown turn", type(turn).__name__)
    for ask, reply in PAIR_TURNS:
        if ask in turn and reply in turn:
            system = turn.get("system")
            head = [Message("system", text(system, "system"))] if system not in (None, "") else []
            question, answer = (text(needed(turn, k), k) for k in (ask, reply))
            return [*head, Message("user", question), Message("assistant", answer)]
    raise BadRow("unknown turn", ", ".join(map(str, turn)))


def _spoken(turn: dict[str, Any]) -> Message:
    """A turn with a speaker: OpenAI's role and content, or ShareGPT's from and value."""
    name = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(name.casefold()) if isinstance(name, str) else None
    said = next((turn[k] for k in ("content", "value", "text") if turn.get(k) is not None), None)
    if role == "call":
        return Message("assistant", "", tool_calls=_calls(said), trained=_trained(turn))
    content, reasoning, calls = _content(said)
    if (reasoning or calls) and role != "assistant":
        raise BadRow("part not text", str(name))
    if role == "user":
        return Message("user", content)
    if role == "system":
        return Message("system", content)
    if role == "tool":
        return Message("tool", content)
    if role != "assistant":
        raise BadRow("unknown role", str(name))
    thought = next((turn[k] for k in ("reasoning_content", "reasoning") if turn.get(k) is not None), "")
    asked = turn.get("tool_calls") or turn.get("function_call")
    calls += _calls(asked) if asked else ()
    return Message("assistant", content, reasoning or text(thought, "reasoning"), calls, _trained(turn))


def _trained(turn: Mapping[str, Any]) -> bool:
    """Whether an answer is learned: its weight is 1 or not given; 0 makes it context, and there is nothing between."""
    weight = next((turn[k] for k in ("weight", "loss_weight") if turn.get(k) is not None), 1)
    if isinstance(weight, int | float) and weight in (0, 1):
        return bool(weight)
    raise BadRow("loss weight", str(weight))


def _content(value: Any) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a content that is a text, null, or a list of typed parts."""
    if isinstance(value, str):
        return value, "", ()
    if value is None:
        return "", "", ()
    if not isinstance(value, list):
        return text(value, "content"), "", ()
    content, reasoning = "", ""
    calls: tuple[dict[str, Any], ...] = ()
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else ""
        body = part if isinstance(part, str) else None
        if isinstance(part, dict) and isinstance(kind, str):
            body = next((part[k] for k in ("text", "value", kind) if part.get(k) is not None), None)
        if isinstance(part, str) or kind in ("text", "input_text", "output_text"):
            content += text(body, "text")
        elif kind in ("reasoning", "thinking"):
            reasoning += text(body, "reasoning")
        elif kind == "tool_call":
            calls += _calls(body)
        else:
            raise BadRow("part not text", str(kind))
    return content, reasoning, calls


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


def tool_list(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools offered, each {"type": "function", "function": schema}; raises BadRow."""
    out = []
    for tool in _as_list([] if value is None else value, "broken tools"):
        if isinstance(tool, str):
            tool = (_as_list(f"[{tool}]", "broken tools") or [None])[0]
        if not isinstance(tool, dict):
            raise BadRow("broken tools", type(tool).__name__)
        out.append(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
    return tuple(out)
