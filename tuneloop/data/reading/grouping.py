"""Rows that are one turn each -> rows that are a dialogue each; and turns whose keys and speakers have other names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from tuneloop.data.reading.keys import SPEAKER, empty
from tuneloop.data.reading.rows import Flaw, NumberedRow
from tuneloop.data.reading.shapes import INSIDE

ONE = 50
"""Rows from which on a table of turns without a dialogue id is no single dialogue."""


def by_turns(roles: Mapping[str, str]) -> bool:
    """Whether each row is one turn."""
    return "messages" not in roles and set(INSIDE) <= set(roles)


def dialogues(again: Callable[[], Iterator[NumberedRow]], roles: Mapping[str, str]) -> Iterator[NumberedRow]:
    """Rows grouped by dialogue id: {"messages": turns}, numbered as its first row; without an id all are one dialogue.

    `again` begins a new pass over the rows: one counts the turns of each dialogue, one collects them. So memory holds
    only the dialogues that have begun and not ended, however they are mixed.
    """
    column = roles.get("conversation", "")
    left = Counter(_name(row, column) for _, row in again() if isinstance(row, dict))
    begun: dict[str, list[NumberedRow]] = {}
    for number, row in again():
        if not isinstance(row, dict):
            yield number, row
            continue
        name = _name(row, column)
        if column and not name:
            yield number, Flaw("missing value", column)
            continue
        begun.setdefault(name, []).append((number, row))
        left[name] -= 1
        if not left[name]:
            rows = _ordered(begun.pop(name), roles.get("order", ""))
            tools = next((row["tools"] for _, row in rows if not empty(row.get("tools"))), None)
            turns = [_turn(row, roles) for _, row in rows]
            yield min(n for n, _ in rows), {"messages": turns, **({} if tools is None else {"tools": tools})}


def _name(row: Mapping[str, Any], column: str) -> str:
    identifier = row.get(column) if column else ""
    return "" if identifier is None else str(identifier).strip()


def _turn(row: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    apart = {roles[role] for role in ("conversation", "order", *INSIDE) if role in roles} | {"tools"}
    turn = {role: row.get(roles[role]) for role in INSIDE}
    return turn | {key: content for key, content in row.items() if key not in apart}


_DATE = re.compile(r"\d{4}\s*[-/.年]\s*\d")


def _ordered(rows: list[NumberedRow], column: str) -> list[NumberedRow]:
    """The turns of a dialogue sorted by number or timestamp, where all have one; the sort is stable."""
    values = [row.get(column) for _, row in rows] if column else []
    places = _places(values)
    return [rows[at] for at in sorted(range(len(rows)), key=places.__getitem__)] if places else rows


def _places(values: Sequence[Any]) -> list[Any]:
    """Sort keys of an order column; [] where the values are neither numbers nor dates."""
    if None in values:
        return []
    with suppress(TypeError, ValueError):
        return [float(place) for place in values]
    if all(isinstance(place, datetime) for place in values):
        return list(values)
    dates = all(isinstance(place, str) and _DATE.match(place) for place in values)
    return list(values) if dates and len(set(map(len, values))) == 1 else []


def renamed(row: Any, columns: Mapping[str, str], speakers: Mapping[str, str]) -> Any:
    """The row with its turns' keys and speakers renamed by the recipe's `columns` and `speakers`.

    Beside `messages`, the roles role, content and reasoning name keys of a turn. `speakers` maps names to roles.

    >>> renamed({"d": [{"who": "shop", "say": "Hi"}]}, {"messages": "d", "role": "who", "content": "say"},
    ...         {"shop": "assistant"})
    {'d': [{'role': 'assistant', 'content': 'Hi'}]}
    """
    inside = (
        {columns[role]: role for role in (*INSIDE, "reasoning") if role in columns} if "messages" in columns else {}
    )
    if not (inside or speakers) or not isinstance(row, dict):
        return row
    return {key: _renamed(cell, inside, speakers) for key, cell in row.items()}


def _renamed(cell: Any, inside: Mapping[str, str], speakers: Mapping[str, str]) -> Any:
    turns = turns_in(cell)
    if not turns:
        return cell
    out = []
    for turn in turns:
        own = {inside.get(key, key): content for key, content in turn.items()}
        by = next((key for key in SPEAKER if own.get(key) is not None), "")
        if by and isinstance(own[by], str):
            own[by] = speakers.get(own[by].strip(), own[by])
        out.append(own)
    return out if isinstance(cell, list | str) else out[0]


def turns_in(cell: Any) -> list[dict[str, Any]]:
    """The turns in a cell: a list of them, its JSON text, or a single one; [] where it is something else."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return []
    turns = cell if isinstance(cell, list) else [cell]
    return turns if all(isinstance(turn, dict) for turn in turns) else []
