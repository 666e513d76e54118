"""Plain text: what one record of it is.

Where blocks of several lines stand between blank lines, a block is a record; else each line is; in a folder of classes
the whole file is. Lines that are indented in steps, as those of code are, belong together: there a record ends where a
line at the margin follows a blank one. Indentation, and blank lines inside a record, are text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from tuneloop.base.errors import DataError
from tuneloop.data.reading import containers
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.encodings import lines

Unit = Literal["line", "paragraph", "indented", "file"]
_BLANK = "\ufeff \t\r\n"


def unit(head: Iterable[str]) -> Unit:
    r"""What a record is, from the first lines.

    >>> unit(["One.\n", "Two.\n"]), unit(["A poem\n", "of lines\n", "\n", "and\n", "another\n"])
    ('line', 'paragraph')
    >>> unit(["def f():\n", "    return 1\n", "x = f()\n"])
    'indented'
    """
    lines = list(head)
    if _is_indented(lines):
        return "indented"
    blocks = [0]
    for line in lines:
        if line.strip():
            blocks[-1] += 1
        elif blocks[-1]:
            blocks.append(0)
    blocks = [size for size in blocks if size]
    return "paragraph" if len(blocks) > 1 and 2 * sum(size > 1 for size in blocks) > len(blocks) else "line"


def _is_indented(lines: list[str]) -> bool:
    """Whether a fifth of the lines lie behind the margin, below others that do not: paragraphs alone never do."""
    depths = [len(line) - len(line.lstrip(" \t")) for line in lines if line.strip(_BLANK)]
    deeper = sum(before < after for before, after in pairwise(depths))
    inside = sum(depth > 0 for depth in depths)
    return deeper > 0 and 0.2 * len(depths) <= inside < len(depths) and 2 * deeper <= len(depths)


def rows(blob: Blob, encoding: str, kind: Unit) -> Iterator[tuple[int, dict[str, str]]]:
    """The texts, each with the line where it starts, as {"text": …}."""
    start, size = 0, 0
    held: list[str] = []
    for number, line in enumerate(lines(blob, encoding), 1):
        blank = not line.strip(_BLANK)
        if kind == "line":
            if not blank:
                yield number, {"text": _whole([line])}
            continue
        ends = blank if kind == "paragraph" else kind == "indented" and not line[:1].isspace() and _is_apart(held)
        if ends and held:
            yield start, {"text": _whole(held)}
            start, held, size = 0, [], 0
        if not blank or held:
            start = start or number
            held.append(line)
            size += len(line)
            if size > containers.ROW:
                raise DataError("TL-DATA-ROW-LONG", where=f"{blob.where}:{start}", limit=containers.ROW >> 20)
    if held:
        yield start, {"text": _whole(held)}


def _is_apart(held: list[str]) -> bool:
    return bool(held) and not held[-1].strip(_BLANK)


def _whole(held: list[str]) -> str:
    """The lines as one text, without the blank ones around it and the blanks at its end."""
    return "".join(held).lstrip("\ufeff\r\n").rstrip(_BLANK)
