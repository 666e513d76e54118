"""A classifier before and after training, measured on the same held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record, Reply
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import compare, suite
from tuneloop.evaluation.by_row import compare_held
from tuneloop.evaluation.corpus import SectionTexts
from tuneloop.evaluation.evaluation import Answer, Classes, ClassScores, Evaluation, Mistake, Scores
from tuneloop.evaluation.metrics import by_class, measured
from tuneloop.evaluation.paired import RowScores
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


def confusion(wanted: Sequence[int], answers: Sequence[int], classes: int) -> list[list[int]]:
    """How many texts of class i were called class j: row i, column j.

    >>> confusion([0, 0, 1], [0, 1, 1], 2)
    [[1, 1], [0, 1]]
    """
    out = np.zeros((classes, classes), np.int64)
    np.add.at(out, (np.asarray(wanted, np.int64), np.asarray(answers, np.int64)), 1)
    counts: list[list[int]] = out.tolist()
    return counts


@torch.no_grad()
def scores(module: nn.Module, items: Examples, budget: int) -> NDArray[np.float32]:
    """The scores of each example, float32 [n, classes], of an objective that has `scores`."""
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


def measure(trained: Trained, held: Sequence[Record], say: Say) -> Evaluation:
    """The evaluation of a classifier: scores, classes, mistakes, and what it calls the show prompts."""
    held = list(held)
    part = trained.recipe.evaluate
    show, probes = compare.read_prompts(part.show), [compare.check_probe(p) for p in part.probes]
    view = SplitView(tokenize(trained.tokenizer, held), lambda: held)
    items = trained.task.examples(view, trained.setting) if held else None

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
    label = np.zeros(0, np.int64) if items is None else items.columns["label"]
    labels = trained.setting.labels
    scored, texts = ([], {}) if items is None else _rows(held, items, (before, after), labels)
    return Evaluation(
        _scores(held, items, label, before, labels),
        _scores(held, items, label, after, labels),
        task=trained.recipe.train.task,
        classes=Classes(labels, fresh, *(_classes(label, got, labels) for got in (before, after))),
        mistakes=() if after is None else _mistakes(held, label, after, labels),
        held=tuple(record.id for record in held),
        show=tuple(Answer(p, b, a) for p, b, a in zip(show, show0, show1, strict=True)),
        probes=tuple(compare.probe(p, b, a) for p, b, a in zip(part.probes, probes0, probes1, strict=True)),
        paired=compare_held(scored, texts, suite.by_file(held)),
        row_scores=tuple(scored),
    )


def _rows(
    held: Sequence[Record], items: Examples, got: Sequence[NDArray[np.float32] | None], labels: Sequence[str]
) -> tuple[list[RowScores], dict[str, SectionTexts]]:
    """What each text scores before and after, and its label and both answers."""
    if any(one is None for one in got):
        return [], {}
    label, weights = items.columns["label"], items.weights
    sides = [one for one in got if one is not None]
    answers = [one.argmax(1) for one in sides]
    figures = [
        [
            {"loss": loss / weight if weight and np.isfinite(scores).all() else None, "accuracy": float(right)}
            for loss, weight, right in zip(losses(items, scores), weights, answer == label, strict=True)
        ]
        for scores, answer in zip(sides, answers, strict=True)
    ]
    ids = [held[row].id for row in items.samples.row]
    scored = [RowScores(i, "", b, a, float(w)) for i, b, a, w in zip(ids, *figures, weights, strict=True)]
    names = [[labels[k] for k in side] for side in (label, *answers)]
    return scored, {"": SectionTexts(*names)}


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
    held: Sequence[Record],
    items: Examples | None,
    label: NDArray[np.int64],
    got: NDArray[np.float32] | None,
    labels: Sequence[str],
) -> Scores:
    metrics = {**measured("rows", _mean_loss(items, got)), **measured("labels", _confusion(label, got, labels))}
    files = {
        name: Scores({"loss": _mean_loss(items, got, index)}, texts=len(index))
        for name, index in _by_source(held, items).items()
    }
    return Scores(metrics, texts=len(label), by_source=files)


def _confusion(label: NDArray[np.int64], got: NDArray[np.float32] | None, labels: Sequence[str]) -> list[list[int]]:
    return confusion(label.tolist(), [] if got is None else got.argmax(1).tolist(), len(labels))


def _classes(label: NDArray[np.int64], got: NDArray[np.float32] | None, labels: Sequence[str]) -> ClassScores:
    matrix = _confusion(label, got, labels)
    return ClassScores(tuple(map(tuple, matrix)), tuple(by_class(matrix)))


def _by_source(held: Sequence[Record], items: Examples | None) -> dict[str, list[int]]:
    """The examples of each file."""
    if items is None:
        return {}
    place = {id(record): k for k, record in enumerate(held)}
    of = {int(row): k for k, row in enumerate(items.samples.row.tolist())}
    return {name: [of[place[id(r)]] for r in group] for name, group in suite.by_file(held).items()}


def _mistakes(
    held: Sequence[Record], label: NDArray[np.int64], got: NDArray[np.float32], labels: Sequence[str]
) -> tuple[Mistake, ...]:
    """Texts that are called wrong after training, the surest first."""
    chance, answers = chances(got), got.argmax(1)
    wrong = [k for k in range(len(label)) if answers[k] != label[k]]
    wrong.sort(key=lambda k: (-float(chance[k, answers[k]]), k))
    return tuple(
        Mistake(
            "".join(m.content for m in held[k].messages),
            labels[label[k]],
            labels[answers[k]],
            round(float(chance[k, answers[k]]), 4),
        )
        for k in wrong[:MISTAKES]
    )
