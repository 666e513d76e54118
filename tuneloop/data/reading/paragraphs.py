"""Plain text, split into records.

A file whose lines are indented in steps, as those of code are, is one record, and so is one with headings or code of
Markdown in it, and each file in a folder of classes. In any other file a block of lines between blank lines is a record
where most blocks have several lines; else each line is. A file too long to be one text (`LONGEST`) is no record: an
indented one ends a record where a line at the margin follows a blank one. Indentation, and blank lines inside a record,
are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from tuneloop.base.errors import DataError
from tuneloop.data.reading import containers
from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.encodings import lines

Unit = Literal["line", "paragraph", "indented", "file"]
_BLANK = "\ufeff \t\r\n"


LONGEST = 1 << 20
"""Characters up to which a file may be one record."""
_MARKDOWN = re.compile(r"#{1,6} \S|```|~~~")


def unit(head: Iterable[str], size: int = 0) -> Unit:
    r"""The unit of one record, from the first lines of a file and its size in characters.

    >>> unit(["One.\n", "Two.\n"]), unit(["A poem\n", "of lines\n", "\n", "and\n", "another\n"])
    ('line', 'paragraph')
    >>> unit(["def f():\n", "    return 1\n", "x = f()\n"])
    'file'
    >>> unit(["# A tale\n", "\n", "It began.\n"]), unit(["def f():\n", "    return 1\n", "x = f()\n"], LONGEST + 1)
    ('file', 'indented')
    """
    lines = list(head)
    if _is_indented(lines):
        return "file" if size <= LONGEST else "indented"
    if size <= LONGEST and _is_markdown(lines):
        return "file"
    blocks = [0]
    for line in lines:
        if line.strip():
            blocks[-1] += 1
        elif blocks[-1]:
            blocks.append(0)
    blocks = [size for size in blocks if size]
    return "paragraph" if len(blocks) > 1 and 2 * sum(size > 1 for size in blocks) > len(blocks) else "line"


def _is_markdown(lines: list[str]) -> bool:
    """Whether a heading or a fence stands beside a blank line: it belongs to what follows it."""
    around = ["", *(line.strip(_BLANK) for line in lines), ""]
    blank = any(not line for line in around[1:-1])
    return blank and any(
        _MARKDOWN.match(line) and not (before and after)
        for before, line, after in zip(around[:-2], around[1:-1], around[2:], strict=True)
    )


def _is_indented(lines: list[str]) -> bool:
    """Whether a fifth of the lines lie behind the margin, below others that do not: paragraphs alone never do.

    Steps inwards are few, or most follow a line that opens something, as in code.
    """
    full = [line for line in lines if line.strip(_BLANK)]
    depths = [len(line) - len(line.lstrip(" \t")) for line in full]
    steps = [line.rstrip() for line, (before, after) in zip(full[:-1], pairwise(depths), strict=True) if before < after]
    inside = sum(depth > 0 for depth in depths)
    opened = sum(line.endswith((":", "{", "(", "[", "：")) for line in steps)
    few = 2 * len(steps) <= len(depths) or 2 * opened > len(steps)
    return bool(steps) and few and 0.2 * len(depths) <= inside < len(depths)


def rows(blob: Blob, encoding: str, kind: Unit) -> Iterator[tuple[int, dict[str, str]]]:
    """The texts, each with the line where it starts, as {"text": …}."""
    start, size = 0, 0
    held: list[str] = []
    for number, line in enumerate(lines(blob, encoding), 1):
        blank = not line.strip(_BLANK)
        if kind == "line":
            if not blank:
                yield number, {"text": _joined([line])}
            continue
        ends = blank if kind == "paragraph" else kind == "indented" and not line[:1].isspace() and _is_apart(held)
        if ends and held:
            yield start, {"text": _joined(held)}
            start, held, size = 0, [], 0
        if not blank or held:
            start = start or number
            held.append(line)
            size += len(line)
            if size > containers.ROW:
                raise DataError("TL-DATA-ROW-LONG", where=f"{blob.where}:{start}", limit=containers.ROW >> 20)
    if held:
        yield start, {"text": _joined(held)}


def _is_apart(held: list[str]) -> bool:
    return bool(held) and not held[-1].strip(_BLANK)


def _joined(held: list[str]) -> str:
    """The lines as one text, without the blank ones around it and the blanks at its end."""
    return "".join(held).lstrip("\ufeff\r\n").rstrip(_BLANK)
