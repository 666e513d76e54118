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
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.samples import Sample, Samples, labels_of, starts_of
from tuneloop.data.segments import Cutter, Pool
from tuneloop.data.templates import Renderer, encode, stop_ids
from tuneloop.errors import DataError
from tuneloop.records import Message, Record

__all__ = ["Sample", "Samples", "encode_parts", "encode_records", "lengths", "marked", "tokenize", "turn"]

BATCH = 1000
"""Records that are rendered and tokenised at a time: what is in memory beside the result."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """One sample as text. `cuts` are the ends of its pieces, in characters: context, answer, context, answer, …

    `before` and `after` are ids around the text; `everything`: all its tokens are trained, those behind it too.
    """

    text: str
    cuts: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    everything: bool = False

    @property
    def pieces(self) -> list[str]:
        return [self.text[a:b] for a, b in pairwise((0, *self.cuts))]

    @property
    def turns(self) -> list[_Chain]:
        """The same answers, each in a chain of its own."""
        return [
            _Chain(self.text[:end], (begin, end)) for begin, end in zip(self.cuts[::2], self.cuts[1::2], strict=True)
        ]


class _Writer:
    """Writes records as text, the way one tokenizer needs it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)

    def chains(self, record: Record) -> list[_Chain]:
        """The samples of a record, as text."""
        if record.kind == "text":
            end = self._tokenizer.eos_token_id
            text = "".join(m.content for m in record.messages)
            after: tuple[int, ...] = () if end is None else (int(end),)
            return [_Chain(text, before=self._frame()[0], after=after, everything=True)]
        if record.kind == "label":
            before, after = self._frame()
            return [_Chain(self.between.join(m.content for m in record.messages), before=before, after=after)]
        if record.kind == "preference":
            return [self._answer(record), self._answer(record.with_messages((*record.prompt, *record.rejected)))]
        trained = [at for at, m in enumerate(record.messages) if m.role == "assistant" and m.trained]
        return _chained(self.turns(record, trained))

    def turns(self, record: Record, answers: Sequence[int]) -> list[tuple[str, str]]:
        """For each of these messages: the text in which it is served, and that text with the answer behind it.

        Raises TL-DATA-MASK when an answer cannot be told from its context.
        """
        out = []
        for at, (context, full) in zip(
            answers, self._renderer.turns(record.chat(), answers, record.tools), strict=True
        ):
            if not full.startswith(context):
                full = _closed(context, full, record.messages[at])
            if not full:
                raise DataError("TL-DATA-MASK", where=f"{record.file}:{record.line}", turn=at + 1)
            out.append((context, full))
        return out

    def _answer(self, record: Record) -> _Chain:
        """One of the two answers of a preference pair: what follows the prompt is trained.

        An answer of several turns, of which the template rewrites the earlier ones, is compared by its last.
        """
        first = len(record.prompt)
        answers = [at for at in range(first, len(record.messages)) if record.messages[at].role == "assistant"]
        return _chained(self.turns(record, answers))[-1]

    @cached_property
    def between(self) -> str:
        """What the tokenizer itself puts between the two texts of a pair ([SEP], </s></s>); a line break where it puts
        nothing."""
        (before, after), tokenizer = self._frame(), self._tokenizer
        inner = tokenizer("a", add_special_tokens=False)["input_ids"]
        pair = tokenizer("a", "a")["input_ids"]
        ids = pair[len(before) + len(inner) : len(pair) - len(after) - len(inner)]
        marks = tokenizer.convert_ids_to_tokens(ids)
        return "".join(marks) if ids and set(marks) <= set(tokenizer.all_special_tokens) else "\n"

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer itself puts before and behind a text: <s>, or [CLS] and [SEP]."""
        inner = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self._tokenizer("a")["input_ids"]
        at = next((k for k in range(len(whole)) if whole[k : k + len(inner)] == inner), len(whole))
        return tuple(whole[:at]), tuple(whole[at + len(inner) :])


def _closed(context: str, full: str, message: Message) -> str:
    """`full` for a prompt that opens a thought which the written answer leaves out (DeepSeek-R1), else "".

    What the model must write there is the thought, its end, and the answer; without a thought, the end at once.
    """
    before, opened, blank = context.rpartition("<think>")
    answer = full[len(before) :]
    if not opened or blank.strip() or not full.startswith(before) or "<think>" in answer:
        return ""
    thought = message.reasoning or message.content.rpartition("</think>")[0].rpartition("<think>")[2]
    line = "" if blank.endswith("\n") else "\n"
    return f"{context}{line}{thought.strip()}\n</think>\n\n{answer.lstrip()}"


def _chained(turns: Iterable[tuple[str, str]]) -> list[_Chain]:
    """Turns as runs of context and answer; one run where the template leaves history alone."""
    runs: list[tuple[str, tuple[int, ...]]] = []
    for context, full in turns:
        if runs and context.startswith(runs[-1][0]):
            runs[-1] = (full, (*runs[-1][1], len(context), len(full)))
        else:
            runs.append((full, (len(context), len(full))))
    return [_Chain(text, cuts) for text, cuts in runs]


def turn(tokenizer: Any, record: Record, at: int) -> tuple[str, str]:
    """The text in which message `at`, an answer, is served, and that text with the answer behind it.

    Raises TL-DATA-MASK when the answer cannot be told from its context.
    """
    return _Writer(tokenizer).turns(record, [at])[0]


def encode_parts(tokenizer: Any, records: Iterable[Record]) -> Iterator[Samples]:
    """Samples of all records, in order, a part at a time; for `samples.write`, which holds one part in memory.

    chat, judged: each answer that is trained, in its context. text: every token, and the end token behind it. label:
    the text, or the pair of texts, as the tokenizer frames it, nothing trained. preference: two samples, the better
    answer first.
    Raises TL-DATA-TEMPLATE or TL-DATA-MASK when the template cannot render a dialogue so that its answers can be told
    from their contexts.
    """
    encoder = _Encoder(tokenizer)
    rest = iter(records)
    while batch := list(islice(rest, BATCH)):
        yield _whole(encoder, batch, [record.id for record in batch])


def encode_records(tokenizer: Any, records: Iterable[Record]) -> Samples:
    """Samples of all records, in order, in memory. See `encode_parts`."""
    return Samples.concatenate(encode_parts(tokenizer, records))


def tokenize(tokenizer: Any, records: Sequence[Record]) -> Samples:
    """Samples of all records, in order. See `encode_parts`."""
    return encode_records(tokenizer, records)


def lengths(tokenizer: Any, records: Sequence[Record]) -> list[int]:
    """Tokens of each record's longest sample, 0 for one without any. Raises what `encode_parts` raises."""
    encoder = _Encoder(tokenizer)
    out: list[int] = []
    for begin in range(0, len(records), BATCH):
        samples = _whole(encoder, records[begin : begin + BATCH])
        longest = np.zeros(samples.records, np.int64)
        np.maximum.at(longest, samples.row, samples.lengths)
        out += longest.tolist()
    return out


