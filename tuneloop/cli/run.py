"""tuneloop run: the whole way, from raw files to a registered version and a report."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.errors import MachineError
from tuneloop.base.language import listed, t
from tuneloop.cli import parent, show, variants, verdict
from tuneloop.cli.target import keep_recipe, recipe_of, require_files

if TYPE_CHECKING:
    from tuneloop.data.tokens.preflight import Preflight
    from tuneloop.data.version.dataset import Dataset
    from tuneloop.evaluation.evaluation import Evaluation
    from tuneloop.planning.planner import Plan
    from tuneloop.recipe.schema import Recipe
    from tuneloop.runs.run import Run
    from tuneloop.training.input import TrainingInput


def run(
    targets: Annotated[
        list[str],
        typer.Argument(help="A recipe (file or name, e.g. demo), files in place of its data, or raw files alone."),
    ],
    model: Annotated[str, typer.Option(help="Model: a pulled name, a folder, a hub id, modelscope:org/name.")] = "",
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    accept_terms: Annotated[bool, typer.Option(help="Accept the terms of a model that has some.")] = False,
    variant: Annotated[str, typer.Option(help="Of a recipe that compares variants: this one alone.")] = "",
    workspace: Annotated[Path, typer.Option(help="Folder that holds datasets/, runs/ and models/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Prepare, plan, train, evaluate, register and report, in one go.

    Examples: tuneloop run demo | tuneloop run chats.jsonl --model smollm2 | tuneloop run my.yaml --set train.epochs=2
    """
    recipe = recipe_of(targets, model=model, name=name, settings=settings, accept=accept_terms)
    if variant:
        recipe = variants.one_variant(recipe, variant)
    require_files(recipe)
    if recipe.compare.variants:
        again = _arguments(targets, model, name, settings, accept_terms, workspace)
        return variants.run_all(recipe, again, workspace, json=json)
    began = time.perf_counter()
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import losses, tables
    from tuneloop.hub import resolve
    from tuneloop.runs.run import open_run
    from tuneloop.training import distributed

    resolve.resolve(recipe.model.name, recipe.model.revision, accept_terms=recipe.model.accept_terms, progress=show.say)
    if ended := parent.taken_up():  # the system has ended the process before this one
        trained = open_run(ended, workspace)
        parent.begun(trained.path)
        pipeline.resume(trained)
        return _measured(trained, workspace, began, json=json)
    show.say(t("Preparing the data"))
    dataset, recipe = verdict.prepared(recipe, workspace)
    shown: list[str] = []
    if distributed.leads():
        keep_recipe(targets, recipe)
        shown = losses.warn(dataset, recipe)
    assembled, foreseen, checked = planned(recipe, dataset, workspace, ask=not json)
    fresh = tuple(w for w in foreseen.warnings if w not in shown)
    if not json:
        tables.dataset(assembled.dataset)
        tables.plan(replace(foreseen, warnings=fresh), checked)
    elif distributed.leads():
        show.warnings(fresh)
    trained = pipeline.start(assembled, foreseen, workspace=workspace, begun=begun)
    if distributed.leads():  # one of the processes of torchrun goes on
        _measured(trained, workspace, began, json=json)


def begun(run: Path) -> None:
    """Say which folder a run has before its first step, and how it can be watched; the parent process hears of it."""
    from tuneloop.training import distributed

    parent.begun(run)
    if distributed.leads():
        show.say(
            t("Run: {run}. Watch it from another terminal with: {command}", run=run, command=show.command("watch", run))
        )


def _measured(trained: Run, workspace: Path, began: float, *, json: bool) -> None:
    """What follows training: evaluate, register, report."""
    from tuneloop import pipeline
    from tuneloop.cli import tables

    if trained.trained_folder() is None:
        stopped(trained)
    try:
        evaluation = pipeline.measure(trained, say=show.say)
    except KeyboardInterrupt:
        show.say(t("The model is trained; evaluate and register it with:"))
        show.say(f"  {show.command('evaluate', trained.path)}")
        raise typer.Exit(130) from None
    version = pipeline.register(trained, workspace=workspace)
    seconds = time.perf_counter() - began
    if json:
        show.as_json(
            {"run": str(trained.path), "version": version.ref, "seconds": seconds, "evaluation": evaluation.as_dict()}
        )
        return
    tables.answers(evaluation)
    tables.changes(evaluation)
    _closing(trained, version.ref, seconds, evaluation)


def _arguments(
    targets: list[str], model: str, name: str, settings: list[str] | None, accept: bool, workspace: Path
) -> list[str]:
    """The command line again, for a process that runs one variant."""
    named = [word for flag, text in (("--model", model), ("--name", name)) if text for word in (flag, text)]
    assigned = [word for setting in settings or [] for word in ("--set", setting)]
    return [*targets, *named, *assigned, *(["--accept-terms"] if accept else []), "--workspace", str(workspace)]


def planned(recipe: Recipe, dataset: Dataset, workspace: Path, *, ask: bool) -> tuple[TrainingInput, Plan, Preflight]:
    """The plan of a run; where its longest rows do not fit, of the shorter ones that somebody at a terminal chooses."""
    from tuneloop import pipeline

    assembled = pipeline.assembled(recipe, dataset, workspace)
    try:
        return assembled, *pipeline.foresee(assembled)
    except MachineError as error:
        recipe = shorter(recipe, error, ask=ask)
    dataset = pipeline.prepare(recipe, workspace=workspace, say=show.say)
    assembled = pipeline.assembled(recipe, dataset, workspace)
    return assembled, *pipeline.foresee(assembled)


def shorter(recipe: Recipe, error: MachineError, *, ask: bool) -> Recipe:
    """The recipe with the length that somebody at a terminal chooses where the longest rows do not fit; else the error.

    The choice is one of `error`'s own, by its number; anything else leaves it as it is.
    """
    from tuneloop.recipe.overrides import changed

    options = error.facts.get("options", [])
    if not (options and ask and sys.stdin.isatty() and sys.stderr.isatty()):
        raise error
    show.say(f"{error.code}  {error.what}")
    for n, option in enumerate(options, 1):
        show.say(f"  {n}  {option}")
    answer = typer.prompt(t("Which of these (its number; anything else stops)"), default="0", err=True)
    if not (answer.strip().isdecimal() and 1 <= int(answer) <= len(options)):
        raise error
    return changed(recipe, options[int(answer) - 1].assignments)


def _closing(trained: Run, ref: str, seconds: float, evaluation: Evaluation) -> None:
    from tuneloop.base.duration import duration
    from tuneloop.cli import tables
    from tuneloop.report import run_view

    print(t("Done in {time}. Version {ref}.", time=duration(seconds), ref=ref))
    print(t("Report: {path}", path=trained.path / "report.html"))
    print(t("Loss curve: {path}", path=trained.path / "loss_curve.png"))
    tables.noticed(trained)
    print()
    print(t("Next:"))
    for verb in ("chat", "export", "serve"):
        print(f"  {show.command(verb, trained.path)}")
    failed = [probe.name for probe in evaluation.probes if not probe.passed]
    if failed:
        print()
        print(t("Probes that did not pass: {names}", names=listed(failed)))
    tables.cautions(run_view.read(trained.path).cautions())


def stopped(trained: Run) -> None:
    """Say how to go on after Ctrl-C, and leave with status 130."""
    show.say(t("Stopped; a checkpoint is in {path}. Go on with:", path=trained.checkpoints))
    show.say(f"  {show.command('train', '--resume', trained.path)}")
    raise typer.Exit(130)
