"""Which work the model does next, for answers that come at any time: a chunk of a prompt, or a token of each answer.

A long prompt is read in chunks, and between two of them every answer under way gets its token. Prompts take turns, so a
short one does not wait for a long one. Short ones that come together are read together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.inference.batch import MOST, PREFILL, DecodeBatch, Generation, failure, free_tokens
from tuneloop.inference.decode import Decoder, DecodeState
from tuneloop.inference.fast_step import fast_step
from tuneloop.inference.prefixes import PrefixStore, common
from tuneloop.inference.row_adapters import RowAdapters
from tuneloop.inference.sampling import scores
from tuneloop.inference.slots import cache_of, joinable
from tuneloop.model.backbone import virtual_tokens
from tuneloop.model.vocabulary import rows

CHUNK = 256
"""Tokens of prompts, padding included, that are read between two steps."""
FOLLOWS = 64
"""Tokens that a prompt must share with one that is being read to wait for it."""
STORED = 8
"""The 1 in so many keys and values that may be those of prompts read before."""


@dataclass(slots=True, eq=False)
class _Reading:
    """Prompts that are read together, or one that is read in chunks."""

    generations: list[Generation]
    ids: np.ndarray
    """The first one's prompt."""
    leader: _Reading | None = None
    """The reading whose prompt begins as this one does: what that has read need not be read twice."""
    state: DecodeState | None = None
    at: int = 0
    """Tokens of the prompt that were read."""
    done: bool = False


