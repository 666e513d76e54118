"""Two runs side by side, or one before and after training: the same prompts, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.base.records import Reply
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation.before_after import questions
from tuneloop.evaluation.compare import Comparison, ask, changes, different_rows, of_two_runs, side_by_side
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.progress import Counted
from tuneloop.evaluation.row_places import by_place
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.generate import Answerer
from tuneloop.inference.open import make_answerer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.runs.run import Run

Say = Callable[[str], None]


def compare_runs(
    run: Run, other: Run | None, prompts: Sequence[str], *, max_new_tokens: int, say: Say = lambda text: None
) -> Comparison:
    """The same prompts answered by two runs, or by one before and after training; and their metrics."""
    say(t("loading {ref} …", ref=run.name))
    first, measured = load_trained(run.path), Evaluation.read(run.path)
    mine = measured or Evaluation()
    asking = list(prompts) or questions(first.recipe) or [answer.prompt for answer in mine.answers]

    def answers(of: Trained, model: Any) -> list[Reply]:
        return _answers(of, model, first, asking, max_new_tokens, say)

    metrics, warning = changes(mine), ""
    if other is None:
        say(t("Answering after training"))
        right = answers(first, first.model)
        say(t("Answering before training"))
        with untrained(first) as base:
            left = answers(first, base)
    else:
        say(t("{run} answers", run=run.name))
        left = answers(first, first.model)
        say(t("loading {ref} …", ref=other.name))
        second, theirs = load_trained(other.path), Evaluation.read(other.path)
        say(t("{run} answers", run=other.name))
        right = answers(second, second.model)
        if measured and theirs:
            measured, theirs = by_place(
                [run, other], [replace(measured, held=_held(run)), replace(theirs, held=_held(other))]
            )
            warning = different_rows(measured, theirs, [measured.held, theirs.held])
        metrics = of_two_runs(measured or mine, theirs or Evaluation())
    rows = tuple(side_by_side(p, a, b) for p, a, b in zip(asking, left, right, strict=True))
    return Comparison(rows, tuple(change for change in metrics if change.measured), warning)


def answers_of(
    run: Run, first: Run, prompts: Sequence[str], *, max_new_tokens: int, say: Say = lambda text: None
) -> list[str]:
    """What a run answers to prompts, each a dialogue of its own behind the system prompt of the `first` run."""
    say(t("loading {ref} …", ref=run.name))
    trained = load_trained(run.path)
    say(t("{run} answers", run=run.name))
    begun = trained if run == first else load_trained(first.path)
    return [reply.text.strip() for reply in _answers(trained, trained.model, begun, prompts, max_new_tokens, say)]


def _answers(of: Trained, model: Any, first: Trained, asking: Sequence[str], most: int, say: Say) -> list[Reply]:
    answerer = make_answerer(replace(of, model=model))
    counted = Counted(answerer, len(asking), say) if isinstance(answerer, Answerer) else answerer
    return ask(counted, asking, max_new_tokens=most, batch_size=8, system=first.recipe.prepare.system)


def _held(run: Run) -> tuple[str, ...] | None:
    """Ids of the rows that a run's evaluation was measured on, None where nothing tells them any more."""
    evaluation = Evaluation.read(run.path)
    if evaluation is not None and evaluation.held is not None:
        return evaluation.held
    try:  # evaluations of earlier versions name no rows
        return tuple(record.id for record in dataset_of(run).records("validation"))
    except TuneloopError:
        return None
