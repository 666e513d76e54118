"""Attention of packed rows on a graphics card: one kernel call a layer for all samples of a row, and no mask matrix.

Which kernel is chosen by what the card and the packages can do, never by hope: `choose` is a pure function of facts.
Where no kernel is known to hold, each sample is attended alone by torch's own attention, which runs anywhere.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Kernel = Literal["flash_attn", "torch_varlen", "flex", "segments"]
KERNELS: tuple[Kernel, ...] = ("flash_attn", "torch_varlen", "flex", "segments")
"""From the best to the one that always works. segments: torch's scaled_dot_product_attention, sample by sample."""
HALVES = (torch.float16, torch.bfloat16)
FLEX_LONGEST = 8192
"""Longest row for flex: while its block mask is worked out, the whole matrix exists (64 MiB at this length)."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a device and the installed packages can do. `capability` is CUDA's (8.0: Ampere); (0, 0) off CUDA."""

    capability: tuple[int, int]
    flash_attn: bool
    torch_varlen: bool
    triton: bool


@dataclass(frozen=True, slots=True)
class VarlenShape:
    """What is asked: the widths of a head's keys and values, the row's length, how many keys all samples share in front
    of it (prefix tuning), and dropout on the weights."""

    dtype: torch.dtype
    width: int
    value_width: int
    length: int
    prefix: int = 0
    dropout: float = 0.0


def choose(card: Card, shape: VarlenShape) -> Kernel:
    """The kernel for this shape on this card.

    flash-attn and torch's own varlen want Ampere, half precision, one width of at most 256 in steps of 8, and above 192
    a data-centre card for the backward pass. flex is compiled by Triton; its kernels overflow the shared memory of
    consumer cards above a width of 128 (64 in float32).

    >>> a100 = Card((8, 0), flash_attn=False, torch_varlen=True, triton=True)
    >>> [choose(a100, VarlenShape(dtype, 64, 64, 2048)) for dtype in (torch.bfloat16, torch.float32)]
    ['torch_varlen', 'flex']
    """
    if card.capability < (8, 0):
        return "segments"
    widest = 256 if card.capability in ((8, 0), (9, 0), (10, 0)) else 192
    one_width = shape.width == shape.value_width and shape.width % 8 == 0 and shape.width <= widest
    if shape.dtype in HALVES and one_width and not shape.prefix:
        if card.flash_attn:
            return "flash_attn"
        if card.torch_varlen and not shape.dropout:
            return "torch_varlen"
    widest = 128 if shape.dtype in HALVES else 64
    fits = min(shape.width, shape.value_width) >= 16 and max(shape.width, shape.value_width) <= widest
    if card.triton and fits and not shape.dropout and 128 <= shape.length <= FLEX_LONGEST:
        return "flex"
    return "segments"


@cache
def _flash() -> Callable[..., Any] | None:
    """flash_attn's function; None where the package is absent or was built for another torch."""
    try:
        function: Callable[..., Any] = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError, OSError):
        return None
    return function


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's own; None before it knew windows."""
    try:
        function: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if {"scale", "window_size"} <= _takes(function).keys() else None


@cache
def _takes(function: Callable[..., Any]) -> dict[str, Any]:
    return dict(inspect.signature(function).parameters)


@cache
def card(device: torch.device) -> Card:
    """What this device can do, asked once."""
    if device.type != "cuda" or torch.version.hip:
        return Card((0, 0), False, False, False)
    triton = importlib.util.find_spec("triton") is not None
    own = _varlen() is not None and torch.backends.cuda.is_flash_attention_available()  # a build may lack the kernels
    return Card(torch.cuda.get_device_capability(device), _flash() is not None, own, triton)


@cache
def _compiles(device: torch.device) -> bool:
    """Whether flex_attention can be compiled here: Triton wants a C compiler, which a bare image may not have.

    It is first asked where no gradient is: by the check of whether rows can be packed, or by a measurement.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            key = torch.ones(1, 1, 128, 16, device=device, requires_grad=True)
            by_flex(_compiled(), key, key, key, (100, 28), causal=True).sum().backward()
    except Exception:  # a compiler, an assembler, a header: each fails in its own way
        return False
    return True


@lru_cache(maxsize=8)
def bounds(segments: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Where the samples of a row begin and end, int32 [samples + 1], and the longest one's length.

    >>> bounds((3, 1, 2), torch.device("cpu"))
    (tensor([0, 3, 4, 6], dtype=torch.int32), 3)
    """
    ends = list(accumulate(segments, initial=0))
    return torch.tensor(ends, dtype=torch.int32, device=device), max(segments)


