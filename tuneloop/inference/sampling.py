"""The choice of the next token of each row, and how likely it was. It knows no model and no end.

Raw logits, then in this order: penalties and biases, a grammar's mask, temperature, top_k, top_p, min_p, the draw. What
one row draws never depends on its neighbours.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tuneloop.base.records import Sampling

__all__ = ["Chooser", "Sampling", "choose", "draw", "scores"]

NUCLEUS = 1024
"""Of how many of the likeliest tokens a nucleus is looked for before all of them are sorted."""

Score = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and the likeliest tokens of its place with theirs."""


class Chooser:
    """The choices of one answer: its sampling, its random numbers, and what it has written of the vocabulary.

    Each answer draws with a generator of its own, so what it says depends on its seed and not on its neighbours, and
    answering never moves the generator that training draws from.
    """

    def __init__(self, how: Sampling, prompt: list[int] | tuple[int, ...] = ()) -> None:
        self.how, self.prompt = how, prompt
        self.seen: Tensor | None = None
        """bool [vocabulary]: the tokens of prompt and answer; there where repetition is penalised."""
        self.counts: dict[int, int] = {}
        """Of the answer's tokens, how often each was written; there where frequency or presence is penalised."""
        self.counted = bool(how.frequency_penalty or how.presence_penalty)
        self.limited = how.top_p < 1 or how.top_k > 0 or how.min_p > 0
        self.generator: torch.Generator | None = None
        if how.temperature > 0:
            self.generator = torch.Generator()
            self.generator.manual_seed((secrets.randbits(62) if how.seed is None else how.seed) & ((1 << 63) - 1))

    def chance(self) -> float:
        """The next random number of this answer, from 0 to 1."""
        return 0.0 if self.generator is None else float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def repetition(self, penalty: float) -> float:
        """What its tokens' logits are divided by, where the model asks for `penalty`."""
        return penalty if self.how.repetition_penalty is None else self.how.repetition_penalty

    def shifts(self) -> dict[int, float]:
        """Token id -> what is added to its logit: bias, less the penalties of what the answer holds already."""
        shifts = dict(self.how.logit_bias)
        for token, count in self.counts.items():
            off = self.how.frequency_penalty * count + self.how.presence_penalty
            shifts[token] = shifts.get(token, 0.0) - off
        return shifts

    def wrote(self, token: int) -> None:
        """Note the token that was chosen."""
        if self.seen is not None:
            self.seen[token] = True
        if self.counted:
            self.counts[token] = self.counts.get(token, 0) + 1


def choose(
    logits: Tensor, choosers: list[Chooser], penalty: float = 1.0, masks: Mapping[int, Tensor] | None = None
) -> Tensor:
    """logits float [rows, vocabulary], a chooser a row -> token ids int64 [rows]. The logits stay as they are.

    `penalty` is the repetition penalty of rows that bring none of their own. `masks` are of some rows what may come
    next: row -> bool [vocabulary].
    """
    divided = [n for n, chooser in enumerate(choosers) if chooser.repetition(penalty) != 1]
    if divided:
        logits = _penalised(logits.float(), choosers, divided, penalty)
    shifted = [n for n, chooser in enumerate(choosers) if chooser.how.logit_bias or chooser.counts]
    if shifted or masks:
        logits = logits.float().clone()
        _shift(logits, {n: choosers[n].shifts() for n in shifted})
        for row, allowed in (masks or {}).items():
            logits[row].masked_fill_(~allowed, -torch.inf)
    chosen = likeliest(logits)
    sampled = [n for n, chooser in enumerate(choosers) if chooser.generator is not None]
    for limited in (False, True):  # apart: what one row draws must not depend on how its neighbours do
        drawn = [n for n in sampled if choosers[n].limited == limited]
        if not drawn:
            continue
        rows = torch.tensor(drawn, device=logits.device)
        chances = torch.tensor([choosers[n].chance() for n in drawn], dtype=torch.float64)
        chosen[rows] = draw(logits[rows], [choosers[n].how for n in drawn], chances)
    if divided or any(chooser.counted for chooser in choosers):
        for chooser, token in zip(choosers, chosen.tolist(), strict=True):
            chooser.wrote(token)
    return chosen


