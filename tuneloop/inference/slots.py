"""Keys and values of answers that are written together, in memory set aside once: rows come and go, nothing is joined.

All rows end in the same column, so a step writes one column in place, and distances between columns are distances
between tokens: a sliding window means what it means in the model. A row that is shorter than another has unread columns
before it.

    slot 0   . . . p p p p a a |
    slot 1   p p p p p p p p a |      p prompt, a answer, | the column that is written next
    slot 2   . . . . . . p p p |      joined last
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from tuneloop.inference.decode import Decoder, DecodeState

SLACK = 64
"""Columns behind the longest row: so many steps go by before the columns are moved to the front."""


class _Columns:
    """The columns in use, the same in all layers: rows lie in begin to end, and end is written next."""

    def __init__(self) -> None:
        self.begin = self.end = 0


class _Layer(CacheLayerMixin):
    """One layer's keys and values [slots, heads, columns, width], as transformers asks for them."""

    is_sliding = False

    def __init__(self, columns: _Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: `SlotCache` reserves the memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values; all of the rows' in return."""
        assert self.keys is not None
        assert self.values is not None
        rows, end = len(key_states), self.columns.end + key_states.shape[2]
        self.keys[:rows, :, self.columns.end : end] = key_states
        self.values[:rows, :, self.columns.end : end] = value_states
        span = slice(self.columns.begin, end)
        return self.keys[:rows, :, span], self.values[:rows, :, span]

    def get_seq_length(self) -> int:
        """Columns in use before the new ones."""
        return self.columns.end - self.columns.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns in use with the new ones, the first of them)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def reserve(self, like: CacheLayerMixin, size: tuple[int, int], rows: int, moved: tuple[slice, slice]) -> None:
        """Make room for `size` slots and columns; what `rows` hold in the first of two spans goes to the second."""
        self.keys = self._grown(self.keys, like.keys, size, rows, moved)
        self.values = self._grown(self.values, like.values, size, rows, moved)
        self.is_initialized = True

    @staticmethod
    def _grown(
        old: Tensor | None, like: Tensor | None, size: tuple[int, int], rows: int, moved: tuple[slice, slice]
    ) -> Tensor | None:
        if like is None:
            return None
        source, target = moved
        if old is not None and (old.shape[0], old.shape[2]) == size:
            if source != target:
                old[:rows, :, target] = old[:rows, :, source].clone()
            return old
        # Zeros, for what is never read must still be a number: nothing times no number is none.
        fresh = _zeros(like, size[0], like.shape[1], size[1], like.shape[3])
        if old is not None:
            fresh[:rows, :, target] = old[:rows, :, source]
        return fresh


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of a tensor's type, on its device. On a CPU the system gives the memory when a page is first written, so
    setting aside what is not needed yet takes no time and no memory: in small pages, for a large one holds many rows.

    >>> _zeros(torch.ones(1, dtype=torch.bfloat16), 2, 3).sum().item()
    0.0
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(1, math.prod(shape) * like.element_size()), **own)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=math.prod(shape)).view(shape)


def joinable(cache: Any) -> bool:
    """Whether a cache is keys and values a token and no more, so that rows of it may be taken out and joined."""
    layers = getattr(cache, "layers", None)
    if type(cache).__name__ != "DynamicCache" or not layers:
        return False
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) and all(
        t.ndim == 4 for t in tensors
    )


def cache_of(layers: Sequence[CacheLayerMixin]) -> DynamicCache:
    """A cache of these layers, each the keys and values of all its tokens: any beginning of it may be taken over."""
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache


