"""tuneloop predict: a file in, a file out, each row answered, labelled or scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.inference.predict import Predicted


def predict(
    file: Annotated[str, typer.Argument(help="Rows to answer: a file in any format that is read; - for stdin.")],
    run: Annotated[
        str, typer.Option("--run", "-r", help="A run, a version ('name:v3', 'name:production'), or a model.")
    ] = "latest",
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            "-o",
            help="The file to write: .jsonl, or .csv (UTF-8 with the mark that Excel needs); FILE.predicted.jsonl.",
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="The column with the prompt or text, if looking fails.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1, help="Sample among the likeliest tokens that share it.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampled answers repeatable.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts answered at once.")] = 64,
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew where the same file is finished or begun.")
    ] = False,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Answer, label or score each row of a file with a trained model: a file in, a file out.

    A model that writes adds the column prediction, with finish (stop, or length where it was cut off); a classifier
    adds prediction and a probability for each label; a reward model adds score, and rejected_score for pairs. Each row
    has its file and line, and its own columns.

    Where a chat ends with an answer, the prompt before it is asked, and the answer stands beside, as reference. A row
    that is empty, too long or broken is not left out: error says why.

    Stopped or killed, the same command goes on where it was. A file of another input, model or setting is never
    written over.

    Examples: tuneloop predict questions.jsonl --run runs/demo-1 | tuneloop predict reviews.csv --run imdb:v1 --to
    labels.csv
    """
    from tuneloop.registry import versions

    if run != "latest":
        versions.require(workspace, run)
    from tuneloop.data.reading import inputs
    from tuneloop.inference.output import require_ending

    if to is not None:
        require_ending(to)
    if file != "-":
        inputs.require_rows(file)
    show.say(t("Loading the libraries"))
    from tuneloop import pipeline

    target = to or pipeline.predicted_path(file)
    try:
        predicted = pipeline.predict(
            file,
            run=run,
            to=target,
            workspace=workspace,
            column=column,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            again=again,
            say=show.say,
        )
    except KeyboardInterrupt:
        if target.with_name(f"{target.name}.part").exists():
            show.say(t("Stopped. The same command goes on where it was."))
        raise
    if json:
        show.as_json(predicted.as_dict())
        return
    _tell(predicted)


def _tell(predicted: Predicted) -> None:
    counts = predicted.counts
    if predicted.resumed == predicted.rows and predicted.rows:
        typer.echo(t("All {n} rows were there already; --again writes them anew.", n=f"{predicted.rows:,}"))
    else:
        typer.echo(t("Rows: {n}", n=f"{predicted.rows:,}"))
    if predicted.failed:
        typer.echo(t("Rows without a result, see their column error: {n}", n=f"{predicted.failed:,}"))
    if cut := counts.get("cut"):
        typer.echo(t("Answers cut off at --max-new-tokens or the end of the context: {n}", n=f"{cut:,}"))
    if labelled := counts.get("labelled"):
        share = f"{100 * counts['right'] / labelled:.1f} %"
        typer.echo(t("Labels that are the row's own: {share} of {n}", share=share, n=f"{labelled:,}"))
    typer.echo(t("Written: {path}", path=predicted.path))
