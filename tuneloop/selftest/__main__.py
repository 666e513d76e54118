"""python -m tuneloop.selftest [FOLDER]: the proof, each section in a process and with a time limit of its own.

What a section does to its device ends with its process; one that hangs is stopped, and what it found is kept. The lines
go to FOLDER/proof.jsonl and FOLDER/proof.md as they stand. This process imports nothing that a bare Python lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuneloop.base.language import t
from tuneloop.selftest.lines import Line, Lines, broken
from tuneloop.selftest.report import Report, closing
from tuneloop.selftest.sections import SECTIONS
from tuneloop.selftest.wheels import with_the_parent

MINUTES = 7.75
"""The whole proof, by default: a card is often lent for less than ten minutes."""
FACTS = "facts"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tuneloop.selftest", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--only", default="", help="names of sections, with commas between them")
    parser.add_argument("--section", default="", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


def _section(name: str, report: Report, began: float) -> None:
    """One section in this process: its lines are written as they stand."""
    lines = Lines(_say, lambda line: report.line(name, line, time.time() - began))
    try:
        if name == FACTS:
            import torch

            from tuneloop.selftest import device

            report.facts(device.facts(), on_card=torch.cuda.is_available())
            return
        section = next(s for s in SECTIONS if s.name == name)
        with tempfile.TemporaryDirectory(prefix="tuneloop-proof-", ignore_cleanup_errors=True) as place:
            section.prove(lines, Path(place))
    except ModuleNotFoundError as error:
        lines.add(Line(name, t("this section"), "not run", t("the package {name} is not installed", name=error.name)))
    except Exception as error:  # a proof reports faults, whatever they are, and goes on
        lines.add(broken(name, t("this section"), error))


def _run(name: str, seconds: float, report: Report, began: float) -> None:
    """One section in a process of its own, ended with all its children after `seconds`."""
    lines = Lines(_say, lambda line: report.line(name, line, time.time() - began))
    command = [sys.executable, "-m", "tuneloop.selftest", str(report.folder), "--section", name, "--began", str(began)]
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=with_the_parent())
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        lines.add(Line(name, t("the rest"), "not run", t("its time of {n:.0f} s is over", n=seconds)))
        code = 0
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code:
        why = t("its process ended with signal {n}", n=-code) if code < 0 else t("its process ended with {n}", n=code)
        lines.add(Line(name, t("the rest"), "failed", why))


def main() -> int:
    arguments = _arguments()
    report = Report(arguments.folder.resolve())
    if arguments.section:
        _section(arguments.section, report, arguments.began)
        return 0
    began, wanted = time.time(), [name.strip() for name in arguments.only.split(",") if name.strip()]
    report.begin()
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, lambda *_: sys.exit(143))
    _run(FACTS, 120, report, began)
    for section in SECTIONS:
        if wanted and section.name not in wanted:
            continue
        left = began + 60 * arguments.minutes - time.time()
        if left < 1:
            Lines(_say, lambda line, s=section: report.line(s.name, line, time.time() - began)).add(  # type: ignore[misc]
                Line(section.name, t("this section"), "not run", t("the proof's time is over"))
            )
            continue
        _say(f"== {section.name}")
        _run(section.name, min(section.seconds, left), report, began)
    report.end(time.time() - began)
    lines = report.lines()
    _say(closing(lines, time.time() - began, on_card=any(e.get("on_card") for e in report.entries())))
    _say(t("The report to post: {path}", path=report.page))
    return int(any(line.verdict == "failed" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
