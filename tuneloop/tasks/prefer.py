"""Task prefer: of two answers the better one becomes likelier, or a good one likelier and a bad one less so.

    dpo    Rafailov et al. 2023, arXiv:2305.18290; with smoothing the conservative DPO of its authors
    ipo    Azar et al. 2023, arXiv:2310.12036, with log-probabilities a token, as its authors use it
    orpo   Hong et al. 2024, arXiv:2403.07691: needs no reference
    simpo  Meng et al. 2024, arXiv:2405.14734: needs no reference
    kto    Ethayarajh et al. 2024, arXiv:2402.01306: answers judged good or bad, alone

The reference is the model as training begins; what it finds is computed once, before the first step, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tuneloop.base.errors import DataError
from tuneloop.base.files import draft_of
from tuneloop.base.language import t
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.model.head import Head
from tuneloop.recipe.schema import PreferPart, TrainPart
from tuneloop.tasks import pairs
from tuneloop.tasks.logprobs import LogProbModel, by_sample
from tuneloop.tasks.loss import head_is_exact
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.tasks.task import SplitView, Task, TaskContext


@dataclass(frozen=True, slots=True)
class Answers:
    """n answers, float32 [n] each: log-probability under the model, under the reference, and label tokens."""

    sums: Tensor
    reference: Tensor
    counts: Tensor

    @property
    def gain(self) -> Tensor:
        """How much likelier than for the reference, in nats."""
        return self.sums - self.reference

    @property
    def mean(self) -> Tensor:
        """Log-probability a token."""
        return self.sums / self.counts.clamp(min=1)

    def take(self, at: Any) -> Answers:
        return Answers(self.sums[at], self.reference[at], self.counts[at])


def dpo(better: Answers, worse: Answers, part: PreferPart) -> Tensor:
    """Equation 7 of the paper; smoothing is the probability that a pair is the wrong way round."""
    x = part.beta * (better.gain - worse.gain)
    return -(1 - part.smoothing) * logsigmoid(x) - part.smoothing * logsigmoid(-x)


def ipo(better: Answers, worse: Answers, part: PreferPart) -> Tensor:
    """Equation 17 of the paper, of mean gains a token."""
    gains = better.gain / better.counts.clamp(min=1) - worse.gain / worse.counts.clamp(min=1)
    return (gains - 1 / (2 * part.beta)) ** 2


def orpo(better: Answers, worse: Answers, part: PreferPart) -> Tensor:
    """Equation 6: the better answer's own loss, and beta times that of the odds ratio (their lambda)."""
    odds = (better.mean - _log_not(better.mean)) - (worse.mean - _log_not(worse.mean))
    return -better.mean - part.beta * logsigmoid(odds)


def simpo(better: Answers, worse: Answers, part: PreferPart) -> Tensor:
    """Equation 6: rewards are mean log-probabilities times beta, and must differ by `margin`."""
    return -logsigmoid(part.beta * (better.mean - worse.mean) - part.margin)


def kto(answers: Answers, good: Tensor, anchor: Tensor, part: PreferPart) -> Tensor:
    """Equation 8 with equal weights: float32 [n]. good float32 [n], 1 or 0; anchor float32 []: z0 of the paper."""
    sign = 2 * good - 1
    return 1 - torch.sigmoid(part.beta * sign * (answers.gain - anchor))


def _log_not(logs: Tensor) -> Tensor:
    """log(1 - p) of log p."""
    return torch.log(-torch.expm1(logs.clamp(max=-1e-7)))


PAIRED: dict[str, Callable[[Answers, Answers, PreferPart], Tensor]] = {
    "dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo,
}  # fmt: skip
REFERENCED = frozenset({"dpo", "ipo", "kto"})
PAIRED_METRICS = ("accuracy", "margin", "reward_better", "reward_worse")
JUDGED_METRICS = ("accuracy", "margin", "anchor")


class PreferModel(LogProbModel):
    """The losses of whole examples: of pairs, or with KTO of judged answers.

    Columns: reference float32 [samples]; good for KTO. While the reference is not known (when it is asked whether the
    model can be packed), the loss is the answers' own, a token. `metrics` are whether the better answer has the higher
    reward, by how much, and the rewards; with KTO the anchor that they are measured from.
    """

    def __init__(self, model: nn.Module, part: PreferPart, loss: str, *, own_head: bool = False) -> None:
        super().__init__(model, own_head=own_head)
        self.part, self.loss = part, loss
        self.anchor = 0.0
        self.metrics = JUDGED_METRICS if loss == "kto" else PAIRED_METRICS

    def answers(self, batch: Batch) -> Answers:
        """What the model finds of each sample of a batch that has labels."""
        sums, counts = by_sample(self.log_probs(batch), batch.positions, batch.segments)
        known = batch.columns.get("reference")
        return Answers(sums, torch.zeros_like(sums) if known is None else known.to(sums), counts)

    @torch.no_grad()
    def before_step(self, batches: Sequence[Batch], reduce: Callable[[Tensor], Tensor]) -> None:
        """KTO: measure z0 of the step on prompts with other rows' answers, without dropout; over all ranks."""
        if self.loss != "kto":
            return
        was = self.training
        self.eval()
        total = torch.zeros(2, device=next(self.parameters()).device)
        for batch in batches:
            if batch.labels:
                gain = self.answers(_half(batch, 1)).gain
                total += torch.stack([gain.sum(), torch.full_like(gain, 1).sum()])
        self.train(was)
        total = reduce(total)
        self.anchor = max(0.0, float(total[0] / total[1].clamp(min=1)))

    def forward(self, batch: Batch) -> Losses:
        if not batch.labels:
            total = self.idle(batch)
            return Losses(total, total.new_zeros(0).detach())
        if self.loss in REFERENCED and "reference" not in batch.columns:
            each = -self.answers(batch).mean
            return Losses(each.sum(), each.detach())
        if self.loss == "kto":
            return self._judged(_half(batch, 0))
        return self._paired(self.answers(batch))

    def _paired(self, answers: Answers) -> Losses:
        better, worse = answers.take(slice(0, None, 2)), answers.take(slice(1, None, 2))
        each = PAIRED[self.loss](better, worse, self.part) - self.part.sft * better.mean
        rewards = [self.part.beta * (x.gain if self.loss in REFERENCED else x.mean) for x in (better, worse)]
        margin = rewards[0] - rewards[1]
        return _losses(each, (margin > 0).float(), margin, *rewards)

    def _judged(self, batch: Batch) -> Losses:
        answers, good = self.answers(batch), batch.columns["good"]
        # Outside training z0 is 0, so that held-out losses of different steps compare.
        anchor = torch.tensor(self.anchor if self.training else 0.0, device=good.device)
        each = kto(answers, good, anchor, self.part) - self.part.sft * good * answers.mean
        reward = self.part.beta * answers.gain
        right = ((reward > 0) == (good > 0)).float()
        return _losses(each, right, reward * (2 * good - 1), anchor.expand_as(good))


