"""Attention of packed rows on a CPU: a few batched products over tiles of queries, each with the keys it may see.

A tile is a run of queries, across samples; its keys reach from where the first query's sample begins to the last query.
So the number of products does not grow with the number of samples, and little is multiplied that no query sees. Tiles
with about as many keys go into one product. The backward pass computes the weights again instead of keeping them: they
are the only thing that grows with the square of the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TILE = 64
"""Queries of a tile."""
SCORES = 1 << 19
"""Scores of all heads that one product may make: 2 MiB, which stay in the cache."""
aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Tiles that share a product: those at first … last - 1 of the cut's order, with as many keys each.

    keys int64 [tiles x kv heads x width]: rows of the keys' matrix; mask float [tiles, 1, queries, width] adds 0 where
    a query sees a key, else -inf; spans: what of the keys is whose, (first key, one behind the last) of each tile.
    """

    first: int
    last: int
    width: int
    keys: Tensor
    mask: Tensor
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """How a row is cut into tiles. gather int64 [tiles x kv heads x TILE]: where each query of the tiles lies.

    scatter int64 [length x kv heads] leads back. The matrices have a row for each position and kv head, in this order.
    """

    length: int
    prefix: int
    shared: int
    group: int
    gather: Tensor
    scatter: Tensor
    batches: tuple[TileBatch, ...]


