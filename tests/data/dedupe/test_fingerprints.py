"""Rows of which a tenth differs meet and are told from rows that only have a set phrase in common."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from tuneloop.data.dedupe.fingerprints import Fingerprints, related

HAN = [chr(code) for code in range(0x4E00, 0x9000)]


def text(rng: random.Random, size: int) -> str:
    return "".join(rng.choices(HAN, k=size))


def pairs(texts: Sequence[str]) -> set[tuple[int, int]]:
    prints = Fingerprints()
    prints.add(texts)
    i, j = prints.candidates(np.arange(len(texts)))
    same = related(i, j, lambda rows: [texts[n] for n in rows.tolist()])
    return set(zip(i[same].tolist(), j[same].tolist(), strict=True))


def test_nothing_from_nothing() -> None:
    assert pairs([]) == set()
    assert pairs(["", "好", ""]) == set()


def test_the_same_but_for_a_tenth() -> None:
    rng = random.Random(1)
    one = text(rng, 100)
    other = "".join(c if n % 10 else "的" for n, c in enumerate(one))
    half = "".join(c if n % 2 else "的" for n, c in enumerate(one))
    assert pairs([one, text(rng, 100), other, half]) == {(0, 2)}


def test_a_passage_of_64_characters_and_none_of_50() -> None:
    rng = random.Random(2)
    shared = text(rng, 80)
    rows = [
        text(rng, 200) + shared[:50],
        shared[:50] + text(rng, 200),
        text(rng, 150) + shared,
        shared + text(rng, 150),
    ]
    assert pairs(rows) == {(2, 3)}


def test_what_many_rows_have_joins_none() -> None:
    rng = random.Random(3)
    phrase = text(rng, 100)
    assert not pairs([phrase + text(rng, 150) for _ in range(200)])


def test_known_groups_are_not_looked_at_again() -> None:
    prints = Fingerprints()
    prints.add(["The same words stand in both of these rows, and nothing else does."] * 2)
    assert prints.candidates(np.arange(2))[0].tolist() == [0]
    assert not len(prints.candidates(np.zeros(2, np.int64))[0])
