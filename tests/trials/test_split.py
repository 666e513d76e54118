"""Nothing held out is trained on: pieces of one row, dialogues that others hold, nearly equal rows, equal questions."""

from __future__ import annotations

import json
import random
import string
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.made import build, characters, jsonl, recipe
from tests.real import shared
from tuneloop.base.records import Record
from tuneloop.cli.losses import warn
from tuneloop.data.cleaning.clean import steps
from tuneloop.data.dedupe.relations import Relations
from tuneloop.data.ledger import entries
from tuneloop.data.version import builder, shards
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.digest_cache import DigestCache
from tuneloop.data.version.rows import PreparedRows
from tuneloop.planning.cautions import few_held

CASES = Path(__file__).parents[1] / "cases"
HAN = [chr(code) for code in range(0x4E00, 0x9000)]


def said(made: Dataset, reason: str) -> list[Any]:
    return [e for e in entries(made.path / "ledger.jsonl") if e.reason == reason]


def places(made: Dataset) -> dict[tuple[str, int], set[str]]:
    """Source row -> the sides that something of it is on."""
    out: dict[tuple[str, int], set[str]] = defaultdict(set)
    for record, side, _ in made.rows():
        out[record.file, record.line].add(side)
    return out


def spoken(record: Record) -> str:
    return "\n".join(m.content for m in record.messages if m.role != "system")


def passages(records: list[Record]) -> set[str]:
    """Every 64 characters (one token each) that stand in one turn."""
    texts = [m.content for r in records for m in r.messages]
    return {text[n : n + 64] for text in texts for n in range(len(text) - 63)}


# --- item 1: what comes from one row, and what lies in another one ---


def test_long_dialogues_stay_whole(tmp_path: Path) -> None:
    """`cases/data/long_dialogues.jsonl`: pieces of 4 of 12 dialogues stood on both sides."""
    path = CASES / "data" / "long_dialogues.jsonl"
    for how in ("turns", "split"):
        made = build(recipe(path, max_length=1200, too_long=how, validation=0.25, name=how), tmp_path)
        assert {len(sides) for sides in places(made).values()} == {1}
        assert made.manifest["counts"]["validation"] > 0


