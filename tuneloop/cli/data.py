"""tuneloop data: look at raw files before they are trained on, and at what became of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tuneloop.base.language import t
from tuneloop.cli import exchange, inspect, lineage, show
from tuneloop.cli.verb import Verb, Verbs

app = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Look at raw files and at datasets.")

for verb in (inspect.inspect, lineage.diff, lineage.trace, exchange.export):
    app.command(cls=Verb)(verb)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command("sniff", cls=Verb)
def sniff(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Files, folders, globs, - (stdin), hub:org/name, modelscope:org/name."),
    ],
    task: Annotated[
        str | None, typer.Option(help="What the rows are: chat, text, label, preference or judged.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="The text's encoding, where looking is not enough.")] = None,
    json: Json = False,
) -> None:
    """Say what raw files are: container, encoding, shape, which column plays which role, and why. Nothing is written.

    Examples: tuneloop data sniff chats.json | tuneloop data sniff folder/ reviews.zip --json | tuneloop data sniff -
    """
    from tuneloop.base.errors import TuneloopError
    from tuneloop.data.reading import formats, sides
    from tuneloop.recipe.recipe import make_recipe

    listed: list[dict[str, Any]] = []
    refused: list[TuneloopError] = []
    groups: list[sides.Group] = []
    left_out: list[tuple[str, str]] = []
    for name in files:
        try:
            recipe, _ = make_recipe({"data": [{"path": name, "task": task, "encoding": encoding}]})
            seen = formats.survey(recipe.data[0])
        except TuneloopError as error:
            refused.append(error)
            continue
        groups.append((recipe.data[0], seen.sources))
        left_out += seen.left_out
    listed += [_row(source) for _, group in sides.settled(groups) for source in group]
    listed += [{"file": label, "left_out": why} for label, why in left_out]
    if json:
        show.as_json({"files": listed, "refused": [one.as_dict() for one in refused]})
    else:
        _tables(listed)
        for one in refused:
            show.say(str(one))
    if refused:
        raise typer.Exit(2)


def _row(source: Any) -> dict[str, Any]:
    guess = source.guess
    return {
        "file": source.label,
        "path": str(source.path),
        "container": guess.container,
        "compression": guess.compression,
        "encoding": guess.encoding,
        "shape": guess.shape,
        "kind": guess.kind,
        "columns": list(guess.columns),
        "roles": dict(guess.roles),
        "side": source.side,
        "label": source.given,
        "rows_looked_at": guess.rows_read,
        "sure": guess.sure,
        "why": guess.why,
    }


def _tables(listed: list[dict[str, Any]]) -> None:
    read = _grouped([row for row in listed if "left_out" not in row])
    left = [row for row in listed if "left_out" in row]
    if read:
        columns = [t("file"), t("side"), t("container"), t("encoding"), t("shape"), t("kind"), t("roles"),
                   t("looked at"), t("sure"), t("why")]  # fmt: skip
        show.table(
            t("What the files are"),
            columns,
            [
                (
                    row["file"],
                    row["side"],
                    ".".join(filter(None, (row["container"], row["compression"]))),
                    row["encoding"] or "–",
                    row["shape"],
                    row["kind"],
                    "\n".join(f"{role}: {column}" for role, column in row["roles"].items()),
                    row["rows_looked_at"],
                    f"{100 * row['sure']:.0f} %",
                    row["why"],
                )
                for row in read
            ],
        )
    if left:
        show.table(t("Left out"), [t("file"), t("why")], [(row["file"], row["left_out"]) for row in left])


def _grouped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for all texts of a class: there may be thousands, each a file."""
    out: dict[Any, dict[str, Any]] = {}
    for n, row in enumerate(rows):
        key = (row["side"], row["label"], row["encoding"]) if row["label"] else n
        line = out.setdefault(key, {**row, "count": 0})
        line["count"] += 1
    for line in out.values():
        if line["label"]:
            label = "/".join(part for part in (line["side"].removeprefix("auto"), line["label"]) if part)
            line |= {"file": t("{label}: {n} files", label=label, n=line["count"]), "rows_looked_at": line["count"]}
    return list(out.values())
