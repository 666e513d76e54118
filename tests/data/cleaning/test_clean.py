"""Each step changes, marks or drops, and says so.

Over 400 lines: the mirror of one module, mostly tables of cases.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.real import load
from tuneloop.base.errors import DataError
from tuneloop.base.records import Kind, Message, Record
from tuneloop.data.cleaning.clean import Step, clean, steps
from tuneloop.data.ledger import words
from tuneloop.recipe.schema import CleanPart

OFF = {
    "unicode": False, "mojibake": False, "html": False, "templates": False, "pii": "off", "repetition": "off",
    "refusal": "off", "gibberish": "off",
}  # fmt: skip


def only(turns: tuple[int, int] | None = None, **on: Any) -> tuple[Step, ...]:
    """The steps that always run, and those that are switched on here."""
    return steps(CleanPart(**{**OFF, **on}), turns)


def chat(*texts: str, **more: Any) -> Record:
    """user, assistant, user, ..."""
    roles = ("user", "assistant") * len(texts)
    return Record(tuple(Message(r, t) for r, t in zip(roles, texts, strict=False)), "f", 7, **more)  # type: ignore[arg-type]


def pair(chosen: str, rejected: str, *prompt: str) -> Record:
    return chat(*(prompt or ("q",)), chosen, kind="preference", rejected=(Message("assistant", rejected),))


def text(content: str) -> Record:
    return Record((Message("assistant", content),), "f", 7, kind="text")


def labelled(content: str, label: str = "good") -> Record:
    return Record((Message("user", content),), "f", 7, kind="label", label=label)


def reasons(record: Record, steps: tuple[Step, ...] | None = None) -> list[tuple[str, str]]:
    return [(e.action, e.reason) for e in clean(record, steps)[1]]


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
    [("a\r\nb\rc", "a\nb\nc"), ("a\x00b\x07\x7f", "ab"), ("e\u0301", "\u00e9"), ("tab\tstays", "tab\tstays")],
)
def test_normalised(before: str, after: str) -> None:
    record, entries = clean(Record((Message("user", before), Message("assistant", "a", before))))
    assert record is not None
    assert record.messages == (Message("user", after), Message("assistant", "a", after))
    assert [e.reason for e in entries] == (["normalised"] if before != after else [])
    kept, _ = clean(Record((Message("user", before), Message("assistant", "a"))), only())
    assert kept is not None
    assert kept.messages[0].content == before


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


def names(made: tuple[Step, ...]) -> list[str]:
    return [(s.func if isinstance(s, partial) else s).__name__ for s in made]


ALWAYS = ["empty_turns", "merge_turns", "results", "order", "unanswered", "difference"]


def test_each_step_has_its_switch() -> None:
    assert names(only()) == ALWAYS
    extra = {
        "html": ({"html": True}, "markup"), "mojibake": ({"mojibake": True}, "mojibake"),
        "unicode": ({"unicode": True}, "normalise"), "templates": ({"templates": True}, "templates"),
        "languages": ({"languages": ["zh"]}, "languages"), "pii": ({"pii": "mark"}, "personal"),
        "lexicon": ({"lexicon": "mark"}, "words"), "repetition": ({"repetition": "drop"}, "repetition"),
        "refusal": ({"refusal": "drop"}, "refusal"), "gibberish": ({"gibberish": "mark"}, "gibberish"),
    }  # fmt: skip
    for on, name in extra.values():
        assert sorted(names(only(**on))) == sorted([*ALWAYS, name])
    assert names(only((1, 2)))[-1] == "turn_limit"
    assert "reject_turns" in names(only(roles="reject"))


# --- every kind of record ---


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (text(" \n"), "no text"),
        (labelled(""), "no text"),
        (labelled("fine", " "), "no label"),
        (pair("", "b"), "empty answer"),
        (pair("a", " "), "empty answer"),
        (replace(pair("a", "b"), rejected=()), "empty answer"),
        (pair("a", "a"), "no difference"),
        (pair("a\n", " a"), "no difference"),
        (pair("Ã¼ber", "über"), "no difference"),
        (replace(pair("a", "b"), rejected=(Message("user", "b"),)), ""),
        (replace(pair("a", "b"), rejected=(Message("tool", "b"),)), "tool turn without a call"),
        (chat("q", kind="judged", label="bad"), "no answer"),
        (chat("", "a", kind="judged", label="good"), "empty turn"),
    ],
)
def test_each_kind_has_its_own_rules(record: Record, reason: str) -> None:
    dropped = [r for action, r in reasons(record) if action == "dropped"]
    assert dropped == ([reason] if reason else [])
    assert not reason or reason in words()


@pytest.mark.parametrize(
    "record",
    [text("Only text."), labelled("fine"), pair("a", "b"), pair("a", "b", "u1", "a1", "u2"),
     chat("q", "a", kind="judged", label="bad")],
)  # fmt: skip
def test_sound_records_of_each_kind_pass_untouched(record: Record) -> None:
    every = steps(CleanPart(lexicon="drop", pii="drop", repetition="drop", refusal="drop", gibberish="drop"), (1, 9))
    assert clean(record, every) == (record, [])


def test_rejected_answers_are_repaired_and_merged_too() -> None:
    record = replace(pair("fine", "x"), rejected=(Message("assistant", "Ã¼ber"), Message("assistant", "a<br />b\r")))
    out, entries = clean(record)
    assert out is not None
    assert out.rejected == (Message("assistant", "über\n\na\nb"),)
    assert out.messages == record.messages
    assert {e.reason for e in entries} == {"markup removed", "wrong encoding repaired", "turns merged"}


def test_an_answer_that_is_not_trained_is_context() -> None:
    first, last = Message("assistant", "a", trained=False), Message("assistant", "b", trained=False)
    user = Message("user", "q")
    assert reasons(Record((user, first))) == [("dropped", "no answer")]
    kept = Record((user, first, user, Message("assistant", "c")))
    assert clean(kept) == (kept, [])
    out, entries = clean(Record((user, Message("assistant", "c"), user, last, user)))
    assert out is not None
    assert (len(out.messages), entries[0].reason, entries[0].detail) == (2, "untrained end removed", "3")
    for pair in ((Message("assistant", "x"), first), (first, Message("assistant", "x"))):  # a trained answer stays one
        out, entries = clean(Record((user, *pair, user, Message("assistant", "c"))))
        assert out == Record((user, Message("assistant", "x"), user, Message("assistant", "c")))
        assert [(e.action, e.reason) for e in entries] == [("changed", "untrained answer left out")]
    merged, _ = clean(Record((user, first, last, user, Message("assistant", "c"))))
    assert merged is not None
    assert merged.messages[1] == Message("assistant", "a\n\nb", trained=False)


def test_results_stand_in_the_order_of_their_calls_where_all_name_one() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = Message("assistant", "", tool_calls=({"id": "1", **call}, {"id": "2", **call}))
    one, two = Message("tool", "a", tool_call_id="1"), Message("tool", "b", tool_call_id="2")
    head, tail = (Message("user", "q"), asked), (Message("assistant", "x"),)
    out, entries = clean(Record((*head, two, one, *tail)))
    assert out is not None
    assert out.messages == (*head, one, two, *tail)
    assert [(e.action, e.reason) for e in entries] == [("changed", "results put in order")]
    for others in ((one, two), (two, Message("tool", "c")), (two, Message("tool", "c", tool_call_id="9"))):
        assert clean(Record((*head, *others, *tail))) == (Record((*head, *others, *tail)), [])


def test_names_of_merged_turns_that_differ_are_told() -> None:
    ann, bob = Message("user", "a", name="Ann"), Message("user", "b", name="Bob")
    out, entries = clean(Record((ann, bob, Message("assistant", "c"))))
    assert out is not None
    assert (out.messages[0], entries[0].detail) == (Message("user", "a\n\nb"), "3 -> 2; name: Ann, Bob")
    out, _ = clean(Record((ann, ann, Message("assistant", "c"))))
    assert out is not None
    assert out.messages[0].name == "Ann"


def test_roles_may_be_rejected_in_place_of_merged() -> None:
    assert reasons(Record(turns("u u a")), only(roles="reject")) == [("dropped", "same role twice")]
    assert reasons(Record(turns("u c t t a")), only(roles="reject")) == []
    context = Message("assistant", "x", trained=False)
    twice = Record((Message("user", "q"), context, Message("assistant", "a")))
    assert reasons(twice, only(roles="reject")) == [("dropped", "same role twice")]


@pytest.mark.parametrize(("count", "reason"), [(1, "too few turns"), (2, ""), (3, ""), (4, "too many turns")])
def test_number_of_user_turns(count: int, reason: str) -> None:
    record = Record(turns(" ".join(["u a"] * count)))
    assert reasons(record, only((2, 3))) == ([("dropped", reason)] if reason else [])
    assert clean(labelled("text"), only((2, 3)))[1] == []


# --- markup in records ---


@pytest.mark.parametrize(
    "record",
    [
        chat("How do I write HTML?", "Use <p>text</p><br /> then."),
        chat("写一个登录页面", "<div class='a'><p>登录</p></div>"),
        chat("What does `<br>` do?", "It breaks<br>the line."),
        chat("Which of a and b?", "a < b and b > c, so List<int> and <think>x</think> <|im_start|>"),
        chat("q", '<tool_call>{"name": "f"}</tool_call>'),
        chat("q", "```\nx &lt; <br />\n```"),
        Record((Message("system", "Write<br />so"), Message("user", "q"), Message("assistant", "a"))),
        Record((Message("user", "q"), Message("assistant", "", tool_calls=CALL), Message("tool", "<p>page</p>"),
                Message("assistant", "a"))),
    ],
)  # fmt: skip
def test_markup_that_is_meant_stays(record: Record) -> None:
    assert clean(record, only(html=True)) == (record, [])


# --- languages ---


def test_other_languages_are_dropped() -> None:
    kept = only(languages=["zh-CN"])
    assert reasons(chat("你好，你是谁？", "我是一个助手。"), kept) == []
    assert reasons(chat("1+1", "2"), kept) == []
    _, entries = clean(chat("Who are you, please?", "I am the assistant of this company."), kept)
    assert [(e.reason, e.detail) for e in entries] == [("other language", "en")]
    assert reasons(labelled("Das Essen war wirklich sehr gut und preiswert."), kept) == [("dropped", "other language")]


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        steps(CleanPart(languages=["zh", "chinese"]))
    assert caught.value.code == "TL-DATA-LANGUAGE"
    assert "chinese" in caught.value.what


# --- personal data and words ---

MAIL = "li.lei@example.com"
PHONE = "13812345678"


def with_call() -> Record:
    call = {
        "id": "call_1", "type": "function",
        "function": {"name": "send", "arguments": {"to": MAIL, "phone": int(PHONE), "n": 3, "tags": [f"call {PHONE}"]}},
    }  # fmt: skip
    return Record(
        (
            Message("user", f"Mail {MAIL}"),
            Message("assistant", "", f"the number is {PHONE}", (call,)),
            Message("tool", json.dumps({"mobile": int(PHONE), "ok": True})),
            Message("assistant", "done"),
        ),
        "f",
        7,
    )


def test_personal_data_is_masked_everywhere_and_calls_stay_data() -> None:
    record, entries = clean(with_call(), only(pii="mask"))
    assert record is not None
    whole = json.dumps(record.chat(), ensure_ascii=False)
    assert MAIL not in whole
    assert PHONE not in whole
    arguments = record.messages[1].tool_calls[0]["function"]["arguments"]
    assert arguments == {"to": "[EMAIL]", "phone": "[MOBILE]", "n": 3, "tags": ["call [MOBILE]"]}
    assert json.loads(record.messages[2].content) == {"mobile": "[MOBILE]", "ok": True}
    assert [(e.action, e.reason, e.detail) for e in entries] == [
        ("changed", "personal data masked", "email: 2, mobile: 4")
    ]
    assert clean(record, only(pii="mask")) == (record, [])


@pytest.mark.parametrize("action", ["mark", "drop"])
def test_personal_data_marked_or_dropped_is_not_quoted(action: str) -> None:
    record, entries = clean(with_call(), only(pii=action))
    assert record == (with_call() if action == "mark" else None)
    assert [e.action for e in entries] == ["marked" if action == "mark" else "dropped"]
    assert MAIL not in str(entries)
    assert PHONE not in str(entries)


def test_only_the_kinds_asked_for() -> None:
    assert reasons(with_call(), only(pii="drop", pii_kinds=["iban"])) == []
    record, entries = clean(with_call(), only(pii="mask", pii_kinds=["email"]))
    assert record is not None
    assert entries[0].detail == "email: 2"
    assert PHONE in json.dumps(record.chat())


def test_a_rejected_answer_with_personal_data_is_masked() -> None:
    record, _ = clean(pair("Ask them.", f"Write to {MAIL}."), only(pii="mask"))
    assert record is not None
    assert record.rejected[0].content == "Write to [EMAIL]."


def test_words_of_a_list_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "brand.txt"
    own.write_text("# rivals\nACME\n竞品公司\n", encoding="utf-8")
    marked = only(lexicon="mark", lexicon_files=[str(own)])
    record, entries = clean(chat("q", "竞品公司 and acme."), marked)
    assert record is not None
    assert [(e.action, e.reason, e.detail) for e in entries] == [("marked", "lexicon word", "brand: 2")]
    assert reasons(pair("fine", "acme"), only(lexicon="drop", lexicon_files=[str(own)])) == [
        ("dropped", "lexicon word")
    ]
    assert reasons(chat("q", "nothing"), marked) == []
    with pytest.raises(DataError):
        only(lexicon="mark", lexicon_files=[str(tmp_path / "none.txt")])


# --- quality ---

REFUSAL = "I'm sorry, but I can't help with that."


def test_quality_is_marked_or_dropped() -> None:
    record = chat("q", "Eat a banana! " * 50)
    assert reasons(record, only(repetition="mark")) == [("marked", "repeats itself")]
    assert reasons(record, only(repetition="drop")) == [("dropped", "repeats itself")]
    assert reasons(chat("q", REFUSAL), only(refusal="mark")) == [("marked", "refusal")]
    assert reasons(chat("锟斤拷锟斤拷", "a"), only(gibberish="drop")) == [("dropped", "wrong encoding")]
    assert reasons(chat("q", "asdf sdfg dfgh fghj"), only(gibberish="mark")) == [("marked", "keyboard noise")]


def test_quality_looks_at_what_is_learnt() -> None:
    strict = only(repetition="drop", refusal="drop", gibberish="drop")
    noise = "asdf sdfg dfgh fghj"
    assert reasons(chat(noise, "What do you mean?"), strict) == []
    assert reasons(chat("Eat a banana! " * 50, "a"), strict) == []
    assert reasons(pair("good", REFUSAL), strict) == []
    assert reasons(chat("q", REFUSAL, kind="judged", label="bad"), strict) == []
    assert reasons(text(noise), strict) == [("dropped", "keyboard noise")]
    assert reasons(pair("good", "\ufffd\ufffd"), strict) == [("dropped", "lost characters")]
    quiet = Record(
        (
            Message("user", "q"),
            Message("assistant", REFUSAL, trained=False),
            Message("user", "q"),
            Message("assistant", "a"),
        )
    )
    assert reasons(quiet, strict) == []


# --- real rows ---

# rows, and what happens to them by the steps of an empty recipe
REAL: dict[str, tuple[int, dict[tuple[str, str], int]]] = {
    "emollm/data.json": (500, {}),
    "emollm/aiwei.json": (400, {}),
    "emollm/tiangou.json": (301, {}),
    "emollm/ruozhiba_raw.jsonl": (174, {}),
    "llamafactory/alpaca_zh_demo.json": (300, {("marked", "refusal"): 4, ("marked", "personal data"): 1}),
    "llamafactory/alpaca_en_demo.json": (300, {("marked", "refusal"): 5}),
    "llamafactory/identity.json": (65, {("dropped", "unfilled template"): 61}),
    "huatuo_o1/sft_en.json": (147, {}),
    "medicalgpt/medical_sft_1K_format.jsonl": (300, {("changed", "markup removed"): 1}),
    "openai_messages/toy_chat_fine_tuning.jsonl": (
        5, {("dropped", "begins with the assistant"): 1, ("marked", "repeats itself"): 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_rows(name: str) -> None:
    rows, expected = REAL[name]
    records = load(name)
    assert len(records) == rows
    assert Counter(reason for record in records for reason in reasons(record)) == expected
    assert {reason for _, reason in expected} <= words().keys()


@pytest.mark.parametrize("name", ["llamafactory/dpo_zh_demo.json", "llamafactory/dpo_en_demo.json"])
def test_real_pairs(name: str) -> None:
    records = load(name)
    kinds: set[Kind] = {r.kind for r in records}
    assert kinds == {"preference"}
    out = [clean(r)[0] for r in records]
    assert all(r is not None for r in out)
    assert all(r.rejected for r in out if r)


def test_cleaning_twice_changes_nothing_more() -> None:
    for spec in ("u a u", "u u a", "S u a u A", "u a c t a", "u c t"):
        once, _ = clean(Record(turns(spec)))
        assert once is not None
        assert clean(once) == (once, [])
