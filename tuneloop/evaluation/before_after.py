"""The model before and after training, measured in one go on the same rows and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record, Reply
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import classification, compare, preference, suite
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.progress import Counted, journal_in
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.generate import Answerer
from tuneloop.inference.trained import Trained
from tuneloop.model.head import Answers
from tuneloop.model.load import placed
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.chat import objective
from tuneloop.training.loop import held_loss
from tuneloop.training.packing import packs_exactly, rows

Say = Callable[[str], None]


def held_out_loss(model: nn.Module, tokenizer: Any, budget: int, *, empty_thoughts: bool = False) -> suite.HeldLoss:
    """A function from records to (sum of losses, label tokens)."""

    def measure(records: list[Record]) -> tuple[float, int]:
        samples = [s for s in tokenize(tokenizer, records, empty_thoughts=empty_thoughts) if s.labels]
        if not samples:
            return 0.0, 0
        items = Examples.of(samples)
        module = objective(model, items)
        packing = packs_exactly(module, items)
        loss = held_loss(module, rows(items, budget, packing=packing), next(model.parameters()).device)
        return loss, int(items.samples.labels.sum())

    return measure


def questions(recipe: Recipe) -> list[str]:
    """The prompts a recipe asks side by side; the first of each probe where it names none."""
    shown = compare.read_prompts(recipe.evaluate.show)
    return shown or [compare.read_prompts(p.prompts)[0] for p in recipe.evaluate.probes]


def measure_texts(trained: Trained, held: Sequence[Record], say: Say) -> Evaluation:
    """The evaluation of a model that writes: scores, answers and probes."""
    recipe = trained.recipe
    part = recipe.evaluate
    held = list(held)
    show = compare.read_prompts(part.show)
    probes = [compare.check_probe(p) for p in part.probes]
    system = recipe.prepare.system
    answered = preference.dialogues(held)

    def writer(model: nn.Module) -> Answerer:
        return Answerer(model, trained.tokenizer, answer_prefix=trained.answer_prefix)

    def measure(model: nn.Module) -> tuple[Scores, list[Reply], list[Reply], list[list[Reply]]]:
        model.eval()
        total = len(picked) + len(show) + sum(map(len, probes))
        answerer = Counted(writer(model), total, say, journal=journal_in(trained.folder))
        loss = held_out_loss(
            model, trained.tokenizer, recipe.train.token_budget, empty_thoughts=recipe.prepare.empty_thoughts
        )
        scores, answers = suite.score(
            answerer, answered, loss, rows=part.rows, max_new_tokens=part.max_new_tokens, batch_size=part.batch_size
        )
        preferred = preference.prefers(trained, model, held, preference.likelihoods)
        scores = replace(scores, metrics={**scores.metrics, **preferred})
        # All prompts together fill the batches better than one question at a time.
        every = [*show, *(p for prompts in probes for p in prompts)]
        replies = iter(
            compare.ask(answerer, every, max_new_tokens=part.max_new_tokens, batch_size=part.batch_size, system=system)
        )
        return scores, answers, [next(replies) for _ in show], [[next(replies) for _ in prompts] for prompts in probes]

    placed(trained.model)
    fits = suite.fitting(writer(trained.model), part.max_new_tokens)
    picked = suite.pick(answered, part.rows, fits)
    say(t("Answering before training"))
    with untrained(trained) as base:
        scores0, answers0, show0, probes0 = measure(base)
    say(t("Answering after training"))
    scores1, answers1, show1, probes1 = measure(trained.model)
    return compare.assemble(
        before=scores0,
        after=scores1,
        rows=picked,
        held=held,
        answers_before=answers0,
        answers_after=answers1,
        show=show,
        show_before=show0,
        show_after=show1,
        probes=[compare.probe(p, b, a) for p, b, a in zip(part.probes, probes0, probes1, strict=True)],
    )


MEASURES: dict[Answers, Callable[[Trained, Sequence[Record], Say], Evaluation]] = {
    "text": measure_texts,
    "label": classification.measure,
    "score": preference.measure_rewards,
}
"""How a model answers -> how it is measured."""


def measure_before_after(trained: Trained, held: Sequence[Record], say: Say) -> Evaluation:
    """The model before and after training, measured on the rows `held`, in the way that its task answers."""
    return MEASURES[trained.task.answers](trained, held, say)
