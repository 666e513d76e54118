"""The profile of a dataset version, in the terminal or as its page: `tuneloop data inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneloop.base.language import listed, t
from tuneloop.cli import show

BAR = 40
"""Columns of the longest bar."""
FILES = 20
"""Files that are listed; the page has more."""

Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="A dataset's name (its newest version), name/hash, a hash, or a folder."),
]
Workspace = Annotated[Path, typer.Option(help="Folder that holds datasets/.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def inspect(
    version: Version,
    samples: Annotated[int, typer.Option(min=0, max=5, help="So many rows are shown as they are trained.")] = 2,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page, in the chosen language, to this file.")
    ] = None,
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Show a dataset version: rows as they are trained, lengths, languages, labels, and what each step did to it.

    Examples: tuneloop data inspect chats | tuneloop data inspect chats --page card.html --lang zh
    """
    from tuneloop.data.card import page as card
    from tuneloop.data.card import profile
    from tuneloop.data.version.find import locate

    dataset = locate(workspace, version)
    figures = profile.of(dataset)
    if page is not None:
        _write(page, card.card(figures))
    if json:
        show.as_json({"path": str(dataset.path), **figures})
        return
    _samples(figures["samples"][:samples])
    _head(figures)
    _steps(figures)
    _reasons(figures)
    _lengths(figures)
    _rows(figures)
    _repeats(figures)
    _sources(figures)
    print(t("The same with pictures: {path}", path=page or dataset.path / "card.html"))


def _write(page: Path, text: str) -> None:
    from tuneloop.base.files import write_atomic
    from tuneloop.base.refusals import writing

    with writing(page):
        write_atomic(page, text.encode("utf-8", "backslashreplace"))


def _head(figures: dict[str, Any]) -> None:
    from tuneloop.data.card.page import facts, moment, tiles

    origin_line = t(
        "Made {when}; tokens as {model} counts them.", when=moment(figures["created"]), model=figures["model"]
    )
    rows = [*tiles(figures), *((what, f"{n:,}", "") for what, n in facts(figures))]
    show.table(t("Data: {name} {hash}", name=figures["name"], hash=figures["hash"]), [t("what"), t("value"), ""], rows)
    print(origin_line, end="\n\n")


def _steps(figures: dict[str, Any]) -> None:
    from tuneloop.data.card.page import step_name

    names = [t("step"), t("rows before"), t("rows after"), t("dropped"), t("changed"), t("marked"), t("added")]
    keys = ("before", "after", "dropped", "changed", "marked", "added")
    rows = [
        (step_name(s["step"]), *(f"{s[k]:,}" if s[k] or k in keys[:2] else "–" for k in keys)) for s in figures["steps"]
    ]
    show.table(t("What each step did"), names, rows)


def _reasons(figures: dict[str, Any]) -> None:
    from tuneloop.data.card.page import reasons_of

    titles = {"dropped": t("Why rows were dropped"), "changed": t("Changed rows"), "added": t("Added rows"),
              "marked": t("Marked rows: kept as they are, somebody should know")}  # fmt: skip
    for action, title in titles.items():
        rows = [
            (
                f"{one['rows']:,}",
                one["step"],
                one["reason"],
                "\n".join(" ".join(filter(None, e)) for e in one["examples"]),
            )
            for one in reasons_of(figures, action)
        ]
        if rows:
            show.table(title, [t("rows"), t("step"), t("reason"), t("for example")], rows)


def _lengths(figures: dict[str, Any]) -> None:
    """One line a doubling: four bars of the page together."""
    import math

    lines: dict[int, list[int]] = {}
    for which, name in enumerate(("kept", "too_long")):
        for top, n in figures["lengths"][name]:
            lines.setdefault(2 ** math.ceil(math.log2(top) - 0.01), [0, 0])[which] += n
    most = max((sum(pair) for pair in lines.values()), default=0) or 1
    rows = []
    for top in sorted(lines):
        fitting, over = lines[top]
        limits = [t("max_length {n:,}", n=figures["max_length"])] if top // 2 < figures["max_length"] <= top else []
        if figures["context"] and top // 2 < figures["context"] <= top:
            limits.append(t("the model's context {n:,}", n=figures["context"]))
        if over:
            limits.append(t("{n:,} dropped for their length", n=over))
        bar = _bar(fitting, most) + "░" * (len(_bar(fitting + over, most)) - len(_bar(fitting, most)))
        rows.append((f"≤ {top:,}", f"{fitting:,}", bar, listed(limits)))
    show.table(t("Length in tokens"), ["", t("rows"), "", ""], rows)


