"""Answers during training: the same held-out questions at each measurement, for a person to read.

They are written greedily and change nothing: no random number is drawn, and every module is left in the mode it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.kinds import KINDS
from tuneloop.data.tokens.chains import empty_thought
from tuneloop.data.tokens.templates import Chat
from tuneloop.inference.generate import Answerer
from tuneloop.model import precision
from tuneloop.model.load import pick_dtype
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal

SHOWN = 60
"""Characters of a question and of an answer in a line on the screen."""


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def answerable(record: Record) -> bool:
    """Whether a model can be asked what this row asks: a question, an answer to compare with, and no tools."""
    replies = record.messages[len(record.prompt) :]
    has_question = any(m.role == "user" for m in record.prompt)
    return KINDS[record.kind].dialogue and has_question and not record.tools and bool(replies)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` of the records, evenly over all: the same ones every time.

    >>> [spread([Record((), line=n) for n in range(10)], 3)[k].line for k in range(3)]
    [0, 3, 6]
    """
    count = min(count, len(records))
    return [records[k * len(records) // count] for k in range(count)]


@dataclass(slots=True)
class Sampler:
    """Answers `questions` after a measurement, into samples.jsonl and in a short line each on the screen."""

    model: nn.Module
    answerer: Answerer
    questions: Sequence[Record]
    journal: Journal
    say: Callable[[str], None]
    max_new_tokens: int
    batch_size: int
    dtype: torch.dtype
    """The type of the recipe; training multiplies in it, and so does answering."""

    def measured(self, step: int, loss: float) -> None:
        """Answer now: a held-out loss was measured after `step`."""
        chats: list[Chat] = [[m.as_chat() for m in r.prompt] for r in self.questions]
        with answering(self.model), precision.computing(self.model, self.dtype):
            replies = self.answerer.answer(chats, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        for record, reply in zip(self.questions, replies, strict=True):
            question = next(m.content for m in reversed(record.prompt) if m.role == "user")
            reference = record.messages[len(record.prompt)].content
            self.journal.write(
                {"step": step, "id": record.id, "prompt": question, "answer": reply.text, "reference": reference}
            )
            self.say(
                t("step {step}: {question} → {answer}", step=step, question=short(question), answer=short(reply.text))
            )


def short(text: str) -> str:
    """The beginning of a text, in one line.

    >>> short("two\\nlines"), len(short("long " * 50))
    ('two lines', 61)
    """
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[:SHOWN] + "…"


def sampler_for(
    model: nn.Module,
    tokenizer: Any,
    recipe: Recipe,
    held: Sequence[Record],
    journal: Journal,
    say: Callable[[str], None],
) -> Sampler | None:
    """The sampler a recipe asks for; None where it asks for none, or no held-out row is a question with an answer."""
    if not recipe.train.sample_answers:
        return None
    trained_thoughts = any(m.reasoning or "</think>" in m.content for record in held for m in record.messages)
    thinks = trained_thoughts or recipe.prepare.empty_thoughts
    answerer = Answerer(model, tokenizer, recipe.prepare.system, "" if thinks else empty_thought(tokenizer))
    most = recipe.evaluate.max_new_tokens

    def fits(record: Record) -> bool:
        return answerer.count([m.as_chat() for m in record.prompt]) + most <= answerer.context

    questions = spread([r for r in held if answerable(r) and fits(r)], recipe.train.sample_answers)
    if not questions:
        return None
    dtype = pick_dtype(recipe.model.dtype)
    return Sampler(model, answerer, questions, journal, say, most, recipe.evaluate.batch_size, dtype)
