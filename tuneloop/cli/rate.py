"""tuneloop rate: people rate answers blind, on a page of this machine, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show

if TYPE_CHECKING:
    from tuneloop.rating.results import RatingResults
    from tuneloop.rating.study import Shares, Study
    from tuneloop.runs.run import Run


def rate(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, its name, or latest.")] = "latest",
    other: Annotated[str, typer.Argument(help="A second run; without it the run before training.")] = "",
    rater: Annotated[str, typer.Option(help="Your name; without it the page asks.")] = "",
    raters: Annotated[int, typer.Option(min=1, help="Raters that share the rows.")] = 1,
    overlap: Annotated[float, typer.Option(min=0.2, max=1, help="Share of the rows that all of them see.")] = 0.2,
    repeats: Annotated[float, typer.Option(min=0, max=1, help="Share of a rater's rows shown again, swapped.")] = 0.1,
    gold: Annotated[Path | None, typer.Option(help="Pairs with a known right choice, as JSON lines.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="At most so many rows, drawn at random; 0 is all.")] = 0,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A question; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens, where one is written.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the order and the sides.")] = 0,
    results: Annotated[bool, typer.Option("--results", help="Print the results so far; no page.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Write the ratings to a file, as JSON lines.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Take in ratings made elsewhere.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Rate answers before and after training, or of two runs, without knowing whose they are; ratings are kept.

    Examples: tuneloop rate latest --rater Li | tuneloop rate runs/demo-1 runs/demo-2 --results
    """
    from tuneloop.rating import exchange, shelf
    from tuneloop.rating.study import Shares, Study, rater_name
    from tuneloop.runs.run import open_run

    first = open_run(run, workspace)
    second = open_run(other, workspace) if other else None
    name = rater_name(rater)
    if rater and not name:
        raise usage_error(t("--rater takes a name of 1 to 64 characters"))
    if (results or to) and Study.read(Study.at(first, second)) is None:
        raise missing(first, second)
    shares = Shares(raters, overlap, repeats, seed)
    study = study_of(
        first, second, prompts=prompt or [], rows=rows, gold=gold, shares=shares, max_new_tokens=max_new_tokens
    )
    if source:
        with study.alone():
            taken = exchange.read_ratings(source, study)
            study.add(taken)
            shelf.put(study, first.workspace)
        show.say(t("{n} ratings taken in from {file}.", n=len(taken), file=source))
    if to:
        show.say(t("{n} ratings written to {file}.", n=exchange.write_ratings(to, study), file=to))
    if not (results or source or to):
        with study.alone():
            serve(study, first, name, host, port)
    elif not results:
        return
    report(study, first, second, wanted=results, json=json)


def study_of(
    run: Run,
    other: Run | None,
    *,
    prompts: list[str],
    rows: int = 0,
    gold: Path | None = None,
    shares: Shares | None = None,
    max_new_tokens: int = 256,
) -> Study:
    """The study of these runs, begun where there is none yet: people and judges see the same pairs."""
    from tuneloop.evaluation.pairs import pair_up
    from tuneloop.rating import exchange
    from tuneloop.rating.study import Shares, Study

    folder = Study.at(run, other)
    if (study := Study.read(folder)) is not None:
        if gold or prompts or rows:
            show.say(t("The study goes on with the rows it began with: {path}", path=folder))
        return study
    shares = shares or Shares()
    known = exchange.read_gold(gold) if gold else []
    pairing = pair_up(run, other, prompts, rows=rows, seed=shares.seed, max_new_tokens=max_new_tokens, say=show.say)
    return Study.begin(folder, pairing, known, shares)


def usage_error(problem: str) -> Exception:
    from tuneloop.cli import usage

    return usage.wrong("tuneloop rate", problem)


def missing(first: Run, second: Run | None) -> Exception:
    """The error that nothing was rated yet."""
    from tuneloop.base.errors import RunError

    words = [first.path, *([second.path] if second else [])]
    return RunError("TL-RUN-NO-RATINGS", where=str(first.path), command=show.command("rate", *words))


def serve(study: Study, run: Run, rater: str, host: str, port: int) -> None:
    """The page, until Ctrl-C."""
    from tuneloop.rating import server, shelf
    from tuneloop.serving.http.api import listen

    bound, token = listen(host, port), server.new_token()
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown

    def store() -> None:
        shelf.put(study, run.workspace)

    store()
    app = server.create_page(server.Desk(study, store), token, host=host, rater=rater)
    print(t("Rate here: {url}", url=f"http://{shown}:{bound.getsockname()[1]}/{token}/"), flush=True)
    show.say(t("Each change is saved at once. Ctrl-C ends; the same command goes on at the first row not rated."))
    if not server.is_local(host):
        show.say(
            t(
                "Warning: {host} can be reached by others. Whoever has this address reads the answers and can rate, "
                "and what is sent is not encrypted.",
                host=host,
            )
        )
    server.run(app, bound)
    store()
    print()


def report(study: Study, run: Run, other: Run | None, *, wanted: bool, json: bool) -> None:
    """The results, where they were asked for or all is rated: before that they would tell a rater who is who."""
    from dataclasses import asdict

    from tuneloop.cli import rated
    from tuneloop.rating import judged, shelf
    from tuneloop.rating.results import results as computed_from

    open_slots = sum(study.left().values())
    if not wanted and (open_slots or not study.plans or len(study.plans) < study.shares.raters):
        words = [run.path, *([other.path] if other else [])]
        print(
            t(
                "{n} ratings are still to be made. Go on with: {command}; results so far: {results}",
                n=open_slots,
                command=show.command("rate", *words),
                results=show.command("rate", *words, "--results"),
            )
        )
        return
    key = shelf.study_key(study, run.workspace)
    elsewhere = [one for one in shelf.choices_of_all(run.workspace) if not one[0].startswith(f"{key} ")]
    computed: RatingResults = computed_from(study, elsewhere)
    judges = judged.with_people(study)
    if json:
        by_judge = [
            {**figures.as_dict(), "agreement": None if isinstance(agreed, str) else asdict(agreed)}
            for figures, agreed in judges
        ]
        show.as_json({**computed.as_dict(), "judges": by_judge})
        return
    rated.results(computed)
    for one, agreed in judges:
        rated.judge(one, agreed, study)
