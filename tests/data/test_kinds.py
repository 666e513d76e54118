"""The table of record kinds is whole: a row a name, and each row is read, cleaned, encoded, shown and exported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from tests.conftest import byte_tokenizer
from tests.made import build, jsonl, recipe
from tuneloop.base.records import Kind, Message, Record
from tuneloop.data.card.excerpts import excerpts
from tuneloop.data.card.page import part_facts
from tuneloop.data.cleaning.clean import clean
from tuneloop.data.dedupe.exact import key, text_key
from tuneloop.data.kinds import KINDS, Encoding, answers, dialogues, has_equal, mixable
from tuneloop.data.reading.rows import convert
from tuneloop.data.reading.shapes import recognise
from tuneloop.data.tokens.chains import ENCODINGS
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.templates import CHATML
from tuneloop.data.version.export import DEFAULT, SHAPES, row
from tuneloop.tasks.table import TASKS

ASK, GOOD, BAD = Message("user", "How far is it?"), Message("assistant", "Far."), Message("assistant", "Ask another.")
RECORDS: dict[Kind, Record] = {
    "chat": Record((ASK, GOOD)),
    "text": Record((Message("assistant", "It is far."),), kind="text"),
    "label": Record((Message("user", "It is far."),), kind="label", label="distance"),
    "preference": Record((ASK, GOOD), kind="preference", rejected=(BAD,)),
    "judged": Record((ASK, GOOD), kind="judged", label="good"),
}
TRAINED = {
    "chat": ["Far."],
    "text": ["It is far."],
    "label": [""],
    "preference": ["Far.", "Ask another."],
    "judged": ["Far."],
}
"""What is trained of each sample, without the end token."""
MAKERS = {"data/reading/shapes.py", "data/reading/sniff.py"}
"""They say of what kind a row is, by its columns."""
ID = "base/records.py"
"""In the id of a dialogue its kind is left out, as it was when there was no other: ids stand in files."""


def test_each_name_has_a_row_and_each_encoding_its_code() -> None:
    assert tuple(KINDS) == get_args(Kind) == tuple(RECORDS)
    assert set(ENCODINGS) == set(get_args(Encoding)) == {kind.encoding for kind in KINDS.values()}


@pytest.mark.parametrize("name", KINDS)
def test_a_record_survives_its_own_shape_and_cleaning(name: Kind) -> None:
    record, kind = RECORDS[name], KINDS[name]
    assert clean(record) == (record, [])
    assert kind.shape in SHAPES
    written = row(record, DEFAULT[name])
    assert convert(written, name).id == record.id
    assert recognise([written] * 20).kind == name


@pytest.mark.parametrize("name", KINDS)
def test_its_samples_are_those_of_its_encoding(name: Kind) -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    samples = tokenize(tokenizer, [RECORDS[name]])
    texts = [tokenizer.decode(s.ids[s.trained].tolist()).removesuffix("<|im_end|>") for s in samples]
    assert texts == TRAINED[name]
    assert len(samples) == len(dialogues(RECORDS[name]))


def numbered(record: Record, k: int) -> Record:
    """The record in words of its own."""
    one, other = (
        tuple(replace(m, content=f"{m.content} {chr(97 + k) * 5} {k}") for m in turns)
        for turns in (record.messages, record.rejected)
    )
    return replace(record, messages=one, rejected=other)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_prepared_and_shown(name: Kind, tmp_path: Path) -> None:
    """Of twenty rows all are kept, and the card shows each part under a name that it has words for."""
    records = [numbered(RECORDS[name], k) for k in range(20)]
    source = jsonl(tmp_path / "rows.jsonl", [row(record, DEFAULT[name]) for record in records])
    dataset = build(recipe({"path": source, "task": name}, validation=4), tmp_path)
    assert dataset.manifest["kinds"] == {name: 20}
    assert [one["kind"] for one in excerpts(dataset)] == [name] * 5
    parts = [{"name": one, "tokens": 1, "trained": 0} for one in KINDS[name].names]
    assert all(part_facts(part) for part in parts)


def test_every_kind_is_learned_by_a_task() -> None:
    assert set(KINDS) == {kind for task in TASKS.values() for kind in task.kinds}


def test_what_may_stand_beside_each_other_does_so_both_ways() -> None:
    assert all(one in KINDS[other].beside for one in KINDS for other in KINDS[one].beside)
    assert [mixable(kinds) for kinds in ([], ["label"], ["judged", "chat"], ["preference", "chat"])] == [
        True,
        True,
        True,
        False,
    ]


def test_what_is_compared() -> None:
    pair = RECORDS["preference"]
    assert answers(pair) == ((GOOD,), (BAD,))
    assert dialogues(pair) == ((ASK, GOOD), (ASK, BAD))
    assert answers(RECORDS["judged"]) == ()
    assert dialogues(RECORDS["judged"]) == ((ASK, GOOD),)
    assert has_equal(["a", "b", "a"])
    assert not has_equal(["a", "b"])
    swapped = Record((ASK, BAD), kind="preference", rejected=(GOOD,))
    assert text_key(swapped) == text_key(pair)
    assert key(swapped) != key(pair)


def forks(path: Path) -> Iterator[int]:
    """Lines that compare a `kind` with the name of one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        asks = any(isinstance(s, ast.Attribute) and s.attr == "kind" for s in sides)
        names = {c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)}
        if asks and names & set(KINDS):
            yield node.lineno


def test_nothing_else_asks_for_a_kind_by_its_name() -> None:
    """Only what makes a kind and the tasks that learn it do; so a new kind has one place."""
    root = Path(str(files("tuneloop")))
    found = {f"{at}:{line}" for path in root.rglob("*.py") for line in forks(path)
             if (at := path.relative_to(root).as_posix()) not in {*MAKERS, ID} and not at.startswith("tasks/")}  # fmt: skip
    assert found == set()
