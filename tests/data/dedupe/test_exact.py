"""The first of equal dialogues stays, and on request of near ones; other labels are no repetitions."""

from __future__ import annotations

import sys
from dataclasses import replace

from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data.dedupe.exact import Compared, Seen, contamination, dedupe, dialogue_text
from tuneloop.data.dedupe.shingles import jaccard
from tuneloop.data.ledger import words


def record(question: str, answer: str, line: int = 0, **more: object) -> Record:
    return Record((Message("user", question), Message("assistant", answer)), "f", line, **more)  # type: ignore[arg-type]


def test_first_one_wins_and_the_entry_names_it() -> None:
    rows = [record("q", "a", 1), record("r", "a", 2), record("q", "a", 3)]
    kept, entries = dedupe(rows)
    assert kept == rows[:2]
    assert [(e.action, e.reason, e.line, e.detail) for e in entries] == [("dropped", "repeated", 3, "f:1")]


def test_case_and_blanks_make_a_difference() -> None:
    """They are what some rows are about: indentation is a program's meaning, `ls -L` is not `ls -l`."""
    answers = ["for i in r:\n    print(i)", "for i in r:\n  print(i)", "for i in r:\n    PRINT(i)"]
    rows = [record("Format it", answer) for answer in answers]
    assert dedupe([*rows, *rows]) == (rows, dedupe(rows * 2)[1])
    assert len(dedupe(rows * 2)[1]) == 3
    assert len(dedupe([record("Say It", "a"), record("say it", "a"), record("say  it", "a")])[0]) == 3


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


def labelled(text: str, label: str, line: int = 0, kind: str = "label") -> Record:
    return Record((Message("user", text),), "f", line, kind=kind, label=label)  # type: ignore[arg-type]


def preference(better: str, worse: str, line: int = 0, question: str = "哪个好？") -> Record:
    turns = (Message("user", question), Message("assistant", better))
    return Record(turns, "f", line, kind="preference", rejected=(Message("assistant", worse),))


def told(entries: list[LedgerEntry]) -> list[tuple[str, str, int, str]]:
    assert all(e.reason in words() for e in entries)
    return [(e.action, e.reason, e.line, e.detail) for e in entries]


LONG = "房间很干净，服务员也很热情，早餐种类不多但是味道还可以，下次来这里出差还会选择住这家酒店。"
NEARLY = LONG.replace("热情", "客气")


def test_the_same_text_with_another_label_stays_and_is_marked() -> None:
    rows = [
        labelled(LONG, "good", 1),
        labelled(LONG, "good", 2),
        labelled(LONG, "bad", 3),
        labelled(LONG, "bad", 4),
    ]
    kept, entries = dedupe(rows)
    assert kept == [rows[0], rows[2]]
    assert told(entries) == [
        ("dropped", "repeated", 2, "f:1"), ("marked", "conflicting label", 3, "f:1"), ("dropped", "repeated", 4, "f:3"),
    ]  # fmt: skip
    judged = [labelled("q", "good", 1, "judged"), labelled("q", "bad", 2, "judged"), labelled("q", "good", 3)]
    assert told(dedupe(judged)[1]) == [("marked", "conflicting label", 2, "f:1")]


def test_a_preference_the_other_way_round_is_marked() -> None:
    rows = [preference("好", "坏", 1), preference("坏", "好", 2), preference("好", "坏", 3), preference("好", "差", 4)]
    kept, entries = dedupe(rows)
    assert kept == [rows[0], rows[1], rows[3]]
    assert told(entries) == [("marked", "conflicting label", 2, "f:1"), ("dropped", "repeated", 3, "f:1")]


def test_an_answer_that_is_only_context_is_another_row() -> None:
    one = record("q", "a")
    other = one.with_messages((one.messages[0], Message("assistant", "a", trained=False)))
    assert len(dedupe([one, other])[0]) == 2


