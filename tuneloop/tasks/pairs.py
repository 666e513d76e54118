"""Examples of preference rows: the two answers of a pair share a forward pass, and a step counts pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.language import t
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.tasks.task import SplitView


def pairs(rows: SplitView, budget: int) -> Examples:
    """One item a pair, the better answer first, each of weight 1.

    Raises TL-DATA-PAIR where a pair is not two samples, or is longer than a forward pass takes.
    """
    return within(_paired(rows.samples), budget)


def _paired(samples: Sequences) -> Examples:
    n = samples.records
    counts = np.bincount(samples.row, minlength=n)
    if (counts != 2).any():
        at = int(np.flatnonzero(counts != 2)[0])
        names = samples.names[samples.row == at]
        error = t("its two answers make {n} samples, since this tokenizer cuts them into turns", n=int(counts[at]))
        raise DataError("TL-DATA-PAIR", where=names[0].decode() if len(names) else str(at + 1), error=error)
    # A stable sort: samples of a record stay in their order, the better answer first.
    return Examples(samples, np.argsort(samples.row, kind="stable").reshape(n, 2), np.ones(n))


def within(items: Examples, budget: int) -> Examples:
    """The items, if a forward pass of `budget` tokens takes each of them. Raises TL-DATA-PAIR."""
    if (items.lengths > budget).any():
        at = int(items.lengths.argmax())
        one, two = items.samples.lengths[items.members[at]].tolist()
        error = t(
            "its two texts have {one} and {two} tokens, and a forward pass takes {budget} for both",
            one=one,
            two=two,
            budget=budget,
        )
        raise DataError("TL-DATA-PAIR", where=items.samples.names[items.members[at, 0]].decode(), error=error)
    return items


def judged(rows: SplitView, budget: int) -> Examples:
    """One item an answer that was judged, or for each answer of a pair; columns: good, float32 [samples], 1 or 0.

    An item's second sample is the prompt with another row's answer: what KTO measures its distance from the reference
    by. Which answer that is follows from the rows alone. Of a dialogue its last answer is judged, and it is the last
    sample that ends with it.
    Raises TL-DATA-PAIR where an item is longer than a forward pass takes.
    """
    samples = rows.samples
    good: dict[int, float] = {}
    seen = np.bincount(samples.row, minlength=samples.records)
    last = np.cumsum(seen)
    for k, record in enumerate(rows.records()):
        if record.kind == "preference":
            if seen[k] != 2:
                _paired(samples)
            good |= {int(last[k]) - 2: 1.0, int(last[k]) - 1: 0.0}
        elif seen[k]:
            good[int(last[k]) - 1] = float(record.label == "good")
    own = [_last_answer(samples[k]) for k in good]
    longest = max((len(s.ids) for s in own), default=0)
    partners = _partners([s.record for s in own])
    other = [_answered(s, own[k], longest) for s, k in zip(own, partners, strict=True)]
    n = len(own)
    sequences = replace(Sequences.of([*own, *other]), records=2 * n)
    column = np.array([*good.values()] * 2, np.float32)
    return within(Examples(sequences, np.arange(2 * n).reshape(2, n).T.copy(), np.ones(n), {"good": column}), budget)


def _last_answer(sample: Sample) -> Sample:
    """The sample with its last answer as its only labels."""
    at = np.flatnonzero(sample.trained)
    trained = np.zeros_like(sample.trained)
    if len(at):
        trained[_begin(at) : at[-1] + 1] = True
    return replace(sample, trained=trained)


def _begin(at: NDArray[np.int64]) -> int:
    """Where the last run of consecutive numbers begins."""
    breaks = np.flatnonzero(np.diff(at) > 1)
    return int(at[breaks[-1] + 1] if len(breaks) else at[0])


def _answered(one: Sample, other: Sample, longest: int) -> Sample:
    """The prompt of one sample with the answer of another, which is cut where it would be longer than any sample is."""
    mine, theirs = np.flatnonzero(one.trained), np.flatnonzero(other.trained)
    prompt = one.ids[: mine[0]] if len(mine) else one.ids
    answer = other.ids[theirs][: max(1, longest - len(prompt))]
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    return Sample(ids, np.arange(len(ids)) >= len(prompt), one.record, other.ended)


def _partners(names: Sequence[str]) -> list[int]:
    """For each row one of another record, each used about once; itself where there is no other record.

    >>> _partners(["a", "b", "b"])[0] in (1, 2), _partners(["a", "b", "b"])[1:]
    (True, [0, 0])
    """
    order = list(range(len(names)))
    random.Random(len(names)).shuffle(order)
    out = [0] * len(names)
    for at, k in enumerate(order):
        apart = (order[at - step] for step in range(1, len(order)) if names[order[at - step]] != names[k])
        out[k] = next(apart, k)
    return out
