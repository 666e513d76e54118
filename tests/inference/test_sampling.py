"""How the next token is chosen: penalties, biases and limits as published, each row by itself."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tuneloop.base.records import Sampling
from tuneloop.inference.sampling import Chooser, choose, draw, scores

WIDTH = 1500
"""More than the likeliest tokens among which a nucleus is looked for first."""


def logits_of(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    "how",
    [
        Sampling(0.7),
        Sampling(1.3, top_k=5),
        Sampling(1.0, top_p=0.5),
        Sampling(2.5, top_p=0.95),
        Sampling(0.9, top_p=0.8, top_k=40),
        Sampling(1.0, min_p=0.05),
        Sampling(3.0, min_p=0.001),
        Sampling(1.2, top_p=0.9, top_k=1200, min_p=0.01),
    ],
)
def test_what_is_drawn_is_what_transformers_leaves(how: Sampling) -> None:
    """The same tokens are left as by its warpers, and each is drawn as often as it is likely."""
    logits = logits_of(1, scale=1.0)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
    if how.top_k:
        warpers.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        warpers.append(TopPLogitsWarper(how.top_p))
    if how.min_p:
        warpers.append(MinPLogitsWarper(how.min_p))
    wanted = warpers(torch.zeros(1, 1, dtype=torch.long), logits)[0].softmax(-1)
    count = 3000
    chances = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = draw(logits.expand(count, -1), [how] * count, chances).bincount(minlength=WIDTH) / count
    assert (drawn - wanted).abs().max() < 2 / count
    assert not (drawn[wanted == 0] > 0).any()


def test_penalties_and_biases_are_as_published() -> None:
    """Repetition over prompt and answer as transformers has it; frequency and presence over the answer alone."""
    logits, prompt = logits_of(4), [3, 5, 7]
    hows = [
        Sampling(repetition_penalty=1.7),
        Sampling(frequency_penalty=0.8, presence_penalty=1.1),
        Sampling(logit_bias=((9, 100.0), (11, -100.0))),
        Sampling(),
    ]
    choosers = [Chooser(how, prompt) for how in hows]
    tokens: list[list[int]] = [[] for _ in hows]
    untouched = logits.clone()
    for _ in range(12):
        chosen = choose(logits, choosers).tolist()
        expected = logits.clone()
        expected[0] = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + tokens[0]]), logits[:1])[0]
        for token in set(tokens[1]):
            expected[1, token] -= 0.8 * tokens[1].count(token) + 1.1
        expected[2, 9] += 100
        expected[2, 11] -= 100
        assert chosen == expected.argmax(-1).tolist()
        for each, token in zip(tokens, chosen, strict=True):
            each.append(token)
    assert torch.equal(logits, untouched)
    assert set(tokens[2]) == {9}
    assert len(set(tokens[3])) == 1
    assert len(set(tokens[1])) > 3


def test_the_models_own_penalty_holds_where_a_request_brings_none() -> None:
    logits, prompt = logits_of(2), list(range(0, WIDTH, 2))
    model, own = Chooser(Sampling(), prompt), Chooser(Sampling(repetition_penalty=1.0), prompt)
    first = choose(logits, [model, own], 1e9).tolist()
    assert first[0] % 2 == 1
    assert first[1] == int(logits[1].argmax())


@pytest.mark.parametrize("seed", range(3))
def test_a_row_draws_the_same_whatever_its_neighbours_do(seed: int) -> None:
    chance = random.Random(seed)
    ways = [
        Sampling(),
        Sampling(0.8, seed=1),
        Sampling(1.1, top_p=0.9, seed=2),
        Sampling(4.0, top_p=0.999, seed=3),
        Sampling(1.0, top_k=3, seed=4),
        Sampling(1.0, min_p=0.1, seed=5, frequency_penalty=1.0),
        Sampling(0.9, seed=6, repetition_penalty=1.3, logit_bias=((4, 2.0),)),
        Sampling(presence_penalty=2.0),
    ]
    steps = [logits_of(len(ways), n) for n in range(8)]
    alone = []
    for n, how in enumerate(ways):
        chooser = Chooser(how, [n, 4])
        alone.append([int(choose(logits[n : n + 1], [chooser])) for logits in steps])
    order = list(range(len(ways)))
    chance.shuffle(order)
    choosers = [Chooser(ways[n], [n, 4]) for n in order]
    together = [choose(logits[order], choosers).tolist() for logits in steps]
    assert [[row[order.index(n)] for row in together] for n in range(len(ways))] == alone


def test_a_mask_leaves_only_what_it_allows() -> None:
    logits = logits_of(3)
    allowed = torch.zeros(WIDTH, dtype=torch.bool)
    allowed[[8, 9]] = True
    choosers = [Chooser(how) for how in (Sampling(), Sampling(2.0, seed=1), Sampling())]
    chosen = choose(logits, choosers, masks={0: allowed, 1: allowed}).tolist()
    assert chosen[0] == max((8, 9), key=lambda n: float(logits[0, n]))
    assert chosen[1] in (8, 9)
    assert chosen[2] == int(logits[2].argmax())


def test_scores_are_logarithms_of_what_the_model_gave() -> None:
    logits = logits_of(2)
    wanted = logits.log_softmax(-1)
    (one, beside), (two, few) = scores(logits, [4, 7], 3)[0], scores(logits, [4, 7], 0)[1]
    assert one == pytest.approx(float(wanted[0, 4]), abs=1e-5)
    assert [i for i, _ in beside] == wanted[0].topk(3).indices.tolist()
    assert two == pytest.approx(float(wanted[1, 7]), abs=1e-5)
    assert few == []
