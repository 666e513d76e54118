"""A dataset version -> a file in another tool's shape. What the shape cannot hold is refused, never left out.

Whether it can is not argued but tried: every row that is written is read back with `rows.convert`, and must be what
it was; a table is read back as a whole.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.files import draft_of, printable
from tuneloop.base.language import listed, t
from tuneloop.base.records import Kind, Message, Record
from tuneloop.base.refusals import writing
from tuneloop.data.kinds import KINDS
from tuneloop.data.ledger import words
from tuneloop.data.reading import formats
from tuneloop.data.reading.keys import BadRow
from tuneloop.data.reading.rows import convert
from tuneloop.data.reading.turns import without_nulls
from tuneloop.recipe.schema import DataFile

Row = dict[str, Any]
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is run as a formula by spreadsheets (OWASP, CSV injection)."""


def _openai(messages: Iterable[Message]) -> list[Row]:
    out = []
    for m in messages:
        turn = m.as_chat()
        if m.tool_calls:
            turn["tool_calls"] = [_call(call) for call in m.tool_calls]
        out.append(turn if m.trained else {**turn, "weight": 0})
    return out


def _call(call: Row) -> Row:
    """OpenAI's form: the arguments are JSON text."""
    inner = call["function"]
    return {**call, "function": {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}}


def _own(r: Record) -> Row:
    """The columns of the record's own kind, turns in OpenAI's form."""
    out: Row = {}
    for name, cell in KINDS[r.kind].columns(r).items():
        if name == "tools":
            out |= _tools(r)
        else:
            out[name] = _openai(cell) if isinstance(cell, tuple) else cell
    return out


def _tools(r: Record) -> Row:
    """The tools as objects; as JSON text where an object would lose a null."""
    tools = list(r.tools)
    unchanged = json.dumps(without_nulls(tools, {})) == json.dumps(tools)
    return {"tools": tools if unchanged else _text(tools)} if tools else {}


def _sharegpt_turns(messages: Iterable[Message]) -> list[Row]:
    out = []
    for m in messages:
        if m.tool_calls and not m.content:
            calls = [call["function"] for call in m.tool_calls]
            out.append(
                {
                    "from": "function_call",
                    "value": json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False),
                }
            )
        else:
            out.append({"from": _SPEAKERS[m.role], "value": m.content})
    return out


def _sharegpt(r: Record) -> Row:
    tools = {"tools": json.dumps(r.tools, ensure_ascii=False)} if r.tools else {}
    return {"conversations": _sharegpt_turns(r.messages), **tools}


