"""One decoding step over a cache: a forward pass, and the choice of the next token. It knows no text and no end.

Whoever holds the loop (`generate.py` for a batch, later a scheduler) calls `prefill` once, then `step`, chooses tokens
from the logits, and hands them to `extended`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.model.backbone import prefill_inputs, routers_off, unwrap, virtual_tokens


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
        self.model, self.base = model, unwrap(model)
        self.last_position = context - 1 + virtual_tokens(model)
        self.options = {"use_cache": True, "logits_to_keep": 1, **routers_off(self.base)}

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
        output = self.base(
            **state.text,
            past_key_values=state.cache,
            attention_mask=state.mask,
            position_ids=state.positions,
            **self.options,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def extended(self, state: DecodeState, tokens: Tensor) -> DecodeState:
        """The state after a step: with the tokens int64 [batch] that were chosen as the new ones.

        A row that has ended may go along: its position stays within the context.
        """
        mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], -1)
        positions = (state.positions[:, -1:] + 1).clamp(max=self.last_position)
        return DecodeState(state.cache, mask, positions, {"input_ids": tokens.unsqueeze(-1)})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else nucleus sampling (Holtzman et al. 2019)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Chooser:
    """Chooses the next token of each row. `penalty` makes what a row holds already less likely (Keskar et al. 2019,
    arXiv:1909.05858): its logit is divided by it, or multiplied where it is negative."""

    def __init__(self, how: Sampling, device: torch.device, penalty: float, prompts: Sequence[Sequence[int]]) -> None:
        self.how, self.penalty, self.prompts = how, penalty, prompts
        self.seen: Tensor | None = None
        """bool [batch, vocabulary]: the tokens of prompt and answer."""
        self.generator: torch.Generator | None = None
        if how.temperature > 0:
            # One of its own: answering must never move the generator that training draws from.
            self.generator = torch.Generator(device)
            self.generator.manual_seed(how.seed) if how.seed is not None else self.generator.seed()

    def __call__(self, logits: Tensor) -> Tensor:
        """logits float [batch, vocabulary] -> token ids [batch]."""
        if self.penalty == 1:
            return self._choose(logits)
        if self.seen is None:
            self.seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, prompt in zip(self.seen, self.prompts, strict=True):
                row[list(prompt)] = True
        logits = logits.float()
        less = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        chosen = self._choose(torch.where(self.seen, less, logits))
        self.seen.scatter_(1, chosen.unsqueeze(-1), True)
        return chosen

    def _choose(self, logits: Tensor) -> Tensor:
        if self.generator is None:
            return logits.argmax(-1)
        chance = torch.softmax(logits.float() / self.how.temperature, -1)
        if self.how.top_p < 1:
            ordered, index = chance.sort(-1, descending=True)
            ordered[..., 1:][(ordered.cumsum(-1) - ordered)[..., 1:] >= self.how.top_p] = 0
            chance = torch.zeros_like(chance).scatter(-1, index, ordered)
        return torch.multinomial(chance, 1, generator=self.generator).squeeze(-1)
