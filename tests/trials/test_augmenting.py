"""Deriving rows: no more is read than a change can touch, nothing is asked twice, and the time left is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from tests.conftest import TALK
from tuneloop.base.records import Message, Record
from tuneloop.data.augmenting import progress as progressing
from tuneloop.data.augmenting.augment import Helpers, augment
from tuneloop.data.augmenting.helpers import Score
from tuneloop.data.augmenting.memory import Memory
from tuneloop.data.augmenting.reword import LANGUAGE_LENGTH, Languages
from tuneloop.inference import assistants
from tuneloop.inference import likelihood_ratio as ratios
from tuneloop.inference.likelihood_ratio import log_ratios
from tuneloop.inference.perplexity import nll
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import AugmentPart

LONG = "。".join(question.rstrip("？?.") for question, _ in TALK * 10)


def rows(count: int) -> list[Record]:
    texts = (f"请问如何清洗第{n}号杯子？" for n in range(count))
    return [Record((Message("user", x), Message("assistant", f"第{n}个回答。")), "f", n) for n, x in enumerate(texts)]


def allowed(method: str, records: list[Record]) -> list[str]:
    return [""] * len(records)


def score(texts: Sequence[str]) -> list[tuple[float, int]]:
    return [(0.3 * len(x.encode()), len(x)) for x in texts]


# What is read


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(tiny_model), load_tokenizer(tiny_model)


def test_of_short_sentences_the_window_is_the_whole(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pairs = [("How do I boil an egg?", "How do I cook an egg?"), ("我该如何煮蛋？", "我该怎样煮蛋？"), ("big", "large"),
             ("same", "same"), ("", "new"), ("Begin now", "Begin now, please")]  # fmt: skip
    for limit in (0.3, math.nan):  # of what is no number all is scored
        found = log_ratios(model, tokenizer, pairs, limit)
        for (old, new), (more, tokens) in zip(pairs, found, strict=True):
            (was, count), (now, _) = nll(model, tokenizer, [old, new])
            assert more == pytest.approx(now - was, abs=1e-3 if math.isnan(limit) else ratios.DOUBT)
            assert tokens == count
            assert (more <= 0.3 * tokens) == (now - was <= 0.3 * tokens)


def test_of_a_long_sentence_little_is_read_and_less_is_scored(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The common beginning is read once, up to BEFORE tokens of it; the head sees what is near the change."""
    model, tokenizer = loaded
    read: list[int] = []
    judged: list[int] = []
    trunk, head = model.get_decoder(), model.get_output_embeddings()
    trunk.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].numel()), with_kwargs=True)
    head.register_forward_pre_hook(lambda m, a: judged.append(a[0].flatten(0, -2).shape[0]))
    middle = len(LONG) // 2
    pairs = [(LONG, f"{LONG[:middle]}换一个词{LONG[middle + 3 :]}")]
    log_ratios(model, tokenizer, pairs, 1e9)  # the first one compares with the model's own forward, too
    read.clear()
    judged.clear()
    ((more, tokens),) = log_ratios(model, tokenizer, pairs, 1e9)
    changed = 30  # tokens of a few characters, at most
    assert tokens > 400
    assert sum(read) <= ratios.BEFORE + 1 + 2 * (changed + ratios.BEHIND)
    assert sum(judged) <= 1 + 2 * (changed + ratios.NEAR)
    ((more, _),) = log_ratios(model, tokenizer, pairs, math.nan)
    (was, _), (now, _) = nll(model, tokenizer, [pairs[0][0], pairs[0][1]])
    assert more == pytest.approx(now - was, abs=2.0)


def test_many_pairs_are_as_each_alone(loaded: tuple[Any, Any]) -> None:
    """Padding in contexts and tails changes no sum."""
    model, tokenizer = loaded
    pairs = [
        (question, question.replace(" ", " very ", 1) if " " in question else f"请{question}") for question, _ in TALK
    ]
    pairs += [(LONG[:n], f"{LONG[: n // 2]}一个{LONG[n // 2 : n]}") for n in range(20, 200, 20)]
    for (more, tokens), pair in zip(log_ratios(model, tokenizer, pairs, math.nan), pairs, strict=True):
        ((alone, count),) = log_ratios(model, tokenizer, [pair], math.nan)
        assert (more, tokens) == (pytest.approx(alone, abs=1e-3), count)


