"""tuneloop run: the whole way, from raw files to a registered version and a report."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop.base.errors import MachineError
from tuneloop.base.language import listed, t
from tuneloop.cli import show, verdict
from tuneloop.cli.target import keep_recipe, recipe_of, require_files

if TYPE_CHECKING:
    from tuneloop.data.tokens.preflight import Preflight
    from tuneloop.data.version.dataset import Dataset
    from tuneloop.planning.planner import Plan
    from tuneloop.recipe.schema import Recipe
    from tuneloop.runs.run import Run


def run(
    targets: Annotated[
        list[str],
        typer.Argument(help="A recipe (file or name, e.g. demo), files in place of its data, or raw files alone."),
    ],
    model: Annotated[str, typer.Option(help="Model: a pulled name, a folder, a hub id, modelscope:org/name.")] = "",
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    accept_terms: Annotated[bool, typer.Option(help="Accept the terms of a model that has some.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder that holds datasets/, runs/ and models/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Prepare, plan, train, evaluate, register and report, in one go.

    Examples: tuneloop run demo | tuneloop run chats.jsonl --model smollm2 | tuneloop run my.yaml --set train.epochs=2
    """
    recipe = recipe_of(targets, model=model, name=name, settings=settings, accept=accept_terms)
    require_files(recipe)
    began = time.perf_counter()
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import losses, tables
    from tuneloop.hub import resolve
    from tuneloop.training import distributed

    resolve.resolve(recipe.model.name, recipe.model.revision, accept_terms=recipe.model.accept_terms, progress=show.say)
    show.say(t("Preparing the data"))
    dataset, recipe = verdict.prepared(recipe, workspace)
    told: list[str] = []
    if distributed.leads():
        keep_recipe(targets, recipe)
        told = losses.warn(dataset, recipe)
    recipe, dataset, foreseen, looked = planned(recipe, dataset, workspace, ask=not json)
    fresh = tuple(w for w in foreseen.warnings if w not in told)
    if not json:
        tables.dataset(dataset)
        tables.plan(replace(foreseen, warnings=fresh), looked)
    elif distributed.leads():
        show.warnings(fresh)
    made = pipeline.train(recipe, dataset, workspace=workspace, foreseen=foreseen)
    if not distributed.leads():  # one of the processes of torchrun goes on
        return
    if made.result() is None:
        stopped(made)
    try:
        evaluation = pipeline.evaluate(made, say=show.say)
    except KeyboardInterrupt:
        show.say(t("The model is trained; evaluate and register it with:"))
        show.say(f"  {show.command('evaluate', made.path)}")
        raise typer.Exit(130) from None
    version = pipeline.register(made, workspace=workspace)
    seconds = time.perf_counter() - began
    if json:
        show.as_json({"run": str(made.path), "version": version.ref, "seconds": seconds, "evaluation": evaluation})
        return
    tables.answers(evaluation)
    tables.changes(evaluation)
    _closing(made, version.ref, seconds, evaluation)


def planned(recipe: Recipe, dataset: Dataset, workspace: Path, *, ask: bool) -> tuple[Recipe, Dataset, Plan, Preflight]:
    """The plan of a run; where its longest rows do not fit, of the shorter ones that somebody at a terminal chooses."""
    from tuneloop import pipeline

    try:
        return recipe, dataset, *pipeline.plan(recipe, dataset, workspace=workspace)
    except MachineError as error:
        recipe = shorter(recipe, error, ask=ask)
    dataset = pipeline.prepare(recipe, workspace=workspace, say=show.say)
    return recipe, dataset, *pipeline.plan(recipe, dataset, workspace=workspace)


def shorter(recipe: Recipe, error: MachineError, *, ask: bool) -> Recipe:
    """The recipe with the length that somebody at a terminal chooses where the longest rows do not fit; else the error.

    The choice is one of `error`'s own, by its number; anything else leaves it as it is.
    """
    from tuneloop.recipe.overrides import changed

    found = error.facts.get("options", [])
    if not (found and ask and sys.stdin.isatty() and sys.stderr.isatty()):
        raise error
    show.say(f"{error.code}  {error.what}")
    for n, option in enumerate(found, 1):
        show.say(f"  {n}  {option}")
    answer = typer.prompt(t("Which of these (its number; anything else stops)"), default="0", err=True)
    if not (answer.strip().isdecimal() and 1 <= int(answer) <= len(found)):
        raise error
    return changed(recipe, found[int(answer) - 1].assignments)


def _closing(made: Run, ref: str, seconds: float, evaluation: dict[str, Any]) -> None:
    from tuneloop.base.duration import duration
    from tuneloop.cli import tables
    from tuneloop.report import run_view

    print(t("Done in {time}. Version {ref}.", time=duration(seconds), ref=ref))
    print(t("Report: {path}", path=made.path / "report.html"))
    print(t("Loss curve: {path}", path=made.path / "loss_curve.png"))
    print()
    print(t("Next:"))
    for verb in ("chat", "export", "serve"):
        print(f"  {show.command(verb, made.path)}")
    failed = [p["name"] for p in evaluation.get("probes", []) if not p["passed"]]
    if failed:
        print()
        print(t("Probes that did not pass: {names}", names=listed(failed)))
    tables.cautions(run_view.read(made.path).cautions())


def stopped(made: Run) -> None:
    """Say how to go on after Ctrl-C, and leave with status 130."""
    show.say(t("Stopped; a checkpoint is in {path}. Go on with:", path=made.checkpoints))
    show.say(f"  {show.command('train', '--resume', made.path)}")
    raise typer.Exit(130)
