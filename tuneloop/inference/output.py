"""A file of predictions that grows in parts and can be gone on with: JSON lines, or CSV by its ending.

While it is written it is called OUT.part. Beside it lies OUT.predict.json: what it is made from, and how many rows and
bytes are safe on the disk. What lies behind them was cut short by a crash and is written again.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneloop.base import refusals
from tuneloop.base.errors import RecipeError, RunError
from tuneloop.base.files import flush, write_atomic
from tuneloop.base.language import listed, t
from tuneloop.runs.lock import lock

Row = Mapping[str, Any]
ENDINGS = (".jsonl", ".ndjson", ".csv", "")
"""Of the files that are written: anything else would hold other bytes than its name says."""


def require_ending(path: Path) -> None:
    """Raise TL-RECIPE-VALUE for a file that promises what is not written.

    >>> require_ending(Path("answers.csv"))
    """
    if path.suffix.lower() not in ENDINGS:
        raise RecipeError("TL-RECIPE-VALUE", where="--to", got=str(path), need=t("a name that ends in .jsonl or .csv"))


@dataclass(slots=True)
class Output:
    """The file at `path`, made from what `identity` says: name -> text."""

    path: Path
    identity: dict[str, str]
    maker: str = ""
    """What answers, in the words of a user."""
    columns: Sequence[str] = ()
    """Of a CSV file: its header."""
    rows: int = 0
    failed: int = 0
    size: int = 0
    finished: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    """What was counted in the rows so far."""

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def state(self) -> Path:
        return self.path.with_name(f"{self.path.name}.predict.json")

    @property
    def is_table(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def open(self, *, again: bool = False) -> None:
        """Take up what is there. Raises TL-RUN-OUT-EXISTS for a file that is not ours, and TL-RUN-OUT-OTHER for one
        that was made from something else; with `again` one of the same making begins anew."""
        known = self._known()
        if known is None:
            if self.path.exists() or self.part.exists():
                raise RunError("TL-RUN-OUT-EXISTS", where=str(self.path if self.path.exists() else self.part))
        else:
            theirs = known.get("identity") or {}
            names = [name for name in {**self.identity, **theirs} if theirs.get(name) != self.identity.get(name)]
            if names:
                differ = listed(self._difference(name, theirs, str(known.get("maker") or "")) for name in names)
                raise RunError("TL-RUN-OUT-OTHER", where=str(self.path), differs=differ)
            if not again:
                self._take_up(known)
        if not self.rows and not self.finished:
            self._begin()

    def _difference(self, name: str, theirs: Mapping[str, str], maker: str) -> str:
        """What was another thing when the file was made, then and now; a model by its name where that tells them."""
        words = {"input": t("input"), "model": t("model"), "column": t("column"), "template": t("chat template")}
        if name == "template":
            return words[name]
        then, now = theirs.get(name, "–"), self.identity.get(name, "–")
        if name == "model" and maker and self.maker:
            then, now = (maker, self.maker) if maker != self.maker else (f"{maker} {then}", f"{maker} {now}")
        return t("{what} ({then} → {now})", what=words.get(name, name), then=then, now=now)

    def _known(self) -> dict[str, Any] | None:
        try:
            known = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise RunError("TL-RUN-DAMAGED", where=str(self.state), error=t("not a JSON object"))
        return known

    def _take_up(self, known: dict[str, Any]) -> None:
        size = int(known["size"])
        if self.path.exists() and not self.part.exists():
            if self.path.stat().st_size != size or not known["complete"]:
                raise RunError("TL-RUN-OUT-EXISTS", where=str(self.path))
            self.finished = True
        elif not self.part.exists() or self.part.stat().st_size < size:
            return  # what the state speaks of is gone
        self.rows, self.failed, self.size = int(known["rows"]), int(known["failed"]), size
        self.counts = {str(name): int(n) for name, n in known["counts"].items()}
        if self.part.exists():
            with self.part.open("r+b") as file:
                file.truncate(size)

    def _begin(self) -> None:
        self.rows = self.failed = 0
        self.counts = {}
        # With its mark Excel reads UTF-8 as such, also where the system's own code page is another one.
        names = dict(zip(self.columns, self.columns, strict=True))
        head = codecs.BOM_UTF8 + self._table([names]) if self.is_table else b""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.write_bytes(head)
        self.size = len(head)
        self._settle(complete=False)

    def append(self, rows: Sequence[Row], *, failed: int, counts: Mapping[str, int]) -> None:
        """Add rows: they are on the disk when this returns."""
        body = self._table(rows) if self.is_table else b"".join(map(_line, rows))
        with self.part.open("ab") as file:
            file.write(body)
        flush(self.part)
        self.rows += len(rows)
        self.failed += failed
        self.size += len(body)
        self.counts |= {name: self.counts.get(name, 0) + n for name, n in counts.items()}
        self._settle(complete=False)

    def finish(self) -> None:
        """All rows are there: the file takes its name."""
        self._settle(complete=True)
        os.replace(self.part, self.path)
        self.finished = True

    def _settle(self, *, complete: bool) -> None:
        known = {
            "identity": self.identity, "rows": self.rows, "failed": self.failed, "size": self.size,
            "counts": self.counts, "complete": complete, "maker": self.maker,
        }  # fmt: skip
        write_atomic(self.state, json.dumps(known, indent=1, ensure_ascii=False), sync=True)

    def _table(self, rows: Sequence[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in self.columns])
        return text.getvalue().encode("utf-8", "backslashreplace")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes this file meanwhile. Raises TL-RUN-OUT-BUSY."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        refusals.require_writable(self.path.parent)  # a lock that cannot be made would look like one that is held
        try:
            with lock(self.path.with_name(f".{self.path.name}.lock"), wait=0):
                yield
        except Timeout as error:
            raise RunError("TL-RUN-OUT-BUSY", where=str(self.path)) from error


def _line(row: Row) -> bytes:
    r"""A row as a line of JSON, whatever is in it.

    >>> _line({"text": "\ud800", "x": float("nan")})
    b'{"text": "\\ud800", "x": null}\n'
    """
    text = json.dumps(_sound(row), ensure_ascii=False, default=str)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _sound(content: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(content, Mapping):
        return {str(key): _sound(inner) for key, inner in content.items()}
    if isinstance(content, list | tuple):
        return [_sound(inner) for inner in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _cell(content: Any) -> str:
    """A value in a table: text as it is, anything else as JSON; nothing for nothing.

    >>> _cell("a"), _cell(None), _cell([1]), _cell(True), _cell(0.5)
    ('a', '', '[1]', 'true', '0.5')
    """
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(_sound(content), ensure_ascii=False, default=str)
