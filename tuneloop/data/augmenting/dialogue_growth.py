"""Dialogues with a generated turn: a model writes the user's question, then the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.base.records import Message, Record
from tuneloop.data.cleaning.languages import language
from tuneloop.data.dedupe.exact import squeezed

LONGEST = 400
"""Characters of a question."""
_NEXT = {
    "en": "Here is a conversation.\n\n{talk}\n\nWrite the next question that this user might ask. Write only the"
    " question.",
    "zh": "下面是一段对话。\n\n{talk}\n\n写出这位用户接下来可能会问的一个问题。只写问题本身。",
}
_OTHER = {
    "en": "Here is a conversation.\n\n{talk}\n\nImagine that the user's last question had been a different one on the"
    " same subject. Write that question. Write only the question.",
    "zh": "下面是一段对话。\n\n{talk}\n\n假设用户最后问的是同一话题的另一个问题。写出那个问题。只写问题本身。",
}
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|here (?:is|are)|okay|i'?m sorry|as an ai)\b|好的|当然|以下是|抱歉|作为", re.IGNORECASE
)


_Answer = Callable[[Sequence[Any]], list[str]]


def grown(
    parents: Sequence[Record], languages: Sequence[str], answer: _Answer, *, other: bool, ask: _Answer | None = None
) -> Iterator[tuple[Record | None, str]]:
    """(record, "") or (None, reason) for each dialogue: with one more question and its answer or, where `other`, with
    another question in place of the last. `languages` are those of the dialogues; `ask` writes the questions."""
    last = [max(n for n, m in enumerate(r.messages) if m.role == "user") for r in parents]
    prompts = _OTHER if other else _NEXT
    requests = [
        prompts["zh" if code == "zh" else "en"].format(talk=_talk(r.messages[: at + 1] if other else r.messages, code))
        for r, code, at in zip(parents, languages, last, strict=True)
    ]
    questions = (ask or answer)([[{"role": "user", "content": request}] for request in requests])
    todo: list[tuple[Record, tuple[Message, ...]]] = []
    for record, code, at, text in zip(parents, languages, last, questions, strict=True):
        question = _question(text)
        if reason := _no_question(record, code, question):
            yield None, reason
        else:
            head = record.messages[:at] if other else record.messages
            todo.append((record, (*head, Message("user", question))))
    replies = answer([[m.as_chat() for m in messages] for _, messages in todo])
    for (record, messages), reply in zip(todo, replies, strict=True):
        if not reply.strip():
            yield None, "no answer, or one that breaks off"
            continue
        context = tuple(replace(m, trained=False) if m.role == "assistant" else m for m in messages)
        yield replace(record, messages=(*context, Message("assistant", reply.strip())), parent=record.id), ""


def _talk(messages: Sequence[Message], code: str) -> str:
    names = {"user": "用户", "assistant": "助手"} if code == "zh" else {"user": "User", "assistant": "Assistant"}
    colon = "：" if code == "zh" else ": "
    return "\n".join(f"{names[m.role]}{colon}{m.content}" for m in messages if m.role in names)


def _question(text: str) -> str:
    """The question in a model's output: the first line that ends in a question mark, else the first line.

    >>> _question('Sure! Here is one:\\n1. "How long does it take?"')
    'How long does it take?'
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    candidates = [_LABEL.sub("", line).strip().strip('"“”*').strip() for line in lines]
    return next((line for line in candidates if line.endswith(("?", "？"))), candidates[0] if candidates else "")


_LABEL = re.compile(r"^\s*(?:(?:[-*]|\d+[.、)])\s+|(?:user|question|用户|问题)\s*[:：]\s*)+", re.IGNORECASE)


def _no_question(record: Record, code: str, question: str) -> str:
    if not 2 <= len(question) <= LONGEST or _PREAMBLE.match(question):
        return "no question"
    if squeezed(question) in {squeezed(m.content) for m in record.messages}:
        return "nothing new"
    return "other language" if code and (language(question) or code) != code else ""
