"""What a run sends out while it trains: its figures to trackers, and notifications to people."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.base.refusals import is_full
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.notify import Notifier, Recipient, addresses
from tuneloop.monitor.outbox import Outbox
from tuneloop.monitor.remedies import remedies
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.training import distributed
from tuneloop.training.trackers import Tracker, require, title_and_text

START_SECONDS = 60.0
"""How long a run waits for one tracker to begin."""
FINISH_SECONDS = 30.0
"""How long the end of a run waits for its trackers, all together."""
KEPT_LINES = 10_000
"""Lines that wait for a slow tracker; more are not kept."""


class Sender:
    """One tracker in a thread of its own. What fails is said once, and the tracker is left out from then on."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.tracker, self.say, self.left_out = tracker, say, False
        self.box = Outbox(f"tracker-{tracker.name}", lambda error: self.leave_out(_reason(error)), KEPT_LINES)

    def put(self, action: Callable[[], None]) -> None:
        if not self.left_out and not self.box.put(lambda: None if self.left_out else action()):
            self.leave_out(t("it is too slow"))

    def leave_out(self, why: str) -> None:
        if not self.left_out:
            self.left_out = True
            self.say(t("The tracker {name} is left out from here on: {error}", name=self.tracker.name, error=why))


class Outlets:
    """The trackers and the notifications of one run, from before its first step to its end.

    Made before anything is loaded, since it raises what the user has to mend: TL-MACHINE-EXTRA,
    TL-RECIPE-NOTIFY-FILE, TL-RECIPE-NOTIFY-ADDRESS. Only the leader sends. Used as a context; an error that leaves it
    is told as the end of the run.
    """

    def __init__(self, run: Run, recipe: Recipe) -> None:
        part = recipe.watch
        for name in part.trackers:
            require(name)
        recipients: list[Recipient] = addresses(Path(part.notify.file)) if part.notify.file is not None else []
        leads = distributed.leads()
        self.run, self.recipe = run, recipe
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
        self.journal = Journal(run.events)
        self.known_remedies = len(remedies(self.journal.lines()))
        self.senders: list[Sender] = []
        self.names = part.trackers if leads else []
        self.notifier = Notifier(
            run.path.name, recipients if leads else [], part.notify.level, lambda text: self.say(text)
        )
        self.finished: tuple[bool, int, int] | None = None

    def begin(self, step: int, say: Callable[[str], None]) -> None:
        """An attempt begins after optimizer step `step`; `say` is its screen."""
        self.say = say
        self._tell_remedies()
        if self.senders or not self.names:
            return
        folder = self.run.path / "trackers"
        folder.mkdir(exist_ok=True)
        with _printed_to(folder / "log.txt"):
            for name in self.names:
                sender = Sender(Tracker(name, folder / name, self.run.path.name), lambda text: self.say(text))
                self.senders.append(sender)
                sender.put(lambda sender=sender: sender.tracker.start(self.recipe, step))  # type: ignore[misc]
            for sender in self.senders:
                if not sender.box.wait(START_SECONDS):
                    sender.leave_out(t("it is too slow"))

    def line(self, line: Mapping[str, Any]) -> None:
        """A line that metrics.jsonl has just got."""
        for sender in self.senders:
            sender.put(lambda sender=sender: sender.tracker.send(line))  # type: ignore[misc]

    def alerted(self, alert: Alert) -> None:
        title, text = title_and_text(alert)
        for sender in self.senders:
            sender.put(lambda sender=sender: sender.tracker.note(alert, title, text))  # type: ignore[misc]
        self.notifier.alerted(alert)

    def ended(self, finished: bool, step: int, total: int) -> None:
        """The session is over after optimizer step `step` of `total`; told when the context ends."""
        self.finished = finished, step, total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell_remedies()
        self._tell_end(error)
        self._finish()
        self.notifier.close()

    def _tell_remedies(self) -> None:
        """Those that events.jsonl has got since."""
        done = remedies(self.journal.lines())
        for remedy in done[self.known_remedies :]:
            self.notifier.remedied(remedy)
        self.known_remedies = len(done)

    def _tell_end(self, error: BaseException | None) -> None:
        lines = list(Journal(self.run.metrics).lines())
        step, total = (int(lines[-1]["step"]) if lines else 0), 0
        if self.finished is not None:
            finished, step, total = self.finished
            if finished:
                head = t("training has finished at step {step} of {total}", step=step, total=total)
                return self.notifier.tell(head, _losses(lines), "success")
        go_on = t("Go on with: tuneloop train --resume {run}", run=self.run.path)
        if error is None or isinstance(error, KeyboardInterrupt):
            head = t("training was stopped at step {step}", step=step)
            return self.notifier.tell(head, [*_losses(lines), go_on], "warning")
        why = str(error) if isinstance(error, TuneloopError) else _reason(error)
        if is_full(error):
            head = t("training has paused at step {step}: the disk is full", step=step)
            return self.notifier.tell(head, [why, go_on], "warning")
        head = t("training has failed at step {step}", step=step)
        self.notifier.tell(head, [why, go_on], "failure")

    def _finish(self) -> None:
        if not self.senders:
            return
        until = time.monotonic() + FINISH_SECONDS
        with _printed_to(self.run.path / "trackers" / "log.txt"):
            for sender in self.senders:
                sender.put(sender.tracker.finish)
            for sender in self.senders:
                if not sender.box.close(until - time.monotonic()):
                    sender.leave_out(t("it is too slow"))


def _losses(lines: list[dict[str, Any]]) -> list[str]:
    """The newest loss and held-out loss, as lines of text; nothing where there is none."""
    newest = [next((line[key] for line in reversed(lines) if key in line), None) for key in ("loss", "eval_loss")]
    loss, held = (None if one is None else f"{float(one):.4f}" for one in newest)
    return [
        *([t("loss {loss}", loss=loss)] if loss else []),
        *([t("held-out loss {loss}", loss=held)] if held else []),
    ]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _printed_to(file: Path) -> Iterator[None]:
    """What trackers print goes to a file. Nothing else prints meanwhile: this process waits for them."""
    with file.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
