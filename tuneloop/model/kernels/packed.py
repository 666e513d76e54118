"""Attention over packed rows: each sample sees only itself, and no mask matrix is multiplied.

Registered with transformers as "tuneloop". Rows that carry `segments` are attended sample by sample; anything else goes
to transformers' own SDPA. transformers still builds its packed mask from the restarting positions, so a model that does
not hand `segments` down is slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuneloop.model.kernels import varlen
from tuneloop.model.kernels.tiles import attend

NAME = "tuneloop"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a layer wants its packed rows attended."""

    scale: float | None
    window: int | None
    causal: bool


_HEARD: list[list[Asked]] = []


@contextmanager
def listening() -> Iterator[list[Asked]]:
    """What layers ask for inside the block, in turn."""
    _HEARD.append([])
    try:
        yield _HEARD[-1]
    finally:
        _HEARD.pop()


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: tuple[int, ...] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query [1, heads, length, width], key and value [1, kv heads, length, width] -> [1, length, heads, width]."""
    if segments is None or query.shape[2] != sum(segments):
        out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            is_causal=is_causal,
            **kwargs,
        )
        return out
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal  # an encoder's is not
    if _HEARD:
        _HEARD[-1].append(Asked(scaling, sliding_window, causal))
    query, key, value = varlen.of_one_type(query, key, value)
    if query.device.type == "cpu" and query.dtype == torch.float32 and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        q, k, v = query[0], key[0], value[0]
        return attend(q, k, v, segments, scale=scale, causal=causal, window=sliding_window).unsqueeze(0), None
    return varlen.attend(
        query, key, value, segments, causal=causal, scale=scaling, window=sliding_window, dropout=dropout
    ), None


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
