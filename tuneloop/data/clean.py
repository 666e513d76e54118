"""Cleaning: small steps, one after the other. Each gives the record back, changed or not, or drops it, and says so.

No step knows a file format or a tokenizer. `STEPS` at the end is the whole of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from tuneloop.records import LedgerEntry, Message, Record

Result = tuple[Record | None, LedgerEntry | None]
Step = Callable[[Record], Result]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CODE = re.compile(r"```.*?```|`[^`\n]*`|\\[A-Za-z]+(?:\{\{[^{}]*\}\})+", re.DOTALL)
_UNFILLED = re.compile(r"(?<![\\^_}$={])\{\{\s*([^\W\d]\w+)\s*\}\}(?!\})")


def _dropped(record: Record, step: str, reason: str, detail: str = "") -> Result:
    return None, LedgerEntry("dropped", step, reason, record.file, record.line, record.id, detail)


def _changed(old: Record, messages: tuple[Message, ...], step: str, reason: str, detail: str = "") -> Result:
    new = old.with_messages(messages)
    return new, LedgerEntry("changed", step, reason, old.file, old.line, old.id, detail)


def plain(text: str) -> str:
    r"""Line ends as \n, no control characters but \n and tab, composed characters (NFC).

    >>> plain("a\r\nb\x00\u0065\u0301")
    'a\nbé'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _CONTROL.sub("", text))


def normalise(record: Record) -> Result:
    """Changed where `plain` changes a text or a thought; tool calls stay as they are."""
    messages = tuple(replace(m, content=plain(m.content), reasoning=plain(m.reasoning)) for m in record.messages)
    if messages == record.messages:
        return record, None
    return _changed(record, messages, "normalise", "normalised")


def _empty(message: Message) -> bool:
    return not (message.content.strip() or message.tool_calls)


def empty_turns(record: Record) -> Result:
    """An empty system prompt and empty turns at the end go; an empty turn inside drops the dialogue.

    A thought without an answer is an empty turn too; an empty tool result is a result.
    """
    messages = list(record.messages)
    while messages and messages[0].role == "system" and _empty(messages[0]):
        del messages[0]
    while messages and _empty(messages[-1]) and messages[-1].role != "tool":
        del messages[-1]
    if any(_empty(m) and m.role != "tool" for m in messages):
        at = next(n for n, m in enumerate(messages, 1) if _empty(m) and m.role != "tool")
        return _dropped(record, "empty_turns", "empty turn", f"{at} / {len(record.messages)}")
    if not any(m.role != "system" for m in messages):
        return _dropped(record, "empty_turns", "no answer")
    if len(messages) == len(record.messages):
        return record, None
    return _changed(record, tuple(messages), "empty_turns", "empty end removed")


def templates(record: Record) -> Result:
    """A {{name}} that nobody filled in drops the dialogue. Code in backticks, LaTeX and JSX braces are left alone."""
    for message in record.messages:
        found = _UNFILLED.search(_CODE.sub("", message.content))
        if found and message.role != "tool":
            return _dropped(record, "templates", "unfilled template", found.group(0))
    return record, None


def merged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Neighbouring turns of one role as one turn with a blank line between. Results of tools stay apart, and so does
    what follows a tool call."""
    out: list[Message] = []
    for m in messages:
        last = out[-1] if out else None
        if last is None or last.role != m.role or m.role == "tool" or _answers_early(last, m):
            out.append(m)
            continue
        text, thought = ("\n\n".join(x for x in both if x.strip())
                         for both in ((last.content, m.content), (last.reasoning, m.reasoning)))  # fmt: skip
        out[-1] = Message(m.role, text, thought, last.tool_calls + m.tool_calls)
    return tuple(out)


def _answers_early(call: Message, after: Message) -> bool:
    """Text that follows a tool call without its result: to merge them would put the text before the call."""
    return bool(call.tool_calls) and bool(after.content or after.reasoning)


def merge_turns(record: Record) -> Result:
    """Changed where neighbouring turns had the same role."""
    messages = merged(record.messages)
    if messages == record.messages:
        return record, None
    return _changed(record, messages, "merge_turns", "turns merged", f"{len(record.messages)} -> {len(messages)}")


def _disorder(messages: tuple[Message, ...]) -> str:
    """The reason why the order of the turns cannot be trained, or ""."""
    body = messages[1:] if messages[:1] and messages[0].role == "system" else messages
    if any(m.role == "system" for m in body):
        return "late system turn"
    if body and body[0].role != "user":
        return "begins with the assistant"
    for before, after in pairwise(body):
        if after.role == "tool" and before.role != "tool" and not before.tool_calls:
            return "tool turn without a call"
        if after.role != "tool" and before.tool_calls:
            return "call without a result"
        if after.role == "user" and before.role == "tool":
            return "result without an answer"
    return ""


def order(record: Record) -> Result:
    """System first, then user and assistant in turn; results of tools only after a call. Else dropped."""
    reason = _disorder(record.messages)
    if reason:
        return _dropped(record, "order", reason, " ".join(m.role for m in record.messages)[:200])
    return record, None


def unanswered(record: Record) -> Result:
    """Turns after the last answer teach nothing and go; a dialogue without an answer is dropped."""
    last = max((n for n, m in enumerate(record.messages) if m.role == "assistant"), default=-1)
    if last < 0:
        return _dropped(record, "unanswered", "no answer")
    if last == len(record.messages) - 1:
        return record, None
    left = len(record.messages) - 1 - last
    return _changed(record, record.messages[: last + 1], "unanswered", "unanswered end removed", str(left))


STEPS: tuple[Step, ...] = (normalise, empty_turns, templates, merge_turns, order, unanswered)


def clean(record: Record, steps: tuple[Step, ...] = STEPS) -> tuple[Record | None, list[LedgerEntry]]:
    """The record after all steps, or None; and what happened to it on the way."""
    entries: list[LedgerEntry] = []
    for step in steps:
        cleaned, entry = step(record)
        if entry:
            entries.append(entry)
        if cleaned is None:
            return None, entries
        record = cleaned
    return record, entries
