"""Dialogues -> token ids and the mask of trained tokens, by rendering.

Each assistant turn is trained in exactly the context in which it will be served: the template renders the dialogue up
to the turn with a generation prompt, and what the full rendering adds to that is what the model must produce, its end
token included. Where a template rewrites history (drops earlier thoughts, say), or where joined text would be cut into
other tokens, a dialogue becomes several samples instead of a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.templates import encode, render, stop_ids
from tuneloop.errors import DataError
from tuneloop.records import Message, Record


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training sequence. `ids` int32 [length]; `trained` bool [length], true where the token carries a label."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    record: str
    ended: bool
    """Every trained turn ends with a token that stops generation."""

    @property
    def labels(self) -> int:
        """Label tokens. The first token of a sequence is never predicted, so it never counts."""
        return int(self.trained[1:].sum())


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    answer: bool


def turn(tokenizer: Any, record: Record, at: int) -> tuple[str, str]:
    """The text in which message `at`, an answer, is served, and that text with the answer behind it.

    Raises TL-DATA-MASK when the answer cannot be told from its context.
    """
    chat = record.chat()
    context = render(tokenizer, chat[:at], prompt=True, tools=record.tools)
    full = render(tokenizer, chat[: at + 1], tools=record.tools)
    if not full.startswith(context):
        full = _closed(context, full, record.messages[at])
    if not full:
        raise DataError("TL-DATA-MASK", where=f"{record.file}:{record.line}", turn=at + 1)
    return context, full


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


def _chains(tokenizer: Any, record: Record) -> list[list[_Piece]]:
    """The record as runs of context and answer texts; one run where the template leaves history alone."""
    chains: list[list[_Piece]] = []
    done = ""
    for at, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        context, full = turn(tokenizer, record, at)
        if not chains or not context.startswith(done):
            chains.append([])
            done = ""
        chains[-1] += [_Piece(context[len(done) :], False), _Piece(full[len(context) :], True)]
        done = full
    return chains


def _sample(pieces: list[_Piece], ids: list[list[int]], stops: frozenset[int], record: str) -> Sample:
    tokens: list[int] = []
    trained: list[bool] = []
    ended = True
    for piece, part in zip(pieces, ids, strict=True):
        tokens += part
        if not piece.answer:
            trained += [False] * len(part)
            continue
        # Serving stops at the first end token; what the template writes after it (a newline, say) is nobody's answer.
        end = next((k + 1 for k, token in enumerate(part) if token in stops), None)
        ended = ended and end is not None
        length = len(part) if end is None else end
        trained += [True] * length + [False] * (len(part) - length)
    return Sample(np.asarray(tokens, np.int32), np.asarray(trained, np.bool_), record, ended)


def tokenize(tokenizer: Any, records: Sequence[Record]) -> list[Sample]:
    """Samples of all records, in order.

    Raises TL-DATA-TEMPLATE or TL-DATA-MASK when the template cannot render a dialogue so that its answers can be told
    from their contexts.
    """
    return [sample for group in _groups(tokenizer, records) for sample in group]


def lengths(tokenizer: Any, records: Sequence[Record]) -> list[int]:
    """Tokens of each dialogue's longest sample. Raises what `tokenize` raises."""
    return [max((len(s.ids) for s in group), default=0) for group in _groups(tokenizer, records)]


def _groups(tokenizer: Any, records: Sequence[Record]) -> list[list[Sample]]:
    """The samples of each record."""
    stops = stop_ids(tokenizer)
    chains = [(n, chain) for n, record in enumerate(records) for chain in _chains(tokenizer, record)]
    pieces = iter(encode(tokenizer, [piece.text for _, chain in chains for piece in chain]))
    joined = encode(tokenizer, ["".join(piece.text for piece in chain) for _, chain in chains])
    groups: list[list[Sample]] = [[] for _ in records]
    for (n, chain), whole in zip(chains, joined, strict=True):
        parts = [next(pieces) for _ in chain]
        name = records[n].id
        if whole != [token for part in parts for token in part]:
            cut = _cut(tokenizer, chain, whole)
            if cut is None:
                groups[n] += _apart(tokenizer, chain, stops, name)
                continue
            parts = cut
        groups[n].append(_sample(chain, parts, stops, name))
    return groups


def _cut(tokenizer: Any, chain: list[_Piece], whole: list[int]) -> list[list[int]] | None:
    """The tokens of the joined text, cut where each piece ends; None where a token reaches over such an end.

    Tokenizers that begin each text with a blank (Llama 2) cut a piece by itself into other tokens than in its context.
    """
    ends = [0]
    for ids in encode(tokenizer, ["".join(p.text for p in chain[: k + 1]) for k in range(len(chain))]):
        if whole[: len(ids)] != ids:
            return None
        ends.append(len(ids))
    return [whole[a:b] for a, b in pairwise(ends)]


def _apart(tokenizer: Any, chain: list[_Piece], stops: frozenset[int], record: str) -> list[Sample]:
    """One sample a turn, each context tokenised whole as serving does it."""
    out: list[Sample] = []
    for k in range(1, len(chain), 2):
        turn = [_Piece("".join(p.text for p in chain[:k]), False), chain[k]]
        whole = encode(tokenizer, [turn[0].text + turn[1].text])[0]
        parts = _cut(tokenizer, turn, whole) or encode(tokenizer, [p.text for p in turn])
        out.append(_sample(turn, parts, stops, record))
    return out


def marked(tokenizer: Any, sample: Sample) -> list[tuple[str, bool]]:
    """The sample's text in runs of (text, trained?), for people to look at."""
    edges = [0, *(np.flatnonzero(np.diff(sample.trained.astype(np.int8))) + 1).tolist(), len(sample.ids)]
    return [
        (str(tokenizer.decode(sample.ids[a:b].tolist())), bool(sample.trained[a])) for a, b in pairwise(edges) if b > a
    ]
