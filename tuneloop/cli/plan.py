"""tuneloop plan: what a run would use, why, how long, how much memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli import show, verdict
from tuneloop.cli.target import keep_recipe, recipe_of, require_files


def plan(
    targets: Annotated[
        list[str], typer.Argument(help="A recipe (file or name), files in place of its data, or raw files alone.")
    ],
    model: Annotated[str, typer.Option(help="Model to train.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    accept_terms: Annotated[bool, typer.Option(help="Accept the terms of a model that has some.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder that holds datasets/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Prepare the data, look at what would be trained, and say what it would cost. Trains nothing.

    Example: tuneloop plan chats.jsonl --model smollm2 --set train.epochs=1
    """
    recipe = recipe_of(targets, model=model, settings=settings, accept=accept_terms)
    require_files(recipe)
    from tuneloop import pipeline
    from tuneloop.cli import tables

    dataset, recipe = verdict.prepared(recipe, workspace)
    keep_recipe(targets, recipe)
    foreseen, checked = pipeline.plan(recipe, dataset, workspace=workspace)
    if json:
        show.as_json({**foreseen.as_dict(), "preflight": asdict(checked)})
        return
    tables.counts_line(dataset)
    tables.plan(foreseen, checked)
