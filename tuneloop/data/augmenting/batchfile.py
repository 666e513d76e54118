"""A finished batch of derived rows on the disk: there whole or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from tuneloop.data import arrow
from tuneloop.records import Record


def write(file: Path, records: list[Record], rejected: Counter[str]) -> None:
    """Keep a batch as `file`.arrow and `file`.json; the second one says that the first is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    arrow.spool(draft, arrow.batch(records, [1] * len(records)))
    os.replace(draft, file.with_name(f"{file.name}.arrow"))
    draft.write_text(json.dumps(rejected), encoding="utf-8")
    os.replace(draft, file.with_name(f"{file.name}.json"))


def read(file: Path) -> tuple[list[Record], Counter[str]] | None:
    """The batch that `write` kept, None where there is none."""
    counts = file.with_name(f"{file.name}.json")
    if not counts.is_file():
        return None
    table = arrow.mapped(file.with_name(f"{file.name}.arrow"))
    return [record for record, _ in arrow.records(table)], Counter(json.loads(counts.read_text(encoding="utf-8")))
