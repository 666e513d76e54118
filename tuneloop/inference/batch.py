"""Answers that are written together: requests join while others are under way, and leave when they have ended.

It knows no text: requests are token ids. `generate.py` feeds it with the prompts of a file; a server's scheduler would
with those of its clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice

import psutil
import torch

from tuneloop.inference.decode import Decoder, DecodeState
from tuneloop.inference.sampling import Chooser, Sampling, choose
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
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    """Its share of the time of the passes it was in."""
    chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        self.chooser = Chooser(self.how, list(self.prompt))


class DecodeBatch:
    """The answers under way. Not for several threads at once.

    `slots` is how many there may be at most; there are fewer where the free memory takes fewer. `columns` is the
    longest prompt and answer together that is foreseen; a longer one costs a copy. `alone`: prompts are read one by
    one, for padding among them would be seen.
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
    ) -> None:
        self.decoder, self.stops, self.penalty, self.alone = decoder, stops, penalty, alone
        self.slots = slots
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
        logits = self.decoder.step(state)
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
        return self._chosen(self._cache.step(self.decoder, tokens), 0, began)

    def drop(self, generation: Generation) -> None:
        """Take an answer out before its end: nobody waits for it any more."""
        self._leave(self.generations.index(generation))

    def _chosen(self, logits: torch.Tensor, at: int, began: float) -> list[Generation]:
        """Give the rows from `at` on their next tokens; those that ended, in the order of the rows."""
        rows = self.generations[at:]
        tokens = choose(logits, [one.chooser for one in rows], self.penalty).tolist()
        seconds = (time.perf_counter() - began) / len(rows)
        for one, token in zip(rows, tokens, strict=True):
            one.tokens.append(token)
            one.seconds += seconds
        ended = [n for n, one in enumerate(rows, at) if self._over(one)]
        gone = [self.generations[n] for n in ended]
        for n in reversed(ended):
            self._leave(n)
        return gone

    def _over(self, one: Generation) -> bool:
        if one.tokens[-1] in self.stops or len(one.tokens) >= one.most:
            return True
        return one.complete is not None and one.complete(one.tokens)

    def _leave(self, row: int) -> None:
        assert self._cache is not None
        self._cache.remove(row)
        self.generations[row] = self.generations[-1]
        self.generations.pop()

    def _new_cache(self, state: DecodeState, joining: int) -> SlotCache | LockstepCache:
        """The cache for the model, told by the one that it filled."""
        if not joinable(state.cache):
            return LockstepCache()
        columns = max(self._foreseen, state.mask.shape[1])
        self.slots = max(joining, min(self.slots, _slots_for(state, columns)))
        return SlotCache(self.slots, self._foreseen)


def _slots_for(state: DecodeState, columns: int) -> int:
    """How many rows of so many columns the free memory takes."""
    tensors = [t for layer in state.cache.layers for t in (layer.keys, layer.values) if t is not None]
    token = sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)
    on_card = bool(tensors) and tensors[0].device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_card else psutil.virtual_memory().available
    return int(SHARE * free / max(1, token * columns))