def _pairs(r: Record) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt and the questions with their answers; what is no such pair shows when it is read back."""
    turns = list(r.messages)
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    return system, [(a.content, b.content) for a, b in zip(turns[::2], turns[1::2], strict=False)]


def _question_answer(question: str, answer: str, *, history: bool, **more: str) -> Callable[[Record], Row]:
    def row(r: Record) -> Row:
        system, pairs = _pairs(r)
        if not pairs:
            return {}
        out: Row = {question: pairs[-1][0], **more, answer: pairs[-1][1]}
        if history and pairs[:-1]:
            out["history"] = [list(pair) for pair in pairs[:-1]]
        return out | ({"system": system} if system else {})

    return row


def _conversation(ask: str, reply: str) -> Callable[[Record], Row]:
    def row(r: Record) -> Row:
        system, pairs = _pairs(r)
        turns: list[Row] = [{ask: a, reply: b} for a, b in pairs]
        if system and turns:
            turns[0] = {"system": system, **turns[0]}
        return {"conversation": turns}

    return row


def _counselor(r: Record) -> Row:
    names = {"user": "client", "assistant": "counselor", "system": "system", "tool": "tool"}
    return {"dialog": [{"role": names[m.role], "content": m.content} for m in r.messages]}


def _thought(r: Record) -> Row:
    _, pairs = _pairs(r)
    return (
        {"Question": pairs[-1][0], "Complex_CoT": r.messages[-1].reasoning, "Response": pairs[-1][1]} if pairs else {}
    )


def _preference_pair(r: Record) -> Row:
    return {
        "conversations": _sharegpt_turns(r.prompt),
        "chosen": _sharegpt_turns(r.messages[-1:])[0],
        "rejected": (_sharegpt_turns(r.rejected) or [{}])[0],
    }


def _preference_text(r: Record) -> Row:
    one = len(r.prompt) == 1 and len(r.rejected) == 1
    return (
        {"prompt": r.prompt[0].content, "chosen": r.messages[-1].content, "rejected": r.rejected[0].content}
        if one
        else {}
    )


SHAPES: dict[str, Callable[[Record], Row]] = {
    "messages": _own,
    "sharegpt": _sharegpt,
    "alpaca": _question_answer("instruction", "output", history=True, input=""),
    "query": _question_answer("query", "response", history=True),
    "prompt": _question_answer("prompt", "completion", history=False),
    "question": _question_answer("question", "answer", history=False),
    "emollm": _conversation("input", "output"),
    "human": _conversation("human", "assistant"),
    "counselor": _counselor,
    "o1": _thought,
    "text": _own,
    "label": _own,
    "preference": _own,
    "preference-pair": _preference_pair,
    "preference-text": _preference_text,
    "kto": _own,
    **{kind.shape: _own for kind in KINDS.values()},  # those above keep their places
}
"""Name of a shape -> a record as its row."""
DEFAULT: dict[str, str] = {name: kind.shape for name, kind in KINDS.items()}
"""What a kind is written as where nothing is asked for."""
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys(SHAPES, "chat"), "preference-pair": "preference", "preference-text": "preference",
    **{kind.shape: name for name, kind in KINDS.items()},
}  # fmt: skip
"""The kind of record that a shape holds."""


def row(record: Record, shape: str, *, table: bool = False) -> Row:
    """The record as a row of the shape; in a table, every value as a text.

    Raises TL-DATA-HOLD where the row, read back, is not the record.
    """
    columns = SHAPES[shape](record) if record.kind == KIND_OF[shape] else {}
    if not columns:
        raise _unheld(record, shape, t("it has another form"))
    if table:
        columns = {name: cell if isinstance(cell, str) else _text(cell) for name, cell in columns.items()}
    try:
        back = convert(columns, record.kind, None, record.file, record.line)
    except BadRow as bad:
        raise _unheld(record, shape, words().get(bad.reason, bad.reason)) from bad
    if back.id != record.id:
        raise _unheld(record, shape, _difference(record, back))
    return columns


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


def _unheld(record: Record, shape: str, lost: str) -> DataError:
    where = f"{printable(record.file)}:{record.line}"
    return DataError("TL-DATA-HOLD", where=where, shape=shape, kind=record.kind, lost=lost)


def _difference(a: Record, b: Record) -> str:
    """The first thing that is not the same, in a few words."""
    if a.kind != b.kind:
        return f"{a.kind} / {b.kind}"
    if len(a.messages) != len(b.messages):
        return f"{len(a.messages)} / {len(b.messages)} turns"
    for n, (x, y) in enumerate(zip(a.messages, b.messages, strict=True), 1):
        for name in ("role", "content", "reasoning", "tool_calls", "trained", "name", "tool_call_id"):
            if getattr(x, name) != getattr(y, name):
                return f"{name} of turn {n}"
    return next((name for name in ("tools", "label", "rejected") if getattr(a, name) != getattr(b, name)), "tool_calls")


def export(records: Iterable[Record], target: Path, shape: str) -> dict[str, int]:
    """Write the records; the file's ending (.json .jsonl .csv .tsv .parquet) says how. Returns rows, and guarded cells.

    A cell of a CSV or TSV file that a spreadsheet would run as a formula gets a ' in front; `guarded` counts them.
    Raises TL-DATA-HOLD, TL-DATA-TARGET for an ending or a shape that is not known, TL-DATA-THERE for a file that is
    there, and what `disk.writing` raises. In each case nothing new is left behind.
    """
    writers = {".json": _json, ".jsonl": _json_lines, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if target.suffix not in writers or shape not in SHAPES:
        raise DataError("TL-DATA-TARGET", where=printable(target), shapes=listed(SHAPES), endings=listed(writers))
    if target.exists():
        raise DataError("TL-DATA-THERE", where=printable(target))
    records = (record.without_cuts() for record in records)
    with writing(target), draft_of(target) as draft:
        return writers[target.suffix](draft, records, shape)


def _json_lines(path: Path, records: Iterable[Record], shape: str) -> dict[str, int]:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for record in records:
            out.write(_text(row(record, shape)) + "\n")
            count += 1
    return {"rows": count, "guarded": 0}


def _json(path: Path, records: Iterable[Record], shape: str) -> dict[str, int]:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for record in records:
            out.write(",\n" if count else "[\n")
            out.write(_text(row(record, shape)))
            count += 1
        out.write("\n]\n" if count else "[]\n")
    return {"rows": count, "guarded": 0}


def _table(path: Path, records: Iterable[Record], shape: str) -> dict[str, int]:
    """A table; columns are those of all rows, so it is held in memory. It is read again as a whole: a table of one
    column, say, may look like plain text."""
    held = [(record, row(record, shape, table=True)) for record in records]
    names = list(dict.fromkeys(name for _, columns in held for name in columns))
    guarded, safe = 0, []
    # With its mark Excel reads UTF-8 as such, also where the system's own code page is another one.
    with path.open("w", encoding="utf-8" if path.suffix == ".tsv" else "utf-8-sig", newline="") as out:
        writer = csv.writer(out, csv.excel_tab if path.suffix == ".tsv" else csv.excel)
        writer.writerow(names)
        for record, columns in held:
            cells = [columns.get(name, "") for name in names]
            unsafe = sum(cell.startswith(_FORMULA) for cell in cells)
            guarded += unsafe
            safe.append(None if unsafe else record)
            writer.writerow(["'" + cell if cell.startswith(_FORMULA) else cell for cell in cells])
    _check_table(path, safe, shape)
    return {"rows": len(held), "guarded": guarded}


def _check_table(path: Path, records: list[Record | None], shape: str) -> None:
    """Raise TL-DATA-HOLD unless each record (None: not looked at, its cells are guarded) comes back from the file."""
    if not records:
        return
    try:
        back = [record.id for record in formats.read(DataFile(path=os.path.abspath(path)))]
    except DataError:
        back = []
    back += [""] * (len(records) - len(back))
    wrong = [one for one, got in zip(records, back, strict=False) if one is not None and one.id != got]
    first = wrong or [one for one in records if one is not None and len(back) > len(records)]
    if first:
        raise _unheld(first[0], shape, t("{ending} is not certain to be read back; use .jsonl", ending=path.suffix))


def _parquet(path: Path, records: Iterable[Record], shape: str) -> dict[str, int]:
    """Turns as lists of structs; `tools` as JSON text, since their schemas are of any form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = [row(record, shape) for record in records]
    for one in held:
        if isinstance(one.get("tools"), list):
            one["tools"] = _text(one["tools"])
    names = list(dict.fromkeys(name for one in held for name in one))
    pq.write_table(pa.table({name: [one.get(name) for one in held] for name in names}), path, compression="zstd")
    return {"rows": len(held), "guarded": 0}
