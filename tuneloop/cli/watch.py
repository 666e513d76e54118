"""tuneloop watch: a run as it goes, in this process's terminal; the run may be in any other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli.signals import status

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.monitor.live import Follower
    from tuneloop.runs.run import Run

ON_TERMINAL, ELSEWHERE = 1.0, 10.0
"""Seconds between two drawings on a terminal, and between two training lines elsewhere."""


def watch(
    run: Annotated[str, typer.Argument(help="A run, going on or not: its folder, its name, or latest.")] = "latest",
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    once: Annotated[bool, typer.Option("--once", help="Draw it once, as it is now.")] = False,
    interval: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds between two drawings, or between two lines where the output is no terminal. "
            "0: 1 second on a terminal, 10 elsewhere.",
        ),
    ] = 0.0,
) -> None:
    """Watch a run as it goes: loss, gradient, speed, memory, alerts, and what was done about them.

    It only reads the run's folder: the run may be in another terminal, and goes on when this ends.

    Examples: tuneloop watch | tuneloop watch runs/demo-1 --once | tuneloop watch latest --interval 60
    """
    from rich.console import Console

    from tuneloop.cli.wrapping import break_chinese
    from tuneloop.monitor.live import Follower
    from tuneloop.runs.run import open_run

    watched = open_run(run, workspace)
    break_chinese()
    console = Console(highlight=False)
    follower = Follower(watched)
    try:
        if once:
            _draw(console, follower)
        elif console.is_terminal and not console.is_dumb_terminal:
            _live(console, follower, interval or ON_TERMINAL)
            _draw(console, follower)
        else:
            _lines(follower, interval or ELSEWHERE)
    except KeyboardInterrupt as stop:
        raise typer.Exit(status(stop)) from None
    _close(watched, follower)


def _draw(console: Console, follower: Follower) -> None:
    """The page once, as long as it takes; elsewhere than on a terminal without blanks at the ends of lines."""
    from tuneloop.cli.watch_page import WatchPage

    follower.look()
    page = WatchPage(follower.state(time.time()))
    if console.is_terminal:
        console.print(page)
        return
    with console.capture() as captured:
        console.print(page)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _live(console: Console, follower: Follower, interval: float) -> None:
    """The page on a screen of its own, until the run ends."""
    from rich.live import Live

    from tuneloop.cli.watch_page import WatchPage

    hint = t("Ctrl-C ends this view; the run goes on.")

    def page() -> WatchPage:
        follower.look()
        return WatchPage(follower.state(time.time()), console.height - 1, hint)

    shown = page()
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while not shown.run.ended:
            time.sleep(interval)
            shown = page()
            live.update(shown, refresh=True)


def _lines(follower: Follower, interval: float) -> None:
    """A line for each alert, remedy and measurement as it comes, and for training every `interval` seconds; of what was
    there before, the alerts and remedies and the newest training line."""
    from tuneloop.cli.watch_lines import held_line, notice_line, training_line
    from tuneloop.monitor.notices import notices

    last, first, pending = float("-inf"), True, None
    while True:
        measured, newest, events = follower.look()
        run = follower.state(time.time())
        for held in () if first else measured:
            print(held_line(held), flush=True)
        for notice in notices(events):
            print(notice_line(notice), flush=True)
        pending = newest or pending
        if pending is not None and (run.ended or time.monotonic() - last >= interval):
            print(training_line(run, pending), flush=True)
            last, pending = time.monotonic(), None
        if run.ended:
            return
        first = False
        time.sleep(min(interval, ON_TERMINAL))


def _close(run: Run, follower: Follower) -> None:
    """How it ended and what to do next; nothing while it goes on."""
    from tuneloop.cli.watch_lines import closing

    state = follower.state(time.time())
    if state.ended:
        print(closing(state, run.path, evaluated=(run.path / "evaluation.json").is_file()))
