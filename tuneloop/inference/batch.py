"""Answers that are written together: requests join while others are under way, and leave when they have ended.

It knows no text: requests are token ids. `generate.py` feeds it with the prompts of a file, `scheduler.py` with those
of a server's clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import psutil
import torch
from torch import Tensor

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.inference.decode import Decoder, DecodeState
from tuneloop.inference.grammar import Grammar, Matcher
from tuneloop.inference.row_adapters import RowAdapters
from tuneloop.inference.sampling import Chooser, Sampling, Score, choose, scores
from tuneloop.inference.slots import LockstepCache, SlotCache, joinable

PREFILL = 4096
"""Tokens of the prompts, padding included, that are read in one pass."""
AT_LEAST = 8
"""Of this share of the slots (1 in 8) prompts wait until so many are free: few rows fill a pass badly."""
MOST = 64
"""Answers written at once where nobody says how many: more were no faster on the processors we measured."""
SHARE = 0.25
"""Of the free memory, for the keys and values of the answers under way."""


@dataclass(slots=True, eq=False)
class Generation:
    """One answer on its way from prompt to end."""

    prompt: Sequence[int]
    most: int
    """Tokens it may have."""
    how: Sampling = field(default_factory=Sampling)
    complete: Callable[[list[int]], bool] | None = None
    """Whether these tokens end the answer, beside an end token and `most`: a stop text was written, say."""
    adapter: str | None = None
    """Which of the loaded adapters it goes through (row_adapters.py)."""
    logprobs: int | None = None
    """How many of the likeliest tokens are noted beside each one's own score; None notes nothing."""
    echo: bool = False
    """Whether the prompt's tokens are scored as well, where `logprobs` are wanted."""
    grammar: Grammar | None = None
    """What the answer must be (grammar.py)."""
    tokens: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    """One a token."""
    prompt_scores: list[tuple[float | None, list[tuple[int, float]]]] = field(default_factory=list)
    """One a token of the prompt, (None, []) for the first."""
    ended: Literal["stop", "length"] | None = None
    error: TuneloopError | None = None
    """Why it ended otherwise; neighbours know nothing of it."""
    reused: int = 0
    """Tokens of the prompt whose keys and values were at hand."""
    seconds: float = 0.0
    """Its share of the time of the passes it was in."""
    chooser: Chooser = field(init=False)
    matcher: Matcher | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.chooser = Chooser(self.how, list(self.prompt))
        self.matcher = self.grammar.matcher() if self.grammar is not None else None

    @property
    def over(self) -> bool:
        return self.ended is not None or self.error is not None


