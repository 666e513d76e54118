"""Two answers to the same prompt, to be compared by people or by a judge."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.base.language import t
from tuneloop.base.records import Message
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.form import visible
from tuneloop.runs.run import Run

BEFORE = ":before"
"""Behind a run's name: the model that it was trained from, with its prompts."""


def shown_model(name: str) -> str:
    """A model's name for a reader.

    >>> shown_model("demo-1:before"), shown_model("demo-1")
    ('demo-1 before training', 'demo-1')
    """
    return t("{run} before training", run=name.removesuffix(BEFORE)) if name.endswith(BEFORE) else name


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A prompt and two answers to it, without the thoughts before them. `context` are the turns before the prompt.

    `cut` says of each answer whether it was cut off at its longest. `right` is the known choice of a gold row ("first",
    "second", "tie", "both_bad"), "" of any other.
    """

    prompt: str
    first: str
    second: str
    context: tuple[Message, ...] = ()
    reference: str = ""
    right: str = ""
    cut: tuple[bool, bool] = (False, False)

    @property
    def id(self) -> str:
        """12 hex digits of the content: the same pair has the same id in every study."""
        turns = [[turn.role, turn.content] for turn in self.context]
        body = json.dumps([turns, self.prompt, self.first, self.second], ensure_ascii=False)
        return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def same(self) -> bool:
        """Whether both answers are the same text."""
        return self.first.strip() == self.second.strip()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AnswerPair:
        context = tuple(Message(turn["role"], turn["content"]) for turn in content.get("context") or ())
        texts = {key: str(content.get(key) or "") for key in ("prompt", "first", "second", "reference", "right")}
        first, second = content.get("cut") or (False, False)
        return cls(context=context, cut=(bool(first), bool(second)), **texts)

    def as_dict(self) -> dict[str, Any]:
        """A JSON object, its id first."""
        context = [{"role": turn.role, "content": turn.content} for turn in self.context]
        texts = {key: getattr(self, key) for key in ("prompt", "first", "second", "reference", "right")}
        return {"id": self.id, "context": context, **texts, "cut": list(self.cut)}


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two models by their names, and the pairs of their answers."""

    models: tuple[str, str]
    pairs: tuple[AnswerPair, ...]


def pair_up(
    run: Run,
    other: Run | None,
    prompts: Sequence[str] = (),
    *,
    rows: int = 0,
    seed: int = 0,
    max_new_tokens: int = 256,
    say: Callable[[str], None] = lambda text: None,
) -> Pairing:
    """A run before and after training, or two runs, on the same prompts.

    Answers that stand in evaluation.json are used where both are there; otherwise, and to `prompts` of the caller,
    both models answer. At most `rows` pairs are drawn, 0 for all. Raises TL-RUN-NO-PAIRS where there is none.
    """
    models = (f"{run.name}{BEFORE}", run.name) if other is None else (run.name, other.name)
    pairs = [] if prompts else _evaluated(run, other)
    if not pairs:
        from tuneloop.evaluation.runs import compare_runs  # with torch: stored answers need none of it

        say(t("Both models answer the prompts"))
        compared = compare_runs(run, other, prompts, max_new_tokens=max_new_tokens, say=say)
        pairs = [_of_one(answer) for answer in compared.answers]
    unique = list({pair.id: pair for pair in pairs}.values())
    if not unique:
        raise RunError("TL-RUN-NO-PAIRS", where=str(run.path))
    if 0 < rows < len(unique):
        unique = [unique[n] for n in sorted(random.Random(f"rows {seed}").sample(range(len(unique)), rows))]
    return Pairing(models, tuple(unique))


def _evaluated(run: Run, other: Run | None) -> list[AnswerPair]:
    """Pairs of the answers in evaluation.json: of one run before and after, of two those both were asked for."""
    mine = _answers(Evaluation.read(run.path))
    if other is None:
        return [_of_one(answer) for answer in mine.values()]
    theirs = _answers(Evaluation.read(other.path))
    both_asked = [(answer, theirs[key]) for key, answer in mine.items() if key in theirs]
    return [
        _pair(answer, (answer.after, other.after), (answer.after_fault, other.after_fault))
        for answer, other in both_asked
    ]


def _answers(evaluation: Evaluation | None) -> dict[tuple[Any, ...], Answer]:
    """Prompt and the turns before it -> the answers to it; held-out rows first, then those of evaluate.show."""
    if evaluation is None:
        return {}
    return {(answer.context, answer.prompt): answer for answer in (*evaluation.answers, *evaluation.show)}


def _of_one(answer: Answer) -> AnswerPair:
    return _pair(answer, (answer.before, answer.after), (answer.before_fault, answer.after_fault))


def _pair(answer: Answer, texts: tuple[str, str], faults: tuple[str, str]) -> AnswerPair:
    first, second = map(visible, texts)
    cut = (faults[0] == "unfinished", faults[1] == "unfinished")
    return AnswerPair(answer.prompt, first, second, answer.context or (), answer.reference, cut=cut)
