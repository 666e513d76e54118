"""Evidence for parity, by how a model answers: what the trained and the exported model are asked, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.templates import Chat, encode, render
from tuneloop.data.version import dataset as datasets
from tuneloop.evaluation import preference
from tuneloop.evaluation.diagnosis import ended
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.exports import parity
from tuneloop.exports.forms import HELD, computing_dtype
from tuneloop.exports.parity import Evidence
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.model.head import Answers
from tuneloop.runs.run import Run
from tuneloop.tasks.task import Task, TaskContext
from tuneloop.training.digests import template_digest

QUESTIONS = (
    "Who are you?",
    "Give three tips for staying healthy.",
    "你好，请介绍一下你自己。",
    "Write a Python function that adds two numbers.",
)
"""Asked where the run has no evaluated answers of its own."""
CHATS = 4
"""Dialogues of the parity check."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What both models are asked: dialogues that end with an answer, texts, held-out rows."""

    chats: Sequence[Chat] = ()
    texts: Sequence[str] = ()
    held: Sequence[Record] = ()
    template: str | None = None
    """Digest of the chat template that the run recorded when it ended; None where it recorded none."""


@dataclass(frozen=True, slots=True)
class Examination:
    """How models that answer in one way are compared.

    `questions(run, model, tokenizer, chats)` are asked of both; `chats` are those that the caller wants.
    `evidence(model, tokenizer, task, context, questions)` is what one of them says.
    """

    questions: Callable[[Path, nn.Module, Any, Sequence[Chat] | None], Questions]
    evidence: Callable[[nn.Module, Any, Task, TaskContext, Questions], Evidence]


def dialogues(run: Path) -> list[Chat]:
    """Question and reference answer of what the run's evaluation has asked; [] without an evaluation."""
    evaluation = Evaluation.read(run) or Evaluation()
    return [
        [{"role": "user", "content": a.prompt}, {"role": "assistant", "content": a.reference or a.after}]
        for a in evaluation.answers
        if a.prompt and (a.reference or a.after)
    ]


def _chats(run: Path, model: nn.Module, tokenizer: Any, chats: Sequence[Chat] | None) -> Questions:
    chosen = [c for c in (dialogues(run) if chats is None else chats) if parity.questions(c)][:CHATS]
    chosen = chosen or [[{"role": "user", "content": q}] for q in QUESTIONS]
    return Questions(
        _answered(Answerer(model, tokenizer), chosen),
        held=held_rows(run, tokenizer),
        template=ended(Run(run)).get("template"),
    )


def _answered(answerer: Answerer, chats: Sequence[Chat]) -> list[Chat]:
    """The chats that have an assistant turn as they are; the others with the trained model's answer."""
    out: list[Chat] = []
    for chat in chats:
        if not any(m["role"] == "assistant" for m in chat):
            reply = answerer.answer([chat], max_new_tokens=parity.NEW_TOKENS)[0]
            chat = [*chat, {"role": "assistant", "content": reply.text}]
        out.append(chat)
    return out


def _texts(run: Path, model: nn.Module, tokenizer: Any, chats: Sequence[Chat] | None) -> Questions:
    """Texts that a classifier's evaluation shows, and questions beside them, so that there is always one."""
    evaluation = Evaluation.read(run) or Evaluation()
    mistakes = (one.text for one in evaluation.mistakes if one.text)
    return Questions(texts=[*mistakes, *(one.prompt for one in evaluation.show), *QUESTIONS])


def _pairs(run: Path, model: nn.Module, tokenizer: Any, chats: Sequence[Chat] | None) -> Questions:
    """Dialogues for a reward model: any will do, for scores can be compared to the last digit."""
    return Questions(
        [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q in QUESTIONS for a in QUESTIONS]
    )


def _logits(model: nn.Module, tokenizer: Any, task: Task, context: TaskContext, questions: Questions) -> Evidence:
    evidence = parity.measure(model, tokenizer, questions.chats, questions.held)
    return replace(evidence, template_changed=questions.template not in {None, template_digest(tokenizer)})


def _labels(model: nn.Module, tokenizer: Any, task: Task, context: TaskContext, questions: Questions) -> Evidence:
    classifier = Classifier(model, tokenizer, task, replace(context, tokenizer=tokenizer))
    return measure_labels(classifier, questions.texts)


def _scores(model: nn.Module, tokenizer: Any, task: Task, context: TaskContext, questions: Questions) -> Evidence:
    return measure_scores(Scorer(model, tokenizer), questions.chats)


def held_rows(run: Path, tokenizer: Any) -> list[Record]:
    """Rows that the run has held out, of at most `HELD` tokens together; [] where its dataset is gone."""
    folder = Run(run).dataset()
    if folder is None:
        return []
    try:
        held = datasets.open_dataset(folder).records("validation")
    except TuneloopError:
        return []
    rows, tokens = list[Record](), 0
    for record in preference.dialogues(held[: parity.MOST_ROWS]):
        length = sum(len(sample.ids) for sample in tokenize(tokenizer, [record]))
        if tokens + length <= HELD:
            rows.append(record)
            tokens += length
    return rows


def measure_labels(classifier: Classifier, texts: Sequence[str]) -> Evidence:
    """What a classifier says to texts: the logarithms of its probabilities, and its labels by number."""
    chances = classifier.classify(texts)
    logits = [torch.tensor([list(of.values())], dtype=torch.float64).clamp_min(1e-30).log().float() for of in chances]
    return Evidence(
        logits=tuple(logits),
        answers=tuple((int(row.argmax()),) for row in logits),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(classifier.tokenizer, list(texts))),
        dtype=computing_dtype(classifier.model),
    )


def measure_scores(scorer: Scorer, chats: Sequence[Chat]) -> Evidence:
    """What a reward model says to dialogues."""
    texts = [render(scorer.tokenizer, chat) for chat in chats]
    return Evidence(
        logits=tuple(torch.tensor([[score]]) for score in scorer.scores(chats)),
        answers=(),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(scorer.tokenizer, texts)),
        dtype=computing_dtype(scorer.model),
    )


EVIDENCE: dict[Answers, Examination] = {
    "text": Examination(_chats, _logits), "label": Examination(_texts, _labels), "score": Examination(_pairs, _scores),
}  # fmt: skip
"""How a model answers -> how a trained and an exported one are compared."""