@lru_cache(maxsize=4)
def cut_row(segments: tuple[int, ...], shared: int, group: int, prefix: int, causal: bool, window: int | None) -> Cut:
    """The tiles of a row of samples of these lengths; `shared` kv heads with `group` query heads each."""
    lengths = torch.tensor(segments)
    ends = lengths.cumsum(0)
    sample = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    begin, end = (ends - lengths)[sample], ends[sample]
    total = len(sample)
    spans = []
    for first in range(0, total, TILE):
        last = min(first + TILE, total)
        low, high = int(begin[first]), last if causal else int(end[last - 1])
        if window is not None:
            low = max(low, first - window + 1)
        spans.append((low, high))
    order = sorted(range(len(spans)), key=lambda n: spans[n][0] - spans[n][1])
    heads = torch.arange(shared)
    places = (torch.tensor(order)[:, None] * TILE + torch.arange(TILE)).clamp(max=total - 1)
    gather = (places[:, None] * shared + heads[:, None]).flatten()
    slot = torch.empty(len(order), dtype=torch.int64)
    slot[torch.tensor(order)] = torch.arange(len(order))
    at = torch.arange(total)
    scatter = ((slot[at // TILE][:, None] * shared + heads) * TILE + (at % TILE)[:, None]).flatten()
    batches = []
    first = 0
    while first < len(order):
        width = prefix + spans[order[first]][1] - spans[order[first]][0]
        last = min(len(order), first + max(1, SCORES // (shared * group * TILE * width)))
        batches.append(_batch(order, spans, first, last, width, places, sample, prefix, shared, group, causal, window))
        first = last
    return Cut(total, prefix, shared, group, gather, scatter, tuple(batches))


def _batch(
    order: list[int],
    spans: list[tuple[int, int]],
    first: int,
    last: int,
    width: int,
    places: Tensor,
    sample: Tensor,
    prefix: int,
    shared: int,
    group: int,
    causal: bool,
    window: int | None,
) -> TileBatch:
    own = tuple(spans[n] for n in order[first:last])
    low, high = torch.tensor(own).T[..., None]
    key = torch.arange(width)[None] - prefix
    position = (low + key).clamp(max=len(sample) - 1)
    there = (low + key < high) & (key >= 0)
    query, seen = places[first:last, :, None], position[:, None]
    visible = there[:, None] & (sample[query] == sample[seen.clamp(min=0)])
    if causal:
        visible &= seen <= query
    if window is not None:
        visible &= (query - seen).abs() < window
    front = (key < 0)[:, None].expand_as(visible)
    if window is not None:  # the prefix has the positions right before each sample's first
        front = front & (query - torch.searchsorted(sample, sample)[query] - key[:, None] < window)
    visible |= front
    mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    rows = torch.where(key < 0, key.expand(len(own), -1), position) + prefix
    keys = (rows[:, None] * shared + torch.arange(shared)[:, None]).flatten()
    return TileBatch(first, last, width, keys, mask.repeat_interleave(group, 1).unsqueeze(1), own)


def _weights(cut: Cut, batch: TileBatch, rows: Tensor, keys: Tensor) -> Tensor:
    scores = torch.bmm(rows, keys.transpose(1, 2))
    scores.view(-1, cut.shared, *scores.shape[1:]).add_(batch.mask)
    return torch.softmax(scores, -1)


def _tiled(cut: Cut, query: Tensor) -> Tensor:
    """[length, heads x width] -> [tiles x kv heads, TILE x group, width]."""
    wide = query.shape[1] // cut.shared
    rows = query.reshape(-1, wide).index_select(0, cut.gather)
    return rows.view(-1, TILE * cut.group, wide // cut.group)


def _natural(cut: Cut, rows: Tensor) -> Tensor:
    """The way back from `_tiled`."""
    return rows.view(-1, cut.group * rows.shape[-1]).index_select(0, cut.scatter).view(cut.length, -1)


def _picked(cut: Cut, batch: TileBatch, matrix: Tensor) -> Tensor:
    """[prefix + length, kv heads x width] -> what each tile sees of it, [tiles x kv heads, keys, width]."""
    width = matrix.shape[1] // cut.shared
    return matrix.reshape(-1, width).index_select(0, batch.keys).view(-1, batch.width, width)


def attend_forward(cut: Cut, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [length, heads x width], already scaled; key, value [prefix + length, kv heads x width] -> as query.

    Values may be of another width than keys; the result is of theirs.
    """
    rows = _tiled(cut, query)
    out = rows.new_empty(*rows.shape[:2], value.shape[1] // cut.shared)
    for batch in cut.batches:
        at = slice(batch.first * cut.shared, batch.last * cut.shared)
        weights = _weights(cut, batch, rows[at], _picked(cut, batch, key))
        torch.bmm(weights, _picked(cut, batch, value), out=out[at])
    return _natural(cut, out)


def attend_backward(cut: Cut, query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, for the same arguments and the gradient of the result."""
    rows, back = _tiled(cut, query), _tiled(cut, grad)
    _silence(cut, back)
    to_rows, to_key, to_value = torch.empty_like(rows), torch.zeros_like(key), torch.zeros_like(value)
    for batch in cut.batches:
        at = slice(batch.first * cut.shared, batch.last * cut.shared)
        keys = _picked(cut, batch, key)
        weights = _weights(cut, batch, rows[at], keys)
        _spread(cut, batch, torch.bmm(weights.transpose(1, 2), back[at]), to_value)
        inner = torch.bmm(back[at], _picked(cut, batch, value).transpose(1, 2))
        inner = aten._softmax_backward_data(inner, weights, -1, weights.dtype)
        torch.bmm(inner, keys, out=to_rows[at])
        _spread(cut, batch, torch.bmm(inner.transpose(1, 2), rows[at]), to_key)
    return _natural(cut, to_rows), to_key, to_value


def _silence(cut: Cut, back: Tensor) -> None:
    """The last tile is filled up with queries that are none: nothing flows back from them."""
    if over := -cut.length % TILE:
        last = int(cut.scatter[-1]) // (TILE * cut.shared)
        back.view(-1, cut.shared, TILE, cut.group * back.shape[-1])[last, :, TILE - over :] = 0


def _spread(cut: Cut, batch: TileBatch, own: Tensor, total: Tensor) -> None:
    """Add what the tiles' keys got, [tiles x kv heads, keys, width], to the row's keys."""
    matrix = total.view(len(total), cut.shared, -1)
    each = own.view(-1, cut.shared, batch.width, own.shape[-1]).transpose(1, 2)
    for (low, high), mine in zip(batch.spans, each, strict=True):
        matrix[cut.prefix + low : cut.prefix + high] += mine[cut.prefix : cut.prefix + high - low]
    if cut.prefix:
        matrix[: cut.prefix] += each[:, : cut.prefix].sum(0)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, cut: Cut, scale: float) -> Tensor:
        query = query * scale
        ctx.save_for_backward(query, key, value)
        ctx.cut, ctx.scale = cut, scale
        return attend_forward(cut, query, key, value)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        to_query, to_key, to_value = attend_backward(ctx.cut, query, key, value, outputs[0].contiguous())
        return to_query.mul_(ctx.scale), to_key, to_value, None, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[int, ...],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """query [heads, length, width], key and value [kv heads, prefix + length, width] -> [length, heads, width].

    Each sample sees itself, and every sample the prefix that the keys have more than the queries.
    """
    heads, length, _ = query.shape
    shared = key.shape[0]
    cut = cut_row(segments, shared, heads // shared, key.shape[1] - length, causal, window)
    flat = (x.transpose(0, 1).reshape(x.shape[1], -1) for x in (query, key, value))
    out: Tensor = _Attend.apply(*flat, cut, scale)  # type: ignore[no-untyped-call]
    return out.view(length, heads, -1)
