"""Each step changes or drops, and says so."""

from __future__ import annotations

import pytest

from tuneloop.data.clean import STEPS, clean
from tuneloop.data.ledger import words
from tuneloop.records import Message, Record

CALL = ({"type": "function", "function": {"name": "f", "arguments": {}}},)


def turns(spec: str) -> tuple[Message, ...]:
    """'s u a c t' -> messages; c is an assistant turn with a call, a capital letter an empty turn."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    out = []
    for n, letter in enumerate(spec.split()):
        if letter == "c":
            out.append(Message("assistant", "", tool_calls=CALL))
        else:
            text = " \n" if letter.isupper() else f"{letter}{n}"
            out.append(Message(roles[letter.lower()], text))  # type: ignore[arg-type]
    return tuple(out)


def letters(record: Record) -> str:
    return " ".join("c" if m.tool_calls else m.role[0] for m in record.messages)


@pytest.mark.parametrize(
    "spec", ["u a", "s u a", "u a u a", "u c t a", "s u c t t a u a", "u c t c t a", "u c", "u a u c"]
)
def test_good_dialogues_pass_untouched(spec: str) -> None:
    record = Record(turns(spec), "f", 1)
    assert clean(record) == (record, [])


@pytest.mark.parametrize(
    ("spec", "result", "reasons"),
    [
        ("u a u", "u a", ["unanswered end removed"]),
        ("u a A", "u a", ["empty end removed"]),
        ("u a u A", "u a", ["empty end removed", "unanswered end removed"]),
        ("S u a", "u a", ["empty end removed"]),
        ("u u a", "u a", ["turns merged"]),
        ("s s u a a", "s u a", ["turns merged"]),
        ("u c t", "u c", ["unanswered end removed"]),
        ("u a c t a", "u c t a", ["turns merged"]),
        ("u a u u", "u a", ["turns merged", "unanswered end removed"]),
    ],
)
def test_changed(spec: str, result: str, reasons: list[str]) -> None:
    record, entries = clean(Record(turns(spec), "f", 7))
    assert record is not None
    assert letters(record) == result
    assert [e.reason for e in entries] == reasons
    assert all((e.action, e.file, e.line) == ("changed", "f", 7) and e.reason in words() for e in entries)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("a u a", "begins with the assistant"),
        ("s a", "begins with the assistant"),
        ("t u a", "begins with the assistant"),
        ("u a s u a", "late system turn"),
        ("u s a", "late system turn"),
        ("u a t a", "tool turn without a call"),
        ("u t a", "tool turn without a call"),
        ("u c a", "call without a result"),
        ("u c u a", "call without a result"),
        ("u c t u a", "result without an answer"),
        ("u A u a", "empty turn"),
        ("U a", "empty turn"),
        ("u", "no answer"),
        ("u A", "no answer"),
        ("s", "no answer"),
        ("S", "no answer"),
        ("A", "no answer"),
        ("", "no answer"),
    ],
)
def test_dropped(spec: str, reason: str) -> None:
    record, entries = clean(Record(turns(spec), "f", 7))
    assert record is None
    assert [e.reason for e in entries if e.action == "dropped"] == [reason]
    assert entries[-1].action == "dropped"
    assert reason in words()


def test_merged_turns_have_a_blank_line_between() -> None:
    record, _ = clean(Record((Message("user", "a"), Message("user", "b"), Message("assistant", "c", "x"))))
    assert record is not None
    assert record.messages == (Message("user", "a\n\nb"), Message("assistant", "c", "x"))


def test_text_and_call_of_one_speaker_become_one_turn() -> None:
    said = (Message("user", "q"), Message("assistant", "let me see"), Message("assistant", "", tool_calls=CALL))
    record, _ = clean(Record((*said, Message("tool", "42"), Message("assistant", "it is 42"))))
    assert record is not None
    assert record.messages[1] == Message("assistant", "let me see", tool_calls=CALL)


@pytest.mark.parametrize(
    ("before", "after"),
    [("a\r\nb\rc", "a\nb\nc"), ("a\x00b\x07\x7f\x85", "ab"), ("e\u0301", "\u00e9"), ("tab\tstays", "tab\tstays")],
)
def test_normalised(before: str, after: str) -> None:
    record, entries = clean(Record((Message("user", before), Message("assistant", "a", before))))
    assert record is not None
    assert record.messages == (Message("user", after), Message("assistant", "a", after))
    assert [e.reason for e in entries] == (["normalised"] if before != after else [])


def test_replacement_characters_emoji_and_wide_blanks_are_left() -> None:
    record = Record((Message("user", "\ufffd ✿ \u3000😊"), Message("assistant", " a ")))
    assert clean(record) == (record, [])


@pytest.mark.parametrize("text", ["I am {{name}}.", "我是{{ 姓名 }}，", "by {{author}}", "{{user_name}}"])
def test_unfilled_templates_are_dropped(text: str) -> None:
    record, entries = clean(Record((Message("user", "q"), Message("assistant", text))))
    assert record is None
    assert entries[0].reason == "unfilled template"
    assert entries[0].detail in text


@pytest.mark.parametrize(
    "text",
    [
        r"$\frac{{ab}}{{cd}}$ and $x^{{nm}}$",
        "style={{ fontWeight: 'bold' }}",
        "```jinja\nHello {{name}}\n```",
        "write `{{name}}` there",
        "var fig = {{ plot|tojson }};",
        "{{{raw}}}",
        "{{}} {{1}}",
    ],
)
def test_code_and_latex_are_no_templates(text: str) -> None:
    record, _ = clean(Record((Message("user", "q"), Message("assistant", text))))
    assert record is not None


def test_steps_are_a_visible_tuple_of_functions() -> None:
    names = ["normalise", "empty_turns", "templates", "merge_turns", "order", "unanswered"]
    assert [step.__name__ for step in STEPS] == names


def test_cleaning_twice_changes_nothing_more() -> None:
    for spec in ("u a u", "u u a", "S u a u A", "u a c t a", "u c t"):
        once, _ = clean(Record(turns(spec)))
        assert once is not None
        assert clean(once) == (once, [])
