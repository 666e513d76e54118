"""The first of equal dialogues stays."""

from __future__ import annotations

from tuneloop.data.dedupe import dedupe
from tuneloop.records import Message, Record


def record(question: str, answer: str, line: int = 0, **more: object) -> Record:
    return Record((Message("user", question), Message("assistant", answer)), "f", line, **more)  # type: ignore[arg-type]


def test_first_one_wins_and_the_entry_names_it() -> None:
    rows = [record("q", "a", 1), record("r", "a", 2), record("q", "a", 3)]
    kept, entries = dedupe(rows)
    assert kept == rows[:2]
    assert [(e.action, e.reason, e.line, e.detail) for e in entries] == [("dropped", "repeated", 3, "f:1")]


def test_case_and_blanks_do_not_make_a_difference() -> None:
    kept, entries = dedupe([record("Hello  World", "Straße\n"), record(" hello world", "STRASSE")])
    assert (len(kept), len(entries)) == (1, 1)


def test_everything_else_does() -> None:
    base = record("q", "a")
    call = ({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)
    others = [
        record("q", "b"),
        record("q?", "a"),
        record("q", "a", tools=({"type": "function"},)),
        base.with_messages((Message("system", "s"), *base.messages)),
        base.with_messages((base.messages[0], Message("assistant", "a", "because"))),
        base.with_messages((base.messages[0], Message("assistant", "a", tool_calls=call))),
        base.with_messages((Message("user", "q a"),)),
    ]
    kept, entries = dedupe([base, *others])
    assert len(kept) == 8
    assert not entries


def test_nothing_from_nothing() -> None:
    assert dedupe([]) == ([], [])