def _losses(each: Tensor, *metrics: Tensor) -> Losses:
    """The losses of n examples and the n numbers of each metric."""
    return Losses(each.sum(), each.detach(), torch.stack(metrics).detach().sum(1))


def _half(batch: Batch, which: int) -> Batch:
    """The first or the second sample of each example of a batch, as a batch of their own."""
    sizes = torch.tensor(batch.segments)
    device = batch.input_ids.device
    chosen = torch.arange(len(sizes)) % 2 == which
    tokens = chosen.repeat_interleave(sizes).to(device)
    place = tokens.cumsum(0) - 1
    mine = tokens[batch.positions]
    half = chosen.to(device)
    return Batch(
        input_ids=batch.input_ids[:, tokens],
        position_ids=batch.position_ids[:, tokens],
        positions=place[batch.positions[mine]],
        targets=batch.targets[mine],
        segments=tuple(batch.segments[which::2]),
        members=tuple(batch.members[which::2]),
        columns={name: column[half] for name, column in batch.columns.items()},
    )


def loss_name(part: PreferPart, *, paired: bool) -> str:
    """Which loss `auto` means: dpo on pairs, kto on judged answers."""
    return part.loss if part.loss != "auto" else "dpo" if paired else "kto"


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    train = setting.train
    # A pair is two samples, a judged dialogue mostly one; the rows themselves know.
    single = next((r for r in rows.records() if r.kind != "preference"), None)
    loss = loss_name(train.prefer, paired=single is None)
    if loss == "kto":
        return pairs.judged(rows, train.token_budget)
    if single is not None:
        error = t("{loss} compares two answers, and this row has one that was judged", loss=loss)
        raise DataError("TL-DATA-PAIR", where=f"{single.file}:{single.line}", error=error)
    return pairs.pairs(rows, train.token_budget)


def objective(model: nn.Module, items: Examples, setting: TaskContext) -> PreferModel:
    """The loss around a model. Raises TL-DATA-KTO where KTO has but one row to learn from."""
    first = items.members[:, 0]
    shortest = items.samples[int(first[items.samples.lengths[first].argmin()])]
    probe = torch.tensor(shortest.ids.tolist()).unsqueeze(0)
    loss = loss_name(setting.train.prefer, paired="good" not in items.columns)
    if loss == "kto" and len(np.unique(items.samples.names[items.members])) < 2:
        raise DataError("TL-DATA-KTO", where="train.prefer.loss")
    exact = head_is_exact(model, probe.to(next(model.parameters()).device))
    return PreferModel(model, setting.train.prefer, loss, own_head=not exact)


def precompute_reference(inner: Objective, examples: Examples, batches: Iterable[Batch], keep: Path) -> Examples:
    """The examples with what the model finds of each of their samples now, before its first step: column reference.

    Kept in the file `keep`, so that a run that is resumed goes on from the same numbers to the last bit.
    """
    assert isinstance(inner, PreferModel)
    if inner.loss not in REFERENCED:
        return examples
    reference = _read_reference(keep, len(examples.samples))
    if reference is None:
        reference = _measured(inner, examples, batches)
        with draft_of(keep, sync=True) as draft:
            np.save(draft, reference, allow_pickle=False)
    return replace(examples, columns={**examples.columns, "reference": reference})


def _read_reference(file: Path, samples: int) -> NDArray[np.float32] | None:
    """The reference of so many samples that lies in a file; None where it does not."""
    try:
        reference: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return reference if reference.shape == (samples,) and reference.dtype == np.float32 else None


@torch.no_grad()
def _measured(inner: PreferModel, examples: Examples, batches: Iterable[Batch]) -> NDArray[np.float32]:
    reference = np.zeros(len(examples.samples), np.float32)
    was = inner.training
    inner.eval()
    device = next(inner.parameters()).device
    for batch in batches:
        sums = inner.answers(replace(batch, columns={}).to(device)).sums
        reference[list(batch.members)] = sums.float().cpu().numpy()
    inner.train(was)
    return reference


def _needs_reference(items: Examples, train: TrainPart) -> bool:
    return loss_name(train.prefer, paired="good" not in items.columns) in REFERENCED


PREFER = Task(
    kinds=frozenset({"preference", "judged"}),
    head=lambda setting, config: Head(),
    items=_items,
    objective=objective,
    precompute_reference=precompute_reference,
    needs_reference=_needs_reference,
)
