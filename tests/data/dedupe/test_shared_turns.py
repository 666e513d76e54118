"""Dialogues that lie in others, set phrases that join nothing, and what counts as the question of a row."""

from __future__ import annotations

import random

from tuneloop.base.records import Message, Record
from tuneloop.data.dedupe.shared_turns import SharedTurns, exchanges, question

HAN = [chr(code) for code in range(0x4E00, 0x9000)]


def talk(*said: str, kind: str = "chat") -> Record:
    roles = ("user", "assistant")
    return Record(tuple(Message(roles[n % 2], text) for n, text in enumerate(said)), kind=kind)  # type: ignore[arg-type]


def text(rng: random.Random, size: int) -> str:
    return "".join(rng.choices(HAN, k=size))


def looked(*records: Record) -> SharedTurns:
    out = SharedTurns()
    out.add(records)
    return out


def test_nothing_from_nothing() -> None:
    found = looked().turns()
    assert (found.i.size, found.j.size, found.phrases.size) == (0, 0, 0)


def test_a_history_that_grows_is_one_group_also_by_short_turns() -> None:
    rng = random.Random(1)
    said = [text(rng, 9) for _ in range(20)]
    rows = [talk(*said[:end]) for end in range(2, 21, 2)]
    found = looked(*rows).turns()
    assert set(found.j.tolist()) | {int(found.i.min())} == set(range(10))
    assert not len(found.phrases)


def test_a_greeting_of_many_dialogues_joins_none() -> None:
    rng = random.Random(2)
    hello = ("你好", text(rng, 70))
    rows = [talk(*hello), *(talk(*hello, text(rng, 40), text(rng, 40)) for _ in range(20))]
    found = looked(*rows).turns()
    assert not len(found.i)
    assert found.phrases.tolist() == [0]


def test_rows_that_end_alike_are_no_set_phrases() -> None:
    """A farewell, or one last line below many texts: the rows differ in all else, and may be held out."""
    rng = random.Random(4)
    for bye in (("谢谢", "不客气"), ("谢谢", text(rng, 70))):
        found = looked(*(talk(text(rng, 40), text(rng, 40), *bye) for _ in range(20))).turns()
        assert (found.i.size, found.phrases.size) == (0, 0)
    documents = [talk(f"{text(rng, 40)}\n原文来自本站。", kind="text") for _ in range(20)]
    found = looked(*documents).turns()
    assert (found.i.size, found.phrases.size) == (0, 0)


def test_which_rows_hold_another_whole() -> None:
    rng = random.Random(3)
    said = [text(rng, 40) for _ in range(8)]
    rows = [talk(*said[2:6]), talk(*said), talk(*said[:4]), talk(*said[2:4], *said[6:8], *said[4:6])]
    assert list(looked(*rows).inside([0], [1, 2, 3])) == [(0, 1)]


def test_questions_and_exchanges() -> None:
    turns = (Message("system", "s"), Message("user", "Hello there"), Message("assistant", "x", trained=False),
             Message("user", "And then?"), Message("assistant", "y"))  # fmt: skip
    assert question(Record(turns)) == "hello there x and then?"
    assert question(talk("short", "a")) == ""
    assert question(talk("An article.", kind="text")) == ""
    assert list(exchanges(Record(turns))) == ["Hello there\nx", "And then?\ny"]
    asked = looked(talk("Why is the sky blue?", "a"), talk("x", "b"), talk("why is  the Sky blue?", "c")).questions()
    assert [one.tolist() for one in asked] == [[0], [2]]
