"""Reasoning inside the text of an answer: all spellings become `<think>`, and one without an end tag gets it.

Chat templates know `<think>` alone: reasoning in any other tag would be the answer, behind an empty thought of the
template's own. Reasoning without an end tag has no answer: the rest is not in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tuneloop.base.records import Message
from tuneloop.data.reading.keys import THOUGHT, Notes

_KEYS = "|".join(re.escape(key) for key in THOUGHT)
_OPEN = re.compile(rf"\s*(<(?:{_KEYS}|seed:think)>|\[think\]|◁think▷|<\|begin_of_thought\|>)", re.IGNORECASE)
_FRAME = re.compile(r"\A\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>\s*)?\Z", re.DOTALL)
_END = "</think>"


def spelled(messages: Sequence[Message], notes: Notes) -> tuple[Message, ...]:
    """The messages, with the reasoning in their answers as `<think>…</think>`; changes go to `notes`.

    >>> spelled([Message("assistant", "<thinking>aha</thinking>ok")], Notes())[0].content
    '<think>\\naha\\n</think>\\n\\nok'
    >>> spelled([Message("assistant", "<think>cut off")], Notes())[0].content
    '<think>\\ncut off\\n</think>'
    """
    return tuple(_spelled(m, messages, notes) if _may_think(m) else m for m in messages)


def spelled_after(messages: Sequence[Message], answers: Sequence[Message], notes: Notes) -> tuple[Message, ...]:
    """The same of answers that reply to `messages`."""
    return tuple(_spelled(m, messages, notes) if _may_think(m) else m for m in answers)


def _may_think(message: Message) -> bool:
    return message.role == "assistant" and message.content.lstrip()[:1] in ("<", "[", "◁")


def _spelled(message: Message, messages: Iterable[Message], notes: Notes) -> Message:
    text = message.content
    before, end, rest = text.rpartition(_END)  # several thoughts in a row: the last one counts
    opened = _OPEN.match(rest)
    if opened is None:
        return message
    tag = opened[1]
    close = _closing(tag)
    is_standard = tag == "<think>"
    inside, closed, after = _parted(rest[opened.end() :], close)
    if _is_meant(tag, close, bool(closed), messages):
        return message
    if closed and (message.reasoning or is_standard):
        return message
    notes.thoughts["" if closed else "open", tag] = None
    thought = inside.strip()
    if message.reasoning:
        same = thought in message.reasoning
        return replace(message, content="", reasoning=message.reasoning if same else f"{message.reasoning}\n{thought}")
    if frame := _FRAME.match(after):
        after = frame[1]
    written = f"{before}{end}<think>\n{thought}\n{_END}"
    return replace(message, content=f"{written}\n\n{after.lstrip()}" if after.strip() else written)


def _closing(tag: str) -> str:
    if tag.startswith("<|"):
        return "<|end_of_thought|>"
    return f"{tag[0]}/{tag[1:]}"


def _parted(text: str, close: str) -> tuple[str, str, str]:
    """The reasoning, its end tag and the rest; the end tag is "" where there is none."""
    match = re.search(re.escape(close), text, re.IGNORECASE)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def _is_meant(tag: str, close: str, closed: bool, messages: Iterable[Message]) -> bool:
    """Whether the prompt has the tag, so that it is meant; for an unclosed one without the end tag."""
    prompts = [m.content.casefold() for m in messages if m.role in ("user", "system")]
    tag, close = tag.casefold(), close.casefold()
    return any(tag in text and (closed or close not in text) for text in prompts)
