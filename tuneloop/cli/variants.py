"""A recipe that compares: its variants run one after the other, each in a process of its own, then side by side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.base.errors import RecipeError, RunError
from tuneloop.base.language import current, listed, t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.recipe.schema import Recipe
    from tuneloop.report.claims import ClaimFinding
    from tuneloop.report.compared import ComparedRuns
    from tuneloop.runs.run import Run


def one_variant(recipe: Recipe, name: str) -> Recipe:
    """The variant of a recipe by its name. Raises TL-RECIPE-VALUE where it has none of this name."""
    from tuneloop.recipe.variants import variants

    every = variants(recipe)
    if name not in every:
        need = t("one of {choices}", choices=listed(every)) if every else t("a recipe with compare.variants")
        raise RecipeError("TL-RECIPE-VALUE", where="--variant", got=name, need=need)
    return every[name]


def run_all(recipe: Recipe, arguments: Sequence[str], workspace: Path, *, json: bool) -> None:
    """Run each variant with `tuneloop run` and these arguments, compare them, and write what came out to their reports.

    A process of its own each: so the memory of one is not counted for the next. Raises TL-RUN-VARIANTS where several
    processes train together; a variant that fails ends all with its status.
    """
    from tuneloop.recipe.variants import variants
    from tuneloop.training import distributed

    if distributed.world().num_processes > 1:
        raise RunError("TL-RUN-VARIANTS", where="torchrun", names=listed(recipe.compare.variants))
    runs: dict[str, Run] = {}
    every = variants(recipe)
    for number, name in enumerate(every, 1):
        show.say(t("Variant {n} of {total}: {name}", n=number, total=len(every), name=name))
        before = _names(workspace, recipe)
        command = [sys.executable, "-m", "tuneloop", "--lang", current(), "run", *arguments, "--variant", name]
        # What it prints goes where it went; with --json there is one document at the end.
        done = subprocess.run(command, stdout=subprocess.DEVNULL if json else None, check=False)
        finished = _finished_run(workspace, recipe, every[name], before)
        if done.returncode or finished is None:
            show.say(t("Variants done: {names}", names=listed(f"{n} ({r.name})" for n, r in runs.items()) or "–"))
            raise typer.Exit(done.returncode or 1)
        runs[name] = finished
    from tuneloop import pipeline

    compared, findings = pipeline.compare_variants(recipe, runs)
    if json:
        show.as_json({**compared.as_dict(), "claims": [one.as_dict() for one in findings]})
        return
    tell(compared, findings)
    print(t("Report: {path}", path=list(runs.values())[-1].path / "report.html"))


def _names(workspace: Path, recipe: Recipe) -> set[str]:
    return {p.name for p in (workspace / "runs").glob(f"{recipe.name}-*")}


def _finished_run(workspace: Path, recipe: Recipe, variant: Recipe, before: set[str]) -> Run | None:
    """The finished run of a variant among the folders that were not there before."""
    from tuneloop.runs.run import Run, run_recipe

    for name in sorted(_names(workspace, recipe) - before):
        run = Run(workspace / "runs" / name)
        if run.recipe.is_file() and run.trained_folder() is not None:
            own = run_recipe(run.path).train
            if (own.method, own.learning_rate) == (variant.train.method, variant.train.learning_rate):
                return run
    return None


def tell(compared: ComparedRuns, findings: Sequence[ClaimFinding] = (), *, figures: bool = True) -> None:
    """The tables of several runs: figures with intervals, cost, settings, and what came out of the claims."""
    from tuneloop.cli import tables
    from tuneloop.report import claims, comparison_rows

    titles = [run.title for run in compared.runs]
    if figures and (rows := comparison_rows.figures(compared)):
        show.table(t("Metrics"), [t("measure"), *titles], rows)
        print(t("Brackets are 95 % intervals; the words say how a run stands to the first one, on the rows both have."))
    for sentence in compared.sentences():
        print(f"  {sentence}")
    if compared.pairs:
        print()
    show.table(t("Cost"), ["", *titles], comparison_rows.costs(compared))
    if settings := comparison_rows.settings(compared):
        show.table(t("What differs in the recipes"), [t("key"), *titles], settings)
    for one in findings:
        columns = [t("what"), t("claimed"), t("measured"), ""]
        show.table(claims.sentence(one), columns, [row[:4] for row in claims.rows(one)])
    tables.cautions(compared.warnings)
