"""What is longer than the context: rejected, split or cut, each piece short enough, and every row accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real import load
from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.data.ledger import Ledger
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.data.version.lengths import MOST_CHARACTERS, chosen, exchanges, fit_lengths, longest, most_tokens
from tuneloop.recipe.schema import PreparePart

END = 3
"""The token behind every answer."""


class Told(Ledger):
    """A ledger that keeps its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[LedgerEntry] = []

    def add(self, *entries: LedgerEntry) -> None:
        super().add(*entries)
        self.entries += entries


def encode(records: Sequence[Record]) -> Sequences:
    """A token a character, END behind each turn of the assistant; a preference pair is two samples of one row."""
    parts = []
    for record in records:
        rows = [record.messages, *([(*record.prompt, *record.rejected)] if record.rejected else [])]
        samples = Sequences.of([_sample(messages, record.id) for messages in rows])
        parts.append(_one_row(samples))
    return Sequences.concatenate(parts) if parts else Sequences.of([])


def _sample(messages: Sequence[Message], name: str) -> Sample:
    if any(m.content == "REFUSED" for m in messages):
        raise DataError("TL-DATA-TEMPLATE", error="no such word")
    ids, trained = [], []
    for m in messages:
        own = [ord(c) for c in m.reasoning + m.content] + [END] * (m.role == "assistant" and not m.cut)
        ids += own
        trained += [m.role == "assistant" and m.trained] * len(own)
    return Sample(np.array(ids, np.int32), np.array(trained, bool), name, True)


def _one_row(samples: Sequences) -> Sequences:
    arrays = (samples.ids, samples.trained, samples.starts, samples.labels, samples.ended)
    return Sequences(*arrays, np.zeros(len(samples), np.int32), samples.names, 1)


def run(
    records: Sequence[Record], encode: Any = encode, **part: Any
) -> tuple[list[Record], list[int], Sequences, Told]:
    ledger = Told()
    wanted = PreparePart.model_construct(**{**PreparePart().model_dump(), **part})
    kept, origins, samples = fit_lengths(records, encode, wanted, ledger)
    ledger.balance(len(records), len(kept))
    assert len(origins) == len(kept) == samples.records
    assert np.array_equal(longest(samples), longest(encode(kept)))
    assert all(a.ids.tolist() == b.ids.tolist() for a, b in zip(samples, encode(kept), strict=True))
    assert all(length <= most_tokens(wanted) for length in longest(samples).tolist())
    assert origins == sorted(origins)
    assert all((records[o].file, records[o].line) == (r.file, r.line) for o, r in zip(origins, kept, strict=True))
    return kept, origins, samples, ledger


def told(ledger: Told) -> list[tuple[str, str, str]]:
    return [(e.action, e.reason, e.detail) for e in ledger.entries]


def chat(*texts: str, system: str = "", line: int = 1, **more: Any) -> Record:
    turns = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    return Record((*([Message("system", system)] if system else []), *turns), "f", line, **more)


def text(content: str) -> Record:
    return Record((Message("assistant", content),), "f", 1, kind="text")


def label(content: str) -> Record:
    return Record((Message("user", content),), "f", 1, kind="label", label="good")


def pair(question: str, better: str, worse: str, *before: Message) -> Record:
    return Record((*before, Message("user", question), Message("assistant", better)), "f", 1, kind="preference",
                  rejected=(Message("assistant", worse),))  # fmt: skip


ALL = [chat("q" * 30, "a" * 30), text("t" * 60), label("l" * 60), pair("q" * 9, "b" * 60, "w"), pair("q" * 9, "b", "w" * 60),
       chat("q" * 30, "a" * 30, kind="judged", label="bad")]  # fmt: skip


@pytest.mark.parametrize("record", ALL)
def test_reject_says_how_long_it_was(record: Record) -> None:
    length = int(longest(encode([record]))[0])
    kept, _, _, ledger = run([record], max_length=40, too_long="reject")
    assert not kept
    assert told(ledger) == [("dropped", "too long", f"{length} / 40")]
    kept, _, samples, ledger = run([record], max_length=length, too_long="reject")
    assert kept == [record]
    assert not ledger.entries
    assert samples.tokens >= length


@pytest.mark.parametrize("how", ["reject", "turns", "split", "cut_left", "cut_right"])
def test_what_fits_is_left_alone(how: str) -> None:
    short = [chat("q", "a"), text("t"), label("l"), pair("q", "b", "w")]
    kept, origins, _, ledger = run(short, max_length=16, too_long=how)
    assert kept == short
    assert origins == [0, 1, 2, 3]
    assert not ledger.entries


