"""tuneloop judge: a model judges pairs of answers, after its cost was shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show, usage

if TYPE_CHECKING:
    from tuneloop.evaluation.judge import Docket, JudgeCost, JudgeQuestion, Model


def judge(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, its name, or latest.")] = "latest",
    other: Annotated[str, typer.Argument(help="A second run; without it the run before training.")] = "",
    judge: Annotated[str, typer.Option(help="The judge: a run, a version, or a model of this machine.")] = "",
    endpoint: Annotated[str, typer.Option(help="Or an OpenAI-compatible address, up to /v1.")] = "",
    model: Annotated[str, typer.Option(help="The endpoint's model.")] = "",
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million answer tokens.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it begins.")] = False,
    rows: Annotated[int, typer.Option(min=0, help="At most so many rows, drawn at random; 0 is all.")] = 0,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A question; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of the judge in tokens.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="How often a request is sent again.")] = 3,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Let a model compare answers before and after training, or of two runs, each pair twice with its sides swapped.

    Examples: tuneloop judge latest --judge qwen2.5-coder-0.5b-instruct | tuneloop judge latest --endpoint http://localhost:8000/v1
    """
    if bool(judge) == bool(endpoint):
        raise usage.wrong("tuneloop judge", t("it takes one judge: --judge or --endpoint"))
    if (price_in is None) != (price_out is None):
        raise usage.wrong("tuneloop judge", t("--price-in and --price-out go together"))
    from tuneloop.cli.rate import study_of
    from tuneloop.runs.run import open_run

    first = open_run(run, workspace)
    second = open_run(other, workspace) if other else None
    judging, name = _judge(judge, endpoint, model, timeout, retries, workspace)
    from tuneloop.evaluation.judge import cost
    from tuneloop.rating import judged

    study = study_of(first, second, prompts=prompt or [], rows=rows)
    docket = judged.docket(study, name)
    questions = docket.open(judging, max_new_tokens)
    if questions:
        prices = None if price_in is None or price_out is None else (price_in, price_out)
        _say_cost(name, cost(judging, questions, max_new_tokens, prices), len(docket.readings))
        _confirm(yes, endpoint)
        _ask(docket, judging, questions, max_new_tokens, batch_size)
    from tuneloop.cli import rated

    figures = docket.results()
    agreed = judged.agreement(study, name, docket.judged())
    if json:
        from dataclasses import asdict

        show.as_json({**figures.as_dict(), "agreement": asdict(agreed) if agreed else None})
    else:
        rated.judge(figures, agreed or judged.disagreement(study, docket.judged()), study)


def _judge(judge: str, endpoint: str, model: str, timeout: float, retries: int, workspace: Path) -> tuple[Model, str]:
    """The model that judges, and what its verdicts are filed under."""
    from tuneloop.evaluation.judge import usable

    if endpoint:
        from tuneloop.base.environment import environment
        from tuneloop.inference.endpoint import EndpointAnswerer

        far = EndpointAnswerer(endpoint, model, environment().endpoint_key, timeout, retries)
        return far, f"{far.name} @ {endpoint.partition('://')[2].rstrip('/')}"
    from tuneloop.registry import versions

    versions.require(workspace, judge)
    show.say(t("loading {ref} …", ref=judge))
    from tuneloop.inference.open import answerer

    return usable(answerer(judge, workspace), judge), judge


def _say_cost(name: str, cost: JudgeCost, done: int) -> None:
    about = t("about {n:,}", n=cost.prompt_tokens) if cost.estimated else f"{cost.prompt_tokens:,}"
    show.say(
        t(
            "{judge} is asked {calls:,} times: {tokens} prompt tokens ({characters:,} characters), at most {answers:,} "
            "answer tokens.",
            judge=name,
            calls=cost.calls,
            tokens=about,
            characters=cost.characters,
            answers=cost.answer_tokens,
        )
    )
    if cost.price is not None:
        show.say(t("At the prices given that is {price:,.2f} at most.", price=cost.price))
    if done:
        show.say(t("{n} verdicts are there already and are not asked for again.", n=done))


def _confirm(yes: bool, endpoint: str) -> None:
    from tuneloop.data.augmenting.endpoint import elsewhere

    if host := elsewhere(endpoint):
        show.say(t("Prompts and answers are sent to {host}.", host=host))
    if yes:
        return
    if not sys.stdin.isatty():
        raise usage.wrong("tuneloop judge", t("nobody can be asked here: --yes begins at once"))
    typer.confirm(t("Begin?"), abort=True, err=True)


def _ask(docket: Docket, model: Model, questions: list[JudgeQuestion], max_new_tokens: int, batch_size: int) -> None:
    """All questions, with progress; what is answered stays when something ends it."""
    import time

    last = time.monotonic()

    def heard(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 5 or done == len(questions):
            last = time.monotonic()
            show.say(t("  {n} of {total} verdicts", n=done, total=len(questions)))

    docket.ask(model, questions, max_new_tokens=max_new_tokens, batch_size=batch_size, heard=heard)
