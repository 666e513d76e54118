"""JSON values: a whole document, or the elements of an array one at a time, however long the array is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.data.reading import containers, encodings
from tuneloop.data.reading.containers import Blob

_BLANK = re.compile(r"[ \t\r\n]*")
_NEAR = 16
"""Characters at the end of the buffer in which a parse error may be a truncated token; the longest is -Infinity."""


def load(blob: Blob, encoding: str) -> Any:
    """The whole document; raises TL-DATA-JSON with line and column, TL-DATA-WHOLE where it is too large."""
    content = blob.read_bytes()
    try:
        text = content.decode(encoding, "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape")
    except LookupError:  # two encodings in one file
        text = "".join(encodings.lines(blob, encoding))
    del content
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise DataError("TL-DATA-JSON", where=f"{blob.where}:{error.lineno}:{error.colno}", error=error.msg) from error
    except (ValueError, RecursionError) as error:  # a number of 5000 digits; a million brackets
        raise DataError("TL-DATA-JSON", where=blob.where, error=str(error)) from error


def elements(blob: Blob, encoding: str) -> Iterator[Any]:
    """The elements of a document that is one array, read as a stream.

    Memory holds one element. Raises TL-DATA-JSON as `load` does, TL-DATA-ROW-LONG for an element above ROW characters.
    """
    window, number = _Window(encodings.chunks(blob, encoding)), 0
    try:
        window.step("[")
        if window.next() == "]":
            window.step("]")
        else:
            while True:
                number += 1
                yield window.element()
                if window.step(",]") == "]":
                    break
        window.end()
    except _TooLong as error:
        raise DataError("TL-DATA-ROW-LONG", where=f"{blob.where}:{number}", limit=containers.ROW >> 20) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeError):
            raise
        _tell(blob, encoding, number, error)


def _tell(blob: Blob, encoding: str, number: int, error: Exception) -> None:
    """Raise TL-DATA-JSON with line and column, by parsing the whole document; else with the element's number."""
    where = f"{blob.where}:{number}"
    try:
        load(blob, encoding)
    except DataError as known:
        if known.code == "TL-DATA-JSON":
            raise
    raise DataError("TL-DATA-JSON", where=where, error=str(error)) from error


class _TooLong(Exception):
    pass


class _Window:
    """A sliding buffer over the text: extended on demand, dropped behind the cursor `at`."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self.chunks, self.text, self.at, self.ended = chunks, "", 0, False
        self.decode = json.JSONDecoder().raw_decode
        self.next()
        if self.text.startswith("\ufeff", self.at):
            self.at += 1

    def extend(self, size: int) -> None:
        """Read at least `size` more characters, unless the text ends."""
        parts = [self.text[self.at :]]
        while size > 0 and not self.ended:
            piece = next(self.chunks, "")
            self.ended = not piece
            size -= len(piece)
            parts.append(piece)
        self.text, self.at = "".join(parts), 0

    def next(self) -> str:
        """The next character that is no blank, not consumed; "" at the end."""
        while True:
            match = _BLANK.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.extend(1)

    def step(self, wanted: str) -> str:
        """Consume one of the wanted characters; raise ValueError at another one."""
        char = self.next()
        if not char or char not in wanted:
            raise ValueError(f"Expecting {' or '.join(wanted)}")
        self.at += 1
        return char

    def end(self) -> None:
        if self.next():
            raise ValueError("Extra data")

    def _cut(self, element: Any, end: int) -> bool:
        """Whether a number may be truncated at the buffer's end: 12 of 12.5e3 is a number too."""
        rest = self.text[end : end + _NEAR]
        return isinstance(element, int | float) and len(rest) < _NEAR and not rest.strip("0123456789+-.eE")

    def element(self) -> Any:
        """Consume and decode one JSON value; while it is incomplete the buffer is doubled, so the work stays linear."""
        self.next()
        while True:
            length = len(self.text) - self.at
            try:
                element, end = self.decode(self.text, self.at)
                if self.ended or not self._cut(element, end):
                    self.at = end
                    return element
            except json.JSONDecodeError as error:
                if self.ended or (error.pos < len(self.text) - _NEAR and not error.msg.startswith("Unterminated")):
                    raise
            if length > containers.ROW:
                raise _TooLong
            self.extend(max(length, 1))
