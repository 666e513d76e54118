"""tuneloop train: a recipe -> a run folder; or go on with one that stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.cli import parent, show, verdict
from tuneloop.cli.run import begun, stopped
from tuneloop.cli.target import keep_recipe, recipe_of, require_files


def train(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe (file or name), files in place of its data, or raw files alone."),
    ] = None,
    resume: Annotated[str, typer.Option(help="Run to go on with: its folder, its name, or latest.")] = "",
    model: Annotated[str, typer.Option(help="Model to train.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    accept_terms: Annotated[bool, typer.Option(help="Accept the terms of a model that has some.")] = False,
    number: Annotated[int | None, typer.Option(help="Number of the run folder; default the next free one.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder that holds datasets/ and runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train. A run that was stopped or killed goes on bit for bit with --resume.

    Examples: tuneloop train my.yaml | tuneloop train --resume latest | tuneloop train --resume runs/my-3
    """
    if bool(targets) == bool(resume):
        raise RecipeError("TL-RECIPE-TARGET", where="tuneloop train")
    if targets:
        recipe = recipe_of(targets, model=model, settings=settings, accept=accept_terms)
        require_files(recipe)
    from tuneloop.runs.run import open_run, resumable, run_recipe

    ended = parent.taken_up()
    trained = open_run(ended or resume, workspace) if ended or resume else None
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.training import distributed

    if trained is not None:
        if trained.trained_folder() is not None:
            resumable(run_recipe(trained.path), (settings or []) if resume else [])
            show.say(t("This run is finished; there is nothing to go on with."))
        else:
            parent.begun(trained.path)
            pipeline.resume(trained, (settings or []) if resume else [])
    else:
        dataset, recipe = verdict.prepared(recipe, workspace)
        shown: list[str] = []
        if distributed.leads():
            from tuneloop.cli import losses, tables

            keep_recipe(targets or [], recipe)
            if not json:
                tables.counts_line(dataset)
            shown = losses.warn(dataset, recipe)
        assembled = pipeline.assembled(recipe, dataset, workspace)
        foreseen, _ = pipeline.foresee(assembled)
        if distributed.leads():  # said before the first step
            show.warnings(one for one in foreseen.warnings if one not in shown)
        trained = pipeline.start(assembled, foreseen, workspace=workspace, number=number, begun=begun)
    if not distributed.leads():  # one of the processes of torchrun speaks
        return
    folder = trained.trained_folder()
    if folder is None:
        stopped(trained)
    if json:
        show.as_json({"run": str(trained.path), "result": str(folder)})
        return
    from tuneloop.cli import tables
    from tuneloop.report import run_view

    tables.cautions(run_view.read(trained.path).cautions())
    print(t("Trained: {path}", path=folder))
    tables.noticed(trained)
    print(t("Next:"))
    print(f"  {show.command('evaluate', trained.path)}")
