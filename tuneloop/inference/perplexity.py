"""How likely a language model finds a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tuneloop.model.backbone import longest, plain
from tuneloop.tasks.loss import CHUNK, LossModel, head_is_exact

TOKENS = 2048
"""Tokens of a batch, padding included."""
BEFORE, BEHIND = 48, 16
"""Tokens of what two sentences share that are read before their difference, and scored behind it."""
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
        ids = _ids(tokenizer, text)
        rows += [(n, ids[at : at + context]) for at in range(0, len(ids), context - 1)] if text else []
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    for (n, ids), total in zip(rows, _each(model, [(ids, 1) for _, ids in rows]), strict=True):
        sums[n] += total
        counts[n] += max(len(ids) - 1, 0)
    return list(zip(sums, counts, strict=True))


@torch.inference_mode()
def shift(model: nn.Module, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
    """By how much the second text of each pair is less likely than the first, in nats, and the tokens of the first.

    What they share before the first difference is equally likely in both and is not scored; BEFORE tokens of it are
    read. Behind the last difference BEHIND tokens are scored: what follows hardly feels it.
    """
    rows, tokens = [], []
    for old, new in pairs:
        was, now = _ids(tokenizer, old), _ids(tokenizer, new)
        tokens.append(max(len(was) - 1, 0))
        shared = min(len(was), len(now))
        begin = next((n for n in range(shared) if was[n] != now[n]), shared)
        behind = next((n for n in range(shared - begin) if was[-1 - n] != now[-1 - n]), shared - begin)
        rows += [_window(ids, begin, len(ids) - max(0, behind - BEHIND)) for ids in (was, now)]
    totals = _each(model, rows)
    return [(now - was, n) for was, now, n in zip(totals[::2], totals[1::2], tokens, strict=True)]


def _window(ids: list[int], begin: int, end: int) -> tuple[list[int], int]:
    """What must be read to score the tokens `begin` to `end`, with the text's first token in front; and from where."""
    start = max(0, begin - BEFORE)
    row = ids[start:end] if start == 0 else [ids[0], *ids[start:end]]
    return row, max(1, begin - start + (start > 0))


def _each(model: nn.Module, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Summed loss of each row (token ids, from which of them on), in batches of like length; 0.0 for none."""
    order = sorted((n for n, (ids, begin) in enumerate(rows) if len(ids) > begin), key=lambda n: len(rows[n][0]))
    out = [0.0] * len(rows)
    if not order:
        return out
    if model not in _own_head:
        shortest = torch.tensor([rows[order[0]][0]], device=next(model.parameters()).device)
        _own_head[model] = not head_is_exact(model, shortest)
    for batch in _batches([rows[n][0] for n in order]):
        for n, total in zip(
            order[batch], _scored(model, [rows[n] for n in order[batch]], _own_head[model]), strict=True
        ):
            out[n] = total
    return out


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
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


def _scored(model: nn.Module, rows: Sequence[tuple[Sequence[int], int]], own: bool) -> list[float]:
    """Summed loss of each row's tokens from its second part on. Padding stands behind, where no token sees it."""
    base = plain(model)
    device = next(model.parameters()).device
    width = max(len(row) for row, _ in rows)
    ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row, _ in rows], device=device)
    if own:
        hidden = base(input_ids=ids, use_cache=False).logits
    else:
        hidden = getattr(base, base.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
    row_of = torch.tensor([n for n, (row, begin) in enumerate(rows) for _ in row[begin:]], device=device)
    at = torch.tensor([k for row, begin in rows for k in range(begin - 1, len(row) - 1)], device=device)
    states, targets = hidden[row_of, at], ids[row_of, at + 1]
    size = max(1, CHUNK // int(base.config.get_text_config().vocab_size))
    head = (lambda x: x) if own else LossModel(model).head
    losses = torch.cat([
        cross_entropy(head(h).float(), y, reduction="none")
        for h, y in zip(states.split(size), targets.split(size), strict=True)
    ])  # fmt: skip
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, row_of, losses.double())
    return [float(total) for total in sums]
