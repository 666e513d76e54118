"""Forward passes without modules between their products, for models whose blocks are known by their parts.

A step of few rows through transformers' modules spends more on the way than on the numbers: a mask and a copy of the
shared heads' keys for each layer, dozens of small operations. Here the parts are those of `fused_blocks.py`, heads that
share keys are read as rows of one query, and prompts are read without their padding. It is used where it gives the
model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tuneloop.inference.decode import Decoder, DecodeState
from tuneloop.inference.fused_blocks import (
    Block,
    Product,
    added,
    block_of,
    gated,
    linear_layer,
    norm_of,
    normed,
    turned,
)
from tuneloop.inference.row_adapters import SITE
from tuneloop.inference.slots import cache_of
from tuneloop.model.kernels.install import TOLERANCE

COUNTS = (*range(4, 33, 4), *range(40, 65, 8), *range(80, 129, 16), *range(160, 257, 32))
"""Rows that go through the products at once: fewer are filled up. oneDNN makes code of its own for each number of rows,
which takes longer than a product of them does; and one row is a product of another kind that does not read memory as
fast: 4 take three quarters of the time (float32, AMD EPYC with AVX-512)."""
SHARE = 0.25
"""Of the free memory that laid out weights may take."""
PROVEN = 1100
"""Windows up to this length are tried before use; the model's own pass is taken where a longer one is at its end."""
KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""Of each layer: keys and values [rows, shared heads, columns, width]; the last column is written by the step."""


class FastStep:
    """The passes of one model. Its weights must stay as they are; row adapters may come and go."""

    def __init__(self, base: Any) -> None:
        """Raises AttributeError, TypeError or ValueError where the model is built otherwise."""
        self.base, self.inner = base, getattr(base, base.base_model_prefix)
        inner, config = self.inner, base.config.get_text_config()
        packed = _fits(base)
        self.blocks = [block_of(layer, config, n, packed) for n, layer in enumerate(inner.layers)]
        self.norm = norm_of(inner.norm)
        self.head = Product([linear_layer(base.get_output_embeddings())], packed)
        self.turns = sorted({block.turn for block in self.blocks})
        windows = {block.window for block in self.blocks if block.window} | {getattr(config, "sliding_window", None)}
        self.longest = min((w for w in windows if w and w > PROVEN), default=1 << 40)
        """Columns up to which no window is at its end that was not tried."""

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, places: Tensor, before: Sequence[int], memory: KeysAndValues, adapted: int = 0
    ) -> Tensor:
        """tokens, places int64 [rows], how many unread columns each row begins with -> logits [rows, vocabulary].

        `adapted` is the number of rows where some go through adapters, else 0.
        """
        inner, columns, rows = self.inner, memory[0][0].shape[2], len(tokens)
        hidden = inner.embed_tokens(tokens)
        turns = {turn: self._turn(hidden, places, turn) for turn in self.turns}
        masks = {w: _mask(before, columns, w, hidden.device) for w in {block.window for block in self.blocks}}
        if self.head.packed is not None:
            hidden = pad(hidden, (0, 0, 0, _filled(rows) - rows))
        buffers = {width: hidden.new_zeros(len(hidden), width) for width in {b.heads * b.width for b in self.blocks}}
        for block, (keys, values) in zip(self.blocks, memory, strict=True):
            out = _attend(block, hidden, turns[block.turn], masks[block.window], keys, values, buffers, adapted)
            hidden = added(block.out, out, hidden, block.after[0], adapted)
            out = gated(block, normed(hidden, block.before[1]), adapted)
            hidden = added(block.down, out, hidden, block.after[1], adapted)
        return self.head(normed(hidden, self.norm), adapted)[:rows]

    def reads(self, state: DecodeState) -> bool:
        """Whether the pass of a state can be made here: tokens, whose keys and values no window has cut."""
        return (
            state.text.keys() == {"input_ids"}
            and state.mask.shape[1] <= self.longest
            and all(type(layer) is DynamicLayer for layer in state.cache.layers)
        )

    @torch.no_grad()
    def read(self, state: DecodeState, most: int, adapted: bool = False) -> Tensor:
        """The pass over a state's new tokens -> logits [rows, most, vocabulary] of the last ones; its cache grows.

        Padding stands on the left of the new tokens, and goes through no product. `adapted`: rows go through adapters.
        """
        ids = state.text["input_ids"]
        rows, new = ids.shape
        at = None if adapted and rows > 1 else _shown(state.mask[:, -new:], self.head.packed is not None)
        inside = None if at is None else at.clamp(max=rows * new - 1)
        tokens, places = (x.flatten() if inside is None else x.flatten()[inside] for x in (ids, state.positions))
        hidden = self.inner.embed_tokens(tokens)
        turns = {turn: self._turn(hidden, places, turn) for turn in self.turns}
        masks = {w: _reading_mask(state.mask, new, w) for w in {block.window for block in self.blocks}}
        count = len(hidden) if adapted else 0
        for block, layer in zip(self.blocks, state.cache.layers, strict=True):
            three = _three(block, hidden, turns[block.turn], count)
            query, keys, values = (_spread(x, at, rows, new) for x in three)
            keys, values = layer.update(keys, values)
            mask, causal = masks[block.window], masks[block.window] is None and new > 1
            out = scaled_dot_product_attention(
                query, keys, values, mask, is_causal=causal, scale=block.scale, enable_gqa=block.heads != block.shared
            )
            out = out.transpose(1, 2).reshape(rows * new, -1)
            hidden = added(block.out, out if inside is None else out[inside], hidden, block.after[0], count)
            out = gated(block, normed(hidden, block.before[1]), count)
            hidden = added(block.down, out, hidden, block.after[1], count)
        if at is not None:
            hidden = _spread(hidden[:, None], at, rows, new).squeeze(1)
        last = hidden.view(rows, new, -1)[:, -most:].reshape(rows * most, -1)
        return self.head(normed(last, self.norm), len(last) if adapted else 0).view(rows, most, -1)

    def _turn(self, hidden: Tensor, places: Tensor, turn: str) -> tuple[Tensor, Tensor]:
        """cos and sin [rows, 1, width] of the rows' positions, sin negative in the first half (see `turned`)."""
        kind = () if not turn else (turn,)
        cos, sin = self.inner.rotary_emb(hidden.unsqueeze(1), places.unsqueeze(-1), *kind)
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


