"""Turns in any of the known formats -> messages, with reasoning, tool calls and loss weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tuneloop.base.records import Message, MessagePart, Text, content_of
from tuneloop.data.reading.keys import CONTENT, SPEAKER, THOUGHT, Notes, extras, text, thought
from tuneloop.data.reading.keys import BadRow as BadRow
from tuneloop.data.reading.shapes import PAIR_TURNS

SPEAKERS = {
    **dict.fromkeys(("user", "human", "client", "customer", "patient", "visitor", "prompter", "用户", "客户", "顾客",
                     "买家", "患者", "病人", "来访者", "求助者", "访客", "人类", "提问者", "学生", "消费者",
                     "会员"), "user"),
    **dict.fromkeys(("assistant", "gpt", "counselor", "counsellor", "model", "bot", "chatgpt", "agent", "ai", "doctor",
                     "therapist", "助手", "助理", "客服", "坐席", "座席", "商家", "机器人",
                     "卖家", "医生", "咨询师", "心理咨询师", "老师",
                     "模型"), "assistant"),
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "工具"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}  # fmt: skip


def answer(reply: Any, what: str, notes: Notes) -> str:
    """The text of an answer; several in a list are one text, with commas between. Raises BadRow."""
    if isinstance(reply, list) and reply and all(isinstance(one, str | int | float) for one in reply):
        notes.coerced[f"{what}: list"] = None
        return ", ".join(words for one in reply if (words := text(one, what, Notes())).strip())
    return text(reply, what, notes)


def needed(row: Mapping[str, Any], column: str, notes: Notes) -> str | list[Any]:
    """The text of a column, or its list of turns; a list of one text is that text."""
    cell = unfolded(row.get(column))
    if cell is None:
        raise BadRow("missing value", column)
    if isinstance(cell, list):
        if len(cell) == 1 and isinstance(cell[0], str):
            return cell[0]
        if cell and all(isinstance(v, dict) for v in cell):
            return cell
    return text(cell, column, notes)


def unfolded(cell: Any) -> Any:
    """The turn or turns that a table's cell holds as JSON text, decoded; anything else unchanged.

    >>> unfolded('[{"role": "user", "content": "q"}]'), unfolded('[{"a": 1}]')
    ([{'role': 'user', 'content': 'q'}], '[{"a": 1}]')
    """
    if not isinstance(cell, str) or not _TURNS.match(cell):
        return cell
    try:
        decoded = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    turns = decoded if isinstance(decoded, list) else [decoded]
    return decoded if all(isinstance(turn, dict) and is_spoken(turn) for turn in turns) else cell


_TURNS = re.compile(r"\s*(?:\[\s*)?\{\s*\"(?:role|from|content|value)\"\s*:")


def _as_list(cell: Any, reason: str) -> list[Any]:
    """A list, decoded where it is JSON text; raises BadRow(reason)."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell) if cell.strip() else []
        except (ValueError, RecursionError) as error:
            raise BadRow(reason, str(error)) from error
    if not isinstance(cell, list):
        raise BadRow(reason, type(cell).__name__)
    return cell


def turn_list(cell: Any, notes: Notes) -> list[Message]:
    """The messages of a list of turns, or of its JSON text; raises BadRow."""
    turns = _as_list(cell, "no turns")
    if len(turns) == 1 and isinstance(turns[0], list) and all(isinstance(one, dict) for one in turns[0]):
        turns = turns[0]
    if not turns:
        raise BadRow("no turns")
    out: list[Message] = []
    for turn in turns:
        if isinstance(turn, dict) and is_spoken(turn):
            message = _spoken(turn, notes)
            if message.role != "system" or message not in out:
                out.append(message)
            continue
        for message in _pair(turn, notes):
            # EmoLLM may repeat the system prompt in every turn: it is one prompt
            if message.role != "system" or message not in out:
                out.append(message)
    return out


def is_spoken(turn: Mapping[str, Any]) -> bool:
    """Whether a turn says who speaks: OpenAI's role, ShareGPT's from; another name counts beside a text."""
    if "role" in turn or "from" in turn:
        return True
    return not turn.keys().isdisjoint(SPEAKER) and not turn.keys().isdisjoint(CONTENT)


def _pair(turn: Any, notes: Notes) -> list[Message]:
    if isinstance(turn, list | tuple) and len(turn) == 2:
        return [
            Message("user", text(turn[0], "history", notes)),
            Message("assistant", answer(turn[1], "history", notes)),
        ]
    if not isinstance(turn, dict):
        raise BadRow("unknown turn", type(turn).__name__)
    for ask, reply in PAIR_TURNS:
        if ask in turn and reply in turn:
            system = turn.get("system")
            head = [Message("system", text(system, "system", notes))] if system not in (None, "") else []
            extra = extras(turn, "assistant", notes, (ask, reply, "system"))
            calls = _calls(extra.calls, notes) if extra.calls is not None else ()
            question = text(needed(turn, ask, notes), ask, notes)
            response = turn.get(reply)
            response = "" if response is None and calls else response
            if response is None:
                raise BadRow("missing value", reply)
            content = answer(response, reply, notes)
            return [
                *head,
                Message("user", question),
                Message("assistant", content, extra.reasoning, calls, extra.trained, extra.name),
            ]
    raise BadRow("unknown turn", ", ".join(map(str, turn)))


