"""The choice of the next token of each row: greedy, or by nucleus sampling. It knows no model and no end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

NUCLEUS = 1024
"""Of how many of the likeliest tokens a nucleus is looked for before all of them are sorted."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else nucleus sampling (Holtzman et al. 2019)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Chooser:
    """The choices of one answer: its sampling, its random numbers, and what it has written of the vocabulary.

    Each answer draws with a generator of its own, so what it says depends on its seed and not on its neighbours, and
    answering never moves the generator that training draws from.
    """

    def __init__(self, how: Sampling, prompt: list[int] | tuple[int, ...] = ()) -> None:
        self.how, self.prompt = how, prompt
        self.seen: Tensor | None = None
        """bool [vocabulary]: the tokens of prompt and answer; kept where repetition is penalised."""
        self.generator: torch.Generator | None = None
        if how.temperature > 0:
            self.generator = torch.Generator()
            self.generator.manual_seed((secrets.randbits(62) if how.seed is None else how.seed) & ((1 << 63) - 1))

    def chance(self) -> float:
        """The next random number of this answer, from 0 to 1."""
        return 0.0 if self.generator is None else float(torch.rand((), generator=self.generator, dtype=torch.float64))


def choose(logits: Tensor, choosers: list[Chooser], penalty: float = 1.0) -> Tensor:
    """logits float [rows, vocabulary], a chooser a row -> token ids int64 [rows].

    `penalty` makes what a row holds already less likely (Keskar et al. 2019, arXiv:1909.05858): its logit is divided
    by it, or multiplied where it is negative.
    """
    if penalty != 1:
        logits = _penalised(logits.float(), choosers, penalty)
    chosen = logits.argmax(-1)
    sampled = [n for n, chooser in enumerate(choosers) if chooser.generator is not None]
    for nucleus in (False, True):  # apart: what one row draws must not depend on how its neighbours do
        drawn = [n for n in sampled if (choosers[n].how.top_p < 1) == nucleus]
        if not drawn:
            continue
        rows = torch.tensor(drawn, device=logits.device)
        chances = torch.tensor([choosers[n].chance() for n in drawn], dtype=torch.float64)
        chosen[rows] = draw(logits[rows], [choosers[n].how for n in drawn], chances)
    if penalty != 1:
        for row, token in zip(choosers, chosen.tolist(), strict=True):
            assert row.seen is not None
            row.seen[token] = True
    return chosen


def _penalised(logits: Tensor, choosers: list[Chooser], penalty: float) -> Tensor:
    for chooser in choosers:
        if chooser.seen is None:
            chooser.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            chooser.seen[list(chooser.prompt)] = True
    seen = torch.stack([chooser.seen for chooser in choosers if chooser.seen is not None])
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def draw(logits: Tensor, hows: list[Sampling], chances: Tensor) -> Tensor:
    """logits [rows, vocabulary], a random number from 0 to 1 a row -> token ids int64 [rows], each by its sampling.

    Of a nucleus are the likeliest tokens up to the one with which their sum reaches top_p.

    >>> half = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [int(draw(half, [Sampling(1.0)], torch.tensor([u]))) for u in (0.1, 0.6, 0.9)]
    [0, 1, 2]
    >>> [int(draw(half, [Sampling(1.0, top_p=0.6)], torch.tensor([u]))) for u in (0.1, 0.7, 0.9)]
    [0, 1, 1]
    """
    warmth = torch.tensor([[how.temperature] for how in hows], dtype=torch.float32, device=logits.device)
    probability = torch.softmax(logits.float() / warmth, -1)
    index: Tensor | None = None
    if any(how.top_p < 1 for how in hows):
        nucleus = torch.tensor([[how.top_p] for how in hows], dtype=torch.float32, device=logits.device)
        probability, index = _nucleus(probability, nucleus)
    sums = probability.double().cumsum(-1)
    aim = chances.to(device=sums.device, dtype=torch.float64).unsqueeze(-1) * sums[:, -1:]
    place = torch.searchsorted(sums, aim, right=True).clamp(max=sums.shape[-1] - 1)
    return (place if index is None else index.gather(-1, place)).squeeze(-1)


def _nucleus(probability: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that share so much [rows, 1] and the likelihood of each, 0 outside; and their ids."""
    most = min(NUCLEUS, probability.shape[-1])
    ordered, index = probability.topk(most, -1)
    if most < probability.shape[-1] and bool((ordered.sum(-1, keepdim=True) < share).any()):
        ordered, index = probability.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= share
    outside[:, 0] = False
    return ordered.masked_fill(outside, 0), index
