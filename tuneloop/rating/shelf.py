"""Ratings in the workspace's store, where they outlive the run they are about; `improve` may learn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from tuneloop.rating.rating import Rating, encodable
from tuneloop.rating.study import Study
from tuneloop.registry.store import FILE, Store, open_store, rated_pairs
from tuneloop.registry.store import ratings as table


def study_key(study: Study, workspace: Path) -> str:
    """What a study is called in the store: its folder as seen from the workspace."""
    folder, home = study.folder.absolute(), workspace.absolute()
    return (folder.relative_to(home) if folder.is_relative_to(home) else folder).as_posix()


def put(study: Study, workspace: Path, *, store: Store | None = None) -> int:
    """Bring the store up to what the study's journal holds: every rating with a choice, and its pair; how many.

    Doing it twice changes nothing. Raises TL-RUN-STORE and TL-RUN-STORE-BUSY.
    """
    key, chosen = study_key(study, workspace), [one for one in study.ratings() if one.choice]

    def work(connection: Connection) -> None:
        there = set(connection.execute(select(rated_pairs.c.pair).where(rated_pairs.c.study == key)).scalars())
        new = {rating.pair for rating in chosen if rating.pair in study.pairs} - there
        if new:
            connection.execute(rated_pairs.insert(), [_pair_row(study, key, pair) for pair in sorted(new)])
        connection.execute(table.delete().where(table.c.study == key))
        if rows := [_row(key, rating) for rating in chosen if rating.pair in study.pairs]:
            connection.execute(table.insert(), rows)

    opened = store or open_store(workspace / FILE)
    try:
        opened.retried(work)
    finally:
        if store is None:
            opened.close()
    return len(chosen)


def choices_of_all(workspace: Path, *, store: Store | None = None) -> list[tuple[str, Rating]]:
    """(row, rating) of every study of the workspace, repeats and gold rows left out; none where there is no store."""
    if store is None and not (workspace / FILE).is_file():
        return []
    opened = store or open_store(workspace / FILE)
    try:
        with opened.read() as connection:
            rows = connection.execute(select(table).where(table.c.kind == "row")).mappings().all()
    finally:
        if store is None:
            opened.close()
    return [(f"{row['study']} {row['pair']}", Rating.from_dict({**row, "time": row["rated"]})) for row in rows]


def _pair_row(study: Study, key: str, name: str) -> dict[str, Any]:
    pair, (first, second) = study.pairs[name], study.models
    context = [{"role": turn.role, "content": turn.content} for turn in pair.context]
    return {
        "study": key,
        "pair": name,
        "context": json.dumps(context, ensure_ascii=False).replace("\\u0000", "?"),
        "prompt": encodable(pair.prompt),
        "model_first": first,
        "model_second": second,
        "answer_first": encodable(pair.first),
        "answer_second": encodable(pair.second),
        "gold": pair.right,
    }


def _row(key: str, rating: Rating) -> dict[str, Any]:
    columns = {name: field for name, field in rating.as_dict().items() if name not in ("time", "seconds")}
    return {"study": key, **columns, "rated": rating.time}
