"""Keys and values of prompts that were read, for prompts that begin alike: a system prompt, the turns before.

What a token's keys and values are depends on it and on those before it, and on the adapter: nothing else. So the
longest common beginning of token ids is taken over, and only the rest is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tuneloop.inference.slots import cache_of

LEAST = 16
"""Tokens that two prompts must share: fewer are read as fast as they are taken over."""

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values [1, heads, tokens, width] of each layer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Prefix:
    ids: np.ndarray
    adapter: int
    """The serial number of the adapter it was read through; 0 without one."""
    layers: Layers


def common(one: np.ndarray, two: np.ndarray) -> int:
    """How many token ids two prompts have in common from the first on.

    >>> common(np.array([5, 6, 7]), np.array([5, 6, 9, 7]))
    2
    """
    size = min(len(one), len(two))
    differ = np.flatnonzero(one[:size] != two[:size])
    return int(differ[0]) if len(differ) else size


class PrefixStore:
    """The prompts used last, `tokens` of them together at most. Not for several threads at once."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._prefixes: list[_Prefix] = []
        """The one used last is the last."""

    def __len__(self) -> int:
        return sum(len(one.ids) for one in self._prefixes)

    def find(self, prompt: np.ndarray, adapter: int) -> int:
        """How many of a prompt's first tokens are at hand, never all of them."""
        return self._best(prompt, adapter)[0]

    def longest(self, prompt: np.ndarray, adapter: int) -> tuple[int, DynamicCache | None]:
        """How many of a prompt's first tokens are at hand, and a cache of its own that holds them."""
        count, best = self._best(prompt, adapter)
        if not count:
            return 0, None
        self._prefixes.append(self._prefixes.pop(best))
        layers: list[CacheLayerMixin] = []
        for keys, values in self._prefixes[-1].layers:
            layer = DynamicLayer()
            # Views: what is read next is joined to them in memory of its own.
            layer.keys, layer.values = keys[:, :, :count], values[:, :, :count]
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layers.append(layer)
        return count, cache_of(layers)

    def _best(self, prompt: np.ndarray, adapter: int) -> tuple[int, int]:
        """The longest beginning at hand, and the number of the prompt that has it."""
        counts = [common(one.ids, prompt) if one.adapter == adapter else 0 for one in self._prefixes]
        best = max(range(len(counts)), key=lambda n: (counts[n], n), default=-1)
        count = min(counts[best], len(prompt) - 1) if counts else 0
        return (count, best) if count >= LEAST else (0, -1)

    def put(self, ids: Sequence[int], adapter: int, layers: Layers) -> None:
        """Note a prompt that was read; of one that is longer than all memory for them, its beginning."""
        prompt = np.asarray(ids[: self.tokens])
        if len(prompt) < LEAST:
            return
        counts = [common(one.ids, prompt) if one.adapter == adapter else 0 for one in self._prefixes]
        if any(count == len(prompt) for count in counts):
            return
        if len(prompt) < len(ids):
            layers = [(k[:, :, : len(prompt)].clone(), v[:, :, : len(prompt)].clone()) for k, v in layers]
        covered = [count == len(one.ids) for count, one in zip(counts, self._prefixes, strict=True)]
        self._prefixes = [one for one, within in zip(self._prefixes, covered, strict=True) if not within]
        self._prefixes.append(_Prefix(prompt, adapter, layers))
        while len(self) > self.tokens:
            self._prefixes.pop(0)