def reach(causal: bool, window: int | None) -> tuple[int, int]:
    """How many positions back and ahead are seen, -1 for all, as the kernels take it.

    A window counts the own position.

    >>> reach(True, None), reach(True, 5), reach(False, None), reach(False, 5)
    ((-1, 0), (4, 0), (-1, -1), (4, 4))
    """
    side = -1 if window is None else window - 1
    return side, 0 if causal else side


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[int, ...],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    kernel: Kernel | None = None,
) -> Tensor:
    """query [1, heads, length, width], key and value [1, kv heads, length, width] -> [1, length, heads, value width].

    Each of the samples, whose lengths are `segments`, sees only itself; and the keys that there are more than queries,
    which stand in front and which all samples see. `kernel` is for those who compare them.
    """
    shape = VarlenShape(
        query.dtype, query.shape[3], value.shape[3], query.shape[2], key.shape[2] - query.shape[2], dropout
    )
    if kernel is None:
        kernel = choose(card(query.device), shape)
        if kernel == "flex" and not _compiles(query.device):
            kernel = "segments"
    if kernel == "segments":
        return one_by_one(query, key, value, segments, causal=causal, scale=scale, window=window, dropout=dropout)
    if kernel == "flex":
        return by_flex(_compiled(), query, key, value, segments, causal=causal, scale=scale, window=window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    starts, longest = bounds(segments, query.device)
    if kernel == "torch_varlen":
        varlen = _varlen()
        assert varlen is not None
        grouped: dict[str, Any] = {}
        if (groups := q.shape[1] // k.shape[1]) > 1:
            if "enable_gqa" in _takes(varlen):
                grouped = {"enable_gqa": True}
            else:  # torch 2.11
                k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = varlen(
            q, k, v, starts, starts, longest, longest, scale=scale, window_size=reach(causal, window), **grouped
        )
    else:
        flash = _flash()
        assert flash is not None
        # Deterministic: else a resumed run would not be bit for bit the run that was never stopped.
        out = flash(
            q,
            k,
            v,
            starts,
            starts,
            longest,
            longest,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=causal,
            window_size=reach(causal, window),
            deterministic=True,
        )
    row: Tensor = out.unsqueeze(0)
    return row


def band(length: int, prefix: int, window: int | None, device: torch.device, causal: bool) -> Tensor:
    """Boolean [length, prefix + length], what a sample sees: the prefix stands before it, so a window counts it too.

    A window goes back, the own position counted; unless causal, as far ahead.
    """
    i, j = torch.arange(length, device=device)[:, None] + prefix, torch.arange(prefix + length, device=device)[None]
    seen = j <= i if causal else torch.ones(length, prefix + length, dtype=torch.bool, device=device)
    return seen if window is None else seen & ((i - j).abs() < window)


def of_one_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast in its type, as torch's own attention takes them: rotated queries are float32, values are not."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[int, ...],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `attend`, by torch's scaled_dot_product_attention for one sample after the other."""
    groups, prefix = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    (before_key, key), (before_value, value) = (x.split((prefix, query.shape[2]), 2) for x in (key, value))
    parts = []
    for q, k, v in zip(query.split(segments, 2), key.split(segments, 2), value.split(segments, 2), strict=True):
        length = q.shape[2]
        masked = (window is not None and length + prefix > window) or (causal and prefix > 0)
        if prefix:
            k, v = torch.cat([before_key, k], 2), torch.cat([before_value, v], 2)
        mask = band(length, prefix, window, q.device, causal) if masked else None
        only_back = causal and not masked and length > 1
        parts.append(
            scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, is_causal=only_back)
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    """flex_attention as one kernel, for any length of row."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


@lru_cache(maxsize=8)
def documents(segments: tuple[int, ...], causal: bool, window: int | None, prefix: int, device: torch.device) -> Any:
    """flex_attention's block mask: a position sees its own sample only, back alone if causal, and as far as the window.

    Blocks between samples are left out of the work altogether; the prefix is seen by all.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    length = sum(segments)
    lengths = torch.tensor(segments)
    samples = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    which = torch.cat([samples.new_full((prefix,), -1), samples]).to(device)
    start = torch.cat([starts.new_zeros(prefix), starts]).to(device)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        mine = (which[prefix + q] == which[k]) | (k < prefix)
        back = prefix + q - k
        back = back - torch.where(k < prefix, start[prefix + q], 0)  # each sample has the prefix right before it
        if causal:
            mine = mine & (back >= 0)
        if window is not None:
            mine = mine & (back < window) & (-back < window)
        return mine

    return create_block_mask(seen, None, None, length, prefix + length, device=str(device))


def by_flex(
    flex: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[int, ...],
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """As `attend`, by flex_attention: the compiled one on a card, the plain one as its twin on a CPU."""
    mask = documents(segments, causal, window, key.shape[2] - query.shape[2], query.device)
    out: Tensor = flex(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous()
