"""What a chat template makes of an answer, beside the answer that went in: nothing of it may be lost in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tuneloop.base.records import Message

NO_THOUGHT = re.compile(r"\s*(?:[<\[][\w:|-]+[>\]]\s*)?[<\[]/[\w:|-]+[>\]]\s*")
"""A thought without words, or the end of one that the prompt has opened: `<think>`, nothing, `</think>`."""


def spoken(message: Message) -> str:
    """The answer of a turn, behind a thought that stands in its text; where the thought is apart, all of the text.

    >>> spoken(Message("assistant", "<think>2 and 2</think>4")), spoken(Message("assistant", "4"))
    ('4', '4')
    """
    return message.content if message.reasoning else message.content.rpartition("</think>")[2]


def is_empty(message: Message) -> bool:
    """Whether a turn says nothing. A thought alone is no answer, whether it stands in the text or apart.

    >>> is_empty(Message("assistant", "<think>hm</think> ")), is_empty(Message("assistant", "", "hm"))
    (True, True)
    """
    text = spoken(message) if message.role == "assistant" else message.content
    return not (text.strip() or message.tool_calls)


def unsaid(message: Message, written: str) -> tuple[str, ...]:
    """What an answer has, where not all of it is in the text that would be trained; () where it is.

    "call", "thought"; of an answer that is none, "alone" (a thought without an answer) or "empty".

    >>> unsaid(Message("assistant", "4", "2 and 2"), "4<end>"), unsaid(Message("assistant", "4"), "4<end>")
    (('thought',), ())
    """
    thinks = bool(message.reasoning) or "</think>" in message.content
    if is_empty(message):
        return ("alone",) if thinks and any(_thoughts(message)) else ("empty",)
    if not written.strip():
        lost = True
    else:
        lost = bool(message.tool_calls) and not _has_calls(message, written)
        lost = lost or (thinks and not all(one in written for one in (*_thoughts(message), spoken(message).strip())))
    return carried(message) if lost else ()


def carried(message: Message) -> tuple[str, ...]:
    """What goes with an answer that is not trained: its calls, its thoughts, else the answer itself."""
    thinks = bool(message.reasoning.strip()) or ("</think>" in message.content and any(_thoughts(message)))
    present = (("call", bool(message.tool_calls)), ("thought", thinks))
    return tuple(what for what, there in present if there) or ("empty",)


def _thoughts(message: Message) -> Iterator[str]:
    yield message.reasoning.strip()
    if message.reasoning:
        return
    for part in message.content.split("</think>")[:-1]:
        yield part.rpartition("<think>")[2].strip()


def _has_calls(message: Message, written: str) -> bool:
    """Whether all calls stand in a text, and the words beside them. Thought and words may name a tool without calling
    it, so they are taken out before the calls are looked for."""
    words = spoken(message).strip()
    if words not in written:
        return False
    for one in (*_thoughts(message), words):
        written = written.replace(one, "", 1) if one else written
    names = [str(call.get("function", {}).get("name", "")) for call in message.tool_calls]
    if any(written.count(name) < names.count(name) for name in names):
        return False
    return all(_has(call.get("function", {}).get("arguments"), written) for call in message.tool_calls)


def _has(argument: Any, written: str) -> bool:
    """Whether every key and value of a call's arguments stands in a text, in JSON's spelling or as it is."""
    if isinstance(argument, dict):
        return all(_has(key, written) and _has(one, written) for key, one in argument.items())
    if isinstance(argument, list | tuple):
        return all(_has(one, written) for one in argument)
    ways = {str(argument).strip(), json.dumps(argument), json.dumps(argument, ensure_ascii=False)}
    return any(way.strip('"') in written for way in ways)
