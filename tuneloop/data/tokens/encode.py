"""Records -> token ids and the mask of trained tokens, by rendering.

Each assistant turn is trained in exactly the context in which it will be served: the template renders the dialogue up
to the turn with a generation prompt, and what the full rendering adds to that is what the model must produce, its end
token included. Where a template rewrites history (drops earlier thoughts, say), or where joined text would be cut into
other tokens, a dialogue becomes several samples instead of a wrong one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.records import Record
from tuneloop.data.tokens.chains import Chain, ChainWriter, turn
from tuneloop.data.tokens.samples import Sample, Sequences, labels_of, starts_of
from tuneloop.data.tokens.segments import Pool, Splitter
from tuneloop.data.tokens.templates import encode_guarded, stop_ids

__all__ = ["Sample", "Sequences", "encode_parts", "encode_records", "lengths", "marked", "tokenize", "turn"]

BATCH = 1000
"""Records that are rendered and tokenised at a time: what is in memory beside the result."""


def encode_parts(tokenizer: Any, records: Iterable[Record], *, empty_thoughts: bool = False) -> Iterator[Sequences]:
    """Samples of all records, in order, a part at a time; for `samples.write`, which holds one part in memory.

    What a record's samples are its kind says (`data/kinds.py`); of alternatives the best comes first. What was cut off
    has no end token. An answer that the template cannot say is not trained: it stands in the samples' `unsaid`.
    A thought without words that the template puts before an answer is context; with `empty_thoughts` it is trained.
    Raises TL-DATA-TEMPLATE or TL-DATA-MASK when the template cannot render a dialogue so that its answers can be told
    from their contexts.
    """
    encoder = _encoder(tokenizer, empty_thoughts)
    rest = iter(records)
    while batch := list(islice(rest, BATCH)):
        yield _encode_batch(encoder, batch, [record.id for record in batch])


def encode_records(tokenizer: Any, records: Iterable[Record], *, empty_thoughts: bool = False) -> Sequences:
    """Samples of all records, in order, in memory. See `encode_parts`."""
    return Sequences.concatenate(encode_parts(tokenizer, records, empty_thoughts=empty_thoughts))


def tokenize(tokenizer: Any, records: Sequence[Record], *, empty_thoughts: bool = False) -> Sequences:
    """Samples of all records, in order. See `encode_parts`."""
    return encode_records(tokenizer, records, empty_thoughts=empty_thoughts)


def lengths(tokenizer: Any, records: Sequence[Record]) -> list[int]:
    """Tokens of each record's longest sample, 0 for one without any. Raises what `encode_parts` raises."""
    encoder = _encoder(tokenizer, False)
    out: list[int] = []
    for begin in range(0, len(records), BATCH):
        samples = _encode_batch(encoder, records[begin : begin + BATCH])
        longest = np.zeros(samples.records, np.int64)
        np.maximum.at(longest, samples.row, samples.lengths)
        out += longest.tolist()
    return out


def _encoder(tokenizer: Any, empty_thoughts: bool) -> _Encoder:
    """The encoder of a tokenizer as it is now: what it finds out about the template is found out once."""
    state = (repr(tokenizer.chat_template), len(tokenizer), getattr(tokenizer, "split_special_tokens", False))
    return _encoder_of(tokenizer, state, empty_thoughts)


@lru_cache(maxsize=4)
def _encoder_of(tokenizer: Any, state: tuple[Any, ...], empty_thoughts: bool) -> _Encoder:
    return _Encoder(tokenizer, empty_thoughts)