@torch.no_grad()
def fast_step(base: nn.Module) -> FastStep | None:
    """The fast step of a model that answers, in float32 on a CPU; None where it has none that agrees with its own."""
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in base.parameters()) or _watched(base):
        return None
    try:
        step = FastStep(base)
        return step if _agrees(step) else None
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError):
        return None  # it is built otherwise than its names say


def _watched(base: nn.Module) -> bool:
    """Whether somebody listens at a module beside the row adapters, or put a forward of his own into it."""
    return any(
        m._forward_pre_hooks or (m._forward_hooks and not hasattr(m, SITE)) or "forward" in vars(m)
        for m in base.modules()
    )


def _fits(base: nn.Module) -> bool:
    size = sum(m.weight.numel() * m.weight.element_size() for m in base.modules() if type(m) is nn.Linear)
    return torch.backends.mkldnn.is_available() and size < SHARE * psutil.virtual_memory().available


def _filled(rows: int) -> int:
    """
    >>> [_filled(rows) for rows in (1, 33, 300)]
    [4, 40, 300]
    """
    return next((count for count in COUNTS if count >= rows), rows)


def _shown(mask: Tensor, packed: bool) -> Tensor | None:
    """mask [rows, new] -> where its tokens are, counted through all rows; None where that is everywhere. Filled up with
    the place behind all.

    >>> _shown(torch.tensor([[0, 1], [1, 1]]), True).tolist()
    [1, 2, 3, 4]
    """
    at = mask.flatten().nonzero().squeeze(-1)
    filled = _filled(len(at)) if packed else len(at)
    return None if filled == mask.numel() == len(at) else pad(at, (0, filled - len(at)), value=mask.numel())


def _mask(before: Sequence[int], columns: int, window: int | None, device: torch.device) -> Tensor | None:
    """[rows, 1, 1, columns], added to the scores: the unread columns before a row, and those behind a window.

    >>> _mask([0, 1], 4, 2, torch.device("cpu"))[:, 0, 0].tolist()
    [[-inf, -inf, 0.0, 0.0], [-inf, -inf, 0.0, 0.0]]
    """
    first = columns - window if window else 0
    if max(0, first, *before) == 0:
        return None
    begins = torch.tensor([max(first, b) for b in before], device=device)
    unread = torch.arange(columns, device=device) < begins[:, None]
    return torch.zeros(unread.shape, device=device).masked_fill_(unread, -torch.inf)[:, None, None]


def _reading_mask(mask: Tensor, new: int, window: int | None) -> Tensor | None:
    """mask int64 [rows, columns] -> float [rows, 1, new, columns], added to the scores of the last `new` columns; None
    where each reads itself and all before it, and there is nothing but the new ones.

    >>> _reading_mask(torch.tensor([[0, 1, 1]]), 2, None)[0, 0].tolist()
    [[-inf, 0.0, -inf], [-inf, 0.0, 0.0]]
    """
    columns, device = mask.shape[1], mask.device
    if (columns == new or new == 1) and bool(mask.all()) and (not window or columns <= window):
        return None
    own, every = torch.arange(columns - new, columns, device=device)[:, None], torch.arange(columns, device=device)
    behind = own - every
    unread = (behind < 0) | (mask == 0)[:, None] | (behind >= (window or columns))
    unread &= behind != 0  # what nothing is read by must still be a number
    return torch.zeros(unread.shape, device=device).masked_fill_(unread, -torch.inf)[:, None]


