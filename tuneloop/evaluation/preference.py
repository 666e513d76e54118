"""Held-out preference rows: how often, and by how much, a model prefers the better answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sequences
from tuneloop.evaluation import compare
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.metrics import ALWAYS, METRICS, measured
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.trained import Trained
from tuneloop.model.load import placed
from tuneloop.tasks.logprobs import LogProbModel, by_sample
from tuneloop.tasks.loss import head_is_exact
from tuneloop.tasks.reward import RewardModel
from tuneloop.tasks.task import SplitView
from tuneloop.training.loop import held_loss, to_device
from tuneloop.training.packing import packs_exactly, rows

SampleScores = Callable[[Trained, nn.Module, Sequences, Sequence[Record]], NDArray[np.float64]]
"""A model's score of each sample of some records, float64 [samples]: what an answer is preferred by."""


def dialogues(records: Sequence[Record]) -> list[Record]:
    """Preference rows as dialogues that end with the better answer, judged ones as those of good answers.

    Only that answer is trained on, so only its loss is measured; other rows come back as they are.
    """
    out = []
    for record in records:
        if record.kind == "preference" or (record.kind == "judged" and record.label == "good"):
            first = len(record.prompt)
            turns = tuple(replace(m, trained=k >= first) for k, m in enumerate(record.messages))
            out.append(replace(record, kind="chat", label="", rejected=(), messages=turns))
        elif record.kind != "judged":
            out.append(record)
    return out


@torch.no_grad()
def prefers(
    trained: Trained, model: nn.Module, held: Sequence[Record], scores_of: SampleScores
) -> dict[str, float | None]:  # fmt: skip
    """The metrics of the held-out pairs, or of the judged answers where there is no pair; {} where there is neither."""
    records = [r for r in held if r.kind == "preference"] or [r for r in held if r.kind == "judged"]
    if not records:
        return {}
    samples = tokenize(trained.tokenizer, records, empty_thoughts=trained.recipe.prepare.empty_thoughts)
    scores = scores_of(trained, model, samples, records)
    last = np.cumsum(np.bincount(samples.row, minlength=len(records))) - 1
    if records[0].kind == "preference":
        leads = scores[last - 1] - scores[last]
        return _finite({**measured("pairs", leads), **measured("leads", leads)})
    good = np.array([r.label == "good" for r in records])
    if good.all() or not good.any():
        return {}
    return _finite(measured("leads", np.array([scores[last[good]].mean() - scores[last[~good]].mean()])))


def _finite(metrics: dict[str, float | None]) -> dict[str, float | None]:
    return {name: number for name, number in metrics.items() if number is not None and math.isfinite(number)}


def measure_rewards(trained: Trained, held: Sequence[Record], say: Callable[[str], None]) -> Evaluation:
    """The evaluation of a reward model, which writes no answers: its loss and the share of pairs that it orders
    rightly. Before training its head is as it was drawn, so it guesses."""
    unmeasured = {name: None for name, metric in METRICS.items() if metric.needs in ALWAYS}

    def ask(model: nn.Module) -> Scores:
        model.eval()
        preferred = prefers(trained, model, held, rewards)
        if not preferred:
            return Scores(unmeasured, rows=0, label_tokens=0)
        items = _items(trained, held)
        module = trained.task.objective(model, items, trained.setting)
        packed = rows(items, trained.recipe.train.token_budget, packing=packs_exactly(module, items))
        loss = held_loss(module, packed, _device(model)) / len(items)
        metrics = {**unmeasured, **measured("rows", loss), **preferred}
        return Scores(metrics, rows=0, label_tokens=int(items.samples.labels.sum()))

    placed(trained.model)
    say(t("Measuring before training"))
    with untrained(trained) as base:
        before = ask(base)
    say(t("Measuring after training"))
    after = ask(trained.model)
    return compare.assemble(before=before, after=after, held=held, task=trained.recipe.train.task)


def _items(trained: Trained, held: Sequence[Record]) -> Examples:
    records = [r for r in held if r.kind == "preference"]
    return trained.task.items(SplitView(tokenize(trained.tokenizer, records), lambda: records), trained.setting)


def likelihoods(
    trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]
) -> NDArray[np.float64]:  # fmt: skip
    """Log-probability of each sample's labels, a token: so a long answer is no worse for being long, whatever the
    reference of its training was."""
    items = Examples.of(samples)
    shortest = torch.tensor(samples[int(samples.lengths.argmin())].ids.tolist(), device=_device(model))[None]
    module = LogProbModel(model, own_head=not head_is_exact(model, shortest))
    packing = packs_exactly(module, items)
    scores = np.zeros(len(samples))
    for row in rows(items, trained.recipe.train.token_budget, packing=packing):
        moved: Any = to_device(row, _device(model))
        at = moved["positions"], moved["targets"], moved["segments"]
        logs = module.log_probs(moved["input_ids"], moved["position_ids"], *at)
        sums, counts = by_sample(logs, moved["positions"], moved["segments"])
        scores[list(row["members"])] = (sums / counts.clamp(min=1)).double().cpu().numpy()
    return scores


def rewards(
    trained: Trained, model: nn.Module, samples: Sequences, records: Sequence[Record]
) -> NDArray[np.float64]:  # fmt: skip
    """The reward of each sample."""
    pairs = trained.task.items(SplitView(samples, lambda: records), trained.setting)
    module = trained.task.objective(model, pairs, trained.setting)
    assert isinstance(module, RewardModel)
    packing = packs_exactly(module, pairs)
    scores = np.zeros(len(samples))
    for row in rows(pairs, trained.recipe.train.token_budget, packing=packing):
        moved: Any = to_device(row, _device(model))
        reward = module.scores(moved["input_ids"], moved["position_ids"], moved["segments"])[:, 0]
        scores[list(row["members"])] = reward.double().cpu().numpy()
    return scores


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
