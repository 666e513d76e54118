"""Held-out preference rows: how often, and by how much, a model prefers the better answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from tuneloop.evaluation.by_row import compare_held
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.metrics import ALWAYS, METRICS, measured
from tuneloop.evaluation.paired import RowScores
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.trained import Trained
from tuneloop.model.load import placed
from tuneloop.tasks.logprobs import LogProbModel, by_sample
from tuneloop.tasks.loss import head_is_exact
from tuneloop.tasks.reward import RewardModel
from tuneloop.tasks.task import SplitView
from tuneloop.training.packing import packs_exactly, rows
from tuneloop.training.row_losses import row_losses

SampleScores = Callable[[Trained, nn.Module, Sequences, Sequence[Record]], NDArray[np.float64]]
"""A model's score of each sample of some records, float64 [samples]: what an answer is preferred by."""


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


@torch.no_grad()
def prefers(
    trained: Trained,
    model: nn.Module,
    held: Sequence[Record],
    scores_of: SampleScores,
    each: Callable[[dict[str, dict[str, float | None]]], object] | None = None,
) -> dict[str, float | None]:
    """The metrics of the held-out pairs, or of the judged answers where there is no pair; {} where there is neither.

    `each` hears the id of each pair -> its own figures.
    """
    records = _compared(held) or [r for r in held if KINDS[r.kind].label == "verdict"]
    if not records:
        return {}
    samples = tokenize(trained.tokenizer, records, empty_thoughts=trained.recipe.prepare.empty_thoughts)
    scores = scores_of(trained, model, samples, records)
    last = np.cumsum(np.bincount(samples.row, minlength=len(records))) - 1
    if _compared(records):
        leads = scores[last - 1] - scores[last]
        if each is not None:
            each({r.id: _figures(lead) for r, lead in zip(records, leads.tolist(), strict=True)})
        return _finite({**measured("pairs", leads), **measured("leads", leads)})
    good = np.array([r.label == "good" for r in records])
    if good.all() or not good.any():
        return {}
    return _finite(measured("leads", np.array([scores[last[good]].mean() - scores[last[~good]].mean()])))


def _figures(lead: float) -> dict[str, float | None]:
    """What a pair scores by the lead of its better answer."""
    return {"preferred": 100.0 * (lead > 0), "margin": lead}


def _finite(metrics: dict[str, float | None]) -> dict[str, float | None]:
    return {name: number for name, number in metrics.items() if number is not None and math.isfinite(number)}


def measure_rewards(trained: Trained, held: Sequence[Record], say: Callable[[str], None]) -> Evaluation:
    """The evaluation of a reward model, which writes no answers: its loss and the share of pairs that it orders
    rightly. Before training its head is as it was drawn, so it guesses."""
    unmeasured = {name: None for name, metric in METRICS.items() if metric.needs in ALWAYS}

    def ask(model: nn.Module) -> tuple[Scores, dict[str, dict[str, float | None]]]:
        model.eval()
        figures: dict[str, dict[str, float | None]] = {}
        preferred = prefers(trained, model, held, rewards, figures.update)
        if not preferred:
            return Scores(unmeasured, rows=0, label_tokens=0), figures
        items = _items(trained, held)
        module = trained.task.objective(model, items, trained.setting)
        packed = rows(items, trained.recipe.train.token_budget, packing=packs_exactly(module, items))
        total, losses = row_losses(module, packed, items, _device(model))
        for record, loss in zip(_compared(held), losses.tolist(), strict=True):
            figures[record.id] = {"loss": loss, **figures[record.id]}
        metrics = {**unmeasured, **measured("rows", total / len(items)), **preferred}
        return Scores(metrics, rows=0, label_tokens=int(items.samples.labels.sum())), figures

    placed(trained.model)
    say(t("Measuring before training"))
    with untrained(trained) as base:
        before, first = ask(base)
    say(t("Measuring after training"))
    after, last = ask(trained.model)
    scored = tuple(RowScores(id_, "", own, last[id_]) for id_, own in first.items())
    evaluation = compare.assemble(before=before, after=after, held=held, task=trained.recipe.train.task)
    return replace(evaluation, row_scores=scored, paired=compare_held(scored, {}, suite.by_file(_compared(held))))


def _items(trained: Trained, held: Sequence[Record]) -> Examples:
    records = _compared(held)
    return trained.task.examples(SplitView(tokenize(trained.tokenizer, records), lambda: records), trained.setting)


def likelihoods(
    trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]
) -> NDArray[np.float64]:
    """Log-probability of each sample's labels, a token: so a long answer is no worse for being long, whatever the
    reference of its training was."""
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


def rewards(trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]) -> NDArray[np.float64]:
    """The reward of each sample."""
    pairs = trained.task.examples(SplitView(samples, lambda: records), trained.setting)
    module = trained.task.objective(model, pairs, trained.setting)
    assert isinstance(module, RewardModel)
    packing = packs_exactly(module, pairs)
    scores = np.zeros(len(samples))
    for row in rows(pairs, trained.recipe.train.token_budget, packing=packing):
        reward = module.scores(row.to(_device(model)))[:, 0]
        scores[list(row.members)] = reward.double().cpu().numpy()
    return scores


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
