"""The model before and after training, measured in one go on the same rows and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import classification, compare, preference, suite
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.more_answers import MoreAnswers, SideMeasured, with_rows
from tuneloop.evaluation.progress import Counted, counted, journal_in
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.generate import Answerer
from tuneloop.inference.trained import Trained
from tuneloop.model.head import Answers
from tuneloop.model.load import placed
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.chat import objective
from tuneloop.training.packing import packs_exactly, rows
from tuneloop.training.row_losses import row_losses

Say = Callable[[str], None]


def held_out_loss(
    model: nn.Module,
    tokenizer: Any,
    budget: int,
    *,
    empty_thoughts: bool = False,
    most: int | None = None,
    each: Callable[[Record, float, int], None] | None = None,
    say: Say = lambda text: None,
) -> suite.HeldLoss:
    """A function from records to (sum of losses, label tokens); `each` hears them of each record that has labels, `say`
    how far it is.

    Samples of more than `most` tokens are left out.
    """

    def measure(records: list[Record]) -> tuple[float, int]:
        sequences = tokenize(tokenizer, records, empty_thoughts=empty_thoughts)
        labelled = [k for k, one in enumerate(sequences) if one.labels and (most is None or len(one.ids) <= most)]
        if not labelled:
            return 0.0, 0
        items = Examples.of([sequences[k] for k in labelled])
        module = objective(model, items)
        packing = packs_exactly(module, items)
        batches = counted(rows(items, budget, packing=packing), len(items.samples), say)
        loss, losses = row_losses(module, batches, items, next(model.parameters()).device)
        if each is not None:
            of = sequences.row[labelled]
            for row in np.unique(of):
                each(records[row], float(losses[of == row].sum()), int(items.samples.labels[of == row].sum()))
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

    def measure(model: nn.Module) -> SideMeasured:
        model.eval()
        total = len(picked) + len(show) + sum(map(len, probes)) + more.most
        answerer = Counted(writer(model), total, say, journal=journal_in(trained.folder))
        losses: dict[int, tuple[float, int]] = {}
        leads: dict[str, dict[str, float | None]] = {}
        loss = held_out_loss(
            model,
            trained.tokenizer,
            recipe.train.token_budget,
            empty_thoughts=recipe.prepare.empty_thoughts,
            each=lambda record, lost, tokens: losses.update({id(record): (lost, tokens)}),
            say=say,
        )
        scores, answers = suite.score(
            answerer, answered, loss, rows=part.rows, max_new_tokens=part.max_new_tokens, batch_size=part.batch_size
        )
        preferred = preference.prefers(trained, model, held, preference.likelihoods, leads.update)
        scores = replace(scores, metrics={**scores.metrics, **preferred})
        # All prompts together fill the batches better than one question at a time.
        every = [*show, *(p for prompts in probes for p in prompts)]
        replies = iter(
            compare.ask(answerer, every, max_new_tokens=part.max_new_tokens, batch_size=part.batch_size, system=system)
        )
        shown = [next(replies) for _ in show]
        to_probes = [[next(replies) for _ in prompts] for prompts in probes]
        return SideMeasured(
            scores, answers, shown, to_probes, losses, leads, more.calls(answerer), more.switched(answerer, answers)
        )

    placed(trained.model)
    answerer = writer(trained.model)
    fits = suite.fitting(answerer, part.max_new_tokens)
    picked = suite.pick(answered, part.rows, fits)
    calling = suite.pick(answered, part.rows, fits, suite.calls_tools)
    more = MoreAnswers(trained.tokenizer, part, picked, [r for r in calling if suite.offers(answerer, r)])
    say(t("Answering before training"))
    with untrained(trained) as base:
        before = measure(base)
    say(t("Answering after training"))
    after = measure(trained.model)
    evaluation = compare.assemble(
        before=before.scores,
        after=after.scores,
        rows=picked,
        held=held,
        answers_before=before.answers,
        answers_after=after.answers,
        show=show,
        show_before=before.show,
        show_after=after.show,
        probes=[compare.probe(*three) for three in zip(part.probes, before.probes, after.probes, strict=True)],
    )
    return with_rows(evaluation, held, before, after, more)


MEASURES: dict[Answers, Callable[[Trained, Sequence[Record], Say], Evaluation]] = {
    "text": measure_texts,
    "label": classification.measure,
    "score": preference.measure_rewards,
}
"""How a model answers -> how it is measured."""


def measure_before_after(trained: Trained, held: Sequence[Record], say: Say) -> Evaluation:
    """The model before and after training, measured on the rows `held`, in the way that its task answers."""
    return MEASURES[trained.task.answers](trained, held, say)
