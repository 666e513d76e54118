"""What a proof says: one line a claim, passed, failed, refused with a code, or not run with its reason."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Literal

from tuneloop.base.errors import MachineError, RunError, TuneloopError
from tuneloop.base.language import t

Verdict = Literal["passed", "failed", "refused", "not run"]
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "refused", "not run")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Line:
    """One claim. `group` says what it is about, `detail` holds the measured numbers or the reason, `trace` where an
    error that was not expected came from."""

    group: str
    what: str
    verdict: Verdict
    detail: str = ""
    trace: str = ""

    def row(self) -> tuple[str, str, str]:
        """Verdict, claim and detail as a person reads them."""
        words = {
            "passed": t("passed"), "failed": t("FAILED"), "refused": t("refused"), "not run": t("not run"),
        }  # fmt: skip
        return words[self.verdict], f"{self.group}: {self.what}", self.detail


class NotRunError(Exception):
    """Raised by a claim that this machine cannot look at; says why."""


class FailedError(Exception):
    """Raised by a claim that does not hold; says by how much."""


def _nowhere(line: Line) -> None:
    """Keeps nothing: lines that are only collected."""


@dataclass
class Lines:
    """Collects lines, each told and kept as soon as it stands."""

    say: Say
    keep: Callable[[Line], None] = _nowhere
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self.keep(line)
        verdict, what, detail = line.row()
        self.say(f"  {verdict}  {what}  {detail}".rstrip())

    def claim(self, group: str, what: str, look: Callable[[], str], *, may_refuse: bool = False) -> None:
        """Look at one claim: `look` returns what it measured, or raises. With `may_refuse` a coded error of recipe,
        data or model is an answer as well: this does not go together. One of a run or of the machine never is."""
        self.add(_line(group, what, look, may_refuse))


def _line(group: str, what: str, look: Callable[[], str], may_refuse: bool) -> Line:
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Line(group, what, "passed", look())
    except NotRunError as reason:
        return Line(group, what, "not run", str(reason))
    except FailedError as reason:
        return Line(group, what, "failed", str(reason))
    except ModuleNotFoundError as error:
        return Line(group, what, "not run", t("the package {name} is not installed", name=error.name or error))
    except MachineError as error:
        return Line(group, what, "not run", f"{error.code} {error.what}")
    except TuneloopError as error:
        summary = "; ".join([f"{error.code} {error.what}", *(cause.what for cause in error.causes)])
        refused = may_refuse and not isinstance(error, RunError)
        if refused:
            return Line(group, what, "refused", error.code)
        return Line(group, what, "failed", summary, traceback.format_exc())
    except Exception as error:  # a proof reports faults, whatever they are, and goes on
        return broken(group, what, error)


def broken(group: str, what: str, error: Exception) -> Line:
    """The line of an error that nobody expected, with its traceback. Called where it is caught."""
    return Line(
        group, what, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", traceback.format_exc()
    )