def likeliest(logits: Tensor) -> Tensor:
    """logits [rows, vocabulary] -> the likeliest token ids int64 [rows], of equal ones the first.

    >>> likeliest(torch.tensor([[0.5, 2.0, 2.0]])).tolist()
    [1]
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:  # torch takes several times as long
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


def _penalised(logits: Tensor, choosers: list[Chooser], rows: list[int], penalty: float) -> Tensor:
    """Divided by the penalty where a row holds the token already, or multiplied where the logit is negative (Keskar
    et al. 2019, arXiv:1909.05858)."""
    for chooser in (choosers[n] for n in rows):
        if chooser.seen is None:
            chooser.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            chooser.seen[list(chooser.prompt)] = True
    seen = torch.stack([chooser.seen for n in rows if (chooser := choosers[n]).seen is not None])
    rates = torch.tensor([[choosers[n].repetition(penalty)] for n in rows], dtype=logits.dtype, device=logits.device)
    if len(rows) == len(choosers):
        return torch.where(seen, torch.where(logits < 0, logits * rates, logits / rates), logits)
    out, index = logits.clone(), torch.tensor(rows, device=logits.device)
    some = logits[index]
    out[index] = torch.where(seen, torch.where(some < 0, some * rates, some / rates), some)
    return out


def _shift(logits: Tensor, shifts: Mapping[int, Mapping[int, float]]) -> None:
    """Add to some logits of some rows, in place: row -> token id -> what."""
    places = [(row, token, by) for row, each in shifts.items() for token, by in each.items()]
    if places:
        rows, tokens, by = zip(*places, strict=True)
        at = torch.tensor([rows, tokens], device=logits.device)
        logits[at[0], at[1]] += torch.tensor(by, dtype=logits.dtype, device=logits.device)


def draw(logits: Tensor, hows: Sequence[Sampling], chances: Tensor) -> Tensor:
    """logits [rows, vocabulary], a random number from 0 to 1 a row -> token ids int64 [rows], each by its sampling.

    Of the `top_k` likeliest are left those up to the one with which their sum reaches top_p of them (Holtzman et al.
    2019, arXiv:1904.09751), and of these those of at least `min_p` of the likeliest.

    >>> half = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [int(draw(half, [Sampling(1.0)], torch.tensor([u]))) for u in (0.1, 0.6, 0.9)]
    [0, 1, 2]
    >>> [int(draw(half, [Sampling(1.0, top_p=0.6)], torch.tensor([u]))) for u in (0.1, 0.7, 0.9)]
    [0, 1, 1]
    >>> [int(draw(half, [Sampling(1.0, top_k=2)], torch.tensor([u]))) for u in (0.1, 0.7, 0.9)]
    [0, 1, 1]
    >>> [int(draw(half, [Sampling(1.0, min_p=0.7)], torch.tensor([u]))) for u in (0.1, 0.7, 0.9)]
    [0, 0, 0]
    """
    warmth = torch.tensor([[how.temperature] for how in hows], dtype=torch.float32, device=logits.device)
    probability = torch.softmax(logits.float() / warmth, -1)
    index: Tensor | None = None
    if any(how.top_p < 1 or how.top_k or how.min_p for how in hows):
        probability, index = _limited(probability, hows)
    sums = probability.double().cumsum(-1)
    aim = chances.to(device=sums.device, dtype=torch.float64).unsqueeze(-1) * sums[:, -1:]
    place = torch.searchsorted(sums, aim, right=True).clamp(max=sums.shape[-1] - 1)
    return (place if index is None else index.gather(-1, place)).squeeze(-1)


def _limited(probability: Tensor, hows: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """The likeliest tokens and the likelihood of each, 0 for those outside a row's limits; and their ids."""

    def column(of: list[float]) -> Tensor:
        return torch.tensor(of, dtype=torch.float32, device=probability.device).unsqueeze(-1)

    vocabulary = probability.shape[-1]
    share, least = column([how.top_p for how in hows]), column([how.min_p for how in hows])
    count = column([how.top_k or vocabulary for how in hows])
    ordered, index = probability.topk(min(NUCLEUS, vocabulary), -1)
    if ordered.shape[-1] < vocabulary and bool(_beyond(ordered, share, count, least, vocabulary).any()):
        ordered, index = probability.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill(rank >= count, 0)
    before = ordered.cumsum(-1) - ordered
    # Without top_k the sum of all is 1, up to what rounding leaves: it is not added up again.
    total = torch.where(count < vocabulary, ordered.sum(-1, keepdim=True), 1.0)
    outside = (before >= share * total) | (ordered < least * ordered[:, :1])
    outside[:, 0] = False
    return ordered.masked_fill(outside, 0), index


def _beyond(ordered: Tensor, share: Tensor, count: Tensor, least: Tensor, vocabulary: int) -> Tensor:
    """Whether tokens behind the likeliest ones here may be within a row's limits: bool [rows, 1]."""
    within_count = count > ordered.shape[-1]
    # A share of the top_k is known when these have been added up.
    within_share = (ordered.sum(-1, keepdim=True) < share) | (count < vocabulary)
    return within_count & within_share & (ordered[:, -1:] >= least * ordered[:, :1])


def scores(logits: Tensor, tokens: Sequence[int], most: int) -> list[Score]:
    """logits [rows, vocabulary] as the model gave them, a token a row -> its score, with the `most` likeliest beside.

    >>> scores(torch.tensor([[0.5, 0.25, 0.25]]).log(), [1], 1)
    [(-1.3862943649291992, [(0, -0.6931471824645996)])]
    """
    logarithms = torch.log_softmax(logits.float(), -1)
    each = logarithms.gather(-1, torch.tensor(tokens, device=logits.device).unsqueeze(-1)).squeeze(-1).tolist()
    if not most:
        return [(one, []) for one in each]
    best, ids = logarithms.topk(min(most, logarithms.shape[-1]), -1)
    beside = (list(zip(i, b, strict=True)) for i, b in zip(ids.tolist(), best.tolist(), strict=True))
    return list(zip(each, beside, strict=True))
