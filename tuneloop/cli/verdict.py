"""A column of 0 and 1, or of true and false, beside answers: it may say which of them are good.

On a terminal a person is asked; elsewhere it is said that every answer is learned, and which line decides otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.base.language import t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.data.version.dataset import Dataset
    from tuneloop.recipe.schema import Recipe


def prepared(recipe: Recipe, workspace: Path) -> tuple[Dataset, Recipe]:
    """The dataset of a recipe, and the recipe with what a person has answered."""
    from tuneloop import pipeline
    from tuneloop.data.reading import places

    own = [line for file in recipe.data for line in places.own(file)]
    if own and _rank()[1]:
        show.say("\n".join(own))
    dataset = pipeline.prepare(recipe, workspace=workspace, say=show.say)
    doubts = {s["file"]: (s["doubt"], s.get("holds") or "0, 1") for s in dataset.manifest["sources"] if s.get("doubt")}
    _tell_judged(dataset, recipe)
    if not doubts or recipe.train.task != "auto" or not _rank()[1]:
        return dataset, recipe
    for file, (column, values) in doubts.items():
        doubt = t(
            "{file}: `{column}` holds {values} beside answers; it is not used, and every answer is learned (SFT).",
            file=file,
            column=column,
            values=values,
        )
        show.say(doubt)
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or not _rank()[0]:
        show.say(
            t(
                "If it says which answers are good (1, true) and bad (0, false), "
                "--set train.task=prefer learns that (KTO)."
            )
        )
        return dataset, recipe
    if not typer.confirm(
        t("Does it say which answers are good (1, true) and bad (0, false), to learn from that (KTO)?"), err=True
    ):
        return dataset, recipe
    train = recipe.train.model_copy(update={"task": "prefer"})
    recipe = recipe.model_copy(update={"train": train})
    return pipeline.prepare(recipe, workspace=workspace, say=show.say), recipe


def _rank() -> tuple[bool, bool]:
    """Whether this process is the only one, and whether it leads; rows need no peers, so it may wait for none."""
    from tuneloop.base.errors import TuneloopError
    from tuneloop.training import distributed

    try:
        return distributed.world().num_processes == 1, distributed.leads()
    except TuneloopError:
        return True, True


def _tell_judged(dataset: Dataset, recipe: Recipe) -> None:
    """Say where a column has made judged answers of dialogues, and which line trains them all."""
    if recipe.train.task != "auto" or recipe.train.prefer.loss != "auto" or all(file.task for file in recipe.data):
        return
    judged = [s["file"] for s in dataset.manifest["sources"] if s.get("shape") == "judged"]
    for file in judged if judged and _rank()[1] else ():
        show.say(
            t(
                "{file}: a column says which answers are good and which are bad; that is learned (KTO). "
                "`task: chat` beside the path learns every answer instead (SFT).",
                file=file,
            )
        )
