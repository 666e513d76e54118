"""tuneloop prepare: raw files -> a dataset version with ledger and card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli import show, verdict
from tuneloop.cli.target import keep_recipe, recipe_of, require_files


def prepare(
    targets: Annotated[
        list[str], typer.Argument(help="A recipe (file or name), files in place of its data, or raw files alone.")
    ],
    model: Annotated[str, typer.Option(help="Model whose tokens are counted.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    accept_terms: Annotated[bool, typer.Option(help="Accept the terms of a model that has some.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder that holds datasets/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Read raw files, clean, split and keep them as a dataset version; every row that changed is in its ledger.

    Example: tuneloop prepare chats.jsonl faq.csv --model smollm2
    """
    recipe = recipe_of(targets, model=model, settings=settings, accept=accept_terms)
    require_files(recipe)
    from tuneloop.cli import losses, tables

    dataset, recipe = verdict.prepared(recipe, workspace)
    keep_recipe(targets, recipe)
    if json:
        show.as_json({"path": str(dataset.path), **dataset.manifest})
    else:
        tables.dataset(dataset)
    losses.warn(dataset, recipe)
