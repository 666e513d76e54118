"""Who is told of a run: the addresses of a file, by apprise. DingTalk, Feishu, WeCom, Slack, e-mail and a hundred more.

An address holds a secret. It stands in that file alone: no message, error or event names more of it than its line and
its service.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneloop.base.errors import RecipeError, os_words
from tuneloop.base.language import t
from tuneloop.base.optional import need
from tuneloop.monitor.alerts import LEVELS, Alert, Level, level_word
from tuneloop.monitor.alerts import words as alert_words
from tuneloop.monitor.outbox import Outbox
from tuneloop.monitor.remedies import Remedy
from tuneloop.monitor.remedies import words as remedy_words

WAITING = 100
"""Notifications that wait for one address; more are not kept."""
LAST_SECONDS = 10.0
"""How long the end of a run waits until all has been sent."""
Tone = Literal["info", "success", "warning", "failure"]
"""What apprise calls the type of a notification: some services show it by a colour."""
TONES: dict[Level, Tone] = {"good": "success", "note": "info", "watch": "warning", "bad": "failure"}


@dataclass(frozen=True, slots=True)
class Recipient:
    """One line of the file. `service` is apprise's object for it; it sends when it is asked to."""

    file: Path
    line: int
    service: Any = field(repr=False)

    def send(self, title: str, body: str, tone: Tone) -> None:
        """Send at once, and wait for the answer. Raises ConnectionError where the service did not take it."""
        if not self.service.notify(title=title, body=body, notify_type=tone, body_format="text"):
            raise ConnectionError(self.name)

    @property
    def name(self) -> str:
        """What apprise calls the service: DingTalk, say."""
        return str(self.service.service_name)


def addresses(file: Path) -> list[Recipient]:
    """The addresses of a file: one a line; empty lines and those that begin with # are none.

    Raises TL-RECIPE-NOTIFY-FILE, TL-RECIPE-NOTIFY-ADDRESS, TL-MACHINE-EXTRA.
    """
    if re.match(r"[\w+.-]{2,}:/", str(file)) and not file.exists():
        words = t("this is an address: write it into a file, and name the file")
        raise RecipeError("TL-RECIPE-NOTIFY-FILE", where="watch.notify.file", error=words)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("TL-RECIPE-NOTIFY-FILE", where=str(file), error=os_words(error)) from error
    meant = [(n, one.strip()) for n, one in enumerate(lines, 1) if one.strip() and not one.strip().startswith("#")]
    if not meant:
        raise RecipeError("TL-RECIPE-NOTIFY-FILE", where=str(file), error=t("no address is in it"))
    apprise = need("apprise", extra="notify")
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines show addresses
    asset = apprise.AppriseAsset(app_id="tuneloop", app_desc="tuneloop", app_url="")
    services = [(n, apprise.Apprise.instantiate(url, asset=asset)) for n, url in meant]
    wrong = [RecipeError("TL-RECIPE-NOTIFY-ADDRESS", where=f"{file}:{n}") for n, one in services if one is None]
    if wrong:
        raise wrong[0] if len(wrong) == 1 else RecipeError("TL-RECIPE-INVALID", causes=wrong, n=len(wrong))
    return [Recipient(file, n, one) for n, one in services]


@dataclass(slots=True)
class Notifier:
    """Tells the addresses what goes on in one run, each in a thread of its own: a slow server delays no step.

    `level` is that of the alerts that are told; remedies and the end of the run are told in any case. `say` hears once
    of an address that cannot be told.
    """

    run: str
    to: Sequence[Recipient]
    level: Level
    say: Callable[[str], None]
    _boxes: list[tuple[Recipient, Outbox]] = field(init=False)
    _failed: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._boxes = [(one, self._box(one)) for one in self.to]

    def alerted(self, alert: Alert) -> None:
        if LEVELS.index(alert.level) >= LEVELS.index(self.level):
            text = alert_words(alert)
            head = t("step {step}, {level}: {what}", step=alert.step, level=level_word(alert.level), what=text.what)
            self.tell(head, [text.why, text.do, alert.code], TONES[alert.level])

    def remedied(self, remedy: Remedy) -> None:
        text = remedy_words(remedy)
        head = t("step {step}: {what}", step=remedy.step, what=text.what)
        self.tell(head, [text.why, text.do, remedy.code], "warning")

    def tell(self, head: str, lines: Sequence[str], tone: Tone) -> None:
        """A title, which gets the run's name in front, and the lines below it, without empty ones."""
        title = t("{run}, {what}", run=self.run, what=head)
        body = "\n".join([title, *filter(None, lines)])  # some services show no title
        for one, box in self._boxes:
            if not box.put(lambda one=one: one.send(f"tuneloop: {self.run}", body, tone)):  # type: ignore[misc]
                self._unreached(one)

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Wait until all has been sent, at most `seconds` for all of them together."""
        until = time.monotonic() + seconds
        for one, box in self._boxes:
            if not box.close(until - time.monotonic()):
                self._unreached(one)

    def _box(self, one: Recipient) -> Outbox:
        return Outbox(f"notify-{one.line}", lambda error: self._unreached(one), WAITING)

    def _unreached(self, one: Recipient) -> None:
        if one.line not in self._failed:
            self._failed.add(one.line)
            self.say(
                t(
                    "{file}, line {line}: {service} did not take a notification. Is the address right, and the server "
                    "within reach?",
                    file=one.file,
                    line=one.line,
                    service=one.name,
                )
            )
