"""One decoding step over a cache: a forward pass. It knows no text, no end and no choice.

Whoever holds the loop calls `prefill` once, then `step`, chooses tokens from the logits (`sampling.py`), and hands them
to `extended`; `batch.py` does so for answers that come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tuneloop.model.backbone import prefill_inputs, routers_off, unwrap, virtual_tokens

if TYPE_CHECKING:
    from tuneloop.inference.fast_step import FastStep


@dataclass(frozen=True, slots=True, eq=False)
class DecodeState:
    """Where a batch stands before a forward pass: what is in the cache, and the tokens that come next."""

    cache: Any
    """Keys and values of the tokens before (a Cache of transformers). The pass adds the new ones to it in place."""
    mask: Tensor
    """int64 [batch, cached and new tokens]: 0 for padding, which stands on the left."""
    positions: Tensor
    """int64 [batch, new tokens]."""
    text: dict[str, Tensor]
    """The new tokens as the model takes them: input_ids int64 [batch, new tokens], or with virtual tokens at the input
    inputs_embeds [batch, new tokens, width]."""


class Decoder:
    """The forward pass of a model that answers. `context` is its longest prompt and answer together, in tokens."""

    def __init__(self, model: nn.Module, context: int) -> None:
        self.model, self.base, self.context = model, unwrap(model), context
        self.last_position = context - 1 + virtual_tokens(model)
        self.adapted = False
        """Whether rows of the pass under way go through adapters of their own."""
        self.quick: FastStep | None = None
        """A quicker way of such passes, for whoever has tried it (fast_step.py)."""
        self.options = {"use_cache": True, **routers_off(self.base)}

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], pad: int) -> DecodeState:
        """The state before the first pass, which reads the prompts, padded on the left with `pad`."""
        device = next(self.model.parameters()).device
        longest = max(len(p) for p in prompts)
        ids = torch.tensor([[pad] * (longest - len(p)) + [*p] for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        inputs = prefill_inputs(self.model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        cache, mask, positions = (inputs.pop(k) for k in ("past_key_values", "attention_mask", "position_ids"))
        return DecodeState(cache, mask, positions, inputs)

    @torch.no_grad()
    def step(self, state: DecodeState) -> Tensor:
        """logits [batch, vocabulary] of the next token of each row. A state is good for one step: its cache grows."""
        logits: Tensor = self.logits(state, 1)[:, -1]
        return logits

    @torch.no_grad()
    def logits(self, state: DecodeState, most: int) -> Tensor:
        """logits [batch, most, vocabulary] of the last new tokens, `most` of them: a step that shows more of it."""
        if self.quick is not None and self.quick.reads(state):
            return self.quick.read(state, most, self.adapted)
        output = self.base(
            **state.text,
            past_key_values=state.cache,
            attention_mask=state.mask,
            position_ids=state.positions,
            logits_to_keep=most,
            **self.options,
        )
        logits: Tensor = output.logits
        return logits

    def extended(self, state: DecodeState, tokens: Tensor) -> DecodeState:
        """The state after a step, with tokens int64 [batch] that were chosen, or [batch, new] of a prompt, as new ones.

        A row that has ended may go along: its position stays within the context.
        """
        new = tokens if tokens.ndim == 2 else tokens.unsqueeze(-1)
        mask = torch.cat([state.mask, state.mask.new_ones(new.shape)], -1)
        further = torch.arange(1, new.shape[1] + 1, device=state.positions.device)
        positions = (state.positions[:, -1:] + further).clamp(max=self.last_position)
        return DecodeState(state.cache, mask, positions, {"input_ids": new})