def test_a_dialogue_is_split_between_its_exchanges() -> None:
    record = chat("q1", "a1", "q2", "a2", "q3", "a3", system="S" * 6)
    kept, _, _, ledger = run([record], max_length=16, too_long="split")
    assert [[m.content for m in r.messages] for r in kept] == [
        ["SSSSSS", "q1", "a1", "q2", "a2"],
        ["SSSSSS", "q3", "a3"],
    ]
    assert {r.parent for r in kept} == {record.id}
    assert told(ledger) == [("changed", "split by turns", "21 / 16, 2"), ("added", "split by turns", "2 / 2")]
    assert ledger.entries[0].id == record.id
    assert ledger.entries[1].id == kept[1].id


def test_a_dialogue_with_one_exchange_that_is_too_long_goes_as_a_whole() -> None:
    kept, _, _, ledger = run([chat("q1", "a1", "q2", "a" * 40)], max_length=16, too_long="turns")
    assert not kept
    assert told(ledger) == [("dropped", "too long", "48 / 16")]


def test_calls_and_their_results_stay_with_their_question() -> None:
    call = ({"type": "function", "function": {"name": "f", "arguments": {}}},)
    turns = (
        Message("user", "q1"),
        Message("assistant", "", tool_calls=call),
        Message("tool", "r1"),
        Message("assistant", "a1"),
    )
    more = (Message("user", "q2" * 4), Message("assistant", "a2"))
    kept, *_ = run([Record((*turns, *more), "f", 1)], max_length=16, too_long="split")
    assert [r.messages for r in kept] == [turns, more]


def test_a_piece_that_teaches_nothing_is_dropped_by_name() -> None:
    turns = chat("q1", "a" * 10, "q2", "b" * 10).messages
    record = Record((turns[0], Message("assistant", "a" * 10, trained=False), *turns[2:]), "f", 1)
    kept, _, _, ledger = run([record], max_length=16, too_long="split")
    assert [r.messages for r in kept] == [turns[2:]]
    assert told(ledger)[1:] == [("dropped", "no answer", ""), ("added", "split by turns", "2 / 2")]


@pytest.mark.parametrize("record", [ALL[2], ALL[3], ALL[4], ALL[5]])
@pytest.mark.parametrize("how", ["turns", "split"])
def test_what_is_about_the_whole_is_not_split(record: Record, how: str) -> None:
    kept, _, _, ledger = run([record], max_length=40, too_long=how)
    assert not kept
    assert [e.reason for e in ledger.entries] == ["too long"]


WORDS = " ".join(f"word{n}" for n in range(100))


@pytest.mark.parametrize("overlap", [0, 10, 39, 500])
def test_a_text_is_split_into_windows_that_overlap(overlap: int) -> None:
    kept, _, _, ledger = run([text(WORDS)], max_length=40, too_long="split", overlap=overlap)
    assert len(kept) > 10
    at = 0
    for n, piece in enumerate(r.messages[0].content for r in kept):
        start = WORDS.find(piece, max(at - 40, 0))
        assert start >= 0
        if n:
            assert start <= at, "a gap"
            assert at - start <= max(overlap, 0)
            assert overlap != 10 or at - start >= 9  # END is counted
        at = start + len(piece)
    assert at == len(WORDS)
    if not overlap:
        assert "".join(r.messages[0].content for r in kept) == WORDS
        assert all(r.messages[0].content.endswith(" ") for r in kept[:-1])
    assert [e.action for e in ledger.entries] == ["changed", *["added"] * (len(kept) - 1)]


def test_a_chinese_text_is_split_behind_a_sentence() -> None:
    content = "这是第一句话。这是很长很长的第二句话！这是第三句话。" * 9
    kept, *_ = run([text(content)], max_length=40, too_long="split", overlap=0)
    assert "".join(r.messages[0].content for r in kept) == content
    assert all(r.messages[0].content[-1] in "。！" for r in kept)


def test_a_text_whose_shorter_piece_has_more_tokens() -> None:
    """Byte pair encoding is not monotonic: a text that is cut at a better place may have more tokens."""

    def odd(records: Sequence[Record]) -> Sequences:
        lengths = [len(r.messages[0].content) + 9 * r.messages[0].content.endswith(" ") for r in records]
        samples = [
            Sample(np.zeros(n, np.int32), np.ones(n, bool), r.id, True) for n, r in zip(lengths, records, strict=True)
        ]
        return Sequences.of(samples)

    kept, *_ = run([text(WORDS)], odd, max_length=20, too_long="split", overlap=0)
    assert "".join(r.messages[0].content for r in kept) == WORDS


