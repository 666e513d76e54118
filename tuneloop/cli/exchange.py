"""Rows of a dataset version as a file for another tool: `tuneloop data export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.language import listed, t
from tuneloop.cli import show, usage
from tuneloop.cli.inspect import Json, Version, Workspace


def export(
    version: Version,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file: .json, .jsonl, .csv, .tsv or .parquet.")],
    shape: Annotated[
        str, typer.Option(help="How a row is written: messages, sharegpt, alpaca, text, label, preference, kto, ...")
    ] = "",
    side: Annotated[str, typer.Option(help="Only these rows: train, validation or test.")] = "",
    kind: Annotated[str, typer.Option(help="Only rows of this kind: chat, text, label, preference or judged.")] = "",
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Write the rows of a dataset version for another tool; what its shape cannot hold is refused, never left out.

    Examples: tuneloop data export chats train.jsonl --side train | tuneloop data export chats a.json --shape sharegpt
    """
    from tuneloop.data.version import export as exchange
    from tuneloop.data.version.find import locate
    from tuneloop.data.version.split import SIDES

    dataset = locate(workspace, version)
    kinds = [kind] if kind else list(dataset.manifest["kinds"])
    for name, got, known in (("--side", side, SIDES), ("--kind", kind, tuple(dataset.manifest["kinds"]))):
        if got and got not in known:
            raise usage.wrong("tuneloop data export", t("{name} takes {need}", name=name, need=listed(known)))
    sides = [one for one in SIDES if side in ("", one)]
    rows = (record for record, _, _ in dataset.rows(*sides) if record.kind in kinds)
    written = exchange.export(rows, file, shape or exchange.DEFAULT[kinds[0]])
    if json:
        show.as_json({"path": str(file), **written})
        return
    print(t("{n:,} rows written to {file}.", n=written["rows"], file=file))
    counts = dataset.manifest["counts"]
    there = [t("{what}: {n}", what=show.side(one), n=f"{counts[one]:,}") for one in sides if counts[one]]
    if len(there) > 1:
        print(t("All sides together: {sides}. --side writes one alone.", sides=listed(there)))
    if written["guarded"]:
        print(t("{n:,} cells got a ' in front: a spreadsheet would have run them as formulas.", n=written["guarded"]))
