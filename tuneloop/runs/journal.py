"""JSON lines that grow as things happen: metrics.jsonl, events.jsonl, samples.jsonl. Their one reader and writer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneloop.base.files import flush, write_atomic


class Journal:
    """A JSON-lines file that grows as things happen: metrics.jsonl, events.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, fields: dict[str, Any]) -> None:
        self.write_all([fields])

    def write_all(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append several lines at once."""
        line = _encoded(lines)
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash cut the last line short: this one must not be lost with it
                    line = b"\n" + line
            file.write(line)

    def event(self, name: str, **facts: Any) -> None:
        self.write({"time": round(time.time(), 3), "event": name, **facts})

    def sync(self) -> None:
        """Flush to the disk: a checkpoint must not be newer than its metrics after a power cut."""
        if self.path.exists():
            flush(self.path)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was written, without lines that a crash cut short."""
        yield from _decoded(self._raw())

    def lines_from(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from byte `offset` on, which ends a line, and where the last of them ends."""
        if not self.path.exists():
            return [], offset
        with self.path.open("rb") as file:
            file.seek(offset)
            added = file.read()
        ended = added[: added.rfind(b"\n") + 1]
        return list(_decoded(ended.split(b"\n"))), offset + len(ended)

    def _raw(self) -> list[bytes]:
        r"""The lines as they lie, split at \n alone: JSON holds U+2028 and U+0085 as they are."""
        return self.path.read_bytes().split(b"\n") if self.path.exists() else []

    def rewind(self, step: int) -> None:
        """Drop the lines after optimizer step `step`, and a last line cut short by a crash: they will come again."""
        if not self.path.exists():
            return
        head = []
        for line in self._raw():
            try:
                if json.loads(line.decode("utf-8", "replace"))["step"] <= step:
                    head.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_atomic(self.path, b"".join(head))


def _decoded(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            fields = json.loads(line.decode("utf-8", "replace"))
        except ValueError:
            continue
        if isinstance(fields, dict):
            yield fields


def _encoded(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join((json.dumps(fields, ensure_ascii=False) + "\n").encode() for fields in lines)
