"""tuneloop compare: a run before and after training, several runs, or the checkpoints of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.runs.run import Run


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Finished runs: a folder, a name, or latest; one alone is compared with its base model."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A question; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 96,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Measure each checkpoint of one run.")] = False,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print answers and metrics as JSON.")] = False,
) -> None:
    """Show what models answer, side by side, their metrics with intervals, and what each run cost.

    One or two runs answer the run's own questions where no --prompt is given; more of them only prompts that are.

    Examples: tuneloop compare latest -p "Who are you?" | tuneloop compare a-1 b-1 c-1 | tuneloop compare --checkpoints
    """
    from tuneloop.runs.run import open_run

    chosen = [open_run(name, workspace) for name in runs or ["latest"]]
    if checkpoints:
        if len(chosen) > 1:
            raise RecipeError("TL-RECIPE-VALUE", where="--checkpoints", got=f"{len(chosen)}", need=t("one run"))
        _checkpoints(chosen[0], json=json)
    elif len(chosen) > 2:
        _several(chosen, prompt or [], max_new_tokens, json=json)
    else:
        _two(chosen, prompt or [], max_new_tokens, json=json)


def _two(chosen: list[Run], prompts: list[str], max_new_tokens: int, *, json: bool) -> None:
    """One run before and after training, or two runs: answers, metrics, and of two runs intervals and cost."""
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import tables, variants

    first, second = chosen[0], chosen[1] if len(chosen) > 1 else None
    answered = pipeline.compare(first, second, prompts, max_new_tokens=max_new_tokens, say=show.say)
    compared = pipeline.compare_runs(chosen)
    if json:
        show.as_json({**answered.as_dict(), **compared.as_dict()})
        return
    left, right = (first.name, second.name) if second else (t("before"), t("after"))
    if answered.answers:
        tables.side_by_side(answered.answers, left, right)
    if answered.metrics:
        tables.metrics(answered.metrics, left, right)
    if answered.warning and second is None:
        tables.cautions([answered.warning])
    if second is not None:
        variants.tell(compared, figures=False)


def _several(chosen: list[Run], prompts: list[str], max_new_tokens: int, *, json: bool) -> None:
    """Three runs and more."""
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline
    from tuneloop.cli import variants

    compared = pipeline.compare_runs(chosen)
    rows = pipeline.ask_runs(chosen, prompts, max_new_tokens=max_new_tokens, say=show.say) if prompts else []
    if json:
        answers = [{"prompt": prompt, "answers": list(texts)} for prompt, *texts in rows]
        show.as_json({"answers": answers, **compared.as_dict()})
        return
    if rows:
        show.table(t("The same prompts, side by side"), [t("prompt"), *(run.name for run in chosen)], rows)
    variants.tell(compared)


def _checkpoints(run: Run, *, json: bool) -> None:
    """Each checkpoint's held-out loss."""
    show.say(t("Loading the libraries"))
    from tuneloop.evaluation.checkpoints import sweep
    from tuneloop.report import sweep_rows

    swept = sweep(run, show.say)
    if json:
        show.as_json({"run": str(run.path), **swept.as_dict(), "sentence": swept.sentence})
        return
    columns = [t("step"), t("held-out loss"), t("95 % interval"), t("the last one less this one"), ""]
    show.table(t("Checkpoints of {run}", run=run.name), columns, sweep_rows.rows(swept))
    print(swept.sentence)
