"""tuneloop evaluate: a finished run measured before and after, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.runs.run import Run


def evaluate(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, its name, or latest.")] = "latest",
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    endpoint: Annotated[str, typer.Option(help="URL of an OpenAI-compatible API: ask it the run's suite.")] = "",
    model: Annotated[str, typer.Option(help="The endpoint's model, where it has several.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print evaluation.json.")] = False,
) -> None:
    """Measure a run before and after training: held-out loss, answers, probes, what was forgotten; writes report.html.

    With --endpoint a served model is asked the same; TUNELOOP_ENDPOINT_KEY is its key.

    Examples: tuneloop evaluate runs/demo-1 | tuneloop evaluate latest --endpoint http://localhost:8000/v1
    """
    from tuneloop.runs.run import open_run

    finished = open_run(run, workspace)
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import suite_tables, tables
    from tuneloop.report import run_view

    if endpoint or model:
        _ask_endpoint(finished, endpoint, model, json)
        return
    evaluation = pipeline.measure(finished, say=show.say)
    version = None if evaluation.findings else pipeline.register(finished, workspace=workspace)
    if json:
        show.as_json(evaluation.as_dict())
        return
    tables.answers(evaluation)
    tables.changes(evaluation)
    suite_tables.beside(evaluation)
    if version is not None:
        print(t("Version: {ref}", ref=version.ref))
    print(t("Report: {path}", path=finished.path / "report.html"))
    tables.cautions(run_view.read(finished.path).cautions())


def _ask_endpoint(run: Run, endpoint: str, model: str, json: bool) -> None:
    """The suite of a run asked of an endpoint."""
    from tuneloop import pipeline
    from tuneloop.base.errors import RecipeError
    from tuneloop.cli import suite_tables, tables
    from tuneloop.evaluation.evaluation import Evaluation

    if not endpoint:
        raise RecipeError(
            "TL-RECIPE-VALUE", where="--model", got=model, need=t("beside it {one}", one="--endpoint URL")
        )
    evaluation, path = pipeline.measure_at(run, endpoint, model, say=show.say)
    if json:
        show.as_json(evaluation.as_dict())
        return
    suite_tables.served(evaluation, Evaluation.read(run.path))
    print(t("Written to: {path}", path=path))
    tables.cautions(finding.caution for finding in evaluation.findings)
