"""The whole suite of a run: what is measured beside its held-out rows, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneloop.base.errors import RecipeError
from tuneloop.base.records import Record
from tuneloop.data.reading import formats
from tuneloop.evaluation import harness
from tuneloop.evaluation.diagnosis import diagnose
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.sections import measure_sections, read_sections, with_sections
from tuneloop.inference.trained import Trained
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run
from tuneloop.tasks.table import TASKS

Say = Callable[[str], None]


def require_measurable(recipe: Recipe) -> None:
    """Raise where what is to be measured beside the held-out rows cannot be: it costs nothing to ask before training.

    A file that is not there or has no shape (TL-DATA-…), a task without its data or package (TL-RUN-TASK-DATA,
    TL-MACHINE-EXTRA), either for a model that names labels (TL-RECIPE-CLASH).
    """
    part, task = recipe.evaluate, TASKS.get(recipe.train.task)  # none where the rows decide
    for key in ("files", "tasks"):
        if getattr(part, key) and task is not None and task.answers != "text":
            raise RecipeError("TL-RECIPE-CLASH", where=f"evaluate.{key}", b=f"train.task: {recipe.train.task}")
    for file in part.files:
        formats.survey(file.source)
    harness.require(part.tasks)


def whole_suite(
    run: Run, trained: Trained, evaluation: Evaluation, held: Sequence[Record] | None, say: Say
) -> Evaluation:
    """The evaluation with all that the recipe asks for beside the held-out rows.

    `held` are the rows that the run's dataset held out; None where others were measured.
    """
    if trained.task.answers == "text":
        sections = read_sections(trained.recipe)
        if sections:
            evaluation = with_sections(evaluation, sections, *measure_sections(trained, sections, say))
        evaluation = replace(evaluation, tasks=harness.measure_tasks(run, trained, say))
    return replace(evaluation, findings=diagnose(run, trained, held, evaluation))
