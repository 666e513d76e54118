"""One model measured on held-out dialogues: loss over all of them, BLEU and ROUGE of the answers it writes to some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tuneloop.base.files import short_names
from tuneloop.base.records import Message, Record, Reply
from tuneloop.evaluation.evaluation import Scores
from tuneloop.evaluation.form import visible
from tuneloop.evaluation.metrics import measured

HeldLoss = Callable[[list[Record]], tuple[float, int]]
"""Records -> (sum of the cross entropy over their label tokens in nats, number of label tokens)."""


class AnswererLike(Protocol):
    """What evaluation asks of a model (`tuneloop.inference.generate.Answerer`)."""

    @property
    def context(self) -> int: ...

    def count(self, chat: list[dict[str, Any]], /) -> int: ...

    def answer(
        self, chats: list[list[dict[str, Any]]], /, *, max_new_tokens: int = ..., batch_size: int = ...
    ) -> list[Reply]: ...


class ToolAnswerer(AnswererLike, Protocol):
    """One that can be offered tools; `tools` are passed for rows that have some, and not for others."""

    def count(self, chat: list[dict[str, Any]], /, *, tools: Sequence[Any] = ...) -> int: ...


def prompt(record: Record) -> tuple[Message, ...]:
    """The messages before the last assistant turn; empty when there is nothing to answer."""
    last = _last(record)
    return record.messages[:last] if last > 0 else ()


def reference(record: Record) -> str:
    """The text of the last assistant turn, "" if there is none."""
    last = _last(record)
    return record.messages[last].content if last >= 0 else ""


def _last(record: Record) -> int:
    return max((i for i, m in enumerate(record.messages) if m.role == "assistant"), default=-1)


def comparable(record: Record) -> bool:
    """Whether an answer can be compared as text: it has a prompt, a text, and no tools (`calls_tools`)."""
    return bool(any(m.role != "system" for m in prompt(record)) and reference(record).strip() and not record.tools)


def calls_tools(record: Record) -> bool:
    """Whether the answer to a prompt can be compared by the tools that it calls, or does not call."""
    has_prompt = any(m.role != "system" for m in prompt(record))
    last = record.messages[_last(record)] if has_prompt else None
    return last is not None and bool(record.tools) and bool(last.tool_calls or last.content.strip())


def offers(answerer: ToolAnswerer, record: Record) -> bool:
    """Whether the model's template puts the tools of a record before it: some do not know them."""
    chat = [m.as_chat() for m in prompt(record)]
    return answerer.count(chat, tools=record.tools) != answerer.count(chat)


def fitting(answerer: ToolAnswerer, max_new_tokens: int) -> Callable[[Record], bool]:
    """Whether the prompt of a record leaves room for `max_new_tokens` in the model's context."""

    def fits(record: Record) -> bool:
        offered = {"tools": record.tools} if record.tools else {}
        return answerer.count([m.as_chat() for m in prompt(record)], **offered) + max_new_tokens <= answerer.context

    return fits


def pick(
    records: Sequence[Record],
    rows: int,
    fits: Callable[[Record], bool] = lambda record: True,
    wanted: Callable[[Record], bool] = comparable,
) -> list[Record]:
    """At most `rows` records that are `wanted`, one file after the other in turn, each in its order: always the same.

    >>> def row(file, n): return Record((Message("user", "?"), Message("assistant", "!")), file, n)
    >>> [(r.file, r.line) for r in pick([row("a", 1), row("a", 2), row("a", 3), row("b", 9)], 3)]
    [('a', 1), ('b', 9), ('a', 2)]
    """
    queues = [iter(group) for group in by_file(records).values()]
    picked: list[Record] = []
    while queues and len(picked) < rows:
        for queue in list(queues):
            record = next((r for r in queue if wanted(r) and fits(r)), None)
            if record is None:
                queues.remove(queue)
            elif len(picked) < rows:
                picked.append(record)
    return picked


def by_file(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records by their file: its name, or its whole path where two files share a name.

    >>> list(by_file([Record((), "x/a.csv"), Record((), "y/a.csv"), Record((), "y/b.csv")]))
    ['x/a.csv', 'y/a.csv', 'b.csv']
    """
    paths = dict.fromkeys(r.file for r in records)
    shown = dict(zip(paths, short_names(list(paths)), strict=True))
    out: dict[str, list[Record]] = {name: [] for name in shown.values()}
    for record in records:
        out[shown[record.file]].append(record)
    return out


def loss_by_source(records: Sequence[Record], held_loss: HeldLoss) -> dict[str, tuple[float, int]]:
    """(sum of losses, label tokens) of each file's held-out records."""
    return {name: held_loss(group) for name, group in by_file(records).items()}


def score(
    answerer: ToolAnswerer,
    records: list[Record],
    held_loss: HeldLoss,
    *,
    rows: int,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[Scores, list[Reply]]:
    """Measure one model on held-out records; also the answers it wrote to `pick(records, rows, fitting(...))`.

    `held_loss` is asked once for each file, and its sums are added up, so that the loss by file costs nothing.
    """
    picked = pick(records, rows, fitting(answerer, max_new_tokens))
    chats = [[m.as_chat() for m in prompt(r)] for r in picked]
    replies = answerer.answer(chats, max_new_tokens=max_new_tokens, batch_size=batch_size) if chats else []
    sums = loss_by_source(records, held_loss)
    total, label_tokens = sum(s for s, _ in sums.values()), sum(n for _, n in sums.values())
    loss = _mean(total, label_tokens)
    texts = ([visible(reply.text) for reply in replies], [reference(r) for r in picked]) if picked else (None, None)
    return Scores(
        {
            **measured("rows", loss),
            **measured("tokens", loss),
            **measured("answers", *texts),
            **(measured("replies", replies) if picked else {}),
        },
        rows=len(picked),
        label_tokens=label_tokens,
        by_source={name: Scores({"loss": _mean(s, n)}, label_tokens=n) for name, (s, n) in sums.items()},
    ), replies


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