def test_seen_remembers_places_in_little_room() -> None:
    few = Seen(lambda r: (r.line % 300).to_bytes(16, "big"))  # all first eight bytes are equal: they all collide
    rows = [Record((), f"file{n % 3}", n) for n in range(100_000)]
    spread = Seen(lambda r: (r.line % 60_000 * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little") + bytes(8))
    for n, row in enumerate(rows):
        assert spread.add(row) == ((f"file{n % 3}", n - 60_000) if n >= 60_000 else None)
    for n, row in enumerate(rows[:900]):
        assert few.add(row) == ((f"file{n % 300 % 3}", n % 300) if n >= 300 else None)
    assert len(spread) == 60_000
    room = sum(map(sys.getsizeof, (spread._keys, spread._lines, spread._file_of, spread._table)))
    assert room / len(spread) < 60


def test_near_dialogues_go_on_request() -> None:
    rows = [record(LONG, "谢谢", 1), record("别的", "话", 2), record(NEARLY, "谢谢", 3), record(LONG, "谢谢。", 4)]
    assert dedupe(rows)[0] == rows
    kept, entries = dedupe(rows, near=0.8)
    assert kept == rows[:2]
    share = jaccard(f"{LONG}\n谢谢", f"{NEARLY}\n谢谢")
    assert told(entries) == [
        ("dropped", "nearly repeated", 3, f"f:1 {share:.2f}"),
        ("dropped", "nearly repeated", 4, f"f:1 {jaccard(LONG + '谢谢', LONG + '谢谢。'):.2f}"),
    ]
    assert len(dedupe(rows, near=1)[0]) == 4


def test_equal_but_for_width_goes_with_the_row_it_equals() -> None:
    """Rows 2 and 3 have the same shingles; 2 goes for 1, so 3 does too, though it was only compared with 2."""
    rows = [record(LONG, "好", 1), record(NEARLY, "好", 2), record(NEARLY.replace("，", ","), "好", 3)]
    kept, entries = dedupe(rows, near=0.8)
    assert kept == rows[:1]
    share = jaccard(f"{LONG}\n好", f"{NEARLY}\n好")
    assert told(entries) == [("dropped", "nearly repeated", n, f"f:1 {share:.2f}") for n in (2, 3)]


def test_near_texts_with_other_labels_are_marked_and_stay() -> None:
    rows = [labelled(LONG, "good", 1), labelled(NEARLY, "bad", 2), labelled(NEARLY + "！", "bad", 3)]
    kept, entries = dedupe(rows, near=0.8)
    assert kept == rows[:2]
    assert told(entries)[0] == ("marked", "conflicting label", 2, "f:1")
    assert told(entries)[1][:3] == ("dropped", "nearly repeated", 3)
    exact = [labelled(LONG, "good", 1), labelled(LONG, "bad", 2)]
    assert len(dedupe(exact, near=0.8)[1]) == 1  # marked once, by the exact step


def test_near_preferences() -> None:
    rows = [preference(LONG, "不知道", 1), preference("不知道！", LONG, 2), preference(NEARLY, "不知道", 3)]
    kept, entries = dedupe(rows, near=0.75)
    assert kept == rows[:2]
    assert [e[:3] for e in told(entries)] == [("marked", "conflicting label", 2), ("dropped", "nearly repeated", 3)]


def test_another_system_prompt_or_other_tools_make_another_row() -> None:
    one = record(LONG, "好", 1)
    pirate = one.with_messages((Message("system", "你是海盗，说话要像海盗。"), *one.messages))
    poet = one.with_messages((Message("system", "你是诗人，每句都要押韵。"), *one.messages))
    dated = [
        one.with_messages((Message("system", f"You are a helpful assistant, patient and exact. Answer in Chinese, please. Today is day {n}."), *one.messages))
        for n in range(2)
    ]  # fmt: skip
    tools = replace(one, tools=({"type": "function"},))
    assert len(dedupe([one, pirate, poet, tools], near=0.8)[0]) == 4
    assert len(dedupe(dated, near=0.75)[0]) == 1


def test_what_is_compared() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "雨"}}}
    turns = (
        Message("system", "s"), Message("user", "q"), Message("assistant", "", "想", (call,)), Message("tool", "r"),
        Message("assistant", "a"),
    )  # fmt: skip
    text = dialogue_text(Record(turns, kind="preference", rejected=(Message("assistant", "b"),)))
    assert text.split("\n")[:2] == ["q", "想"]
    assert text.split("\n")[3:] == ["r", "a", "b"]
    assert '"雨"' in text


def test_test_rows_seen_in_training_are_named() -> None:
    train = [record("别的", "话", 1), record(LONG, "好", 2)]
    test = [record("没有见过的问题", "新的回答", 1), record(NEARLY, "好", 2), record(LONG, "好", 3)]
    share = jaccard(f"{LONG}\n好", f"{NEARLY}\n好")
    expected = [("marked", "also in training", 2, f"f:2 {share:.2f}"), ("marked", "also in training", 3, "f:2 1.00")]
    assert told(contamination(train, test, 0.8)) == expected
    sketches = Compared(), Compared()
    sketches[0].add(train)
    sketches[1].add(test)
    assert told(contamination(train, test, 0.8, sketches)) == expected
