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
from tuneloop.data.reading.rows import Flaw
from tuneloop.data.reading.shapes import INSIDE

Row = tuple[int, Any]
ONE = 50
"""Turns that may be one dialogue where no column says of which they are."""


def by_turns(roles: Mapping[str, str]) -> bool:
    """Whether each row is one turn."""
    return "messages" not in roles and set(INSIDE) <= set(roles)


def dialogues(again: Callable[[], Iterator[Row]], roles: Mapping[str, str]) -> Iterator[Row]:
    """One row a dialogue, {"messages": turns}, with the number of its first; without a conversation all are one.

    `again` begins a new pass over the rows: one counts the turns of each dialogue, one collects them. So memory holds
    only the dialogues that have begun and not ended, however they are mixed.
    """
    column = roles.get("conversation", "")
    left = Counter(_name(row, column) for _, row in again() if isinstance(row, dict))
    begun: dict[str, list[Row]] = {}
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
    value = row.get(column) if column else ""
    return "" if value is None else str(value).strip()


def _turn(row: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    apart = {roles[role] for role in ("conversation", "order", *INSIDE) if role in roles} | {"tools"}
    said = {role: row.get(roles[role]) for role in INSIDE}
    return said | {key: value for key, value in row.items() if key not in apart}


_DATE = re.compile(r"\d{4}\s*[-/.年]\s*\d")


def _ordered(rows: list[Row], column: str) -> list[Row]:
    """The turns of a dialogue by their numbers or times, where all have one; equal ones keep their order."""
    values = [row.get(column) for _, row in rows] if column else []
    places = _places(values)
    return [rows[at] for at in sorted(range(len(rows)), key=places.__getitem__)] if places else rows


def _places(values: Sequence[Any]) -> list[Any]:
    """What to sort by; nothing where the values are neither numbers nor dates."""
    if None in values:
        return []
    with suppress(TypeError, ValueError):
        return [float(value) for value in values]
    if all(isinstance(value, datetime) for value in values):
        return list(values)
    dates = all(isinstance(value, str) and _DATE.match(value) for value in values)
    return list(values) if dates and len(set(map(len, values))) == 1 else []


def renamed(row: Any, columns: Mapping[str, str], speakers: Mapping[str, str]) -> Any:
    """The row with the turns in it as `columns` and `speakers` of the recipe say.

    Beside `messages`, the roles role, content and reasoning name keys of a turn. `speakers` says who is who.

    >>> renamed({"d": [{"who": "shop", "say": "Hi"}]}, {"messages": "d", "role": "who", "content": "say"},
    ...         {"shop": "assistant"})
    {'d': [{'role': 'assistant', 'content': 'Hi'}]}
    """
    inside = (
        {columns[role]: role for role in (*INSIDE, "reasoning") if role in columns} if "messages" in columns else {}
    )
    if not (inside or speakers) or not isinstance(row, dict):
        return row
    return {key: _renamed(value, inside, speakers) for key, value in row.items()}


def _renamed(value: Any, inside: Mapping[str, str], speakers: Mapping[str, str]) -> Any:
    turns = turns_in(value)
    if not turns:
        return value
    out = []
    for turn in turns:
        own = {inside.get(key, key): said for key, said in turn.items()}
        by = next((key for key in SPEAKER if own.get(key) is not None), "")
        if by and isinstance(own[by], str):
            own[by] = speakers.get(own[by].strip(), own[by])
        out.append(own)
    return out if isinstance(value, list | str) else out[0]


def turns_in(value: Any) -> list[dict[str, Any]]:
    """The turns in a value: a list of them, its JSON text, or a single one; none where it is something else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    turns = value if isinstance(value, list) else [value]
    return turns if all(isinstance(turn, dict) for turn in turns) else []