class DecodeBatch:
    """The answers under way. Not for several threads at once.

    `slots` is how many there may be at most; there are fewer where the free memory takes fewer. `columns` is the
    longest prompt and answer together that is foreseen; a longer one costs a copy. `alone`: prompts are read one by
    one, for padding among them would be seen. `tokens`: memory grows by need, up to about so many keys and values.
    `guarded`: an answer whose logits are no numbers fails, alone. `adapters` are those that the model has beside it.
    """

    def __init__(
        self,
        decoder: Decoder,
        stops: frozenset[int] | set[int],
        *,
        penalty: float = 1.0,
        slots: int = MOST,
        columns: int = 0,
        alone: bool = False,
        tokens: int | None = None,
        guarded: bool = False,
        adapters: RowAdapters | None = None,
    ) -> None:
        self.decoder, self.stops, self.penalty, self.alone = decoder, stops, penalty, alone
        self.slots, self.tokens, self.guarded, self.adapters = slots, tokens, guarded, adapters
        self.generations: list[Generation] = []
        """In the order of the rows of the cache."""
        self._foreseen = columns
        self._cache: SlotCache | LockstepCache | None = None

    @property
    def free(self) -> int:
        """How many may join now."""
        if isinstance(self._cache, LockstepCache):
            return 0 if self.generations else self.slots
        return self.slots - len(self.generations)

    def admits(self, waiting: Collection[Generation]) -> int:
        """How many of those that wait, in their order, should join now in one pass; 0 while others should go on."""
        free = min(self.free, len(waiting))
        if not free or (self.generations and free < min(len(waiting), self.slots // AT_LEAST)):
            return 0
        count, longest = 0, 0
        for one in islice(waiting, free):
            longest = max(longest, len(one.prompt))
            if count and (self.alone or (count + 1) * longest > PREFILL):
                break
            count += 1
        return count

    def join(self, joining: Sequence[Generation]) -> list[Generation]:
        """Read the prompts of new answers and write their first tokens. The answers that ended so, which left again."""
        began = time.perf_counter()
        state = self.decoder.prefill([one.prompt for one in joining], pad=next(iter(self.stops), 0))
        with self.rows_of(joining):
            logits = self.decoder.step(state)
        return self.take(state, logits, joining, began)

    def take(self, state: DecodeState, logits: Tensor, joining: Sequence[Generation], began: float) -> list[Generation]:
        """Take in answers whose prompts were read, with the logits [rows, vocabulary] of their first tokens. Those that
        ended so, which left again."""
        if self._cache is None:
            self._cache = self._new_cache(state, len(joining))
        self._cache.add(state)
        at = len(self.generations)
        self.generations += joining
        return self._chosen(logits, at, began)

    def step(self) -> list[Generation]:
        """One more token of each answer. Those that ended with it, which left."""
        if not self.generations:
            return []
        began = time.perf_counter()
        assert self._cache is not None
        device = next(self.decoder.model.parameters()).device
        tokens = torch.tensor([one.tokens[-1] for one in self.generations], device=device)
        with self.rows_of(self.generations):
            logits = self._cache.step(self.decoder, tokens)
        return self._chosen(logits, 0, began)

    def foresee(self, columns: int) -> None:
        """The longest row to make room for from now on, prompt and answer."""
        self._foreseen = columns
        if isinstance(self._cache, SlotCache):
            self._cache.foreseen = columns

    def drop(self, generation: Generation) -> None:
        """Take an answer out before its end: nobody waits for it any more."""
        self._leave(self.generations.index(generation))

    def clear(self) -> None:
        """Forget all answers, and what lies in memory of them."""
        self.generations, self._cache = [], None

    def rows_of(self, generations: Sequence[Generation]) -> AbstractContextManager[None]:
        """Inside, the rows of a pass are those of these answers, each with its adapter."""
        names = [one.adapter for one in generations]
        self.decoder.adapted = self.adapters is not None and any(name is not None for name in names)
        return nullcontext() if self.adapters is None else self.adapters.rows(names)

    def _chosen(self, logits: Tensor, at: int, began: float) -> list[Generation]:
        """Give the rows from `at` on their next tokens; those that ended, in the order of the rows."""
        rows = self.generations[at:]
        if self.guarded and not bool((sound := logits.amax(-1).isfinite()).all()):
            logits = self._without_broken(logits, rows, sound.tolist())
        masks = self._masks(rows, logits.shape[-1], logits.device)
        tokens = choose(logits, [one.chooser for one in rows], self.penalty, masks).tolist()
        self._score(logits, rows, tokens)
        seconds = (time.perf_counter() - began) / len(rows)
        for one, token in zip(rows, tokens, strict=True):
            if one.error is None:
                one.tokens.append(token)
                one.seconds += seconds
                self._settle(one)
        ended = [n for n, one in enumerate(rows, at) if one.over]
        gone = [self.generations[n] for n in ended]
        for n in reversed(ended):
            self._leave(n)
        return gone

    @staticmethod
    def _without_broken(logits: Tensor, rows: Sequence[Generation], sound: list[bool]) -> Tensor:
        """Fail the rows whose logits are no numbers; the logits with zeros in their place."""
        logits = logits.clone()
        for n, one in enumerate(rows):
            if not sound[n]:
                logits[n] = 0
                one.error = ServeError("TL-SERVE-NUMBER")
        return logits

    @staticmethod
    def _masks(rows: Sequence[Generation], vocabulary: int, device: torch.device) -> dict[int, Tensor]:
        """What the grammars of some rows allow next: row -> bool [vocabulary]."""
        masks = {}
        for n, one in enumerate(rows):
            if one.matcher is not None and one.error is None:
                try:
                    masks[n] = one.matcher.allowed(vocabulary).to(device)
                except Exception as error:
                    one.error = failure(error)
        return masks

    @staticmethod
    def _score(logits: Tensor, rows: Sequence[Generation], tokens: Sequence[int]) -> None:
        scored = [n for n, one in enumerate(rows) if one.logprobs is not None]
        if not scored:
            return
        some = logits if len(scored) == len(rows) else logits[torch.tensor(scored, device=logits.device)]
        counts = [rows[n].logprobs or 0 for n in scored]
        for n, count, (own, beside) in zip(
            scored, counts, scores(some, [tokens[n] for n in scored], max(counts)), strict=True
        ):
            rows[n].scores.append((own, beside[:count]))

    def _settle(self, one: Generation) -> None:
        """Whether the newest token ends an answer, and why. What asks the answer's own parts may fail, for it alone."""
        try:
            if (
                one.tokens[-1] in self.stops
                or (one.matcher is not None and one.matcher.wrote(one.tokens[-1]))
                or (one.complete is not None and one.complete(one.tokens))
            ):
                one.ended = "stop"
            elif len(one.tokens) >= one.most:
                one.ended = "length"
        except Exception as error:
            one.error = failure(error)

    def _leave(self, row: int) -> None:
        assert self._cache is not None
        self._cache.remove(row, clean=self.generations[row].error is not None)
        self.generations[row] = self.generations[-1]
        self.generations.pop()

    def _new_cache(self, state: DecodeState, joining: int) -> SlotCache | LockstepCache:
        """The cache for the model, told by the one that it filled."""
        if not joinable(state.cache):
            return LockstepCache()
        if self.tokens is None:
            columns = max(self._foreseen, state.mask.shape[1])
            self.slots = max(joining, min(self.slots, free_tokens(state) // columns))
        return SlotCache(self.slots, self._foreseen, self.tokens)


def failure(error: Exception) -> TuneloopError:
    """What went wrong in an answer, as the coded error of that answer."""
    if isinstance(error, TuneloopError):
        return error
    failed = ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])
    failed.__cause__ = error
    return failed


def free_tokens(state: DecodeState) -> int:
    """Keys and values of how many tokens the free memory takes."""
    tensors = [t for layer in state.cache.layers for t in (layer.keys, layer.values) if t is not None]
    token = sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)
    on_card = bool(tensors) and tensors[0].device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_card else psutil.virtual_memory().available
    return int(SHARE * free / max(1, token))
