"""A classifier before and after training, measured on the same held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Answer, Record, Reply
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import compare, suite
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.classifier import Classifier, likeliest
from tuneloop.inference.trained import Trained
from tuneloop.model.backbone import unwrap
from tuneloop.model.load import placed
from tuneloop.tasks.task import SplitView
from tuneloop.training.packing import packs_exactly, rows

Say = Callable[[str], None]
MISTAKES = 10
"""Mistakes that the report shows, those first that the model was surest of."""


def confusion(wanted: Sequence[int], said: Sequence[int], classes: int) -> list[list[int]]:
    """How many texts of class i were said to be of class j: row i, column j.

    >>> confusion([0, 0, 1], [0, 1, 1], 2)
    [[1, 1], [0, 1]]
    """
    out = np.zeros((classes, classes), np.int64)
    np.add.at(out, (np.asarray(wanted, np.int64), np.asarray(said, np.int64)), 1)
    counts: list[list[int]] = out.tolist()
    return counts


def accuracy(matrix: Sequence[Sequence[int]]) -> float | None:
    """Share of right answers in a confusion matrix; None of no texts.

    >>> accuracy([[1, 1], [0, 1]]), accuracy([[0, 0], [0, 0]])
    (0.6666666666666666, None)
    """
    total = sum(map(sum, matrix))
    return sum(row[k] for k, row in enumerate(matrix)) / total if total else None


def by_class(matrix: Sequence[Sequence[int]]) -> list[dict[str, float | int]]:
    """Precision, recall and F1 of each class; 0 where a quotient has nothing below its line, as scikit-learn has it.

    >>> [round(c["f1"], 3) for c in by_class([[1, 1], [0, 1]])]
    [0.667, 0.667]
    """
    out: list[dict[str, float | int]] = []
    for k, row in enumerate(matrix):
        right, texts, said = row[k], sum(row), sum(other[k] for other in matrix)
        precision, recall = right / said if said else 0.0, right / texts if texts else 0.0
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        out.append({"texts": texts, "precision": precision, "recall": recall, "f1": f1})
    return out


def macro_f1(matrix: Sequence[Sequence[int]]) -> float | None:
    """Mean F1 of the classes that occur, in the texts or in the answers; None of no texts.

    >>> round(macro_f1([[1, 1], [0, 1]]), 3)
    0.667
    """
    there = [
        float(one["f1"]) for k, one in enumerate(by_class(matrix)) if one["texts"] or any(row[k] for row in matrix)
    ]
    return sum(there) / len(there) if there else None


@torch.no_grad()
def scores(module: nn.Module, items: Examples, budget: int) -> NDArray[np.float32]:
    """What an objective with `scores` says to each item, float32 [n, classes]."""
    module.eval()
    device = next(module.parameters()).device
    packing = packs_exactly(module, items)
    scores = [
        module.scores(batch.to(device)).float().cpu().numpy()  # type: ignore[operator]
        for batch in rows(items, budget, packing=packing)
    ]
    every: NDArray[np.float32] = np.concatenate(scores)
    return every


def chances(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the classes, float64 [n, classes]."""
    away = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
    out: NDArray[np.float64] = away / away.sum(1, keepdims=True)
    return out