def _spread(x: Tensor, at: Tensor | None, rows: int, new: int) -> Tensor:
    """x [tokens, heads, width] -> [rows, heads, new, width], tokens at the places `at` (`_shown`), zeros between."""
    if at is not None:
        x = x.new_zeros(rows * new + 1, *x.shape[1:]).index_copy_(0, at, x)[:-1]
    return x.view(rows, new, *x.shape[1:]).transpose(1, 2)


def _three(block: Block, hidden: Tensor, turn: tuple[Tensor, Tensor], adapted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [rows, heads, width], keys and values [rows, shared heads, width] of as many rows as `turn` has."""
    rows, heads, shown = len(turn[0]), block.heads, block.heads + block.shared
    three = block.three(normed(hidden, block.before[0]), adapted)[:rows].view(rows, -1, block.width)
    if block.of_heads is None:
        first = turned(three[:, :shown], turn)
        return first[:, :heads], first[:, heads:], three[:, shown:]
    query = turned(normed(three[:, :heads], block.of_heads[0]), turn)
    return query, turned(normed(three[:, heads:shown], block.of_heads[1]), turn), three[:, shown:]


def _attend(
    block: Block,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None,
    keys: Tensor,
    values: Tensor,
    buffers: dict[int, Tensor],
    adapted: int,
) -> Tensor:
    """hidden [rows, width of all] -> what the heads have read [rows, heads x width]."""
    rows, heads, shared, width = len(keys), block.heads, block.shared, block.width
    query, keys[:, :, -1], values[:, :, -1] = _three(block, hidden, turn, adapted)
    # The heads that share keys are so many queries of one head: no key is copied.
    query = query.reshape(rows, shared, heads // shared, width)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=block.scale)
    if rows == len(hidden):
        return out.reshape(rows, heads * width)
    padded = buffers[heads * width]
    padded[:rows].view(out.shape).copy_(out)
    return padded


@torch.no_grad()
def _agrees(step: FastStep) -> bool:
    """Whether it gives the model's own logits: two rows of different lengths, behind the end of a window."""
    window = max((b.window for b in step.blocks if b.window and b.window <= PROVEN), default=0)
    columns = max(12, window + 5)
    generator = torch.Generator().manual_seed(0)
    memory = [
        (
            torch.randn(2, b.shared, columns, b.width, generator=generator),
            torch.randn(2, b.shared, columns, b.width, generator=generator),
        )
        for b in step.blocks
    ]
    tokens = torch.tensor([1, step.base.get_input_embeddings().weight.shape[0] // 2])
    before, places = [0, 5], torch.tensor([columns - 1, columns - 6])
    own = _own(step.base, tokens, places, before, [(k[:, :, :-1].clone(), v[:, :, :-1].clone()) for k, v in memory])
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        ours = step(tokens[rows], places[rows], before[rows], [(k[rows], v[rows]) for k, v in memory])
        if not _near(ours, own[rows]):
            return False
    decoder = Decoder(step.base, columns + 1)
    generator.manual_seed(1)
    ids = torch.randint(len(step.base.get_input_embeddings().weight), (2, columns), generator=generator).tolist()
    half = columns // 2
    groups = [ids[0], ids[1][5:]], [ids[0][:half]]
    return all(_near(*_readings(decoder, step, prompts, ids[0][half:])) for prompts in groups)


def _readings(decoder: Decoder, step: FastStep, prompts: list[list[int]], rest: list[int]) -> tuple[Tensor, Tensor]:
    """Logits behind prompts, of one also behind more of it: read here, and by the model's own pass."""
    out = []
    for read in (step.read, decoder.logits):
        state = decoder.prefill(prompts, pad=0)
        state = replace(state, cache=cache_of([DynamicLayer() for _ in step.blocks]))
        logits = read(state, 1)
        if len(prompts) == 1:
            logits = torch.cat([logits, read(decoder.extended(state, torch.tensor([rest])), len(rest))], 1)
        out.append(logits)
    return out[0], out[1]


def _near(ours: Tensor, own: Tensor) -> bool:
    return bool((ours - own).abs().max() <= TOLERANCE * own.abs().max().clamp(min=1e-6))


def _own(base: Any, tokens: Tensor, places: Tensor, before: Sequence[int], memory: KeysAndValues) -> Tensor:
    """The same step by the model's own forward: logits [rows, vocabulary]."""
    layers: list[CacheLayerMixin] = []
    for keys, values in memory:
        layer = DynamicLayer()
        layer.update(keys, values)
        layers.append(layer)
    columns = memory[0][0].shape[2] + 1
    mask = (torch.arange(columns) >= torch.tensor(before)[:, None]).long()
    logits: Tensor = base(
        input_ids=tokens.unsqueeze(-1),
        past_key_values=cache_of(layers),
        attention_mask=mask,
        position_ids=places.unsqueeze(-1),
        use_cache=True,
    ).logits[:, -1]
    return logits
