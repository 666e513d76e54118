"""tuneloop export: a run as one model folder that any tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="A run: its folder, its name, or 'latest'.")],
    to: Annotated[Path | None, typer.Option("--to", "-o", help="The new folder; exports/<run> by default.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="The folder that holds runs/.")] = Path(),
) -> None:
    """Merge a run into one model folder, and prove that it answers as the trained model does."""
    from tuneloop import pipeline
    from tuneloop.language import t
    from tuneloop.runs import open_run

    target = to or workspace / "exports" / open_run(run, workspace).name
    parity = pipeline.export(run, target, workspace=workspace)
    typer.echo(t("exported to {path}", path=target))
    typer.echo(t("checked: {parity}", parity=parity.line()))
    typer.echo(t("try it: tuneloop chat {path}", path=target))
