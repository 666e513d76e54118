"""tuneloop export: a run as one model folder that any tool loads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli import show


def export(
    run: Annotated[str, typer.Argument(help="A run (folder, name, latest) or a version (name:v3).")] = "latest",
    to: Annotated[Path | None, typer.Option("--to", "-o", help="The new folder; exports/<run> by default.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print what the check found as JSON.")] = False,
) -> None:
    """Merge a run into one model folder, and prove that it answers as the trained model does.

    Examples: tuneloop export runs/demo-1 | tuneloop export demo:v2 --to exports/assistant
    """
    from tuneloop.base.language import t
    from tuneloop.registry import versions
    from tuneloop.runs.run import open_run

    folder = versions.locate(workspace, run) or open_run(run, workspace).path
    from tuneloop import pipeline

    target = to or workspace / "exports" / folder.name
    parity = pipeline.export(run, target, workspace=workspace)
    if json:
        show.as_json({"path": str(target), **asdict(parity)})
        return
    typer.echo(t("exported to {path}", path=target))
    typer.echo(t("checked: {parity}", parity=parity.line()))
    typer.echo(t("try it: {command}", command=show.command("chat", target)))
