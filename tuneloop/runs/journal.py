"""JSON lines that grow as things happen: metrics.jsonl, events.jsonl, samples.jsonl. Their one reader and writer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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


PIECE = 1 << 20
"""Bytes of a journal that are read at a time."""
KNOWN_BY = 256
"""Bytes before the place up to which a file was read, by which a reader knows that it is still the same file."""


@dataclass(slots=True)
class Tail:
    """Reads what is new in a JSON-lines file that another process writes, without reading the rest again.

    A line that has no end yet is left for the next reading. A resumed run rewinds its metrics: then what was read last
    stands there no more, and the file is read from its beginning.
    """

    path: Path
    offset: int = field(default=0, init=False)
    last: bytes = field(default=b"", init=False)

    def pieces(self) -> Iterator[NewLines]:
        """The lines that came since the last reading, in pieces: a long file is never in memory as a whole."""
        while True:
            before = self.offset
            piece = self.read(PIECE)
            if self.offset == before and not piece.rewound:
                return
            yield piece

    def read(self, most: int = -1) -> NewLines:
        """The lines that came since the last reading, or those that end within `most` bytes (but one at least); all of
        them where the file begins anew."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.last))
                rewound = file.read(len(self.last)) != self.last
                if rewound:
                    self.offset, self.last = 0, b""
                    file.seek(0)
                content = file.read(most)
                while most > 0 and content and b"\n" not in content and (more := file.read(most)):
                    content += more
        except FileNotFoundError:
            rewound, content = self.offset > 0, b""
            self.offset, self.last = 0, b""
        ended = content[: content.rfind(b"\n") + 1]
        self.offset, self.last = self.offset + len(ended), (self.last + ended)[-KNOWN_BY:]
        return NewLines(tuple(_decoded(ended.split(b"\n"))), rewound)


@dataclass(frozen=True, slots=True)
class NewLines:
    """New lines of a journal; with `rewound` they stand in place of all that was read before."""

    lines: tuple[dict[str, Any], ...]
    rewound: bool


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
