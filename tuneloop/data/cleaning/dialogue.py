"""Cleaning steps about the turns of a dialogue: empty ones, their order, their number, and whether anything is learnt.

A preference pair is checked as two dialogues: the prompt with the chosen, and with the rejected answer. Plain and
labelled texts have no turns, only a text that may be empty.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, groupby, pairwise

from tuneloop.base.records import Message, Record
from tuneloop.data.cleaning.step import Result, changed, dropped
from tuneloop.data.kinds import KINDS, answers, dialogues, has_equal
from tuneloop.data.tokens.answers import is_empty

Messages = tuple[Message, ...]


def _hole(messages: Messages) -> int:
    """The number of the first empty turn, from 1, or 0. An empty tool result is a result."""
    return next((n for n, m in enumerate(messages, 1) if is_empty(m) and m.role != "tool"), 0)


def empty_turns(record: Record) -> Result:
    """Changed: an empty system prompt and empty last turns are removed. Dropped for an empty turn inside.

    Reasoning without an answer is an empty turn too. A blank text, a blank label and a pair with an empty answer are
    dropped.
    """
    if not KINDS[record.kind].dialogue:
        return _empty_text(record)
    messages = list(record.messages)
    while messages and messages[0].role == "system" and is_empty(messages[0]):
        del messages[0]
    if (compared := answers(record)) and (len(compared) < 2 or any(not turns or _hole(turns) for turns in compared)):
        return dropped(record, "empty_turns", "empty answer")
    before = len(record.messages) - len(messages)
    while messages and is_empty(messages[-1]) and messages[-1].role != "tool":
        del messages[-1]
    if at := _hole(tuple(messages)):
        return dropped(record, "empty_turns", "empty turn", f"{before + at} / {len(record.messages)}")
    if not any(m.role != "system" for m in messages):
        return dropped(record, "empty_turns", "no answer")
    if len(messages) == len(record.messages):
        return record, None
    return changed(record, record.with_messages(tuple(messages)), "empty_turns", "empty end removed")


def _empty_text(record: Record) -> Result:
    if not any(m.content.strip() for m in record.messages):
        return dropped(record, "empty_turns", "no text")
    if KINDS[record.kind].label and not record.label.strip():
        return dropped(record, "empty_turns", "no label")
    return record, None


def merged(messages: Messages) -> Messages:
    """Neighbouring turns of one role as one turn with a blank line between. Results of tools stay apart, and so does
    what follows a tool call. Of answers of which only some are trained the others are left out: merged they would be
    trained too, and a dialogue in which the assistant speaks twice is never served."""
    out: list[Message] = []
    for m in messages:
        last = out[-1] if out else None
        if last is None or not _same_role(last, m):
            out.append(m)
            continue
        if m.role == "assistant" and m.trained != last.trained:
            out[-1] = m if m.trained else last
            continue
        text, thought = (
            "\n\n".join(x for x in pair if x.strip())
            for pair in ((last.content, m.content), (last.reasoning, m.reasoning))
        )
        name = m.name if m.name == last.name else ""
        out[-1] = Message(m.role, text, thought, last.tool_calls + m.tool_calls, m.trained, name)
    return tuple(out) if len(out) < len(messages) else messages


def _same_role(before: Message, after: Message) -> bool:
    return before.role == after.role != "tool" and not _answers_early(before, after)


def _answers_early(call: Message, after: Message) -> bool:
    """Whether text follows a tool call without its result: merging would put the text before the call."""
    return bool(call.tool_calls) and bool(after.content or after.reasoning)


def merge_turns(record: Record) -> Result:
    """Changed where neighbouring turns had the same role."""
    kind = KINDS[record.kind]
    if not kind.dialogue:
        return record, None
    worse = kind.worse(record)
    messages, rejected = merged(record.messages), tuple(chain.from_iterable(map(merged, worse)))
    if messages is record.messages and len(rejected) == len(record.rejected):
        return record, None
    before, after = len(record.messages + record.rejected), len(messages + rejected)
    new = replace(record, messages=messages, rejected=rejected)
    lost = sorted({m.name for m in record.messages} - {m.name for m in messages})
    detail = f"{before} -> {after}" + (f"; name: {', '.join(lost)}" if lost else "")
    learnt = {m.trained for m in record.messages + record.rejected if m.role == "assistant"}
    left_out = len(learnt) > 1 and any(
        _same_role(*two) and two[0].trained != two[1].trained
        for turns in (record.messages, *worse)
        for two in pairwise(turns)
    )
    return changed(record, new, "merge_turns", "untrained answer left out" if left_out else "turns merged", detail)


def reject_turns(record: Record) -> Result:
    """Dropped where neighbouring turns have the same role."""
    kind = KINDS[record.kind]
    if not kind.dialogue:
        return record, None
    if not any(_same_role(*two) for turns in (record.messages, *kind.worse(record)) for two in pairwise(turns)):
        return record, None
    return dropped(record, "reject_turns", "same role twice", _roles(record.messages))


def results(record: Record) -> Result:
    """Changed where the results of tools that name their calls stood in another order than the calls."""
    if not any(m.tool_call_id for m in record.messages):
        return record, None
    messages = _in_order(record.messages)
    if messages == record.messages:
        return record, None
    return changed(record, record.with_messages(messages), "results", "results put in order")


def _in_order(messages: Messages) -> Messages:
    """The messages with each run of results sorted by the calls before it, where every result names one of them."""
    out: list[Message] = []
    for is_tool, run in groupby(messages, lambda m: m.role == "tool"):
        own = list(run)
        places = {call.get("id"): n for n, call in enumerate(out[-1].tool_calls)} if is_tool and out else {}
        if is_tool and all(m.tool_call_id in places for m in own):
            own.sort(key=lambda m: places[m.tool_call_id])
        out += own
    return tuple(out)


def _roles(messages: Messages) -> str:
    return " ".join(m.role for m in messages)[:200]


def _disorder(messages: Messages) -> str:
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
    if not KINDS[record.kind].dialogue:
        return record, None
    for messages in dialogues(record):
        if reason := _disorder(messages):
            return dropped(record, "order", reason, _roles(messages))
    return record, None


def unanswered(record: Record) -> Result:
    """Turns after the last answer that is trained teach nothing and go; a dialogue without one is dropped."""
    kind = KINDS[record.kind]
    if not kind.dialogue:
        return record, None
    answered = (
        n for n, m in enumerate(record.messages, 1) if m.role == "assistant" and (m.trained or kind.last_answer)
    )
    last = max(answered, default=0)
    if not last:
        return dropped(record, "unanswered", "no answer")
    left = record.messages[last:]
    if not left:
        return record, None
    reason = "untrained end removed" if any(m.role == "assistant" for m in left) else "unanswered end removed"
    return changed(record, record.with_messages(record.messages[:last]), "unanswered", reason, str(len(left)))


def _gist(messages: Messages) -> list[tuple[object, ...]]:
    return [(m.role, m.content.strip(), m.reasoning.strip(), m.tool_calls) for m in messages]


def difference(record: Record) -> Result:
    """A row that compares answers of which two are equal teaches nothing and is dropped."""
    if has_equal(map(_gist, answers(record))):
        return dropped(record, "difference", "no difference")
    return record, None


def turn_limit(record: Record, least: int, most: int) -> Result:
    """Dropped where the number of user turns is not in [least, most]."""
    if not KINDS[record.kind].dialogue:
        return record, None
    count = sum(m.role == "user" for m in record.messages)
    if least <= count <= most:
        return record, None
    reason = "too few turns" if count < least else "too many turns"
    return dropped(record, "turns", reason, f"{count} / {least}-{most}")
