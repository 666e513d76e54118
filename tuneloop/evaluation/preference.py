"""Held-out preference rows: how often, and by how much, a model prefers the better answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.kinds import KINDS
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sequences
from tuneloop.evaluation import compare, suite
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.trained import Trained
from tuneloop.model.load import placed
from tuneloop.tasks.logprobs import LogProbModel, by_sample
from tuneloop.tasks.loss import head_is_exact
from tuneloop.tasks.reward import RewardModel
from tuneloop.tasks.task import SplitView
from tuneloop.training.loop import held_loss
from tuneloop.training.packing import packs_exactly, rows


@dataclass(frozen=True, slots=True)
class Preference:
    """Over held-out pairs. None means not measured."""

    preferred: float | None = None
    """Share of the pairs whose better answer is likelier, a token; or has the higher reward."""
    margin: float | None = None
    """By how much, on average: nats a token, or reward. Of judged answers: between the good ones and the bad."""
    pairs: int = 0


def dialogues(records: Sequence[Record]) -> list[Record]:
    """Preference rows as dialogues that end with the better answer, judged ones as those of good answers.

    Only that answer is trained on, so only its loss is measured; other rows come back as they are.
    """
    out = []
    for record in records:
        about_last = KINDS[record.kind].last_answer
        if about_last and record.label != "bad":
            first = len(record.prompt)
            turns = tuple(replace(m, trained=k >= first) for k, m in enumerate(record.messages))
            out.append(replace(record, kind="chat", label="", rejected=(), messages=turns))
        elif not about_last:
            out.append(record)
    return out


def _compared(records: Sequence[Record]) -> list[Record]:
    """Those of the records that compare answers."""
    return [r for r in records if KINDS[r.kind].encoding == "alternatives"]


def added(scores: suite.Scores, found: Preference) -> suite.Scores:
    """The scores with what was found of preference rows, the share in percent."""
    share = None if found.preferred is None else 100 * found.preferred
    return replace(scores, preferred=share, margin=found.margin)


@torch.no_grad()
def prefers(trained: Trained, model: nn.Module, held: Sequence[Record]) -> Preference:
    """What a model makes of the held-out pairs and judged answers: log-probability a token, so that a long answer is
    no worse for being long, whatever the reference of its training was; of a reward model its rewards."""
    records = _compared(held) or [r for r in held if KINDS[r.kind].label == "verdict"]
    if not records:
        return Preference()
    samples = tokenize(trained.tokenizer, records, empty_thoughts=trained.recipe.prepare.empty_thoughts)
    scores = (_likelihoods if trained.task.generates else _rewards)(trained, model, samples, records)
    last = np.cumsum(np.bincount(samples.row, minlength=len(records))) - 1
    if _compared(records):
        lead = scores[last - 1] - scores[last]
        return Preference(float((lead > 0).mean()), float(lead.mean()), len(records))
    good = np.array([r.label == "good" for r in records])
    if good.all() or not good.any():
        return Preference()
    return Preference(None, float(scores[last[good]].mean() - scores[last[~good]].mean()), len(records))


def measure_rewards(trained: Trained, held: Sequence[Record], say: Callable[[str], None]) -> dict[str, Any]:
    """What evaluation.json holds of a reward model, which writes no answers: its loss and the share of pairs that it
    orders rightly. Before training its head is as it was drawn, so it guesses."""

    def ask(model: nn.Module) -> suite.Scores:
        model.eval()
        found, loss = prefers(trained, model, held), None
        if found.pairs:
            items = _items(trained, held)
            module = trained.task.objective(model, items, trained.setting)
            packed = rows(items, trained.recipe.train.token_budget, packing=packs_exactly(module, items))
            loss = held_loss(module, packed, _device(model)) / len(items)
        labels = int(_items(trained, held).samples.labels.sum()) if found.pairs else 0
        none = suite.Scores(loss, None, None, None, None, None, rows=0, label_tokens=labels)
        return added(none, found)

    placed(trained.model)
    say(t("Measuring before training"))
    with untrained(trained) as base:
        before = ask(base)
    say(t("Measuring after training"))
    after = ask(trained.model)
    return {"task": trained.recipe.train.task, **compare.assemble(before=before, after=after, held=held)}


def _items(trained: Trained, held: Sequence[Record]) -> Examples:
    records = _compared(held)
    return trained.task.examples(SplitView(tokenize(trained.tokenizer, records), lambda: records), trained.setting)


def _likelihoods(
    trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]
) -> NDArray[np.float64]:  # fmt: skip
    """Log-probability of each sample's labels, a token."""
    items = Examples.of(samples)
    shortest = torch.tensor(samples[int(samples.lengths.argmin())].ids.tolist(), device=_device(model))[None]
    module = LogProbModel(model, own_head=not head_is_exact(model, shortest))
    packing = packs_exactly(module, items)
    scores = np.zeros(len(samples))
    for row in rows(items, trained.recipe.train.token_budget, packing=packing):
        batch = row.to(_device(model))
        sums, counts = by_sample(module.log_probs(batch), batch.positions, batch.segments)
        scores[list(batch.members)] = (sums / counts.clamp(min=1)).double().cpu().numpy()
    return scores


def _rewards(
    trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]
) -> NDArray[np.float64]:  # fmt: skip
    """The reward of each sample."""
    pairs = trained.task.examples(SplitView(samples, lambda: records), trained.setting)
    module = trained.task.objective(model, pairs, trained.setting)
    assert isinstance(module, RewardModel)
    packing = packs_exactly(module, pairs)
    scores = np.zeros(len(samples))
    for row in rows(pairs, trained.recipe.train.token_budget, packing=packing):
        found = module.scores(row.to(_device(model)))[:, 0]
        scores[list(row.members)] = found.double().cpu().numpy()
    return scores


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
