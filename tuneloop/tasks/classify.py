"""Task classify: which label a text has, by a head of one score a label. Encoders and decoders, all methods.

Texts are packed as dialogues are; an encoder's head reads the first token of each, a decoder's the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tuneloop.base.errors import DataError, RecipeError
from tuneloop.base.language import listed, t
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.data.tokens.samples import Sequences
from tuneloop.model.backbone import callable_model, states, tell_pairs, token_types, unwrap
from tuneloop.model.head import Head
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.heads import ends, reader
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.tasks.task import SplitView, Task, TaskContext

STEPS = 20
"""Numbers that a scale may have, such as stars in halves: with more of them they measure, and name nothing."""


class LabelModel(Objective):
    """Class-weighted cross entropy of the scores that a head gives to each text of a batch.

    Its columns are `label` int64 [n] and `weight` float32 [n]. The total divided by the sum of the weights is torch's
    weighted cross entropy.
    """

    def __init__(self, model: nn.Module, probe: Tensor) -> None:
        """`probe` int64 [1, length] is a text on which the way to the head is proven."""
        super().__init__(model)
        self.read = reader(model, probe)

    @property
    def chance(self) -> float | None:
        return math.log(unwrap(self.model).config.num_labels or 1)

    def scores(self, batch: Batch) -> Tensor:
        """Scores (before the softmax) of the texts of a batch, float32 [n, labels]."""
        base = unwrap(self.model)
        if self.read is None:
            own = [
                callable_model(self.model)(input_ids=ids, **token_types(self.model, ids)).logits[0]
                for ids in batch.input_ids.split(batch.segments, 1)
            ]
            return torch.stack(own).float()
        hidden = states(self.model, batch.input_ids, batch.position_ids, batch.segments, batch.members)
        first, last = ends(base, hidden, batch.input_ids, batch.segments)
        return self.read(base, first, last).float()

    def forward(self, batch: Batch) -> Losses:
        return label_losses(self.scores(batch), batch)


def label_losses(scores: Tensor, batch: Batch) -> Losses:
    """Weighted cross entropy of scores float32 [n, labels] and the batch's columns `label` and `weight`."""
    if "label" not in batch.columns:  # an idle rank's pass
        return Losses(scores.sum() * 0.0, scores.new_zeros(0))
    each = cross_entropy(scores, batch.columns["label"], reduction="none") * batch.columns["weight"]
    return Losses(each.sum(), each.detach())


def classes(
    counts: Mapping[str, int], train: TrainPart, known: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The classes in order, and their weights. A trained head's order is kept where its labels are the same.

    Raises TL-DATA-ONE-LABEL, TL-DATA-NUMBERS, TL-RECIPE-WEIGHTS, TL-RECIPE-VALUE.

    >>> classes({"b": 2, "a": 1}, TrainPart()), classes({"b": 2, "a": 1}, TrainPart(), ["b", "a"])[0]
    ((('a', 'b'), (1.0, 1.0)), ('b', 'a'))
    """
    if len(counts) < 2:
        raise DataError("TL-DATA-ONE-LABEL", where="data", label=next(iter(counts), "-"))
    require_classes(counts)
    order = tuple(known) if set(known) == set(counts) else ordered(counts)
    return order, class_weights(train, {label: counts[label] for label in order})


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in order: numbers by their size, words by the alphabet.

    >>> ordered(["10", "2", "-1"]), ordered(["b", "a", "2"])
    (('-1', '2', '10'), ('2', 'a', 'b'))
    """
    labels = list(labels)
    numbers = {label: number(label) for label in labels}
    if any(size is None for size in numbers.values()):
        return tuple(sorted(labels))
    return tuple(sorted(labels, key=lambda label: (numbers[label] or 0.0, label)))


def number(label: str) -> float | None:
    """What a label is as a number; None for a word.

    >>> number("4.50"), number(" 3 "), number("nan"), number("good")
    (4.5, 3.0, None, None)
    """
    try:
        size = float(label)
    except ValueError:
        return None
    return size if math.isfinite(size) else None


def require_classes(counts: Mapping[str, int]) -> None:
    """Raise TL-DATA-NUMBERS where the labels are measurements: numbers most of which stand at one row alone, or more
    numbers with decimals than a scale of steps has."""
    values = [number(label) for label in counts]
    if any(size is None for size in values) or len(counts) <= STEPS:
        return
    decimals = sum(size != int(size) for size in values if size is not None)
    alone = sum(counts.values()) < 2 * len(counts)
    if decimals or alone:
        raise DataError(
            "TL-DATA-NUMBERS",
            where="data",
            n=len(counts),
            rows=sum(counts.values()),
            labels=", ".join(ordered(counts)[:5]) + " …",
        )


def class_weights(train: TrainPart, counts: dict[str, int]) -> tuple[float, ...]:
    """What a text of each class counts for. balanced: rows / (classes x rows of the class), so that they mean 1.

    Raises TL-RECIPE-WEIGHTS where the recipe's weights are of other labels, TL-RECIPE-VALUE where one is not above 0.

    >>> class_weights(TrainPart(classify={"weights": "balanced"}), {"a": 1, "b": 3})
    (2.0, 0.6666666666666666)
    """
    wanted = train.classify.weights
    if wanted == "none":
        return (1.0,) * len(counts)
    if wanted == "balanced":
        return tuple(sum(counts.values()) / (len(counts) * n) for n in counts.values())
    if set(wanted) != set(counts):
        got, need = (listed(str(x) for x in sorted(names)) for names in (wanted, counts))
        raise RecipeError("TL-RECIPE-WEIGHTS", where="train.classify.weights", got=got, labels=need)
    low = sorted(label for label, weight in wanted.items() if weight <= 0)
    if low:
        got = ", ".join(f"{label}: {wanted[label]:g}" for label in low)
        need = t("each label's weight must be above 0")
        raise RecipeError("TL-RECIPE-VALUE", where="train.classify.weights", got=got, need=need)
    return tuple(float(wanted[label]) for label in counts)


def labelled(
    samples: Sequences, rows: SplitView, setting: TaskContext, more: dict[str, NDArray[Any]] | None = None
) -> Examples:
    """Examples of one text each, with its class and weight. Raises TL-DATA-LABEL for a label that no class is of."""
    number = {label: k for k, label in enumerate(setting.labels)}
    names = rows.labels()
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise DataError(
            "TL-DATA-LABEL",
            where="data",
            n=sum(name not in number for name in names),
            label=listed(unknown[:5]),
            labels=listed(setting.labels),
        )
    label = np.array([number[name] for name in names], np.int64)[samples.row]
    weights = np.array(setting.weights or [1.0] * len(number), np.float32)[label]
    columns: dict[str, NDArray[Any]] = {"label": label, "weight": weights, **(more or {})}
    return Examples(samples, np.arange(len(samples))[:, None], weights.astype(np.float64), columns)


def probe(items: Examples, model: nn.Module) -> Tensor:
    """The shortest text, int64 [1, length]."""
    shortest = items.samples[int(items.samples.lengths.argmin())]
    return torch.tensor(shortest.ids.tolist(), device=next(model.parameters()).device)[None]


def _head(setting: TaskContext, config: Any) -> Head:
    return Head("classifier", setting.labels)


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    return labelled(rows.samples, rows, setting)


def _objective(model: nn.Module, items: Examples, setting: TaskContext) -> LabelModel:
    tell_pairs(model, setting.tokenizer)
    return LabelModel(model, probe(items, model))


CLASSIFY = Task(
    kinds=frozenset({"label"}),
    head=_head,
    items=_items,
    objective=_objective,
    answers="label",
    classes=classes,
)
