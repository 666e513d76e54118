"""Results on disk: .bench/results.jsonl, one line a measurement. A session is one run of the benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.environments import home

Result = dict[str, Any]


def path() -> Path:
    return home() / "results.jsonl"


def read(session: str = "last", file: Path | None = None) -> list[Result]:
    """A session's results, the latest of each way alone, in the order in which they were first measured."""
    file = file or path()
    if not file.is_file():
        return []
    every = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return latest(every, named(session, every))


def named(session: str, every: list[Result]) -> str:
    """The id that `last`, `new` or an id itself stands for."""
    if session == "last" and every:
        return str(every[-1]["session"])
    return time.strftime("%Y-%m-%d %H:%M") if session in ("new", "last") else session


def begin(session: str) -> str:
    """The id of the session to write into."""
    file = path()
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return named(session, [json.loads(line) for line in lines if line.strip()])


def latest(every: Iterable[Result], session: str) -> list[Result]:
    """The last result of each way of a session.

    >>> one = {"session": "a", "section": "lora", "way": "x", "n": 1}
    >>> latest([one, {**one, "n": 2}, {**one, "session": "b"}], "a")[0]["n"]
    2
    """
    found: dict[tuple[str, str], Result] = {}
    for one in every:
        if one["session"] == session:
            found[one["section"], one["way"]] = one
    return list(found.values())


def write(session: str, section: str, way: str, told: Result) -> Result:
    """Append a result."""
    one = {"session": session, "section": section, "way": way, "at": round(time.time()), **told}
    with path().open("a", encoding="utf-8") as file:
        file.write(json.dumps(one) + "\n")
    return one
