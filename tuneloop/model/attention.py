"""Attention over packed rows: each sample sees only itself, and no mask matrix is multiplied.

Registered with transformers as "tuneloop". Rows that carry `segments` are attended sample by sample; anything else goes
to transformers' own SDPA. transformers still builds its packed mask from the restarting positions, so a model that does
not hand `segments` down is slower, not wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "tuneloop"


def _window(length: int, window: int, device: torch.device) -> Tensor:
    """Boolean [length, length]: causal, and at most `window` positions back, the own one counted."""
    i = torch.arange(length, device=device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & (distance < window)


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
            **kwargs,
        )
        return out
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    rows = zip(query.split(segments, 2), key.split(segments, 2), value.split(segments, 2), strict=True)
    for q, k, v in rows:
        length = q.shape[2]
        banded = sliding_window is not None and length > sliding_window
        mask = _window(length, sliding_window or 0, q.device) if banded else None
        parts.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=not banded and length > 1
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