class SlotCache:
    """The rows of a batch in slots, the first ones in use. `columns` is the longest row foreseen, prompt and answer.

    Without `tokens` all slots are there from the start; with it memory grows by need (on a CPU page by page), and slots
    times columns are no more than so many unless the rows themselves are.
    """

    def __init__(self, slots: int, columns: int = 0, tokens: int | None = None) -> None:
        self.slots, self.foreseen, self.tokens = slots, columns, tokens
        self.lengths: list[int] = []
        """Tokens of each row in the cache, virtual ones counted."""
        self.places: list[int] = []
        """The position of each row's next token."""
        self._columns = _Columns()
        self._layers: list[_Layer] = []
        self._size = (0, 0)
        """Slots and columns in memory."""

    def add(self, state: DecodeState) -> None:
        """Take in the rows of a state whose step has been made, behind those that are here."""
        mask = state.mask.bool().cpu()
        seen = [row.nonzero().squeeze(-1) for row in mask]
        longest = max(len(one) for one in seen)
        self._make_room(state.cache.layers, len(seen), longest)
        for n, one in enumerate(seen):
            self._copy(state, n, one, mask.shape[1])
            self.lengths.append(len(one))
            self.places.append(int(state.positions[n, -1]) + 1)
        self._columns.begin = self._columns.end - max(self.lengths)

    def _copy(self, state: DecodeState, row: int, seen: Tensor, width: int) -> None:
        """Lay what a row of a state has seen, columns of `width`, into the next slot."""
        slot, end = len(self.lengths), self._columns.end
        for mine, theirs in zip(self._layers, state.cache.layers, strict=True):
            for name in ("keys", "values"):
                source, target = getattr(theirs, name), getattr(mine, name)
                if source is None:
                    continue
                # A layer with a window has its last columns only; no later token looks at those before.
                shown = seen - (width - source.shape[2])
                shown = shown[shown >= 0].to(source.device)
                if int(shown[-1]) - int(shown[0]) + 1 == len(shown):
                    target[slot, :, end - len(shown) : end] = source[row, :, int(shown[0]) : int(shown[-1]) + 1]
                else:
                    target[slot, :, end - len(shown) : end] = source[row].index_select(1, shown)

    def remove(self, row: int, *, clean: bool = False) -> None:
        """Give a slot back: the last row moves into it. `clean` where it may hold what is no number."""
        last, end = len(self.lengths) - 1, self._columns.end
        span = slice(end - self.lengths[last], end)
        for tensor in (t for layer in self._layers for t in (layer.keys, layer.values) if t is not None):
            if clean:
                tensor[row] = 0
            if row != last:
                tensor[row, :, span] = tensor[last, :, span]
        for column in (self.lengths, self.places):
            column[row] = column[last]
            column.pop()
        self._columns.begin = end - max(self.lengths, default=0)

    def step(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """tokens int64 [rows], the newest of each -> logits [rows, vocabulary] of the next."""
        self._make_room(self._layers, 0, 0)
        logits = self._quick(decoder, tokens) if decoder.quick is not None else self._own(decoder, tokens)
        self._columns.end += 1
        self.lengths = [n + 1 for n in self.lengths]
        self.places = [n + 1 for n in self.places]
        return logits

    def _quick(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """The step without the model's modules; with them where a window is longer than was tried."""
        begin, end, rows = self._columns.begin, self._columns.end + 1, len(self.lengths)
        assert decoder.quick is not None
        if end - begin > decoder.quick.longest:
            return self._own(decoder, tokens)
        pairs = [(layer.keys, layer.values) for layer in self._layers]
        memory = [(k[:rows, :, begin:end], v[:rows, :, begin:end]) for k, v in pairs if k is not None and v is not None]
        before = [end - 1 - begin - n for n in self.lengths]
        adapted = rows if decoder.adapted else 0
        return decoder.quick(tokens, torch.tensor(self.places, device=tokens.device), before, memory, adapted)

    def _own(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        span, device = self._columns.end - self._columns.begin, tokens.device
        before = span - torch.tensor(self.lengths, device=device)
        mask = (torch.arange(span + 1, device=device) >= before[:, None]).long()
        positions = torch.tensor(self.places, device=device).unsqueeze(-1)
        return decoder.step(
            DecodeState(Cache(layers=[*self._layers]), mask, positions, {"input_ids": tokens.unsqueeze(-1)})
        )

    def _make_room(self, layers: Sequence[CacheLayerMixin], joining: int, longest: int) -> None:
        """Room for so many more rows, of `longest` columns before the end, and for one column behind it."""
        columns, rows = self._columns, len(self.lengths)
        if rows + joining <= self._size[0] and longest <= columns.end < self._size[1]:
            return
        span = columns.end - columns.begin
        end = max(span, longest)
        if end >= self._size[1] or rows + joining > self._size[0]:
            device = next(x.keys.device.type for x in layers if x.keys is not None)
            self._size = self._sized(rows + joining, max(end, self.foreseen) + SLACK, device)
        if not self._layers:
            self._layers = [_Layer(columns) for _ in layers]
        moved = slice(columns.begin, columns.end), slice(end - span, end)
        for mine, theirs in zip(self._layers, layers, strict=True):
            mine.reserve(theirs, self._size, rows, moved)
        columns.begin, columns.end = end - span, end

    def _sized(self, rows: int, columns: int, device: str) -> tuple[int, int]:
        """Slots and columns to set aside for so many rows of so many columns; all slots where that costs nothing, so
        that nobody waits for the memory of those who come later."""
        if self.tokens is None:
            return self.slots, columns
        most = self.slots if device == "cpu" else 1 << (rows - 1).bit_length()
        return max(rows, min(self.slots, most, self.tokens // columns)), columns


class LockstepCache:
    """Rows that come together and stay to the end, in the model's own cache: for models that hold more than keys and
    values. What has ended goes along unread."""

    def __init__(self) -> None:
        self._state: DecodeState | None = None
        self._live: list[int] = []

    def add(self, state: DecodeState) -> None:
        """Take in the rows of a state whose step has been made; there are no others."""
        assert not self._live
        self._state, self._live = state, list(range(len(state.mask)))

    def remove(self, row: int, *, clean: bool = False) -> None:
        """Read a row no more: the last one takes its place."""
        self._live[row] = self._live[-1]
        self._live.pop()

    def step(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """tokens int64 [rows], the newest of each -> logits [rows, vocabulary] of the next."""
        assert self._state is not None
        live = torch.tensor(self._live, device=tokens.device)
        every = tokens.new_zeros(len(self._state.mask))
        every[live] = tokens
        self._state = decoder.extended(self._state, every)
        return decoder.step(self._state)[live]
