"""Thoughts that stand in the text of an answer: all spellings become `<think>`, and one without an end gets it.

Templates know `<think>` alone: in any other spelling the thought would be the answer, behind an empty thought of the
template's own. A thought without its end is one without an answer: what it would have come to is not in the data.
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
    """The messages, with the thoughts in their answers as `<think>…</think>`; what was changed is noted.

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
    mark = opened[1]
    close = _closing(mark)
    plain = mark == "<think>"
    inside, closed, after = _parted(rest[opened.end() :], close)
    if _is_meant(mark, close, bool(closed), messages):
        return message
    if closed and (message.reasoning or plain):
        return message
    notes.thoughts["" if closed else "open", mark] = None
    thought = inside.strip()
    if message.reasoning:
        same = thought in message.reasoning
        return replace(message, content="", reasoning=message.reasoning if same else f"{message.reasoning}\n{thought}")
    if found := _FRAME.match(after):
        after = found[1]
    written = f"{before}{end}<think>\n{thought}\n{_END}"
    return replace(message, content=f"{written}\n\n{after.lstrip()}" if after.strip() else written)


def _closing(mark: str) -> str:
    if mark.startswith("<|"):
        return "<|end_of_thought|>"
    return f"{mark[0]}/{mark[1:]}"


def _parted(text: str, close: str) -> tuple[str, str, str]:
    """The thought, its end and what follows; the end is "" where there is none."""
    found = re.search(re.escape(close), text, re.IGNORECASE)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _is_meant(mark: str, close: str, closed: bool, messages: Iterable[Message]) -> bool:
    """Whether the mark is asked for or asked about: the prompt has it, that of an open one without its end."""
    asked = [m.content.casefold() for m in messages if m.role in ("user", "system")]
    mark, close = mark.casefold(), close.casefold()
    return any(mark in text and (closed or close not in text) for text in asked)