class Maker:
    """Rows of random Chinese characters, so that only those that were made of each other have anything in common."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self, size: int) -> str:
        return "".join(self.rng.choices(HAN, k=size))

    def talk(self, turns: int, size: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": self.text(self.rng.randint(1, size))} for n in range(2 * turns)]

    def rows(self, way: str, size: int) -> list[dict[str, Any]]:
        """One source in the rows that this way makes of it."""
        talk = self.talk(self.rng.randint(2, 7), size)
        ends = range(2, len(talk) + 1, 2)
        if way == "grown":
            return [{"messages": talk[:end]} for end in ends]
        if way == "histories":
            return [{"query": talk[end - 2]["content"], "response": talk[end - 1]["content"],
                     "history": [[q["content"], a["content"]] for q, a in zip(talk[: end - 2 : 2], talk[1 : end - 2 : 2],
                                                                              strict=True)]} for end in ends]  # fmt: skip
        if way == "windows":
            return [{"messages": talk[max(end - 4, 0) : end]} for end in ends]
        if way == "inside":
            return [{"messages": talk}, {"messages": talk[2:4]}, {"messages": talk[:2]}]
        if way == "repeated":
            return [{"messages": talk}] * 2
        if way == "systems":
            return [{"messages": [{"role": "system", "content": self.text(9)}, *talk]} for _ in range(2)]
        return [{"messages": self.talk(self.rng.randint(4, 12), size)}]


WAYS = ("grown", "histories", "windows", "inside", "repeated", "systems", "long")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10**6), st.lists(st.sampled_from(WAYS), min_size=8, max_size=24), st.sampled_from([6, 30, 150]),
    st.sampled_from(["reject", "turns", "split", "cut_left", "cut_right"]), st.sampled_from(["exact", "near", "off"]),
    st.sampled_from([0.2, 0.4]),
)  # fmt: skip
def test_no_row_is_on_two_sides(
    seed: int, ways: list[str], size: int, too_long: str, dedupe: str, validation: float
) -> None:
    maker = Maker(seed)
    rows = [row for way in ways for row in maker.rows(way, size)]
    maker.rng.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        wanted = recipe(
            jsonl(Path(folder) / "rows.jsonl", rows), max_length=4 * size + 70, too_long=too_long, dedupe=dedupe,
            validation=validation, test=0.1, seed=seed,
        )  # fmt: skip
        _holds(build(wanted, Path(folder)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(6, 30), st.sampled_from([0, 8, 64, 100]), st.sampled_from(["exact", "off"]))
def test_no_document_is_on_two_sides(seed: int, count: int, overlap: int, dedupe: str) -> None:
    maker = Maker(seed)
    texts = ["\n".join(maker.text(maker.rng.randint(5, 300)) for _ in range(maker.rng.randint(1, 6)))
             for _ in range(count)]  # fmt: skip
    texts += [text[len(text) // 3 :] for text in texts[: count // 3] if len(text) > 150]
    with tempfile.TemporaryDirectory() as folder:
        path = jsonl(Path(folder) / "texts.jsonl", [{"text": text} for text in texts])
        wanted = recipe(path, max_length=200, too_long="split", overlap=overlap, dedupe=dedupe, validation=0.3)
        _holds(build(wanted, Path(folder)))


def _holds(made: Dataset) -> None:
    assert {len(sides) for sides in places(made).values()} == {1}
    sides = {side: made.records(side) for side in ("train", "validation", "test")}
    sides = {side: list(records) for side, records in sides.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not passages(sides[one]) & passages(sides[other])
    trained = [spoken(record) for record in sides["train"]]
    for record in (*sides["validation"], *sides["test"]):
        assert len(spoken(record)) < 20 or not any(spoken(record) in text for text in trained)


def test_a_greeting_joins_no_dialogues_and_is_not_held_out(tmp_path: Path) -> None:
    """Two hundred dialogues that begin alike are no group; the row that is the greeting alone lies in all of them."""
    maker = Maker(1)
    hello = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！" + maker.text(80)}]
    rows = [{"messages": hello}, *({"messages": [*hello, *maker.talk(3, 90)]} for _ in range(200))]
    for seed in range(5):
        made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2, seed=seed), tmp_path)
        assert made.manifest["counts"]["validation"] == 40
        assert ("f.jsonl", 1) in {(r.file, r.line) for r in made.records("train")}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_rows_that_end_alike_can_be_held_out(kind: str, tmp_path: Path) -> None:
    maker = Maker(4)
    bye = [{"role": "user", "content": "谢谢"}, {"role": "assistant", "content": "不客气，再见！"}]
    rows = [{"messages": [*maker.talk(3, 90), *bye]} for _ in range(50)]
    if kind == "text":
        rows = [{"text": f"{maker.text(300)}\n原文来自本站。"} for _ in range(50)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2), tmp_path)
    assert made.manifest["counts"]["validation"] == 10


def test_training_rows_that_hold_a_dialogue_of_a_test_file_go(tmp_path: Path) -> None:
    maker = Maker(2)
    talks = [maker.talk(4, 120) for _ in range(20)]
    train = jsonl(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    test = jsonl(tmp_path / "b.jsonl", [{"messages": talk[2:6]} for talk in talks[:3]])
    made = build(recipe(train, {"path": test, "split": "test"}, validation=0), tmp_path)
    assert [(e.line, e.detail) for e in said(made, "holds a held-out row")] == [(n, f"b.jsonl:{n}") for n in (1, 2, 3)]
    assert made.manifest["counts"] | {"train": 17, "test": 3} == made.manifest["counts"]


# --- rows that another holds, whatever their length and layout ---


def _turns(talk: list[tuple[str, str]], roles: tuple[str, str] = ("user", "assistant")) -> list[tuple[str, str]]:
    return [(roles[k], text) for pair in talk for k, text in enumerate(pair)]


def _flat(talk: list[tuple[str, str]], layout: tuple[str, str, str]) -> tuple[str, str]:
    """A dialogue in one field up to its last answer, and that."""
    ask, answer, end = layout
    before = "".join(f"{ask}{q}{end}{answer}{a}{end}" for q, a in talk[:-1])
    return f"{before}{ask}{talk[-1][0]}{end}{answer}".rstrip(), talk[-1][1]


LABELS = ("User: ", "Assistant: ", "\n")
CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n")
LAYOUTS: dict[str, Any] = {
    "history": lambda t: {"query": t[-1][0], "response": t[-1][1], "history": [list(pair) for pair in t[:-1]]},
    "messages": lambda t: {"messages": [{"role": role, "content": text} for role, text in _turns(t)]},
    "sharegpt": lambda t: {"conversations": [{"from": who, "value": x} for who, x in _turns(t, ("human", "gpt"))]},
    "prompt": lambda t: dict(zip(("prompt", "completion"), _flat(t, LABELS), strict=True)),
    "chatml": lambda t: dict(zip(("prompt", "completion"), _flat(t, CHATML), strict=True)),
    "one line": lambda t: dict(zip(("instruction", "output"), _flat(t, ("问：", "答：", " ")), strict=True)),
    "text": lambda t: {"text": " ".join(_flat(t, LABELS))},
    "preference": lambda t: dict(zip(("prompt", "chosen"), _flat(t, LABELS), strict=True)) | {"rejected": "……"},
    "judged": lambda t: dict(zip(("prompt", "completion"), _flat(t, LABELS), strict=True)) | {"label": len(t) % 2 == 0},
    "label": lambda t: {"text": " ".join(_flat(t, LABELS)), "label": str(len(t) % 2)},
}  # fmt: skip
ORDERS = {
    "zh": [("你好，{n}号订单发货了吗", "{n}号已发。"), ("{n}号什么时候到", "{n}号明天到。"),
           ("能改{n}号的地址吗", "{n}号不能改了。"), ("谢谢，{n}号好评", "不客气，{n}号。")],
    "en": [("Was order {n} sent?", "Order {n} was."), ("When does {n} come?", "{n} comes tomorrow."),
           ("Another address for {n}?", "Too late for {n}."), ("Thanks for {n}", "Welcome, {n}.")],
}  # fmt: skip


def talks(words: str, maker: Maker) -> list[list[tuple[str, str]]]:
    """Forty dialogues of four exchanges."""
    if words in ORDERS:
        return [[(q.format(n=n), a.format(n=n)) for q, a in ORDERS[words]] for n in range(100, 140)]
    sizes = {"short": 8, "long": 90}
    return [[(maker.text(sizes[words]), maker.text(sizes[words])) for _ in range(4)] for _ in range(40)]


@pytest.mark.parametrize("words", ["zh", "en", "short", "long"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_histories_that_grow_stay_whole_and_the_wanted_number_is_held_out(
    layout: str, words: str, tmp_path: Path
) -> None:
    maker = Maker(9)
    rows = [LAYOUTS[layout](talk[:end]) for talk in talks(words, maker) for end in range(1, 5)]
    own = {n + 1: n // 4 for n in range(len(rows))}
    path = jsonl(tmp_path / "f.jsonl", rows)
    for seed in range(3):
        made = build(recipe(path, validation=0.2, dedupe="off", seed=seed), tmp_path)
        sides: dict[int, set[str]] = defaultdict(set)
        for record, side, _ in made.rows():
            sides[own[record.line]].add(side)
        assert {len(one) for one in sides.values()} == {1}
        # the orders differ by their number alone, so two of them may nearly repeat each other and stay together
        assert abs(made.manifest["counts"]["validation"] - 32) <= (4 if words in ORDERS else 0)
        assert not said(made, "held by many rows")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10**6), st.sampled_from(sorted(set(LAYOUTS) - {"label", "judged"})), st.integers(5, 40),
    st.booleans(), st.integers(10, 24),
)  # fmt: skip
def test_no_held_out_row_lies_in_a_training_row(seed: int, layout: str, size: int, greeted: bool, count: int) -> None:
    """Beginnings, middles and ends of dialogues that may all begin with one greeting."""
    maker = Maker(seed)
    hello = [("你好呀", "您好，有什么可以帮您？")] if greeted else []
    rows = []
    for _ in range(count):
        talk = hello + [(maker.text(size), maker.text(maker.rng.randint(5, size))) for _ in range(4)]
        rows += [LAYOUTS[layout](talk[: maker.rng.randint(1, 4)]), LAYOUTS[layout](talk), LAYOUTS[layout](talk[2:4])]
    maker.rng.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        made = build(recipe(jsonl(Path(folder) / "f.jsonl", rows), validation=0.2, seed=seed), Path(folder))
        texts = {
            side: {r.id: "".join(spoken(r).split()) for r in made.records(side)} for side in ("train", "validation")
        }
        trained, phrases = texts["train"], {e.id for e in said(made, "held by many rows")}
        assert len(texts["validation"]) >= len(rows) * 0.1
        for text in texts["validation"].values():
            assert not any(text in other for other in trained.values())
            assert not any(other in text for identity, other in trained.items() if identity not in phrases)


@pytest.mark.parametrize("layout", ["history", "prompt", "text"])
def test_a_greeting_that_many_go_on_from_is_trained_counted_and_told(layout: str, tmp_path: Path) -> None:
    maker = Maker(10)
    hello = ("你好呀", "您好，有什么可以帮您？")
    rows = [LAYOUTS[layout]([hello])]
    for _ in range(100):
        talk = [hello, *((maker.text(12), maker.text(12)) for _ in range(2))]
        rows += [LAYOUTS[layout](talk[:2]), LAYOUTS[layout](talk)]
    for seed in range(3):
        made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2, seed=seed), tmp_path)
        assert made.manifest["counts"]["validation"] == 40
        assert [(e.line, e.action, e.step) for e in said(made, "held by many rows")] == [(1, "marked", "split")]
        side = {record.line: one for record, one, _ in made.rows()}
        assert side[1] == "train"
        assert all(side[n] == side[n + 1] for n in range(2, 202, 2))


def test_dialogues_of_ready_made_answers_do_not_chain(tmp_path: Path) -> None:
    """Each exchange stands in several dialogues, and most of them in a row of their own."""
    maker = Maker(13)
    pool = [(maker.text(8), maker.text(8)) for _ in range(200)]
    every = [maker.rng.sample(pool, 4) for _ in range(300)]
    for rows in (
        [talk[:end] for talk in every for end in range(1, 5)],
        [*([pair] for pair in pool), *every],
    ):
        path = jsonl(tmp_path / f"{len(rows)}.jsonl", [LAYOUTS["messages"](row) for row in rows])
        wanted = recipe(path, validation=0.1)
        made = build(wanted, tmp_path)
        assert not few_held(made.manifest["counts"], wanted.prepare)
        held = [spoken(record) for record in made.records("validation")]
        assert not any(one in spoken(record) for record in made.records("train") for one in held)


def test_one_dialogue_of_many_rows_holds_nothing_out_and_says_what_to_do(tmp_path: Path) -> None:
    talk = [(one["content"], other["content"]) for one, other in zip(*[iter(Maker(11).talk(30, 9))] * 2, strict=True)]
    path = jsonl(tmp_path / "f.jsonl", [LAYOUTS["history"](talk[:end]) for end in range(1, 31)])
    wanted = recipe(path, validation=0.2)
    made = build(wanted, tmp_path)
    assert made.manifest["counts"]["validation"] == 0
    (told,) = few_held(made.manifest["counts"], wanted.prepare)
    assert told.startswith("Only 0 of the 6 rows")
    assert told in warn(made, wanted)


def test_a_text_does_not_lie_in_one_that_goes_on_within_its_last_word(tmp_path: Path) -> None:
    rows = [{"text": f"A review of the hotel, number {n}", "label": str(n % 2)} for n in range(40)]
    path = jsonl(tmp_path / "f.jsonl", rows)
    made = build(recipe(path, validation=0.2), tmp_path)
    assert made.manifest["counts"]["validation"] == 8
    assert not said(made, "held by many rows")


def test_training_rows_that_hold_a_short_or_flattened_test_row_go(tmp_path: Path) -> None:
    maker = Maker(12)
    for layout in ("history", "prompt"):
        every = talks("zh", maker)
        train = jsonl(tmp_path / layout / "a.jsonl", [LAYOUTS[layout](talk) for talk in every])
        test = jsonl(tmp_path / layout / "b.jsonl", [LAYOUTS[layout](talk[:1]) for talk in every[:3]])
        made = build(recipe(train, {"path": test, "split": "test"}, validation=0), tmp_path)
        assert [e.line for e in said(made, "holds a held-out row")] == [1, 2, 3]


# --- item 2: rows that are nearly equal, and rows that ask the same ---


def edited(text: str, rng: random.Random, how: str) -> str:
    """The text with 5-10 % of its characters replaced by others of its own, in one place or all over."""
    letters, count = list(text), max(1, round(rng.uniform(0.05, 0.1) * len(text)))
    at = rng.randrange(len(letters) - count + 1)
    where = range(at, at + count) if how == "block" else rng.sample(range(len(letters)), count)
    pool = [c for c in text if not c.isspace()] or list(string.ascii_lowercase)
    for n in where:
        letters[n] = rng.choice(pool)
    return "".join(letters)


@pytest.mark.parametrize("how", ["block", "scattered"])
@pytest.mark.parametrize("tongue", ["zh", "en"])
def test_edited_rows_stay_on_the_side_of_the_original(tongue: str, how: str, tmp_path: Path) -> None:
    """Six seeds of 50 planted pairs: at least 95 % of them on one side."""
    real = json.loads(shared(f"llamafactory/alpaca_{tongue}_demo.json").read_text(encoding="utf-8"))
    real = [row for row in real if len(row["output"]) > 20]
    together = total = 0
    for seed in range(6):
        rng = random.Random(seed)
        drawn = rng.sample(range(len(real)), 50)
        copies = [{key: edited(real[n][key], rng, how) if real[n][key] else "" for key in ("instruction", "input", "output")}
                  for n in drawn]  # fmt: skip
        path = jsonl(tmp_path / f"{seed}.jsonl", [*real, *copies])
        made = build(recipe(path, validation=0.3, max_length=100_000, seed=seed), tmp_path)
        side = {record.line: side for record, side, _ in made.rows()}
        pairs = [(n + 1, len(real) + k + 1) for k, n in enumerate(drawn)]
        there = [(a, b) for a, b in pairs if a in side and b in side]
        together += sum(side[a] == side[b] for a, b in there)
        total += len(there)
    assert total >= 290
    assert together >= 0.95 * total


SETS = (
    "alpaca_cot_en/aqua_train.json", "alpaca_cot_en/strategyqa_train.json", "chnsenticorp/train.tsv",
    "chnsenticorp_hotel/ChnSentiCorp_htl_all.csv", "emollm/aiwei.json", "emollm/aiwei_swift.jsonl", "emollm/converted.json",
    "emollm/data.json", "emollm/ruozhiba_raw.jsonl", "emollm/tiangou.json", "gaokao_zh/derived_cot_zh.json",
    "huatuo_o1/sft_en.json", "imdb/train.csv", "llamafactory/alpaca_en_demo.json", "llamafactory/alpaca_zh_demo.json",
    "llamafactory/c4_demo.jsonl", "llamafactory/dpo_en_demo.json", "llamafactory/dpo_zh_demo.json",
    "llamafactory/glaive_toolcall_en_demo.json", "llamafactory/glaive_toolcall_zh_demo.json",
    "llamafactory/kto_en_demo.json", "llamafactory/v1_sft_demo.jsonl", "medicalgpt/dpo_zh_500.jsonl",
    "medicalgpt/medical_sft_1K_format.jsonl", "medicalgpt/sharegpt_zh_1K_format.jsonl", "smilechat/dialogs.jsonl",
    "sst2/train.tsv", "waimai/waimai_10k.csv",
)  # fmt: skip
TRULY_ALIKE = {
    "llamafactory/glaive_toolcall_en_demo.json": 7,  # seven ask for the way from New York to Los Angeles
    "llamafactory/glaive_toolcall_zh_demo.json": 5,  # five want a password of 12 characters
    "alpaca_cot_en/aqua_train.json": 4,  # one exercise with other numbers
    "emollm/aiwei_swift.jsonl": 2,  # two of 80 rows, one the history of the other
}
"""Sets of so few rows that their nearly equal ones are 2 % of them and more -> the largest group."""


@pytest.mark.parametrize("name", SETS)
def test_ordinary_rows_do_not_chain_into_one_group(name: str, tmp_path: Path) -> None:
    wanted = recipe(shared(name), max_length=100_000)
    found, _, _ = builder._find(wanted, DigestCache(tmp_path / "stamps.json"))
    raw = shards.raw_rows(found, 42)
    made = shards.make(tmp_path, raw, wanted.prepare, steps(wanted.prepare.clean, None), characters, lambda n: None)
    rows = PreparedRows(made)
    looked = Relations(rows, split=True)
    families = looked.families(looked.pairs("train", 0.8))
    largest = int(np.bincount(families.levels[0]).max())
    print(f"{name}: {len(rows)} rows, the largest group {largest} ({100 * largest / len(rows):.1f} %)")
    assert largest <= TRULY_ALIKE.get(name, max(1, 0.02 * len(rows)))


QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "answers": [{"question": "为什么天空在白天是蓝色的呢？", "answer": "{text}"}],
    "case and blanks": [{"question": "Why is the sky blue?", "answer": "{text}"},
                        {"question": " why is  THE sky blue? ", "answer": "{text}"}],
    "systems": [{"system": "{text}", "instruction": "Why is the sky blue?", "output": "{text}"}],
    "input": [{"instruction": "Translate.", "input": "The sky is blue.", "output": "{text}"}],
    "labels": [{"text": "The sky is blue today.", "label": "{n}"}],
    "context": [{"messages": [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Yes?", "weight": 0},
                              {"role": "user", "content": "Tell me more"}, {"role": "assistant", "content": "{text}"}]}],
    "preferences": [{"prompt": "Why is the sky blue?", "chosen": "{text}", "rejected": "{text}"}],
    "first turns": [{"messages": [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "{text}"},
                                  {"role": "user", "content": "{text}"}, {"role": "assistant", "content": "{text}"}]}],
}  # fmt: skip


def filled(value: Any, maker: Maker, n: int, text: str = "") -> Any:
    """The row with random texts for {text}, and `text`, where given, before its own words."""
    if isinstance(value, dict):
        return {k: v if k == "role" else filled(v, maker, n, text) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, maker, n, text) for v in value]
    if not isinstance(value, str):
        return value
    return maker.text(30) if value == "{text}" else str(n % 2) if value == "{n}" else f"{text} {value}"


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_same_question_stays_on_one_side(name: str, tmp_path: Path) -> None:
    maker = Maker(3)
    rows: list[Any] = []
    for _ in range(30):
        own = maker.text(12)  # another question than that of the other subjects
        rows += [filled(QUESTIONS[name][n % len(QUESTIONS[name])], maker, n, own) for n in range(4)]
    asked = [n // 4 for n in range(len(rows))]
    for seed in range(3):
        made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.3, dedupe="off", seed=seed), tmp_path)
        sides: dict[int, set[str]] = defaultdict(set)
        for record, side, _ in made.rows():
            sides[asked[record.line - 1]].add(side)
        assert {len(one) for one in sides.values()} == {1}
        assert made.manifest["counts"]["validation"] == 36


def test_one_instruction_over_other_contents_is_no_question(tmp_path: Path) -> None:
    maker = Maker(4)
    rows = [
        {"instruction": "请总结下面这段文字的大意：", "input": maker.text(40), "output": maker.text(20)}
        for _ in range(100)
    ]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2), tmp_path)
    assert made.manifest["counts"]["validation"] == 20
    assert not said(made, "question also in training")


def test_rows_that_all_ask_the_same_are_split_all_the_same_and_marked(tmp_path: Path) -> None:
    maker = Maker(5)
    rows = [{"question": "请写一首关于秋天的现代诗。", "answer": maker.text(60)} for _ in range(100)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2), tmp_path)
    marked = said(made, "question also in training")
    assert made.manifest["counts"]["validation"] == 20
    assert sorted(e.id for e in marked) == sorted(made.ids("validation"))
    assert {(e.action, e.step) for e in marked} == {("marked", "split")}


def test_many_answers_to_few_questions(tmp_path: Path) -> None:
    """A question of a tenth of all rows is still one question: it is held out whole or not at all."""
    maker = Maker(6)
    questions = [maker.text(20) for _ in range(10)]
    rows = [{"question": question, "answer": maker.text(40)} for question in questions for _ in range(30)]
    made = build(recipe(jsonl(tmp_path / "f.jsonl", rows), validation=0.2), tmp_path)
    assert made.manifest["counts"]["validation"] == 60
    train, held = ({r.messages[0].content for r in made.records(side)} for side in ("train", "validation"))
    assert not train & held


# --- item 3: sides by file name ---

NAMES: dict[str, tuple[dict[str, str], ...]] = {
    "plain": ({"train.jsonl": "train", "test.jsonl": "test"},),
    "three": ({"train.jsonl": "train", "dev.jsonl": "validation", "test.jsonl": "test"},),
    "spellings": ({"training.jsonl": "train", "eval.jsonl": "validation", "Testing.jsonl": "test"},
                  {"train_set.jsonl": "train", "val.jsonl": "validation", "test-data.jsonl": "test"},
                  {"TRAIN.jsonl": "train", "valid.jsonl": "validation", "测试集.jsonl": "test"}),
    "shards": ({"train-00000-of-00002.jsonl": "train", "train-00001-of-00002.jsonl": "train",
                "test-00000-of-00001.jsonl": "test"}, {"train_1.jsonl": "train", "train.part2.jsonl": "train", "dev0.jsonl": "validation"}),
    "folders": ({"train/a.jsonl": "train", "validation/a.jsonl": "validation"},),
    "lone": ({"test.jsonl": "auto"}, {"train.jsonl": "auto", "train-2.jsonl": "auto"}, {"notes.jsonl": "auto", "test.jsonl": "auto"}),
    "words": ({"crash test.jsonl": "auto", "my dev setup.jsonl": "auto", "how to train.jsonl": "auto", "testimonials.jsonl": "auto"},),
}  # fmt: skip


@pytest.mark.parametrize("way", ["names", "glob", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_a_side_is_a_whole_name_beside_another_side(name: str, way: str, tmp_path: Path) -> None:
    for k, wanted in enumerate(NAMES[name]):
        folder, maker = tmp_path / f"test{k}", Maker(k)  # the folder above them is no side
        for file in wanted:
            jsonl(folder / file, [{"question": maker.text(20), "answer": maker.text(20)} for _ in range(10)])
        data: list[Any] = [folder / file for file in wanted]
        data = {"names": data, "glob": [folder / "**" / "*.jsonl"], "folder": [folder]}[way]
        made = build(recipe(*data, validation=0), tmp_path)
        assert {s["file"]: s["split"] for s in made.manifest["sources"]} == {
            _label(file, wanted): side for file, side in wanted.items()
        }
        kept = {side: {r.file for r in made.records(side)} for side in ("validation", "test")}
        assert kept == {side: {_label(f, wanted) for f, s in wanted.items() if s == side} for side in kept}


def _label(file: str, others: dict[str, str]) -> str:
    return file if sum(Path(one).name == Path(file).name for one in others) > 1 else Path(file).name


def test_split_stands_above_the_name(tmp_path: Path) -> None:
    maker = Maker(7)
    for file in ("train", "test", "more"):
        jsonl(tmp_path / f"{file}.jsonl", [{"question": maker.text(20), "answer": maker.text(20)} for _ in range(20)])
    train, test, more = (tmp_path / f"{file}.jsonl" for file in ("train", "test", "more"))
    made = build(recipe(train, {"path": test, "split": "train"}, validation=0), tmp_path)
    assert made.manifest["counts"]["train"] == 40
    made = build(recipe({"path": more, "split": "train"}, test, validation=0), tmp_path)
    assert {r.file for r in made.records("test")} == {"test.jsonl"}


def test_a_file_only_named_like_training_data_gives_the_validation_its_share(tmp_path: Path) -> None:
    maker = Maker(8)
    rows = {
        file: [{"question": maker.text(20), "answer": maker.text(20)} for _ in range(50)]
        for file in ("train", "test", "dev")
    }
    for file, own in rows.items():
        jsonl(tmp_path / f"{file}.jsonl", own)
    made = build(recipe(tmp_path / "train.jsonl", tmp_path / "test.jsonl"), tmp_path)
    assert made.manifest["counts"] | {"train": 45, "validation": 5, "test": 50} == made.manifest["counts"]
    made = build(recipe(tmp_path / "*.jsonl"), tmp_path)
    assert made.manifest["counts"] | {"train": 50, "validation": 50, "test": 50} == made.manifest["counts"]