def _first(turn: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of these keys that is there and not null."""
    for name in names:  # a generator would cost as much as all else of a turn
        if (content := turn.get(name)) is not None:
            return content
    return None


def _spoken(turn: dict[str, Any], notes: Notes) -> Message:
    """A turn with a speaker: OpenAI's role and content, or ShareGPT's from and value."""
    name = _first(turn, SPEAKER)
    role = SPEAKERS.get(name.strip().casefold()) if isinstance(name, str) else None
    body = _first(turn, CONTENT)
    if len(turn) == 2 and isinstance(body, str) and role in ("user", "assistant", "system"):
        return Message(role, body)  # type: ignore[arg-type]
    extra = extras(turn, role, notes, (), body, name)
    if role == "call":
        return Message("assistant", "", extra.reasoning, _calls(body, notes), extra.trained, extra.name)
    content, reasoning, calls = _content(body, notes)
    if (reasoning or calls) and role != "assistant":
        raise BadRow("part not text", str(name))
    if role in ("user", "system"):
        return Message(role, content, name=extra.name)  # type: ignore[arg-type]
    if role == "tool":
        return Message("tool", content, name=extra.name, tool_call_id=extra.call_id)
    if role != "assistant":
        raise BadRow("unknown role", str(name))
    if reasoning and extra.reasoning and reasoning.strip() != extra.reasoning.strip():
        notes.unread["reasoning"] = None
    calls += _calls(extra.calls, notes) if extra.calls is not None else ()
    return Message("assistant", content, reasoning or extra.reasoning, calls, extra.trained, extra.name)


def _content(raw: Any, notes: Notes) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a content that is a text, null, or a list of typed parts."""
    if isinstance(raw, str):
        return raw, "", ()
    if raw is None:
        return "", "", ()
    if not isinstance(raw, list):
        return text(raw, "content", notes), "", ()
    parts: list[MessagePart] = []
    reasoning = ""
    calls: tuple[dict[str, Any], ...] = ()
    for part in raw:
        kind = part.get("type") if isinstance(part, dict) else ""
        body = part if isinstance(part, str) else None
        if isinstance(part, dict) and isinstance(kind, str):
            body = next((part[k] for k in ("text", "value", kind) if part.get(k) is not None), None)
        if isinstance(part, str) or kind in ("text", "input_text", "output_text"):
            parts.append(Text(text(body, "text", notes)))
        elif kind in THOUGHT:
            reasoning += thought(body)
        elif kind == "tool_call":
            calls += _calls(body, notes)
        else:
            raise BadRow("part not text", str(kind))
    return content_of(parts), reasoning, calls


def _calls(raw: Any, notes: Notes) -> tuple[dict[str, Any], ...]:
    """Tool calls in OpenAI's form, their arguments always an object, whatever they were encoded as."""
    raw = _decoded(raw)
    calls = raw if isinstance(raw, list) else [raw]
    return tuple(_call(_decoded(call), notes) for call in calls)


def _call(call: Any, notes: Notes) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise BadRow("broken tool call", type(call).__name__)
    inner = call.get("function")
    body = inner if isinstance(inner, dict) else call
    name, raw = body.get("name"), body.get("arguments", body.get("parameters"))
    arguments = _decoded(raw)
    arguments = {} if arguments in (None, "") else arguments
    if isinstance(raw, dict):
        arguments = without_nulls(arguments, notes.nulls)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise BadRow("broken tool call", f"{name}: {type(arguments).__name__}")
    head = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**head, "type": "function", "function": {"name": name, "arguments": arguments}}


def _decoded(encoded: Any) -> Any:
    """Decoded JSON text, also where it was encoded twice; anything else unchanged."""
    for _ in range(2):
        if not isinstance(encoded, str) or not encoded.strip():
            break
        try:
            encoded = json.loads(encoded)
        except (ValueError, RecursionError) as error:
            raise BadRow("broken tool call", str(error)) from error
    return encoded


def without_nulls(tree: Any, left_out: dict[str, None]) -> Any:
    """Data without keys that are null. Arrow gives every object all keys of the column, and null where a row has none,
    so a null there is no value; in JSON it is read alike, and `left_out` gets its key.

    >>> without_nulls({"a": 1.0, "b": None, "c": [None, {"d": None}]}, {})
    {'a': 1, 'c': [None, {}]}
    """
    if isinstance(tree, dict):
        left_out |= {key: None for key, inner in tree.items() if inner is None}
        return {key: without_nulls(inner, left_out) for key, inner in tree.items() if inner is not None}
    if isinstance(tree, list):
        return [without_nulls(inner, left_out) for inner in tree]
    # a column of 1 and 2.5 has 1.0 in it: in JSON both are one number
    return int(tree) if isinstance(tree, float) and tree.is_integer() and abs(tree) < 1 << 53 else tree


def tool_list(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools offered, each {"type": "function", "function": schema}; raises BadRow."""
    out = []
    for tool in _as_list([] if tools is None else tools, "broken tools"):
        if isinstance(tool, str):
            tool = (_as_list(f"[{tool}]", "broken tools") or [None])[0]
        elif not isinstance(tools, str):
            tool = without_nulls(tool, {})
        if not isinstance(tool, dict):
            raise BadRow("broken tools", type(tool).__name__)
        out.append(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
    return tuple(out)