def test_cut_left_drops_the_oldest_exchanges_and_then_the_start_of_the_question() -> None:
    record = chat("q1", "a1", "q2", "a2", "q3", "a3", system="SSS")
    kept, _, _, ledger = run([record], max_length=16, too_long="cut_left")
    assert [[m.content for m in r.messages] for r in kept] == [["SSS", "q2", "a2", "q3", "a3"]]
    assert told(ledger) == [("changed", "cut on the left", "18 / 16, 1")]
    long = chat("q1", "a1", "0123456789", "answer", system="S")
    kept, *_ = run([long], max_length=12, too_long="cut_left")
    assert [m.content for m in kept[0].messages] == ["S", "6789", "answer"]


def test_cut_right_drops_the_newest_exchanges_and_then_the_end_of_the_answer() -> None:
    record = chat("q1", "a1", "q2", "a2", "q3", "a3")
    kept, *_ = run([record], max_length=12, too_long="cut_right")
    assert [m.content for m in kept[0].messages] == ["q1", "a1", "q2", "a2"]
    kept, _, samples, ledger = run([chat("question", "0123456789")], max_length=13, too_long="cut_right")
    assert [m.content for m in kept[0].messages] == ["question", "01234"]
    assert samples[0].ids[-1] == ord("4"), "no end behind a cut"
    assert samples[0].trained[-1]
    assert told(ledger) == [("changed", "cut on the right", "19 / 13, 1")]


def test_a_pair_loses_the_ends_of_both_answers_and_never_the_better_one() -> None:
    before = (Message("user", "q0"), Message("assistant", "a0"))
    record = pair("q1", "better" * 3, "worse" * 5, *before)
    kept, _, samples, _ = run([record], max_length=16, too_long="cut_right")
    assert [m.content for m in kept[0].messages] == ["q0", "a0", "q1", "betterbet"]
    assert kept[0].rejected == (Message("assistant", "worsewors"),)
    assert [s.ids[-1] for s in samples] == [ord("t"), ord("s")], "no end behind a cut"
    kept, *_ = run([record], max_length=29, too_long="cut_left")
    assert [m.content for m in kept[0].messages] == ["q1", "better" * 3]
    assert kept[0].rejected == record.rejected


def test_a_pair_that_the_cut_makes_equal_is_dropped() -> None:
    kept, _, _, ledger = run([pair("q", "same" * 5 + "1", "same" * 5 + "2")], max_length=16, too_long="cut_right")
    assert not kept
    assert [(e.action, e.reason) for e in ledger.entries] == [
        ("changed", "cut on the right"),
        ("dropped", "no difference"),
    ]


def test_a_verdict_stays_with_the_answer_that_it_is_about() -> None:
    record = chat("q1", "a1", "q2", "0123456789", kind="judged", label="bad")
    kept, *_ = run([record], max_length=16, too_long="cut_right")
    assert [m.content for m in kept[0].messages] == ["q1", "a1", "q2", "012345678"]
    kept, *_ = run([record], max_length=16, too_long="cut_left")
    assert [m.content for m in kept[0].messages] == ["q2", "0123456789"]


@pytest.mark.parametrize(("how", "rest"), [("cut_left", "9" * 16), ("cut_right", "0" * 16)])
def test_texts_with_labels_are_cut(how: str, rest: str) -> None:
    kept, *_ = run([label("0" * 50 + "9" * 50)], max_length=16, too_long=how)
    assert [(r.messages[0].content, r.label) for r in kept] == [(rest, "good")]


@pytest.mark.parametrize("how", ["cut_left", "cut_right"])
def test_what_cannot_be_cut_enough_is_dropped(how: str) -> None:
    call = ({"type": "function", "function": {"name": "f", "arguments": {}}},)
    thought = Record((Message("user", "q"), Message("assistant", "a", "t" * 40)), "f", 1)
    calls = Record((Message("user", "q"), Message("assistant", "c" * 40, tool_calls=call)), "f", 2)
    system = chat("q", "a", system="S" * 40)
    kept, _, _, ledger = run([thought, calls, system], max_length=16, too_long=how)
    assert not kept
    assert [(e.action, e.reason) for e in ledger.entries] == [("dropped", "too long")] * 3


