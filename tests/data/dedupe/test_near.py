"""Near repetitions are found, all of them, and nothing else; what the search costs stays linear."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.base.errors import DataError
from tuneloop.data.dedupe.near import (
    I64,
    Pairs,
    Sketches,
    bands,
    contaminated,
    groups,
    near_pairs,
    representative,
)
from tuneloop.data.dedupe.shingles import jaccard

DATA = Path(__file__).parents[4] / "shared" / "data"


def sketched(texts: Sequence[str]) -> Sketches:
    out = Sketches()
    out.add(texts)
    return out


def of(texts: Sequence[str]) -> Callable[[I64], list[str]]:
    return lambda rows: [texts[row] for row in rows.tolist()]


def search(texts: Sequence[str], threshold: float = 0.8) -> Pairs:
    return near_pairs(sketched(texts), of(texts), threshold)


def named(pairs: Pairs) -> dict[tuple[int, int], float]:
    assert (pairs.i.dtype, pairs.j.dtype, pairs.jaccard.dtype) == (np.int32, np.int32, np.float32)
    return dict(zip(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True), pairs.jaccard.tolist(), strict=True))


def chinese(rng: random.Random, length: int) -> str:
    """Characters as uneven as in real text, of 3,000."""
    return "".join(chr(0x4E00 + int(3000 * rng.random() ** 3)) for _ in range(length))


def changed(rng: random.Random, text: str, times: int) -> str:
    """Characters replaced (by ones that `chinese` has not), left out or put in."""
    out = list(text)
    for _ in range(times):
        at, new = rng.randrange(len(out)), chr(0x6000 + rng.randrange(3000))
        taken, given = rng.choice(((1, [new]), (1, [new]), (0, [new]), (1, [])))
        out[at : at + taken] = given
    return "".join(out)


def bigrams(text: str) -> set[str]:
    """For text of Han characters alone, a shingle is two characters side by side, or one at the edge."""
    edged = f"^{text}$"
    return {edged[n : n + 2] for n in range(len(edged) - 1)}


def bigram_jaccard(one: str, other: str) -> float:
    a, b = bigrams(one), bigrams(other)
    return len(a & b) / len(a | b)


def test_planted_chinese_near_duplicates_among_fifty_thousand_rows() -> None:
    rng = random.Random(5)
    texts = [chinese(rng, 40) for _ in range(48_000)]
    sources = rng.sample(range(len(texts)), 2_000)
    planted = {(source, 48_000 + n): changed(rng, texts[source], rng.randint(1, 4)) for n, source in enumerate(sources)}
    texts += planted.values()
    found = named(search(texts))
    truth = {pair: bigram_jaccard(texts[pair[0]], text) for pair, text in planted.items()}
    near = {pair for pair, similarity in truth.items() if similarity >= 0.8}
    assert 1_000 < len(near) < 2_000
    assert len(near & found.keys()) / len(near) >= 0.99
    for (i, j), similarity in found.items():  # each one of them: precision is 1
        assert similarity == pytest.approx(bigram_jaccard(texts[i], texts[j]))
        assert similarity >= np.float32(0.8)


@pytest.mark.parametrize(("name", "threshold"), [("waimai/waimai_10k.csv", 0.5), ("chnsenticorp_hotel/ChnSentiCorp_htl_all.csv", 0.6)])  # fmt: skip
def test_real_reviews_against_all_pairs(name: str, threshold: float) -> None:
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing in CI")
        pytest.skip("../shared/data is not here")
    with path.open(encoding="utf-8") as file:
        texts = [row["review"] for row in csv.DictReader(file)]
    rng = random.Random(0)
    texts += [changed(rng, text, 1 + len(text) // 20) for text in texts[:300] if text]
    from tuneloop.data.dedupe.shingles import shingles

    sets = [set(shingles(text).tolist()) for text in texts]
    near = {
        (i, j)
        for j, b in enumerate(sets)
        for i, a in enumerate(sets[:j])
        if len(a) >= threshold * len(b) and len(b) >= threshold * len(a) and len(a & b) >= threshold * len(a | b)
    }
    found = search(texts, threshold)
    assert len(near) > 100
    assert named(found).keys() <= near
    group = groups(found, len(texts))
    assert sum(group[i] == group[j] for i, j in near) / len(near) >= 0.99


def test_long_texts() -> None:
    rng = random.Random(1)
    texts = [chinese(rng, 2_500) for _ in range(300)]
    texts += [changed(rng, text, 30 + 3 * n // 2) for n, text in enumerate(texts[:100])]
    found = named(search(texts))
    truth = {(n, 300 + n): bigram_jaccard(texts[n], texts[300 + n]) for n in range(100)}
    near = {pair for pair, similarity in truth.items() if similarity >= 0.8}
    assert 50 < len(near) < 100
    assert found.keys() == near
    assert all(found[pair] == pytest.approx(truth[pair]) for pair in near)


def test_english_by_words() -> None:
    text = "the quick brown fox jumps over the lazy dog while seven grey cats watch it from an old stone wall"
    words = text.split()
    texts = [
        " ".join(words),
        " ".join([*words[:5], "RED", *words[6:]]),
        " ".join(reversed(words)),
        " ".join(words).upper(),
    ]
    assert named(search(texts)) == {(0, 1): pytest.approx(19 / 23), (0, 3): 1.0}


def test_sketches_agree_in_as_many_slots_as_theory_says() -> None:
    """Their mean is the Jaccard similarity (and one in 256 of the rest), and rows meet in a band as often as the formula."""
    rng = random.Random(2)
    texts = [chinese(rng, 40) for _ in range(2_000)]
    others = [changed(rng, text, 1) + chr(0x7000 + rng.randrange(5_000)) for text in texts]  # never quite equal
    truth = np.array([bigram_jaccard(a, b) for a, b in zip(texts, others, strict=True)])
    same = sketched(texts).table().slots == sketched(others).table().slots
    assert same.mean() == pytest.approx((truth + (1 - truth) / 256).mean(), abs=0.003)
    spread = (same.mean(axis=1) - truth - (1 - truth) / 256) / np.sqrt(truth * (1 - truth) / 128)
    assert spread.std() == pytest.approx(1, abs=0.08)
    number, width = bands(0.9)
    meet = same[:, : number * width].reshape(-1, number, width).all(axis=2).any(axis=1)
    assert meet.mean() == pytest.approx((1 - (1 - truth**width) ** number).mean(), abs=0.02)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_bands_reach_the_recall_and_fit_into_the_sketch(threshold: float) -> None:
    number, width = bands(threshold)
    assert number * width <= 128
    assert 1 - (1 - threshold**width) ** number >= 0.995


def test_a_hundred_thousand_equal_texts_give_one_link_each() -> None:
    texts = ["你好，世界！今天天气很好。"] * 100_000 + ["另一个"]
    asked: list[int] = []

    def text_of(rows: I64) -> list[str]:
        asked.extend(rows.tolist())
        return [texts[row] for row in rows.tolist()]

    pairs = near_pairs(sketched(texts), text_of, 0.8)
    assert len(pairs) == 99_999
    assert not pairs.i.any()
    assert (pairs.jaccard == 1).all()
    assert not asked  # nothing had to be read again
    assert np.flatnonzero(representative(pairs, len(texts)) == np.arange(len(texts))).tolist() == [0, 100_000]


def test_many_near_texts_stay_linear_and_fall_together() -> None:
    rng = random.Random(3)
    base = chinese(rng, 120)
    texts = [changed(rng, base, 1) for _ in range(4_000)]
    pairs = search(texts)
    assert len(pairs) < 30 * len(texts)  # all pairs would be 2,000 times as many as rows
    assert not groups(pairs, len(texts)).any()
    kept = np.flatnonzero(representative(pairs, len(texts)) == np.arange(len(texts)))
    assert len(kept) < 20


def test_near_rows_are_found_under_a_long_boilerplate() -> None:
    """All rows are alike to 0.6, so most meet in most bands; the planted ones must not drown in them."""
    rng = random.Random(4)
    base = chinese(rng, 120)
    texts = [base + chinese(rng, 40) for _ in range(3_000)]
    texts += [text[:120] + changed(rng, text[120:], 3) for text in texts[:100]]
    found = named(search(texts))
    near = {(n, 3_000 + n) for n in range(100) if bigram_jaccard(texts[n], texts[3_000 + n]) >= 0.8}
    assert len(near) > 90
    assert len(near & found.keys()) >= 0.99 * len(near)


def test_candidates_are_read_ascending_and_few() -> None:
    rng = random.Random(6)
    texts = [chinese(rng, 40) for _ in range(2_000)]
    texts += [changed(rng, text, 1) for text in texts[:20]]
    asked: list[list[int]] = []

    def text_of(rows: I64) -> list[str]:
        asked.append(rows.tolist())
        return [texts[row] for row in rows.tolist()]

    near_pairs(sketched(texts), text_of, 0.8)
    assert all(rows == sorted(set(rows)) for rows in asked)
    assert 40 <= sum(map(len, asked)) < 100


def test_rows_apart_are_pairs_and_no_repetitions_of_one_class() -> None:
    texts = ["同一句话说了又说"] * 4
    pairs = near_pairs(sketched(texts), of(texts), 0.8, np.array([7, 8, 8, 7]))
    assert named(pairs) == {(0, 1): 1.0, (1, 2): 1.0, (0, 3): 1.0}


def test_how_texts_are_handed_over_makes_no_difference(tmp_path: Path) -> None:
    texts = ["", "你好", "hello world", "a" * 300, "你" * 300, "\ud800", *(f"第{n}行" for n in range(500))]
    whole, single = sketched(texts), Sketches()
    for text in texts:
        single.add([text])
    single.add([])
    assert len(whole) == len(single) == len(texts)
    for column in ("slots", "digest", "sizes"):
        assert (getattr(whole.table(), column) == getattr(single.table(), column)).all()
    assert whole.table().slots.nbytes + whole.table().digest.nbytes + whole.table().sizes.nbytes == 140 * len(texts)


def test_saved_and_loaded(tmp_path: Path) -> None:
    texts = ["一句话说了又说说了又说", "a b c", "一句话说了又说说了又说"]
    for _ in range(2):  # the second replaces the first
        sketched(texts).save(tmp_path / "s" / "sketches")
    loaded = Sketches.load(tmp_path / "s" / "sketches")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["sketches"]
    assert named(near_pairs(loaded, of(texts), 0.8)) == {(0, 2): 1.0}
    loaded.add(texts)
    assert len(loaded) == 6


@pytest.mark.parametrize("damage", ["missing", "cut", "shape", "pickle"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    sketched(["a b", "c d"]).save(tmp_path / "s")
    file = tmp_path / "s" / "digest.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "shape":
        np.save(file, np.zeros(3, np.uint64))
    else:
        np.save(file, np.array([{}, {}], object), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        Sketches.load(tmp_path / "s")
    assert caught.value.code == "TL-DATA-DAMAGED"


def test_nothing_and_one() -> None:
    for texts in ([], ["one"]):
        pairs = search(texts)
        assert len(pairs) == 0
        assert (
            representative(pairs, len(texts)).tolist() == groups(pairs, len(texts)).tolist() == list(range(len(texts)))
        )
    twins = ["a b c d e f g h i j k l", "a b c d e f g h i j k x"]
    assert len(contaminated(Sketches(), sketched(twins), of([]), of(twins), 0.5)) == 0
    assert len(contaminated(sketched(["a"]), Sketches(), of(["a"]), of([]), 0.8)) == 0


PAIRS = st.lists(
    st.tuples(st.integers(0, 14), st.integers(0, 14), st.sampled_from([0.8, 0.9, 1.0])).filter(lambda p: p[0] < p[1]),
    unique_by=lambda p: p[:2],
)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_kept_rows_and_groups_of_any_pairs(listed: list[tuple[int, int, float]]) -> None:
    i, j, s = (np.array([p[k] for p in listed], t) for k, t in enumerate(("i4", "i4", "f4")))
    pairs, n = Pairs(i, j, s), 15
    near = {p[:2] for p in listed}
    out, group = representative(pairs, n).tolist(), groups(pairs, n).tolist()
    for row in range(n):
        assert out[out[row]] == out[row] <= row  # its representative is kept
        kept_before = {k for k in range(row) if out[k] == k and (k, row) in near}
        if out[row] == row:
            assert not kept_before
        elif not any(b == row and share == 1 for _, b, share in listed):
            assert out[row] == min(kept_before)
    neighbours = {row: {row} for row in range(n)}
    for _ in range(n):
        for a, b in near:
            neighbours[a] |= neighbours[b]
            neighbours[b] |= neighbours[a]
    assert group == [min(neighbours[row]) for row in range(n)]


def test_test_rows_that_training_has_seen() -> None:
    rng = random.Random(7)
    train = [chinese(rng, 40) for _ in range(3_000)] + ["相同的句子一字不差在这里"] * 20
    train += [changed(rng, train[3], 1)] * 15 + [train[3]]  # a crowd of near ones, all in train
    test = [chinese(rng, 40) for _ in range(500)]
    test += ["相同的句子一字不差在这里"] * 2 + [changed(rng, train[n], 1) for n in range(100, 200)]
    test += [test[0], changed(rng, test[0], 1)]  # near each other, not near training
    test += [test[-5], changed(rng, train[3], 1)]
    pairs = contaminated(sketched(train), sketched(test), of(train), of(test), 0.8)
    found = {i: (j, share) for (i, j), share in named(pairs).items()}
    best = {
        i: max(bigram_jaccard(train[j], text) for j in (3, i - 402, 3_000, 3_020))
        for i, text in enumerate(test)
        if 500 <= i < 602
    }
    assert {500, 501} <= found.keys()
    assert found[500] == found[501] == (3_000, 1.0)
    for i in range(502, 602):
        if best[i] >= 0.8:
            assert found[i] == (i - 402, pytest.approx(best[i]))
    assert found[len(test) - 2] == found[599]  # the same text, so the same partner
    assert found[len(test) - 1][0] in (3, 3_020)
    assert set(found) <= set(range(500, 602)) | {len(test) - 2, len(test) - 1}
    for i, (j, share) in found.items():
        assert share == pytest.approx(jaccard(test[i], train[j]))