def _encode_batch(encoder: _Encoder, records: Sequence[Record], names: Sequence[str] = ()) -> Sequences:
    """One batch, with Python's search for cycles put off: it would look at many new lists again and again, in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        return encoder.samples(records, names)
    finally:
        if was:
            gc.enable()


@dataclass(slots=True)
class _Marks:
    """Where the answers of a batch begin and end: `at` the stretch, `head` what of it stands before, or -1 for none."""

    at: list[int]
    head: list[int]
    chain: list[int]


class _Encoder:
    """Turns batches of records into samples."""

    def __init__(self, tokenizer: Any, empty_thoughts: bool = False) -> None:
        self._tokenizer = tokenizer
        self._writer = ChainWriter(tokenizer, empty_thoughts)
        self._splitter = Splitter(tokenizer)
        self._stops = stop_ids(tokenizer)

    def samples(self, records: Sequence[Record], names: Sequence[str] = ()) -> Sequences:
        """The samples of one batch; without `names` they carry none."""
        written, unsaid = self._writer.write(records)
        chains = [chain for own in written for chain in own]
        row = np.repeat(np.arange(len(records), dtype=np.int32), [len(own) for own in written])
        if self._splitter.exact and self._splitter.agrees([chain.text for chain in chains[:2]]):
            sequences, sure = self._at_once(chains)
            each = None if sure.all() else self._each(chains, sequences, sure)
        else:
            each = [self._by_text(chain) for chain in chains]
        if each is not None:
            sequences, row = Sequences.of([s for own in each for s in own]), np.repeat(row, [len(own) for own in each])
        called = np.array([names[k] for k in row.tolist()] if names else np.zeros(len(row)), "S12")
        return replace(sequences, row=row, names=called, records=len(records), unsaid=unsaid)

    def _each(self, chains: Sequence[Chain], sequences: Sequences, sure: NDArray[np.bool_]) -> list[list[Sample]]:
        """The samples of each chain: as made where that is sure, else what `_by_text` gives, many at a time."""
        each = [[sample] for sample in sequences]
        doubtful = np.flatnonzero(~sure).tolist()
        turns: list[tuple[int, Chain]] = []
        apart, _ = self._at_once([chains[k] for k in doubtful], joined=False)
        for k, sample in zip(doubtful, apart, strict=True):
            if len(chains[k].cuts) == 2 or np.array_equal(sample.ids, sequences[k].ids):
                each[k] = [sample]
            else:
                each[k] = []
                turns += [(k, turn) for turn in chains[k].turns]
        alone, sure = self._at_once([turn for _, turn in turns])
        apart, _ = self._at_once([turn for (_, turn), one in zip(turns, sure, strict=True) if not one], joined=False)
        pieces = iter(apart)
        for n, (k, _) in enumerate(turns):
            each[k].append(alone[n] if sure[n] else next(pieces))
        return each

    def _at_once(self, chains: Sequence[Chain], *, joined: bool = True) -> tuple[Sequences, NDArray[np.bool_]]:
        """A sample of each chain, and whether its contexts are what serving makes of them.

        With `joined` false each piece is tokenised by itself, whatever stands beside it.
        """
        pool, marks = Pool(self._tokenizer), _Marks([], [], [])
        sure = np.ones(len(chains), np.bool_)
        places: list[int] = []
        counts = []
        for k, chain in enumerate(chains):
            counts.append(len(places))
            lay_out = self._laid_out if joined else self._laid_apart
            lay_out(chain, k, pool, places, marks)
        counts.append(len(places))
        pool.fill()
        stretches, at, head = np.array(places, np.int64), np.array(marks.at, np.int64), np.array(marks.head, np.int64)
        for place, begin in {(places[a], h) for a, h in zip(marks.at, marks.head, strict=True) if h >= 0}:
            if not pool.begins(place, begin):
                lost = (head == begin) & (stretches[np.minimum(at, len(stretches) - 1)] == place)
                sure[np.array(marks.chain)[lost]] = False
        sizes = np.append(np.diff(pool.starts), 0)  # the last one is for head -1
        first = starts_of(sizes[stretches])
        ids = pool.ids[_ranges(pool.starts[stretches], sizes[stretches])]
        starts = first[counts]
        edges = first[at] + sizes[head]
        trained, ended = self._mask(ids, starts, edges.reshape(-1, 2), np.array(marks.chain[::2], np.int64))
        for k, chain in enumerate(chains):
            if chain.everything:
                trained[starts[k] : starts[k + 1]], ended[k] = True, bool(chain.after)
            if chain.cut:
                ended[k] = True
        none = np.zeros(len(chains))
        sequences = Sequences(
            ids,
            trained,
            starts,
            labels_of(trained, starts),
            ended,
            none.astype(np.int32),
            none.astype("S12"),
            len(chains),
        )
        return sequences, sure

    def _laid_out(self, chain: Chain, k: int, pool: Pool, places: list[int], marks: _Marks) -> None:
        """Put the stretches of chain `k` into the pool, and what of them stands before the end of a piece."""
        if chain.before:
            places.append(pool.place(chain.before))
        position, cuts = 0, iter((*chain.cuts, len(chain.text) + 1))
        edge = next(cuts)
        for stretch in self._splitter.cut(chain.text):
            while edge < position + len(stretch):
                inside = edge > position
                marks.at.append(len(places))
                marks.head.append(pool.place(stretch[: edge - position]) if inside else -1)
                marks.chain.append(k)
                edge = next(cuts)
            places.append(pool.place(stretch))
            position += len(stretch)
        while edge <= position:
            marks.at.append(len(places))
            marks.head.append(-1)
            marks.chain.append(k)
            edge = next(cuts)
        if chain.after:
            places.append(pool.place(chain.after))

    def _laid_apart(self, chain: Chain, k: int, pool: Pool, places: list[int], marks: _Marks) -> None:
        """Put the stretches of each piece of chain `k` into the pool."""
        for piece in chain.pieces:
            places.extend(pool.place(stretch) for stretch in self._splitter.cut(piece))
            marks.at.append(len(places))
            marks.head.append(-1)
            marks.chain.append(k)

    def _mask(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], answers: NDArray[np.int64], of: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which tokens are trained, and which samples end; `answers` int64 [m, 2] of the samples `of` int64 [m].

        Serving stops at the first end token; what the template writes after it (a newline, say) is nobody's answer.
        """
        begin, end = answers.T
        is_stop = np.zeros(len(ids), np.bool_)
        for token in self._stops:
            is_stop |= ids == token
        stops = np.append(np.flatnonzero(is_stop), len(ids))
        stop = stops[np.searchsorted(stops, begin)]
        closed = stop < end
        change = np.zeros(len(ids) + 1, np.int8)
        np.add.at(change, begin, 1)
        np.add.at(change, np.where(closed, stop + 1, end), -1)
        ended = np.ones(len(starts) - 1, np.bool_)
        ended[of[~closed]] = False
        return np.cumsum(change[:-1], dtype=np.int8).view(np.bool_), ended

    def _by_text(self, chain: Chain) -> list[Sample]:
        """The samples of one chain for any tokenizer: each piece tokenised by itself and in its context."""
        pieces = chain.pieces
        ids_of_text = encode_guarded(self._tokenizer, [chain.text])[0]
        if not pieces:
            ids = np.array([*chain.before, *ids_of_text, *chain.after], np.int32)
            ended = bool(chain.after) or chain.cut or not chain.everything
            return [Sample(ids, np.full(len(ids), chain.everything), "", ended)]
        parts = encode_guarded(self._tokenizer, pieces)
        if ids_of_text != [token for part in parts for token in part]:
            cut = _cut(self._tokenizer, pieces, ids_of_text)
            if cut is None:
                return self._apart(chain)
            parts = cut
        return [self._sample(parts, chain.cut)]

    def _apart(self, chain: Chain) -> list[Sample]:
        """One sample a turn, each context tokenised whole as serving does it."""
        out = []
        for one in chain.turns:
            own = one.pieces
            ids_of_text = encode_guarded(self._tokenizer, [one.text])[0]
            out.append(
                self._sample(_cut(self._tokenizer, own, ids_of_text) or encode_guarded(self._tokenizer, own), one.cut)
            )
        return out

    def _sample(self, parts: list[list[int]], cut: bool) -> Sample:
        """The sample whose pieces, context and answer in turn, have these ids."""
        ids = np.array([token for part in parts for token in part], np.int32)
        starts = np.array([0, len(ids)])
        edges = starts_of(np.array([len(part) for part in parts]))[1:].reshape(-1, 2)
        trained, ended = self._mask(ids, starts, edges, np.zeros(len(edges), np.int64))
        return Sample(ids, trained, "", bool(ended[0]) or cut)


def _ranges(begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges behind each other.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.repeat(begins - starts_of(sizes)[:-1], sizes) + np.arange(sizes.sum())


def _cut(tokenizer: Any, pieces: list[str], joined: list[int]) -> list[list[int]] | None:
    """The tokens of the joined text, cut where each piece ends; None where a token reaches over such an end.

    Tokenizers that begin each text with a blank (Llama 2) cut a piece by itself into other tokens than in its context.
    """
    ends = [0]
    for ids in encode_guarded(tokenizer, list(accumulate(pieces))):
        if joined[: len(ids)] != ids:
            return None
        ends.append(len(ids))
    return [joined[a:b] for a, b in pairwise(ends)]


def marked(tokenizer: Any, sample: Sample) -> list[tuple[str, bool]]:
    """The sample's text in runs of (text, trained?), for people to look at."""
    edges = [0, *(np.flatnonzero(np.diff(sample.trained.astype(np.int8))) + 1).tolist(), len(sample.ids)]
    return [
        (str(tokenizer.decode(sample.ids[a:b].tolist())), bool(sample.trained[a])) for a, b in pairwise(edges) if b > a
    ]