def test_the_range_of_tokens() -> None:
    rows = [chat("q", "a" * n, line=n) for n in (1, 8, 12, 13)]
    kept, _, _, ledger = run(rows, max_length=100, tokens=(10, 14))
    assert [r.line for r in kept] == [8, 12]
    assert told(ledger) == [
        ("dropped", "outside the token range", "3 / 10-14"),
        ("dropped", "outside the token range", "15 / 10-14"),
    ]


def test_a_piece_outside_the_range_is_dropped_by_name() -> None:
    kept, _, _, ledger = run([text("x" * 25)], max_length=20, too_long="split", overlap=0, tokens=(10, 20))
    assert [len(r.messages[0].content) for r in kept] == [20]
    assert told(ledger)[1:] == [
        ("added", "split by tokens", "2 / 2"),
        ("dropped", "outside the token range", "6 / 10-20"),
    ]


def test_what_the_template_refuses_costs_only_itself() -> None:
    rows = [chat("REFUSED" if n in (3, 40, 99) else "q", "a", line=n) for n in range(100)]
    kept, origins, _, ledger = run(rows)
    assert origins == [n for n in range(100) if n not in (3, 40, 99)]
    assert [(e.step, e.reason, e.detail, e.line) for e in ledger.entries] == [
        ("template", "template refuses", "no such word", n) for n in (3, 40, 99)
    ]
    kept, _, samples, _ = run([chat("REFUSED", "a")])
    assert not kept
    assert len(samples) == 0


def test_a_template_that_refuses_a_piece_does_not_stop_the_rest() -> None:
    def refuses_short(records: Sequence[Record]) -> Sequences:
        if any(len(r.messages) < 5 for r in records):
            raise DataError("TL-DATA-TEMPLATE", error="too few turns")
        return encode(records)

    kept, _, _, ledger = run(
        [chat("q" * 9, "a", "q" * 9, "a", "q", "a")], refuses_short, max_length=16, too_long="turns"
    )
    assert not kept
    assert [e.reason for e in ledger.entries] == ["too long"]


def test_nothing_in_nothing_out() -> None:
    kept, origins, samples, _ = run([])
    assert (kept, origins, len(samples)) == ([], [], 0)


def test_chosen_counts_the_records_anew() -> None:
    samples = encode([pair("q", "b", "w"), chat("x", "y"), pair("q2", "b2", "w2")])
    out = chosen(samples, np.array([2, 0, 0]))
    assert out.row.tolist() == [0, 0, 1, 1, 2, 2]
    assert out.records == 3
    assert out[0].ids.tolist() == samples[3].ids.tolist()
    assert len(chosen(samples, np.array([], np.int64))) == 0


def test_exchanges_of_a_dialogue_that_begins_with_the_assistant() -> None:
    a, u = Message("assistant", "a"), Message("user", "u")
    assert exchanges([a, u, a, a]) == ((), [(a,), (u, a, a)])
    assert exchanges([Message("system", "s")]) == ((Message("system", "s"),), [])


