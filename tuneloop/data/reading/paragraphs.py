"""Plain text: what one record of it is.

Where blocks of several lines stand between blank lines, a block is a record; else each line is; in a folder of classes
the whole file is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from tuneloop.data.reading import containers
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.encodings import lines
from tuneloop.errors import DataError

Unit = Literal["line", "paragraph", "file"]


def unit(head: Iterable[str]) -> Unit:
    r"""What a record is, from the first lines.

    >>> unit(["One.\n", "Two.\n"]), unit(["A poem\n", "of lines\n", "\n", "and\n", "another\n"])
    ('line', 'paragraph')
    """
    blocks = [0]
    for line in head:
        if line.strip():
            blocks[-1] += 1
        elif blocks[-1]:
            blocks.append(0)
    blocks = [size for size in blocks if size]
    return "paragraph" if len(blocks) > 1 and 2 * sum(size > 1 for size in blocks) > len(blocks) else "line"


def rows(blob: Blob, encoding: str, kind: Unit) -> Iterator[tuple[int, dict[str, str]]]:
    """The texts, each with the line where it starts, as {"text": …}."""
    start, size = 0, 0
    held: list[str] = []
    for number, line in enumerate(lines(blob, encoding), 1):
        if kind == "line":
            text = line.strip("\ufeff \t\r\n")
            if text:
                yield number, {"text": text}
            continue
        if line.strip("\ufeff \t\r\n") or (kind == "file" and held):
            start = start or number
            held.append(line)
            size += len(line)
            if size > containers.ROW:
                raise DataError("TL-DATA-ROW-LONG", where=f"{blob.where}:{start}", limit=containers.ROW >> 20)
        elif held:
            yield start, {"text": "".join(held).strip("\ufeff\r\n \t")}
            start, held, size = 0, [], 0
    if held:
        yield start, {"text": "".join(held).strip("\ufeff\r\n \t")}
