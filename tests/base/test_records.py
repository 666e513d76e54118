from __future__ import annotations

import dataclasses
import json

import pytest

from tuneloop.base.records import LedgerEntry, Message, Record, Text, content_of

QUESTION, ANSWER = Message("user", "Who are you?"), Message("assistant", "Pebble.")


def test_the_id_is_of_the_content_alone() -> None:
    one = Record((QUESTION, ANSWER), "a.jsonl", 1)
    assert one.id == Record((QUESTION, ANSWER), "b.csv", 900).id
    assert one.id == "a817a184e111", "an id is in ledgers and datasets on disks: it never changes"
    assert len(one.id) == 12


@pytest.mark.parametrize(
    "other",
    [
        Record((ANSWER, QUESTION)),
        Record((QUESTION, Message("assistant", "Pebble."), Message("user", ""))),
        Record((QUESTION, Message("assistant", "Pebble.", reasoning="hm"))),
        Record((QUESTION, Message("assistant", "Pebble.", tool_calls=({"id": "1"},)))),
        Record((Message("system", "Who are you?"), ANSWER)),
        Record((QUESTION, ANSWER), tools=({"name": "f"},)),
    ],
    ids=range(6),
)
def test_any_other_content_has_another_id(other: Record) -> None:
    assert other.id != Record((QUESTION, ANSWER)).id


def test_text_that_is_no_unicode_has_an_id() -> None:
    assert len(Record((Message("user", "half \ud83d"), ANSWER)).id) == 12


@pytest.mark.parametrize("message", [QUESTION, ANSWER, Message("assistant", "", "hm"), Message("user", " a\n b ")])
def test_a_turn_is_made_of_parts(message: Message) -> None:
    assert message.parts == ((Text(message.content),) if message.content else ())
    assert content_of(message.parts) == message.content


def test_parts_join_without_anything_between() -> None:
    assert content_of([Text("a "), Text(""), Text("b")]) == "a b"
    assert content_of([]) == ""


def test_a_chat_holds_only_what_is_there() -> None:
    thought = Message("assistant", "4", reasoning="2+2", tool_calls=({"id": "1"},))
    assert Record((QUESTION, thought)).chat() == [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "4", "reasoning_content": "2+2", "tool_calls": [{"id": "1"}]},
    ]


def test_new_messages_keep_the_origin() -> None:
    old = Record((QUESTION, ANSWER), "a.jsonl", 7, ({"name": "f"},))
    new = old.with_messages((QUESTION,))
    assert (new.file, new.line, new.tools, new.messages) == ("a.jsonl", 7, ({"name": "f"},), (QUESTION,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.line = 8  # type: ignore[misc]


def test_a_ledger_entry_is_plain_json() -> None:
    entry = LedgerEntry("dropped", "length", "too long", "a.jsonl", 3, "abc", "900 / 800")
    assert json.loads(json.dumps(entry.as_dict())) == {
        "action": "dropped", "step": "length", "reason": "too long", "file": "a.jsonl", "line": 3, "id": "abc",
        "detail": "900 / 800",
    }  # fmt: skip