class Scheduler:
    """Answers that come, are written together and go. For one thread.

    `stops` are the end tokens, `penalty` the model's repetition penalty, `slots` how many answers are written at once
    at most. `cache_tokens` is how many keys and values there may be, rows times the longest row of prompt and answer
    (None: what the free memory takes); what does not fit waits, in its order. `alone`: prompts are read one by one.
    `chunk`: tokens of prompts, padding included, that are read between two steps. `prefix_tokens` is how many keys and
    values of prompts read before are at hand (None: a share of `cache_tokens`).
    """

    def __init__(
        self,
        decoder: Decoder,
        stops: frozenset[int] | set[int],
        *,
        penalty: float = 1.0,
        slots: int = MOST,
        cache_tokens: int | None = None,
        alone: bool = False,
        adapters: RowAdapters | None = None,
        chunk: int = CHUNK,
        prefix_tokens: int | None = None,
    ) -> None:
        self.decoder, self.adapters, self.alone = decoder, adapters, alone
        self._vocabulary, self._virtual = rows(decoder.model), virtual_tokens(decoder.model)
        if decoder.quick is None:
            decoder.quick = fast_step(decoder.base)
        first = decoder.prefill([[0]], pad=0)
        decoder.step(first)  # what a token's keys and values take is seen in those of one
        self._joinable = joinable(first.cache)
        self.chunk = chunk if self._joinable else PREFILL
        self.cache_tokens = free_tokens(first) if cache_tokens is None else cache_tokens
        stored = self.cache_tokens // STORED if prefix_tokens is None else prefix_tokens
        self.prefixes = PrefixStore(stored) if stored and self._joinable and not self._virtual else None
        self.batch = DecodeBatch(
            decoder,
            stops,
            penalty=penalty,
            slots=slots,
            alone=alone,
            tokens=self.cache_tokens,
            guarded=True,
            adapters=adapters,
        )
        self._waiting: deque[Generation] = deque()
        self._readings: deque[_Reading] = deque()
        self._over: list[Generation] = []
        """Those that ended outside a pass; the next step tells."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._readings or self.batch.generations or self._over)

    @property
    def waiting(self) -> int:
        """Answers that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that have a slot, those whose prompts are being read counted."""
        return len(self.batch.generations) + sum(len(one.generations) for one in self._readings)

    def add(self, generation: Generation) -> None:
        """Let an answer wait for its turn. One that cannot be has its error, and is among those of the next step."""
        generation.error = self._fault(generation)
        if generation.error is None and generation.most <= 0 and not _scored(generation):
            generation.ended = "length"
        (self._over if generation.over else self._waiting).append(generation)

    def drop(self, generation: Generation) -> None:
        """Forget an answer, wherever it is: nobody waits for it any more."""
        if generation in self._waiting:
            self._waiting.remove(generation)
        elif generation in self.batch.generations:
            self.batch.drop(generation)
        for reading in self._readings:
            if generation in reading.generations:
                reading.generations.remove(generation)
                reading.done = not reading.generations
        self._readings = deque(one for one in self._readings if not one.done)

    def step(self) -> list[Generation]:
        """A token for each answer under way, and a chunk of a prompt. The answers that got a token, ended or failed."""
        self._fail_without_adapter()
        changed, self._over = self._over, []
        changed += self._write()
        self._admit()
        return changed + self._read()

    def _fault(self, one: Generation) -> TuneloopError | None:
        """Why an answer cannot be."""
        size, context, tokens = len(one.prompt), self.decoder.context, len(one.prompt) + max(0, one.most)
        if not size:
            return ServeError("TL-SERVE-REQUEST", where="prompt", param="prompt", error="it has no tokens")
        if size > context or (size == context and one.most > 0):
            return ServeError("TL-SERVE-CONTEXT", tokens=size, context=context)
        if tokens > context:
            return ServeError("TL-SERVE-ROOM", tokens=size, left=context - size, wanted=one.most, context=context)
        if (bad := next((i for i in one.prompt if not 0 <= i < self._vocabulary), None)) is not None:
            return ServeError("TL-SERVE-TOKEN", token=str(bad), id=bad, rows=self._vocabulary, tokens=self._vocabulary)
        if (bad := next((i for i, _ in one.how.logit_bias if not 0 <= i < self._vocabulary), None)) is not None:
            fault = f"{bad} is no token id; there are {self._vocabulary}"
            return ServeError("TL-SERVE-REQUEST", where="logit_bias", param="logit_bias", error=fault)
        return self._adapter_fault(one)

    def _adapter_fault(self, one: Generation) -> TuneloopError | None:
        names = () if self.adapters is None else self.adapters.names
        if one.adapter is None or one.adapter in names:
            return None
        return ServeError("TL-SERVE-MODEL", where="model", param="model", got=one.adapter, known=", ".join(names))

    def _fail_without_adapter(self) -> None:
        """End the answers whose adapter was unloaded."""
        for one in [*self._waiting, *self._under_way()]:
            if (fault := self._adapter_fault(one)) is not None:
                self.drop(one)
                one.error = fault
                self._over.append(one)

    def _write(self) -> list[Generation]:
        written = list(self.batch.generations)
        try:
            self.batch.step()
        except Exception as error:
            # The pass itself failed, and none of the answers in it is known to be the reason.
            for one in written:
                one.error = one.error or failure(error)
            self.batch.clear()
        return written

    def _admit(self) -> None:
        """Give slots to those that wait, in their order, while there are slots and room for keys and values."""
        while self._waiting and self.running < self.batch.slots and self._fits(self._waiting[0]):
            one = self._waiting.popleft()
            ids = np.asarray(one.prompt)
            leader = next((r for r in self._readings if self._follows(one, ids, r)), None)
            last = self._readings[-1] if self._readings else None
            if leader is None and last is not None and self._joins(one, ids, last):
                last.generations.append(one)
            else:
                self._readings.append(_Reading([one], ids, leader))
        if longest := max(map(self._need, self._under_way()), default=0):
            self.batch.foresee(longest)

    def _under_way(self) -> Iterator[Generation]:
        return chain(self.batch.generations, *(one.generations for one in self._readings))

    def _need(self, one: Generation) -> int:
        return len(one.prompt) + max(0, one.most) + self._virtual

    def _serial(self, one: Generation) -> int:
        return 0 if self.adapters is None else self.adapters.serial(one.adapter)

    def _fits(self, one: Generation) -> bool:
        """Whether there is room for one more: alone there always is."""
        if not self.running:
            return True
        if not self._joinable:
            return not self.batch.generations and self._joins(one, np.asarray(one.prompt), self._readings[-1])
        longest = max(self._need(one), *map(self._need, self._under_way()))
        return (self.running + 1) * longest <= self.cache_tokens

    def _follows(self, one: Generation, ids: np.ndarray, reading: _Reading) -> bool:
        """Whether a prompt waits for one that is being read, to take over what both begin with."""
        if self.prefixes is None or _scored(one) or one.adapter != reading.generations[0].adapter:
            return False
        return common(ids, reading.ids[: self.prefixes.tokens]) >= FOLLOWS

    def _joins(self, one: Generation, ids: np.ndarray, reading: _Reading) -> bool:
        """Whether a prompt is read in one pass with others that wait to be read."""
        every = [*reading.generations, one]
        if self.alone or reading.state is not None or reading.leader is not None or any(map(_scored, every)):
            return False
        if len(every) * max(len(each.prompt) for each in every) > self.chunk:
            return False
        return self.prefixes is None or not self.prefixes.find(ids, self._serial(one))

    def _read(self) -> list[Generation]:
        """The next chunk of the reading whose turn it is; the answers that got their first token with it, or failed."""
        turn = next((one for one in self._readings if one.leader is None or one.leader.done), None)
        if turn is None:
            return []
        self._readings.remove(turn)
        began = time.perf_counter()
        try:
            logits = self._chunk(turn)
            if turn.at < len(turn.generations[0].prompt):
                turn.generations[0].seconds += time.perf_counter() - began
                self._readings.append(turn)
                return []
            self._begin(turn, logits, began)
        except Exception as error:
            if len(turn.generations) > 1 and not any(one in self.batch.generations for one in turn.generations):
                # One of them may be the reason: each is read alone.
                singly = [_Reading([one], np.asarray(one.prompt)) for one in turn.generations]
                self._readings.extendleft(reversed(singly))
                turn.done = True
                return []
            for one in turn.generations:
                if one in self.batch.generations:
                    self.batch.drop(one)
                one.error = one.error or failure(error)
        turn.done = True
        return turn.generations

    def _chunk(self, reading: _Reading) -> Tensor:
        """Read on: logits [rows, vocabulary] behind what was read."""
        first, start = reading.generations[0], reading.at
        state = self._state(reading)
        with self.batch.rows_of(reading.generations):
            if _scored(first):
                every = self.decoder.logits(state, reading.at - start)
                self._score(first, every[0], start)
                logits = every[:, -1]
            else:
                logits = self.decoder.step(state)
        reading.state = state
        return logits

    def _state(self, reading: _Reading) -> DecodeState:
        """The state before the pass that reads on, up to `reading.at`."""
        group, pad = reading.generations, next(iter(self.batch.stops), 0)
        if len(group) > 1:
            reading.at = len(group[0].prompt)
            return self._fresh([one.prompt for one in group], pad)
        one, state = group[0], reading.state
        if state is None and self.prefixes is not None and not _scored(one):
            one.reused, cache = self.prefixes.longest(reading.ids, self._serial(one))
            if cache is not None:
                device = next(self.decoder.model.parameters()).device
                reading.at = one.reused
                held = torch.ones(1, one.reused, dtype=torch.long, device=device)
                state = DecodeState(cache, held, held[:, -1:] * (one.reused - 1), {})
        start, reading.at = reading.at, min(len(one.prompt), reading.at + self.chunk)
        if state is None:
            return self._fresh([one.prompt[: reading.at]], pad)
        return self.decoder.extended(state, state.mask.new_tensor([list(one.prompt[start : reading.at])]))

    def _fresh(self, prompts: list[Sequence[int]], pad: int) -> DecodeState:
        """The state before the first pass over prompts, in a cache of which any beginning may be taken over."""
        state = self.decoder.prefill(prompts, pad=pad)
        if self.prefixes is None:
            return state
        cache = cache_of([DynamicLayer() for _ in state.cache.layers])
        return replace(state, cache=cache)

    @staticmethod
    def _score(one: Generation, logits: Tensor, start: int) -> None:
        """Note the scores of a prompt's tokens, whose logits [tokens, vocabulary] stand one place before each."""
        if not one.prompt_scores:
            one.prompt_scores.append((None, []))
        targets = one.prompt[start + 1 : start + 1 + len(logits)]
        if targets:
            one.prompt_scores += scores(logits[: len(targets)], targets, one.logprobs or 0)

    def _begin(self, reading: _Reading, logits: Tensor, began: float) -> None:
        """Let answers begin whose prompts were read, and keep their keys and values at hand."""
        state, group = reading.state, reading.generations
        assert state is not None
        if group[0].most <= 0:
            group[0].ended = "length"
            group[0].seconds += time.perf_counter() - began
        else:
            self.batch.take(state, logits, group, began)
        if self.prefixes is None:
            return
        for n, one in enumerate(group):
            if one.error is None:
                size = len(one.prompt)
                each = [(x.keys[n : n + 1, :, -size:], x.values[n : n + 1, :, -size:]) for x in state.cache.layers]
                if len(group) > 1:  # a view would hold the whole pass in memory
                    each = [(keys.clone(), values.clone()) for keys, values in each]
                self.prefixes.put(one.prompt, self._serial(one), each)


def _scored(one: Generation) -> bool:
    """Whether the tokens of a prompt are scored: all of it is read then, alone."""
    return one.echo and one.logprobs is not None