def _whole(encoder: _Encoder, records: Sequence[Record], names: Sequence[str] = ()) -> Samples:
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

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._writer = _Writer(tokenizer)
        self._cutter = Cutter(tokenizer)
        self._stops = stop_ids(tokenizer)

    def samples(self, records: Sequence[Record], names: Sequence[str] = ()) -> Samples:
        """The samples of one batch; without `names` they carry none."""
        written = [self._writer.chains(record) for record in records]
        chains = [chain for own in written for chain in own]
        row = np.repeat(np.arange(len(records), dtype=np.int32), [len(own) for own in written])
        if self._cutter.exact and self._cutter.agrees([chain.text for chain in chains[:2]]):
            made, sure = self._at_once(chains)
            each = None if sure.all() else self._each(chains, made, sure)
        else:
            each = [self._by_text(chain) for chain in chains]
        if each is not None:
            made, row = Samples.of([s for own in each for s in own]), np.repeat(row, [len(own) for own in each])
        called = np.array([names[k] for k in row.tolist()] if names else np.zeros(len(row)), "S12")
        return replace(made, row=row, names=called, records=len(records))

    def _each(self, chains: Sequence[_Chain], made: Samples, sure: NDArray[np.bool_]) -> list[list[Sample]]:
        """The samples of each chain: as made where that is sure, else what `_by_text` gives, many at a time."""
        each = [[sample] for sample in made]
        doubtful = np.flatnonzero(~sure).tolist()
        turns: list[tuple[int, _Chain]] = []
        apart, _ = self._at_once([chains[k] for k in doubtful], joined=False)
        for k, sample in zip(doubtful, apart, strict=True):
            if len(chains[k].cuts) == 2 or np.array_equal(sample.ids, made[k].ids):
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

    def _at_once(self, chains: Sequence[_Chain], *, joined: bool = True) -> tuple[Samples, NDArray[np.bool_]]:
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
        whole, at, head = np.array(places, np.int64), np.array(marks.at, np.int64), np.array(marks.head, np.int64)
        for place, begin in {(places[a], h) for a, h in zip(marks.at, marks.head, strict=True) if h >= 0}:
            if not pool.begins(place, begin):
                lost = (head == begin) & (whole[np.minimum(at, len(whole) - 1)] == place)
                sure[np.array(marks.chain)[lost]] = False
        sizes = np.append(np.diff(pool.starts), 0)  # the last one is for head -1
        first = starts_of(sizes[whole])
        ids = pool.ids[_ranges(pool.starts[whole], sizes[whole])]
        starts = first[counts]
        edges = first[at] + sizes[head]
        trained, ended = self._mask(ids, starts, edges.reshape(-1, 2), np.array(marks.chain[::2], np.int64))
        for k, chain in enumerate(chains):
            if chain.everything:
                trained[starts[k] : starts[k + 1]], ended[k] = True, bool(chain.after)
        none = np.zeros(len(chains))
        made = Samples(ids, trained, starts, labels_of(trained, starts), ended, none.astype(np.int32),
                       none.astype("S12"), len(chains))  # fmt: skip
        return made, sure

    def _laid_out(self, chain: _Chain, k: int, pool: Pool, places: list[int], marks: _Marks) -> None:
        """Put the stretches of chain `k` into the pool, and what of them stands before the end of a piece."""
        if chain.before:
            places.append(pool.place(chain.before))
        position, cuts = 0, iter((*chain.cuts, len(chain.text) + 1))
        edge = next(cuts)
        for stretch in self._cutter.cut(chain.text):
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

    def _laid_apart(self, chain: _Chain, k: int, pool: Pool, places: list[int], marks: _Marks) -> None:
        """Put the stretches of each piece of chain `k` into the pool."""
        for piece in chain.pieces:
            places.extend(pool.place(stretch) for stretch in self._cutter.cut(piece))
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
        found = np.zeros(len(ids), np.bool_)
        for token in self._stops:
            found |= ids == token
        stops = np.append(np.flatnonzero(found), len(ids))
        stop = stops[np.searchsorted(stops, begin)]
        closed = stop < end
        change = np.zeros(len(ids) + 1, np.int8)
        np.add.at(change, begin, 1)
        np.add.at(change, np.where(closed, stop + 1, end), -1)
        ended = np.ones(len(starts) - 1, np.bool_)
        ended[of[~closed]] = False
        return np.cumsum(change[:-1], dtype=np.int8).view(np.bool_), ended

    def _by_text(self, chain: _Chain) -> list[Sample]:
        """The samples of one chain for any tokenizer: each piece tokenised by itself and in its context."""
        pieces = chain.pieces
        whole = encode(self._tokenizer, [chain.text])[0]
        if not pieces:
            ids = np.array([*chain.before, *whole, *chain.after], np.int32)
            return [Sample(ids, np.full(len(ids), chain.everything), "", bool(chain.after) or not chain.everything)]
        parts = encode(self._tokenizer, pieces)
        if whole != [token for part in parts for token in part]:
            cut = _cut(self._tokenizer, pieces, whole)
            if cut is None:
                return self._apart(pieces)
            parts = cut
        return [self._sample(parts)]

    def _apart(self, pieces: list[str]) -> list[Sample]:
        """One sample a turn, each context tokenised whole as serving does it."""
        out = []
        for k in range(1, len(pieces), 2):
            own = ["".join(pieces[:k]), pieces[k]]
            whole = encode(self._tokenizer, [own[0] + own[1]])[0]
            out.append(self._sample(_cut(self._tokenizer, own, whole) or encode(self._tokenizer, own)))
        return out

    def _sample(self, parts: list[list[int]]) -> Sample:
        """The sample whose pieces, context and answer in turn, have these ids."""
        ids = np.array([token for part in parts for token in part], np.int32)
        starts = np.array([0, len(ids)])
        edges = starts_of(np.array([len(part) for part in parts]))[1:].reshape(-1, 2)
        trained, ended = self._mask(ids, starts, edges, np.zeros(len(edges), np.int64))
        return Sample(ids, trained, "", bool(ended[0]))


def _ranges(begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges behind each other.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.repeat(begins - starts_of(sizes)[:-1], sizes) + np.arange(sizes.sum())


def _cut(tokenizer: Any, pieces: list[str], whole: list[int]) -> list[list[int]] | None:
    """The tokens of the joined text, cut where each piece ends; None where a token reaches over such an end.

    Tokenizers that begin each text with a blank (Llama 2) cut a piece by itself into other tokens than in its context.
    """
    ends = [0]
    for ids in encode(tokenizer, list(accumulate(pieces))):
        if whole[: len(ids)] != ids:
            return None
        ends.append(len(ids))
    return [whole[a:b] for a, b in pairwise(ends)]


def marked(tokenizer: Any, sample: Sample) -> list[tuple[str, bool]]:
    """The sample's text in runs of (text, trained?), for people to look at."""
    edges = [0, *(np.flatnonzero(np.diff(sample.trained.astype(np.int8))) + 1).tolist(), len(sample.ids)]
    return [
        (str(tokenizer.decode(sample.ids[a:b].tolist())), bool(sample.trained[a])) for a, b in pairwise(edges) if b > a
    ]
