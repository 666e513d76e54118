"""tuneloop evaluate: a finished run measured before and after, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show


def evaluate(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, its name, or latest.")] = "latest",
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print evaluation.json.")] = False,
) -> None:
    """Held-out loss, perplexity, BLEU, ROUGE, probes and answers, before and after training; writes report.html.

    Example: tuneloop evaluate runs/demo-1
    """
    from tuneloop.runs.run import open_run

    finished = open_run(run, workspace)
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import tables
    from tuneloop.report import run_view

    evaluation = pipeline.measure(finished, say=show.say)
    version = pipeline.register(finished, workspace=workspace)
    if json:
        show.as_json(evaluation.as_dict())
        return
    tables.answers(evaluation)
    tables.changes(evaluation)
    print(t("Version: {ref}", ref=version.ref))
    print(t("Report: {path}", path=finished.path / "report.html"))
    tables.cautions(run_view.read(finished.path).cautions())
