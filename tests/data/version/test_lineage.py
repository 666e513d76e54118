"""What differs between two versions, and where a row came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made import build, jsonl, lines, recipe
from tuneloop.base.errors import DataError
from tuneloop.data import arrow
from tuneloop.data.ledger import entries
from tuneloop.data.version.lineage import diff, trace


def places(told: dict[str, list[dict[str, object]]]) -> dict[str, set[object]]:
    return {name: {row["line"] for row in group} for name, group in told.items()}


def test_a_version_does_not_differ_from_itself(tmp_path: Path) -> None:
    made = build(recipe(lines(tmp_path, 20)), tmp_path)
    told = diff(made, made)
    assert told["rows"] == {"added": 0, "removed": 0, "changed": 0, "moved": 0, "kept": 20}
    assert not told["settings"]
    assert not told["sources"]
    assert not told["steps"]


def test_rows_that_came_went_and_changed(tmp_path: Path) -> None:
    rows = [{"question": f"question {n}", "answer": "a"} for n in range(20)]
    path = jsonl(tmp_path / "f.jsonl", rows)
    a = build(recipe(path), tmp_path)
    rows[3]["answer"] = "better"
    jsonl(path, [*rows[:19], *({"question": f"new {n}", "answer": "a"} for n in range(2))])
    b = build(recipe(path), tmp_path)
    told = diff(a, b)
    assert json.loads(json.dumps(told)) == told
    assert {k: told["rows"][k] for k in ("added", "removed", "changed")} == {"added": 1, "removed": 0, "changed": 2}
    assert told["rows"]["kept"] + told["rows"]["moved"] == 18
    seen = places(told["examples"])
    assert (seen["added"], seen["changed"]) == ({21}, {4, 20})
    assert told["sources"] == {"f.jsonl": "changed"}
    back = diff(b, a)["rows"]
    assert (back["added"], back["removed"], back["changed"]) == (0, 1, 2)


def test_another_seed_moves_rows_and_changes_none(tmp_path: Path) -> None:
    path = lines(tmp_path, 40)
    a, b = (build(recipe(path, seed=seed, validation=0.5), tmp_path) for seed in (1, 2))
    told = diff(a, b)
    assert (told["rows"]["added"], told["rows"]["removed"], told["rows"]["changed"]) == (0, 0, 0)
    assert told["rows"]["moved"] > 5
    assert told["rows"]["kept"] + told["rows"]["moved"] == 40
    assert told["settings"] == {"seed": [1, 2]}
    assert {row["side"] for row in told["examples"]["moved"]} == {"train", "validation"}
    assert len(told["examples"]["moved"]) <= 20


def test_settings_sources_and_steps(tmp_path: Path) -> None:
    rows = [{"question": f"q {n}", "answer": "x" * (20 + n)} for n in range(20)]
    one, two = jsonl(tmp_path / "one.jsonl", rows), lines(tmp_path, 12, "two.jsonl")
    a = build(recipe(one, max_length=100), tmp_path)
    b = build(recipe(one, two, max_length=30), tmp_path)
    told = diff(a, b)
    assert told["settings"]["prepare.max_length"] == [100, 30]
    assert told["sources"] == {"two.jsonl": "added"}
    assert diff(b, a)["sources"] == {"two.jsonl": "removed"}
    gone = b.manifest["counts"]["dropped"]
    assert gone > 5
    assert told["steps"] == {"too long": [0, gone]}


def test_the_story_of_a_row(tmp_path: Path) -> None:
    rows = [{"question": f"question {n}", "answer": "line<br>line" if n == 2 else "a"} for n in range(12)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.25), tmp_path)
    every = {record.line: (record, side) for record, side, _ in made.rows()}
    record, side = every[3]
    for identity in (record.id, record.id[:9]):
        told = trace(made, identity)
        assert (told.record, told.side, told.parents) == (record, side, ())
        assert told.source["file"] == "f.jsonl"
        assert [(e.action, e.reason, e.line) for e in told.ledger] == [("changed", "markup removed", 3)]
    assert trace(made, every[4][0].id).ledger == ()


def test_the_pieces_of_a_long_text_know_what_they_were_made_of(tmp_path: Path) -> None:
    texts = [{"text": " ".join(f"word{n}-{k}" for k in range(60))} for n in range(12)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", texts), max_length=200, too_long="split", overlap=0), tmp_path)
    (piece, *more) = [record for record, _, _ in made.rows() if record.line == 5]
    assert more
    assert {one.parent for one in (piece, *more)} == {piece.parent}
    told = trace(made, piece.id)
    assert told.parents == ()  # the long text is no row of the version
    assert [e.action for e in told.ledger] == ["changed", *["added"] * len(more)]
    assert told.ledger[0].id == piece.parent


def test_the_ancestors_of_a_row(tmp_path: Path) -> None:
    """Rows that were made from others of the same version, as augmentation makes them; a circle does no harm."""
    made = build(recipe(lines(tmp_path, 20), validation=0), tmp_path)
    first, second, third, *others = made.records("train")
    family = [first, replace(second, parent=first.id), replace(third, parent=second.id), *others]
    family[3] = replace(others[0], parent=others[0].id)
    pq.write_table(pa.Table.from_batches([arrow.batch(family, [1] * 20)]), made.file("train"))
    assert trace(made, third.id).parents == (family[1], family[0])
    assert trace(made, second.id).parents == (family[0],)
    assert trace(made, others[0].id).parents == ()


def test_an_id_that_names_no_row_or_several(tmp_path: Path) -> None:
    made = build(recipe(lines(tmp_path, 20)), tmp_path)
    for identity, n in (("", 20), ("not hex", 0), ("\udcff", 0)):
        with pytest.raises(DataError) as caught:
            trace(made, identity)
        assert (caught.value.code, caught.value.facts["n"]) == ("TL-DATA-NO-ROW", n)


def test_a_row_that_is_there_twice_is_one_row(tmp_path: Path) -> None:
    one, two = lines(tmp_path, 20, "one.jsonl"), lines(tmp_path, 20, "two.jsonl")
    made = build(recipe(one, two, dedupe=False), tmp_path)
    identity = next(iter(made.ids("train")))
    assert trace(made, identity).record.id == identity
    assert diff(made, made)["rows"]["kept"] == 20


def test_an_id_of_the_ledger_finds_the_row_as_it_is_now_or_says_why_it_went(tmp_path: Path) -> None:
    rows = [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(20)]
    rows[4]["answer"] = "two\r\nlines"
    rows[7]["answer"] = "I am {{name}}"
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows)), tmp_path)
    told = {e.line: e for e in entries(made.path / "ledger.jsonl")}
    assert trace(made, told[5].id).record.messages[1].content == "two\nlines"
    with pytest.raises(DataError) as caught:
        trace(made, told[8].id)
    assert caught.value.code == "TL-DATA-ROW-GONE"
    assert "{{name}}" in caught.value.what
