"""What verbs print: tables, JSON, and lines of progress. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tuneloop.base.language import current, is_passing, t
from tuneloop.base.optional import quoted
from tuneloop.cli.wrapping import break_chinese


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def command(*words: object) -> str:
    """A command line for the reader to type: `tuneloop` and these words, quoted where the shell needs it.

    Where only --lang chose the language, the line asks for it again.
    """
    more = ["--lang", current()] if is_passing() else []
    return " ".join(quoted(str(word)) for word in ["tuneloop", *words, *more])


def warnings(texts: Iterable[str]) -> None:
    """What must be known before it costs time, on stderr."""
    for text in texts:
        say(t("Warning: {said}", said=text))


def as_json(content: Any) -> None:
    """One JSON document on stdout: what --json prints instead of tables."""
    print(json.dumps(content, ensure_ascii=False, indent=1, default=str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, as wide as the terminal; long cells wrap."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    break_chinese()
    drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(drawn)
        return
    # In a file or a pipe: one width everywhere, and no blanks at the ends of lines.
    console = Console(highlight=False, width=120)
    with console.capture() as captured:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def side(name: str) -> str:
    """A side of the split in the reader's language.

    >>> side("train")
    'train'
    """
    return (
        {"train": t("to train"), "validation": t("to validate"), "test": t("to test")}.get(name, name)
        if (current() == "zh")
        else name
    )


def trained_text(runs: Sequence[tuple[str, bool]]) -> None:
    """A rendered sample on stdout, the trained tokens marked: green on a terminal, in ⟦ ⟧ elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    text = Text()
    for part, trained in runs:
        if console.is_terminal:
            text.append(part, style="bold green" if trained else "dim")
        else:
            text.append(f"⟦{part}⟧" if trained else part)
    console.print(t("One sample as the model will see it; what it is trained to write is marked:"), style="bold")
    console.print(text)
    console.print()


def number(amount: float | None, digits: int = 3) -> str:
    """A number for a table, a dash where there is none.

    >>> number(1.23456), number(None)
    ('1.235', '–')
    """
    return "–" if amount is None else f"{amount:.{digits}f}"