def measure(trained: Trained, held: Sequence[Record], say: Say) -> dict[str, Any]:
    """What evaluation.json holds of a classifier: scores, classes, mistakes, and what it calls the show prompts."""
    held = list(held)
    part = trained.recipe.evaluate
    show, probes = compare.read_prompts(part.show), [compare.check_probe(p) for p in part.probes]
    found = SplitView(tokenize(trained.tokenizer, held), lambda: held)
    items = trained.task.examples(found, trained.setting) if held else None

    def ask(model: nn.Module) -> tuple[NDArray[np.float32] | None, list[str], list[list[Reply]]]:
        model.eval()
        classifier = Classifier(model, trained.tokenizer, trained.task, trained.setting)
        module = None if items is None else trained.task.objective(model, items, trained.setting)
        got = None if items is None or module is None else scores(module, items, trained.recipe.train.token_budget)
        answers = [[Reply(likeliest(of), 0, 0, "stop") for of in classifier.classify(prompts)] for prompts in probes]
        return got, _shown(classifier, show), answers

    placed(trained.model)
    say(t("Measuring before training"))
    with untrained(trained) as base:
        before, show0, probes0 = ask(base)
        fresh = bool(getattr(unwrap(base), "new_weights", ()))
    say(t("Measuring after training"))
    after, show1, probes1 = ask(trained.model)
    sides = {"before": before, "after": after}
    label = np.zeros(0, np.int64) if items is None else items.columns["label"]
    labels = trained.setting.labels
    return {
        "task": trained.recipe.train.task,
        **{side: _scores(items, label, got, labels) for side, got in sides.items()},
        "by_source": _by_source(held, items, sides),
        "classes": {"labels": list(labels), "fresh": fresh}
        | {side: _classes(label, got, labels) for side, got in sides.items()},
        "mistakes": [] if after is None else _mistakes(held, label, after, labels),
        "held": [record.id for record in held],
        "answers": [],
        "show": [asdict(Answer(p, b, a)) for p, b, a in zip(show, show0, show1, strict=True)],
        "probes": [
            compare.plain_probe(compare.probe(p, b, a))
            for p, b, a in zip(part.probes, probes0, probes1, strict=True)
        ],
    }  # fmt: skip


def _shown(classifier: Classifier, prompts: Sequence[str]) -> list[str]:
    return [f"{likeliest(of)}  {100 * max(of.values()):.0f} %" for of in classifier.classify(prompts)]


def losses(items: Examples, got: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cross entropy of each text in nats, times the weight of its class, float64 [n]."""
    label = items.columns["label"]
    right = chances(got)[np.arange(len(label)), label]
    out: NDArray[np.float64] = -np.log(np.maximum(right, 1e-300)) * items.columns["weight"]
    return out


def _mean_loss(
    items: Examples | None, got: NDArray[np.float32] | None, index: Sequence[int] | None = None
) -> float | None:
    if items is None or got is None or not np.isfinite(got).all():
        return None
    at = np.arange(len(items)) if index is None else np.asarray(index)
    weight = float(items.weights[at].sum())
    return float(losses(items, got)[at].sum()) / weight if weight else None


def _scores(
    items: Examples | None, label: NDArray[np.int64], got: NDArray[np.float32] | None, labels: Sequence[str]
) -> dict[str, Any]:
    matrix = confusion(label.tolist(), _said(got), len(labels))
    return {"loss": _mean_loss(items, got), "accuracy": accuracy(matrix), "macro_f1": macro_f1(matrix),
            "texts": len(label)}  # fmt: skip


def _said(got: NDArray[np.float32] | None) -> list[int]:
    said: list[int] = [] if got is None else got.argmax(1).tolist()
    return said


def _classes(label: NDArray[np.int64], got: NDArray[np.float32] | None, labels: Sequence[str]) -> dict[str, Any]:
    matrix = confusion(label.tolist(), _said(got), len(labels))
    return {"confusion": matrix, "each": by_class(matrix)}


def _by_source(
    held: Sequence[Record], items: Examples | None, sides: dict[str, NDArray[np.float32] | None]
) -> dict[str, Any]:
    if items is None:
        return {}
    place = {id(record): k for k, record in enumerate(held)}
    of = {int(row): k for k, row in enumerate(items.samples.row.tolist())}
    groups = {name: [of[place[id(r)]] for r in group] for name, group in suite.by_file(held).items()}
    return {
        name: {side: {"loss": _mean_loss(items, got, index), "texts": len(index)} for side, got in sides.items()}
        for name, index in groups.items()
    }


def _mistakes(
    held: Sequence[Record], label: NDArray[np.int64], got: NDArray[np.float32], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Texts that are called wrong after training, the surest first."""
    chance, said = chances(got), got.argmax(1)
    wrong = [k for k in range(len(label)) if said[k] != label[k]]
    wrong.sort(key=lambda k: (-float(chance[k, said[k]]), k))
    return [
        {"text": "".join(m.content for m in held[k].messages), "label": labels[label[k]], "said": labels[said[k]],
         "chance": round(float(chance[k, said[k]]), 4)}
        for k in wrong[:MISTAKES]
    ]  # fmt: skip
