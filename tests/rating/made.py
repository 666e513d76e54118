"""A workspace with an evaluated run, and ratings as raters would make them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tuneloop.base.records import Message
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.pairs import pair_up
from tuneloop.rating.rating import AnswerRating, Rating
from tuneloop.rating.study import Shares, Study
from tuneloop.runs.run import Run

CONTEXT = (Message("user", "Hello, who are you?"), Message("assistant", "A helper."))


def run_with(folder: Path, answers: list[Answer], name: str = "demo-1") -> Run:
    """A run folder that holds these answers, as `tuneloop evaluate` leaves it."""
    path = folder / "runs" / name
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: demo\nmodel: smollm2-135m-instruct\ndata: x.jsonl\n", encoding="utf-8")
    Evaluation(answers=tuple(answers)).write(path)
    return Run(path)


def answers(count: int, after: str = "after") -> list[Answer]:
    return [Answer(f"question {n}", f"before {n}", f"{after} {n}", context=()) for n in range(count)]


def study_of(run: Run, other: Run | None = None, gold=(), **shares) -> Study:
    return Study.begin(Study.at(run, other), pair_up(run, other), gold, Shares(**shares))


def rating(
    study: Study, rater: str, n: int, choice: str, scores=(4, 4, 4), other=(2, 3, 2), safe=(True, True)
) -> Rating:
    """The n-th slot of a rater's plan, rated: `choice`, `scores` and `safe` are of the models, whatever their sides."""
    slot = study.plans[rater][n]
    blank = study.blank(rater, slot)
    views = {
        model: AnswerRating(tuple(marks), fine, "" if fine else "it lies")
        for model, marks, fine in zip(study.models, (scores, other), safe, strict=True)
    }
    sides = {study.models[0]: "first", study.models[1]: "second"}
    picked = {sides[blank.model_a]: "A", sides[blank.model_b]: "B"}.get(choice, choice)
    a, b = views[blank.model_a], views[blank.model_b]
    return Rating(slot.pair, rater, blank.model_a, blank.model_b, slot.kind, a, b, picked, "2026-01-31T12:00:00Z", 1.5)


def simulated(study: Study, raters: list[str], prefers: Callable[[random.Random, str], str], seed: int = 0) -> None:
    """All slots of the raters, rated as `prefers` says of a pair; one draw for each."""
    draw = random.Random(seed)
    for name in raters:
        plan = study.join(name)
        study.add([rating(study, name, n, prefers(draw, plan[n].pair)) for n in range(len(plan))])