def _bar(n: int, most: int) -> str:
    return "█" * (round(BAR * n / most) or (1 if n else 0))


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> None:
    most = max((n for _, n in rows), default=0) or 1
    total = sum(n for _, n in rows) or 1
    lines = [(what, f"{n:,}", f"{100 * n / total:.1f} %", _bar(n, most)) for what, n in rows]
    show.table(title, ["", t("rows"), "", ""], lines)


def _rows(figures: dict[str, Any]) -> None:
    from tuneloop.data.card.language_names import name
    from tuneloop.data.card.page import turn_bars
    from tuneloop.data.version.split import SIDES

    _bars(t("Questions in a row"), turn_bars(figures["turns"]))
    languages = figures["languages"]
    title = t("Languages")
    if languages["looked"] < languages["of"]:
        title = t(
            "Languages of {looked:,} rows from all over the {of:,}", looked=languages["looked"], of=languages["of"]
        )
    _bars(title, [(name(code), n) for code, n in languages["found"]])
    if figures["labels"]:
        _bars(t("Labels"), [(one["label"], sum(one[side] for side in SIDES)) for one in figures["labels"]])
        if figures["more_labels"]:
            print(t("And {n:,} other labels.", n=figures["more_labels"]), end="\n\n")


def _repeats(figures: dict[str, Any]) -> None:
    from tuneloop.data.card.page import repeats

    show.table(t("Repetitions"), ["", t("rows"), ""], repeats(figures["duplicates"]))


def _sources(figures: dict[str, Any]) -> None:
    rows = [
        (
            s["file"],
            f"{s['rows']:,}",
            s["repeat"],
            s["container"],
            s["encoding"] or "–",
            s["shape"],
            f"{100 * s['sure']:.0f} %",
        )
        for s in figures["sources"][:FILES]
    ]
    names = [t("file"), t("rows"), t("repeat"), t("container"), t("encoding"), t("shape"), t("sure")]
    show.table(t("Sources"), names, rows)
    rest, more = figures["sources"][FILES:], figures["more_sources"]
    if rest:
        files, count = len(rest) + more["files"], sum(s["rows"] for s in rest) + more["rows"]
        print(t("And {n:,} other files with {rows:,} rows.", n=files, rows=count), end="\n\n")
    if figures["left_out"]:
        left = [(one["file"], one["why"]) for one in figures["left_out"][:FILES]]
        show.table(t("Files that were left out"), [t("file"), t("why")], left)
        if more := figures["more_left_out"] + len(figures["left_out"][FILES:]):
            print(t("And {n:,} other files.", n=more), end="\n\n")


def _samples(samples: Sequence[dict[str, Any]]) -> None:
    """The rows, what is trained in green on a terminal and in ⟦ ⟧ elsewhere."""
    from rich.console import Console
    from rich.text import Text

    from tuneloop.data.card.page import part_facts
    from tuneloop.data.kinds import KINDS

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not samples:
        return
    console.print(t("Some rows as they are trained"), style="bold")
    if KINDS[samples[0]["kind"]].encoding == "framed":
        pass  # nothing in it is written by the model
    elif samples[0]["rendered"]:
        legend = Text(t("What the model is trained to write is marked:") + " ")
        console.print(legend.append(*_marked(t("trained"), console.is_terminal)))
    else:
        console.print(t("As they stand in the file; no tokenizer was at hand to render them."))
    for one in samples:
        for part in one["parts"]:
            console.print()
            console.print("── " + " · ".join(filter(None, [*_place(one), *part_facts(part)])), style="cyan")
            text = Text()
            for words, trained, gap in part["runs"]:
                text.append(*(_marked(words, console.is_terminal) if trained else (words, "dim")))
                if gap:
                    text.append(f" … {t('{n:,} more characters', n=gap)} … ", style="italic")
            console.print(text)
    console.print()


def _place(sample: dict[str, Any]) -> list[str]:
    label = t("label: {label}", label=sample["label"]) if sample["label"] else ""
    return [f"{sample['file']}:{sample['line']}", sample["id"], label]


def _marked(text: str, terminal: bool) -> tuple[str, str]:
    return (text, "bold green") if terminal else (f"⟦{text}⟧", "")
