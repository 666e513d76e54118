"""Texts cut where the tokenizer cuts them: the ids of the stretches are the ids of the text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TALK, byte_tokenizer
from tests.data.tokens.test_encode import pieced
from tuneloop.data.tokens.segments import Pool, Splitter, word_pattern
from tuneloop.data.tokens.templates import CHATML, encode

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|><|im_start|>", "<think>")


@pytest.fixture(scope="module")
def chatml() -> Any:
    return byte_tokenizer(CHATML, special=SPECIAL, eos_token="<|im_end|>")


def texts(count: int) -> list[str]:
    rng = random.Random(7)
    words = [*SPECIAL, "<|im_end|", "\n", " ", "  ", *(text for pair in TALK for text in pair)]
    return ["".join(rng.choices(words, k=rng.randrange(1, 9))) for _ in range(count)]


def test_the_ids_of_the_stretches_are_those_of_the_text(chatml: Any) -> None:
    cutter = Splitter(chatml)
    assert cutter.exact
    for text in texts(300):
        parts = cutter.cut(text)
        assert "".join(parts) == text
        assert all(parts)
        assert [i for ids in encode(chatml, parts) for i in ids] == encode(chatml, [text])[0]
        assert not any(token in part for part in parts for token in SPECIAL if part != token and part not in SPECIAL)
    assert cutter.agrees(texts(20))
    assert cutter.cut("") == []


@given(st.text("<ab>", max_size=30), st.lists(st.text("<ab>", min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=200)
def test_the_leftmost_and_longest_word_is_found(text: str, words: list[str]) -> None:
    expected, at = [], 0
    while at < len(text):
        best = max((w for w in words if text.startswith(w, at)), key=len, default="")
        expected += [(at, best)] if best else []
        at += len(best) or 1
    assert [(m.start(), m.group()) for m in word_pattern(tuple(words)).finditer(text)] == expected


def test_no_word_is_never_found() -> None:
    assert word_pattern(()).findall("anything") == []


def added(**settings: bool) -> Any:
    """A tokenizer with one more token, which is looked for in a way of its own."""
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer(CHATML, special=SPECIAL[:3], eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<x>", **({"normalized": False} | settings))])
    return tokenizer


def test_a_token_that_looks_at_its_neighbours_ends_the_short_cut() -> None:
    assert Splitter(added()).exact
    assert not Splitter(added(single_word=True)).exact


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_token_that_takes_the_blanks_beside_it_stays_in_its_stretch(side: str) -> None:
    tokenizer = added(**{side: True})
    cutter = Splitter(tokenizer)
    assert cutter.exact
    text = "a <x> b<|im_end|> <x>\n<x>"
    assert cutter.cut(text) == ["a <x> b", "<|im_end|>", " <x>\n<x>"]
    assert cutter.agrees([text])


def test_a_tokenizer_that_takes_special_tokens_for_text_has_no_short_cut(chatml: Any) -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", split_special_tokens=True)  # type: ignore[arg-type]
    assert not Splitter(tokenizer).exact


def test_a_blank_before_the_first_word_only_is_noticed() -> None:
    """Metaspace with "first": the beginning of a text is tokenised unlike the same words further on."""
    from tokenizers import pre_tokenizers

    tokenizer = pieced(CHATML)
    assert Splitter(tokenizer).exact, "a blank in front of every stretch is the same for each"
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert not Splitter(tokenizer).exact


def test_a_tokenizer_in_python_has_no_short_cut() -> None:
    class Slow:
        """No backend."""

    assert not Splitter(Slow()).exact


def test_the_pool_holds_each_stretch_once(chatml: Any) -> None:
    pool = Pool(chatml)
    places = [pool.place(key) for key in ("user\nHi", "<|im_end|>", (7, 8), "user\nHi", "user\n")]
    assert places == [0, 1, 2, 0, 3]
    pool.fill()
    held = [pool.ids[a:b].tolist() for a, b in zip(pool.starts, pool.starts[1:], strict=False)]
    assert held == [*encode(chatml, ["user\nHi", "<|im_end|>"]), [7, 8], *encode(chatml, ["user\n"])]
    assert pool.begins(0, 3)
    assert not pool.begins(3, 0)
    assert not pool.begins(1, 3)
    empty = Pool(chatml)
    empty.fill()
    assert len(empty.ids) == 0
