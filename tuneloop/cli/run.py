"""tuneloop run: the whole way, from raw files to a registered version and a report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop.cli import show
from tuneloop.cli.target import keep_recipe, recipe_of
from tuneloop.language import t

if TYPE_CHECKING:
    from tuneloop.runs import Run


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
    began = time.perf_counter()
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import losses, tables
    from tuneloop.model import sources
    from tuneloop.train import ranks

    sources.resolve(recipe.model.name, recipe.model.revision, accept_terms=recipe.model.accept_terms, progress=show.say)
    show.say(t("Preparing the data"))
    dataset = pipeline.prepare(recipe, workspace=workspace, say=show.say)
    told: list[str] = []
    if ranks.leads():
        keep_recipe(targets, recipe)
        told = losses.warn(dataset, recipe)
    foreseen, looked = pipeline.plan(recipe, dataset, workspace=workspace)
    fresh = tuple(w for w in foreseen.warnings if w not in told)
    if not json:
        tables.dataset(dataset)
        tables.plan(replace(foreseen, warnings=fresh), looked)
    elif ranks.leads():
        show.warnings(fresh)
    made = pipeline.train(recipe, dataset, workspace=workspace, foreseen=foreseen)
    if not ranks.leads():  # one of the processes of torchrun goes on
        return
    if made.result() is None:
        stopped(made)
    try:
        evaluation = pipeline.evaluate(made, say=show.say)
    except KeyboardInterrupt:
        show.say(t("The model is trained; evaluate and register it with:"))
        show.say(f"  tuneloop evaluate {made.path}")
        raise typer.Exit(130) from None
    version = pipeline.register(made, workspace=workspace)
    seconds = time.perf_counter() - began
    if json:
        show.as_json({"run": str(made.path), "version": version.ref, "seconds": seconds, "evaluation": evaluation})
        return
    tables.answers(evaluation)
    tables.changes(evaluation)
    _closing(made, version.ref, seconds, evaluation)


def _closing(made: Run, ref: str, seconds: float, evaluation: dict[str, Any]) -> None:
    from tuneloop.cli import tables
    from tuneloop.evaluate import folder
    from tuneloop.monitor.duration import duration

    print(t("Done in {time}. Version {ref}.", time=duration(seconds), ref=ref))
    print(t("Report: {path}", path=made.path / "report.html"))
    print(t("Loss curve: {path}", path=made.path / "loss_curve.png"))
    print()
    print(t("Next:"))
    print(f"  tuneloop chat {made.path}")
    print(f"  tuneloop export {made.path}")
    print(f"  tuneloop serve {made.path}")
    failed = [p["name"] for p in evaluation.get("probes", []) if not p["passed"]]
    if failed:
        print()
        print(t("Probes that did not pass: {names}", names=", ".join(failed)))
    tables.cautions(folder.read(made.path).cautions())


def stopped(made: Run) -> None:
    """Say how to go on after Ctrl-C, and leave with status 130."""
    show.say(t("Stopped; a checkpoint is in {path}. Go on with:", path=made.checkpoints))
    show.say(f"  tuneloop train --resume {made.path}")
    raise typer.Exit(130)
