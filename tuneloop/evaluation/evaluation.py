"""What evaluation.json holds, as types. It is read and written here alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.base.records import Message
from tuneloop.evaluation.findings import RunFinding
from tuneloop.evaluation.forgetting import Forgetting
from tuneloop.evaluation.metrics import METRICS, ClassScore
from tuneloop.evaluation.paired import Paired, RowScores
from tuneloop.evaluation.task_scores import TaskScore
from tuneloop.runs.run import Run

FILE = "evaluation.json"
SIDES = ("before", "after")
COUNTS = ("rows", "label_tokens", "texts")
PLACE = ("id", "section", "file", "line")
"""What an answer says of its row, where it is of one."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model scores: metrics by their name in METRICS, and what they were measured on.

    A metric that is None was not measured, or is not finite, for which JSON has no word; one that is not there belongs
    to another task. Raises ValueError for a name that METRICS does not have.
    """

    metrics: Mapping[str, float | None] = field(default_factory=dict)
    rows: int | None = None
    """Dialogues whose last answer was written and compared."""
    label_tokens: int | None = None
    """Tokens that the loss is a mean over; None of a classifier, and of evaluations that do not tell."""
    texts: int | None = None
    """Texts that a classifier was asked about."""
    by_source: Mapping[str, Scores] = field(default_factory=dict)
    """Of each file its loss, and what that was measured on."""

    def __post_init__(self) -> None:
        order = sorted(self.metrics, key=list(METRICS).index)
        object.__setattr__(self, "metrics", {name: _finite(self.metrics[name]) for name in order})

    def __getitem__(self, metric: str) -> float | None:
        """A metric's value, None where there is none."""
        return self.metrics.get(metric)

    @property
    def measured_on(self) -> int | None:
        """Label tokens, or texts; None where neither is known."""
        return self.texts if self.label_tokens is None else self.label_tokens

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None, by_source: Mapping[str, Scores] | None = None) -> Scores:
        content = content or {}
        metrics = {name: content[name] for name in METRICS if name in content}
        return cls(metrics, **{key: content.get(key) for key in COUNTS}, by_source=by_source or {})

    def as_dict(self) -> dict[str, Any]:
        counts = {key: getattr(self, key) for key in COUNTS}
        return {**self.metrics, **{key: count for key, count in counts.items() if count is not None}}


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt answered before and after training."""

    prompt: str
    before: str
    after: str
    reference: str = ""
    before_fault: str = ""
    """"unfinished", "repeats" (`faults`), or "" where the answer ends by itself and says nothing twice."""
    after_fault: str = ""
    context: tuple[Message, ...] | None = None
    """Of a held-out dialogue the turns before the prompt; None where the prompt stands alone."""
    id: str = ""
    """Of the row, as in `Evaluation.row_scores`; "" where the prompt is no row."""
    section: str = ""
    """Its section of the suite: "" for held-out rows."""
    file: str = ""
    line: int = 0
    """Where the row stands, from 1; 0 where it is not known."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Answer:
        turns = content.get("context")
        context = None if turns is None else tuple(Message(turn["role"], turn["content"]) for turn in turns)
        return cls(**{**_known(cls, content), "context": context})

    def as_dict(self) -> dict[str, Any]:
        place = {name: there for name in PLACE if (there := getattr(self, name))}
        texts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"context", *PLACE}} | place
        if self.context is None:
            return texts
        return {**texts, "context": [{"role": turn.role, "content": turn.content} for turn in self.context]}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How often a pattern occurs in the answers to a set of prompts.

    An answer that repeats itself or does not end helps no probe: it counts only where matches are not wanted.
    """

    name: str
    expect: str
    total: int
    before: int
    after: int
    passed: bool
    at_least: int | None = None
    at_most: int | None = None
    answers: tuple[Answer, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProbeResult:
        answers = tuple(Answer.from_dict(one) for one in content.get("answers") or ())
        return cls(**{**_known(cls, content), "answers": answers})

    def as_dict(self) -> dict[str, Any]:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**shown, "answers": [one.as_dict() for one in self.answers]}


@dataclass(frozen=True, slots=True)
class ClassScores:
    """A classifier's confusion matrix (texts of class i that it calls j) and its scores of each class."""

    confusion: tuple[tuple[int, ...], ...]
    each: tuple[ClassScore, ...]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClassScores:
        each = tuple(ClassScore(**_known(ClassScore, one)) for one in content["each"])
        return cls(tuple(tuple(row) for row in content["confusion"]), each)

    def as_dict(self) -> dict[str, Any]:
        return {"confusion": [list(row) for row in self.confusion], "each": [asdict(one) for one in self.each]}


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that a classifier tells apart, before and after; `fresh`: its head was new, so before is chance."""

    labels: tuple[str, ...]
    fresh: bool
    before: ClassScores
    after: ClassScores

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Classes:
        before, after = (ClassScores.from_dict(content[side]) for side in SIDES)
        return cls(tuple(content["labels"]), bool(content["fresh"]), before, after)

    def as_dict(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "fresh": self.fresh,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Mistake:
    """A text that is called wrong after training: its label, the model's answer, and how sure the model was of it."""

    text: str
    label: str
    answer: str
    chance: float

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Mistake:
        return cls(content["text"], content["label"], content["said"], content["chance"])

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "label": self.label, "said": self.answer, "chance": self.chance}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model before and after training, measured on the same rows and prompts."""

    before: Scores = Scores()
    after: Scores = Scores()
    task: str = ""
    """Of a model that does not write its task, "" of one that does."""
    classes: Classes | None = None
    """Of a classifier."""
    mistakes: tuple[Mistake, ...] = ()
    """Of a classifier, those first that it was surest of."""
    held: tuple[str, ...] | None = None
    """Ids of the rows that were measured; None in evaluations of earlier versions."""
    answers: tuple[Answer, ...] = ()
    """To held-out prompts."""
    show: tuple[Answer, ...] = ()
    """To the prompts of evaluate.show."""
    probes: tuple[ProbeResult, ...] = ()
    paired: tuple[Paired, ...] = ()
    """Metrics with their intervals, one a metric and section of the suite; () in evaluations of earlier versions."""
    row_scores: tuple[RowScores, ...] = ()
    """What each row scored, from which `paired` was computed."""
    section_answers: tuple[Answer, ...] = ()
    """To the rows of the suite's other sections: of the general set and of the user's own files."""
    forgetting: Forgetting | None = None
    """What training did to the general set; None where that was not measured."""
    tasks: tuple[TaskScore, ...] = ()
    """Tasks of lm-evaluation-harness."""
    findings: tuple[RunFinding, ...] = ()
    """What is wrong with the run itself, so that its figures are of another model than was trained."""

    @classmethod
    def read(cls, run: Path) -> Evaluation | None:
        """The evaluation of a run folder; None where there is none. Raises TL-RUN-DAMAGED."""
        content: Any = Run(run).read(FILE)
        try:
            if not isinstance(content, dict):
                raise TypeError(f"{type(content).__name__} instead of an object")
            return cls.from_dict(content) if content else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError("TL-RUN-DAMAGED", where=str(run / FILE), error=str(error)) from error

    def written(self) -> list[Answer]:
        """All answers of both sides: to held-out rows, other sections, side by side, and to the probes."""
        probed = [answer for probe in self.probes for answer in probe.answers]
        return [*self.answers, *self.section_answers, *self.show, *probed]

    def write(self, run: Path) -> Path:
        """Write it into a run folder; its path."""
        return Run(run).write(FILE, self.as_dict())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """The types of a dict that `as_dict` made, now or in an earlier version; keys that nobody knows are ignored."""
        files, held, classes = content.get("by_source") or {}, content.get("held"), content.get("classes")
        before, after = (
            Scores.from_dict(content.get(side), {name: Scores.from_dict(one.get(side)) for name, one in files.items()})
            for side in SIDES
        )
        answers, show = (tuple(Answer.from_dict(one) for one in content.get(key) or ()) for key in ("answers", "show"))
        return cls(
            before,
            after,
            task=content.get("task", ""),
            classes=Classes.from_dict(classes) if classes else None,
            mistakes=tuple(Mistake.from_dict(one) for one in content.get("mistakes") or ()),
            held=tuple(held) if isinstance(held, list) else None,
            answers=answers,
            show=show,
            probes=tuple(ProbeResult.from_dict(one) for one in content.get("probes") or ()),
            paired=tuple(Paired.from_dict(one) for one in content.get("paired") or ()),
            row_scores=tuple(RowScores.from_dict(one) for one in content.get("row_scores") or ()),
            section_answers=tuple(Answer.from_dict(one) for one in content.get("section_answers") or ()),
            forgetting=Forgetting.from_dict(content["forgetting"]) if content.get("forgetting") else None,
            tasks=tuple(TaskScore.from_dict(one) for one in content.get("tasks") or ()),
            findings=tuple(RunFinding.from_dict(one) for one in content.get("findings") or ()),
        )

    def as_dict(self) -> dict[str, Any]:
        """What evaluation.json holds, in its order."""
        content: dict[str, Any] = {"task": self.task} if self.task else {}
        content |= {"before": self.before.as_dict(), "after": self.after.as_dict()}
        files = dict.fromkeys((*self.before.by_source, *self.after.by_source))
        content["by_source"] = {
            name: {side: getattr(self, side).by_source.get(name, Scores()).as_dict() for side in SIDES}
            for name in files
        }
        if self.classes is not None:
            content["classes"] = self.classes.as_dict()
            content["mistakes"] = [one.as_dict() for one in self.mistakes]
        if self.held is not None:
            content["held"] = list(self.held)
        for key in ("answers", "show", "probes"):
            content[key] = [one.as_dict() for one in getattr(self, key)]
        for key in ("paired", "row_scores", "section_answers", "tasks", "findings"):  # earlier versions have none
            if rows := getattr(self, key):
                content[key] = [one.as_dict() for one in rows]
        if self.forgetting is not None:
            content["forgetting"] = self.forgetting.as_dict()
        return content


def _known(cls: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a dict holds of a dataclass."""
    return {f.name: content[f.name] for f in fields(cls) if f.name in content}
