"""tuneloop compare: the same prompts answered before and after, or by two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show


def compare(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, its name, or latest.")] = "latest",
    other: Annotated[str, typer.Argument(help="A second run; without it the run's untrained model.")] = "",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A question; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 96,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print answers and metrics as JSON.")] = False,
) -> None:
    """Show what two models answer, side by side, and their metrics. With no --prompt the run's own questions are asked.

    Examples: tuneloop compare latest -p "Who are you?" | tuneloop compare runs/demo-1 runs/demo-2
    """
    from tuneloop.runs.run import open_run

    first = open_run(run, workspace)
    second = open_run(other, workspace) if other else None
    from tuneloop import pipeline
    from tuneloop.cli import tables

    compared = pipeline.compare(first, second, prompt or [], max_new_tokens=max_new_tokens)
    if json:
        show.as_json(compared.as_dict())
        return
    left, right = (first.name, second.name) if second else (t("before"), t("after"))
    tables.side_by_side(compared.answers, left, right)
    if compared.metrics:
        tables.metrics(compared.metrics, left, right)
    if compared.warning:
        tables.cautions([compared.warning])
