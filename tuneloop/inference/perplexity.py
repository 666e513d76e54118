"""How likely a language model finds a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tuneloop.data.tokens.templates import text_ids
from tuneloop.model.backbone import longest, unwrap
from tuneloop.tasks.loss import CHUNK, LossModel, head_is_exact

TOKENS = 2048
"""Tokens of a batch, padding included."""
PROBE = 4
"""Tokens by which it is told whether our head is the model's own."""
_own_head: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models looked at: whether the logits must come from the model's own forward."""


@torch.inference_mode()
def nll(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Negative log-likelihood of each text, in nats, and the tokens it is of: exp of their quotient is the perplexity.

    (0.0, 0) for a text without tokens. Every token of the text counts: in front stands the token that the tokenizer
    begins a text with or, where it has none, the end of the one before. A text longer than the model's context is
    scored window by window.
    """
    context = longest(model)
    rows: list[tuple[int, list[int]]] = []
    for n, text in enumerate(texts):
        ids = token_ids(tokenizer, text)
        rows += [(n, ids[at : at + context]) for at in range(0, len(ids), context - 1)] if text else []
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    for (n, ids), total in zip(rows, _each(model, [ids for _, ids in rows]), strict=True):
        sums[n] += total
        counts[n] += max(len(ids) - 1, 0)
    return list(zip(sums, counts, strict=True))


def _each(model: nn.Module, rows: Sequence[list[int]]) -> list[float]:
    """Summed loss of each row of token ids behind its first, in batches of like length; 0.0 for a row without such."""
    order = sorted((n for n, ids in enumerate(rows) if len(ids) > 1), key=lambda n: len(rows[n]))
    out = [0.0] * len(rows)
    if not order:
        return out
    if model not in _own_head:
        few = torch.tensor([rows[order[0]][:PROBE]], device=next(model.parameters()).device)
        _own_head[model] = not head_is_exact(model, few)
    for batch in _batches([rows[n] for n in order]):
        for n, total in zip(
            order[batch], _scored(model, [rows[n] for n in order[batch]], _own_head[model]), strict=True
        ):
            out[n] = total
    return out


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The text as token ids, behind the token that a text begins with."""
    ids = text_ids(tokenizer, text)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return ids if first is None or ids[:1] == [first] else [first, *ids]


def _batches(rows: Sequence[Sequence[int]]) -> list[slice]:
    """Slices of rows, ascending by length, whose padded batches have at most TOKENS tokens."""
    out, start = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * len(rows[end]) > TOKENS:
            out.append(slice(start, end))
            start = end
    return out


def _scored(model: nn.Module, rows: Sequence[Sequence[int]], own: bool) -> list[float]:
    """Summed loss of each row's tokens behind its first. Padding stands behind, where no token sees it."""
    base = unwrap(model)
    device = next(model.parameters()).device
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=device)
    if own:
        hidden = base(input_ids=ids, use_cache=False).logits
    else:
        hidden = getattr(base, base.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
    row_of = torch.tensor([n for n, row in enumerate(rows) for _ in row[1:]], device=device)
    at = torch.tensor([k for row in rows for k in range(len(row) - 1)], device=device)
    states, targets = hidden[row_of, at], ids[row_of, at + 1]
    size = max(1, CHUNK // int(base.config.get_text_config().vocab_size))
    head = (lambda x: x) if own else LossModel(model).head
    losses = torch.cat(
        [
            cross_entropy(head(h).float(), y, reduction="none")
            for h, y in zip(states.split(size), targets.split(size), strict=True)
        ]
    )
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, row_of, losses.double())
    return [float(total) for total in sums]