SIZE = st.integers(1, 60)
CHAT = st.lists(SIZE, min_size=2, max_size=8).map(lambda sizes: chat(*("x" * n for n in sizes[: len(sizes) // 2 * 2])))
ANY = st.one_of(
    CHAT,
    SIZE.map(lambda n: text("word " * n)),
    SIZE.map(lambda n: label("l" * n)),
    st.tuples(SIZE, SIZE, SIZE).map(lambda n: pair("q" * n[0], "b" * n[1], "w" * n[2])),
    CHAT.map(lambda r: Record(r.messages, "f", 1, kind="judged", label="good")),
    st.just(chat("REFUSED", "a")),
)


@settings(deadline=None)
@given(
    st.lists(ANY, max_size=8),
    st.integers(16, 80),
    st.sampled_from(["reject", "turns", "split", "cut_left", "cut_right"]),
    st.integers(0, 100),
    st.none() | st.tuples(st.integers(0, 20), st.integers(20, 90)),
)
def test_the_balance_holds_for_any_rows(
    rows: list[Record], limit: int, how: str, overlap: int, tokens: tuple[int, int] | None
) -> None:
    rows = [Record(r.messages, "f", n, r.tools, r.kind, r.label, r.rejected) for n, r in enumerate(rows)]
    kept, origins, samples, ledger = run(rows, max_length=limit, too_long=how, overlap=overlap, tokens=tokens)
    named = {e.line for e in ledger.entries}
    for n, row in enumerate(rows):
        mine = [r for r, o in zip(kept, origins, strict=True) if o == n]
        assert n in named or mine == [row], "lost in silence"
        assert all(r.kind == row.kind and r.label == row.label for r in mine)
    if tokens:
        assert all(tokens[0] <= n <= tokens[1] for n in longest(samples).tolist())


@pytest.mark.parametrize("how", ["reject", "turns", "split", "cut_left", "cut_right"])
@pytest.mark.parametrize(
    "name",
    [
        "emollm/data.json",
        "llamafactory/c4_demo.jsonl",
        "llamafactory/dpo_zh_demo.json",
        "openai_messages/toy_chat_fine_tuning.jsonl",
    ],
)
def test_real_rows(name: str, how: str) -> None:
    rows = load(name)[:40]
    kept, *_ = run(rows, max_length=600, too_long=how)
    if how == "split" and "c4" in name:
        whole = {r.line: r.messages[0].content for r in rows}
        for record in kept:
            assert record.messages[0].content in whole[record.line]


def test_turns_leaves_out_the_oldest_and_tells() -> None:
    record = chat("q1", "a1", "q2", "a2", "q3", "a3", system="S" * 6)
    kept, _, _, ledger = run([record], max_length=16, too_long="turns")
    assert [[m.content for m in r.messages] for r in kept] == [["S" * 6, "q2", "a2", "q3", "a3"]]
    assert told(ledger) == [("changed", "oldest turns left out", "21 / 16, -2")]
    judged = replace(record, kind="judged", label="bad")
    assert [m.content for m in run([judged], max_length=16, too_long="turns")[0][0].messages][1] == "q2"
    kept, _, _, ledger = run([chat("q1", "a1", "q2", "a" * 40)], max_length=16, too_long="turns")
    assert not kept
    assert told(ledger) == [("dropped", "too long", "48 / 16")]


def test_without_a_limit_any_length_is_kept() -> None:
    rows = [chat("q" * n, "a") for n in (1, 5000)]
    assert run(rows, max_length="auto")[0] == rows


@pytest.mark.parametrize("how", ["reject", "turns", "split", "cut_left", "cut_right"])
@pytest.mark.parametrize("limit", [64, "auto"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_row_of_far_too_many_characters_is_never_tokenised_whole(how: str, limit: Any, at: int) -> None:
    seen = []

    def measured(records: Sequence[Record]) -> Sequences:
        seen.extend(len(m.content) for r in records for m in r.messages)
        return encode(records) if max(seen) < 100_000 else Sequences.of([])

    most = MOST_CHARACTERS if limit == "auto" else 300 * 64
    rows = [chat("q", "a"), chat("q2", "a2")]
    rows.insert(at, chat("q", "a" * (most + 1)))
    if limit == "auto" and how != "reject":
        return  # then a part of it is wanted, as long as there is no limit
    ledger = Told()
    wanted = PreparePart.model_construct(**{**PreparePart().model_dump(), "max_length": limit, "too_long": how})
    kept, _, _ = fit_lengths(rows, measured, wanted, ledger)
    assert max(seen) <= most
    assert len(kept) == 3 if how == "cut_right" else kept == [row for row in rows if len(row.messages[1].content) < 9]
    (entry,) = ledger.entries
    reason = {"reject": "too large", "cut_right": "cut on the right"}.get(how, "too long")
    assert entry.reason == reason
    assert limit == "auto" or entry.detail.startswith("≥ 75 / 64")


LONG = "<think>Let me see whether it is so.</think>\n\nIt is so, and more is to be said of it."


@pytest.mark.parametrize("kind", ["chat", "judged", "preference"])
def test_a_thought_is_not_cut(kind: Any) -> None:
    """What is left of an answer has its whole thought and some words behind it; else nothing is left."""
    row = chat("q", LONG, kind=kind, label="good" if kind == "judged" else "")
    if kind == "preference":
        row = replace(row, rejected=(Message("assistant", LONG.replace("It is", "It was")),))
    (one,), *_ = run([row], max_length=60, too_long="cut_right")
    for message in (one.messages[-1], *one.rejected):
        assert message.content.startswith(LONG[: LONG.index("It ") + 2])
        assert message.cut
    for limit in (20, 40, LONG.index("It")):
        kept, _, _, ledger = run([row], max_length=limit, too_long="cut_right")
        assert not kept
        assert [e.reason for e in ledger.entries] == ["too long"]


def test_only_the_end_of_a_text_has_an_end() -> None:
    kept, _, samples, _ = run([text(WORDS)], max_length=40, too_long="split", overlap=0)
    assert [r.messages[0].cut for r in kept] == [True] * (len(kept) - 1) + [False]
    assert [s.ids[-1] == END for s in samples] == [False] * (len(kept) - 1) + [True]