def test_a_model_whose_cache_does_not_fit_is_asked_itself(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    pairs = [("How do I boil an egg?", "How do I cook an egg?"), ("我该如何煮蛋？", "我该怎样煮蛋？")]
    right = log_ratios(model, tokenizer, pairs, math.nan)
    states = ratios._states

    def wrong(model: Any, batch: Any) -> Any:
        found, width = states(model, batch)
        return found.flip(-1), width

    monkeypatch.setattr(ratios, "_states", wrong)
    monkeypatch.setattr(ratios, "_works", WeakKeyDictionary())
    for (more, _), (known, _) in zip(log_ratios(model, tokenizer, pairs, math.nan), right, strict=True):
        assert more == pytest.approx(known, abs=1e-3)


def test_many_candidates_are_judged_in_one_call(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted(pairs: Sequence[tuple[str, str]], limit: float) -> list[tuple[float, int]]:
        asked.append(len(pairs))
        return [(0.0, 9) for _ in pairs]

    part = AugmentPart(methods=["synonyms"], share=0.5)
    found = augment(rows(20), part, Helpers(score=score, shift=counted), 1, allowed=allowed, folder=tmp_path)
    assert len(found.records) == 10
    assert asked == [10]


def test_a_choice_does_not_depend_on_what_it_is_made_with(tmp_path: Path) -> None:
    """The first rows that are derived stay the same when more are wanted."""

    def texts(share: float, folder: str) -> list[str]:
        part = AugmentPart(methods=["synonyms"], share=share)
        found = augment(rows(20), part, Helpers(score=score), 1, allowed=allowed, folder=tmp_path / folder)
        return [record.messages[0].content for _, record in found.records]

    few, many = texts(0.2, "few"), texts(1.0, "many")
    assert 0 < len(few) < len(many)
    assert many[: len(few)] == few


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16", "float32"])
def test_a_cpu_never_judges_in_float16(
    units: bool, dtype: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def loading(folder: Path, dtype: str) -> Any:
        asked.append(dtype)
        return load_model(folder, dtype)

    monkeypatch.setattr(assistants, "load_model", loading)
    monkeypatch.setattr(assistants, "bfloat16_units", lambda: units)
    model = {"name": str(tiny_model), "dtype": dtype}
    recipe, _ = make_recipe({"model": model, "prepare": {"augment": {"methods": ["synonyms"]}}})
    made = assistants.helpers(recipe, tiny_model, load_tokenizer(tiny_model), print)
    assert made.shift is not None
    ((more, tokens),) = made.shift([("How do I begin?", "How do I start?")], 0.3)
    assert more == more  # a number
    assert tokens > 0
    assert len(asked) == 1
    if not torch.cuda.is_available():
        assert asked == ["bfloat16" if units and dtype != "float32" else "float32"]


def test_one_clear_turn_tells_that_a_model_knows_a_language() -> None:
    asked: list[str] = []

    def known(each: float) -> bool:
        asked.clear()
        helpers = Helpers(score=lambda texts: [(asked.append(x), (each * len(x.encode()), 9))[1] for x in texts])  # type: ignore[func-returns-value]
        return "zh" in Languages(helpers).known([("zh", f"请问如何清洗第{n}号杯子？" * 9) for n in range(9)])

    for each, knows, texts in ((0.8, True, 1), (1.3, True, 4), (1.6, False, 4), (math.nan, False, 1)):
        assert (known(each), len(asked)) == (knows, texts)
        assert max(map(len, asked)) == LANGUAGE_LENGTH


def test_a_judgement_that_is_no_number_lets_nothing_pass(tmp_path: Path) -> None:
    part = AugmentPart(methods=["synonyms"], share=0.5)
    helpers = Helpers(score=score, shift=lambda pairs, limit: [(math.nan, 9) for _ in pairs])
    found = augment(rows(20), part, helpers, 1, allowed=allowed, folder=tmp_path)
    assert not found.records
    assert found.rejected["synonyms"]["nonsense"] == 20


# What is remembered


def failing(after: int, asked: list[Any], make: Any) -> Any:
    def call(items: Sequence[Any], *more: Any) -> list[Any]:
        if len(asked) >= after:
            raise KeyboardInterrupt
        asked.extend(items)
        return list(make(items, *more))

    return call


@pytest.mark.parametrize("method", ["synonyms", "follow_up", "branch"])
def test_what_was_finished_before_a_crash_is_not_asked_again(tmp_path: Path, method: str) -> None:
    def answer(chats: Sequence[Any]) -> list[str]:
        return [
            f"那第{len(str(chat))}点呢？" if "只写问题" in str(chat) else f"回答{len(str(chat))}。" for chat in chats
        ]

    def run(folder: Path, make: Any, judge: Score) -> list[str]:
        part = AugmentPart(methods=[method], share=1.0)  # type: ignore[list-item]
        helpers = Helpers(answer=make, score=judge)
        found = augment(rows(40), part, helpers, 1, allowed=allowed, folder=folder)
        return [str(record.messages) for _, record in found.records]

    first: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", failing(30, first, answer), failing(30, first, score))
    second: list[Any] = []
    again = run(tmp_path / "a", failing(10**6, second, answer), failing(10**6, second, score))
    whole: list[Any] = []
    once = run(tmp_path / "b", failing(10**6, whole, answer), failing(10**6, whole, score))
    assert again == once
    assert len(first) >= 30
    assert len(first) + len(second) == len(whole)


def test_a_line_that_a_crash_tore_off_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    made: list[str] = []

    def call(text: str) -> Any:
        def make() -> list[Any]:
            made.append(text)
            return [text, 0.1 + 0.2, "\u2028\u0085"]

        return Memory(file).call("x", text, make)

    assert call("一") == call("一") == ["一", 0.1 + 0.2, "\u2028\u0085"]
    call("二")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert call("一")[0] == "一"
    assert call("二")[0] == "二"
    assert made == ["一", "二", "二"]
    assert file.read_bytes() == whole


# What is said


def test_the_time_left_is_said_before_and_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progressing.time, "monotonic", lambda: clock[0])
    said: list[tuple[float, str]] = []
    helpers = Helpers()

    def answer(chats: Sequence[Any]) -> list[str]:
        for step in range(1, 11):  # a model that takes 50 s for each call and tells after each token
            clock[0] += 5
            helpers.watch.hear(step / 10)
        return [f"那第{n}{clock[0]:.0f}点呢？" for n in range(len(chats))]

    helpers = Helpers(answer=answer, say=lambda text: said.append((clock[0], text)), watch=helpers.watch)
    augment(rows(20), AugmentPart(methods=["branch"], share=0.5), helpers, 1, allowed=allowed, folder=tmp_path)
    assert said[0] == (0.0, "branch: up to 10 rows, from 20 training rows")
    told = [(when, line) for when, line in said if "left" in line]
    assert told[0][0] <= 5
    assert max(b[0] - a[0] for a, b in pairwise(told)) <= 15
    # Four calls of 50 s: eight questions, two more, and as many answers.
    for when, line in told:
        seconds = float(line.split("about ")[1].split(" s")[0])
        assert seconds == pytest.approx(200 - when, abs=120), line
    assert said[-1][1].startswith("branch: 10 of 10 rows")


def test_the_time_left_counts_rows_that_no_word_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in five can change: 32 of them, which are one batch, take 160 of 500 rows."""
    clock = [0.0]
    monkeypatch.setattr(progressing.time, "monotonic", lambda: clock[0])
    said: list[tuple[float, str]] = []

    def shift(pairs: Sequence[tuple[str, str]], limit: float) -> list[tuple[float, int]]:
        clock[0] += len(pairs)
        return [(0.0, 9) for _ in pairs]

    some = [row if n % 5 == 0 else replace(row, messages=(Message("user", f"{n}"), *row.messages[1:]))
            for n, row in enumerate(rows(500))]  # fmt: skip
    helpers = Helpers(score=score, shift=shift, say=lambda text: said.append((clock[0], text)))
    augment(some, AugmentPart(methods=["synonyms"], share=0.9), helpers, 1, allowed=allowed, folder=tmp_path)
    told = [(when, float(line.split("about ")[1].split(" s")[0])) for when, line in said if "left" in line]
    assert clock[0] == 100
    assert len(told) >= 4
    for when, left in told:
        assert left == pytest.approx(100 - when, rel=0.6, abs=8), (when, left)


def test_a_model_that_grows_nothing_is_not_asked_for_ever(tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(chats: Sequence[Any]) -> list[str]:
        asked.extend(chats)
        return [""] * len(chats)

    said: list[str] = []
    part = AugmentPart(methods=["branch"], share=0.1)
    augment(rows(200), part, Helpers(answer=answer, say=said.append), 1, allowed=allowed, folder=tmp_path)
    assert 16 <= len(asked) <= 40
    assert any("rows in a row gave nothing" in line for line in said)
