"""The sections of the suite beside the held-out rows: the general set and the user's own files, before and after.

The loss of their reference answers needs no generation. Each row counts alike in the loss of its section.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from torch import nn

from tuneloop.base.errors import DataError
from tuneloop.base.language import listed, t
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.kinds import KINDS
from tuneloop.data.reading import formats
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation import compare, general_set, suite
from tuneloop.evaluation.before_after import held_out_loss
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.forgetting import forgetting
from tuneloop.evaluation.form import visible
from tuneloop.evaluation.general_set import GeneralRow
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import row_figures
from tuneloop.evaluation.paired import Paired, RowScores, compare_rows
from tuneloop.evaluation.preference import dialogues
from tuneloop.evaluation.progress import Counted, journal_in
from tuneloop.evaluation.untrained import untrained
from tuneloop.inference.generate import Answerer
from tuneloop.inference.trained import Trained
from tuneloop.model.backbone import longest
from tuneloop.model.load import placed
from tuneloop.planning.planner import SectionsSize
from tuneloop.recipe.schema import EvaluateFile, EvaluatePart, Recipe

Say = Callable[[str], None]
WRITTEN = ("answers", "text")
"""Encodings of rows that a model writes: labels and comparisons have no text to measure a loss of."""


@dataclass(frozen=True, slots=True)
class SectionRows:
    """The rows of one section: those whose loss is measured, and of them those that are answered."""

    name: str
    records: Sequence[Record]
    answered: Sequence[Record] = ()
    general: Mapping[str, GeneralRow] = field(default_factory=dict)
    """Of the general set: id of a record -> its row, which says what a right answer is."""

    def scored(self, record: Record, reply: Reply) -> dict[str, float | None]:
        """What an answer scores: right or wrong in the general set, else by its reference."""
        text = visible(reply.text)
        if row := self.general.get(record.id):
            return {"accuracy": float(general_set.passes(row, text))}
        return row_figures("answers", [text], [suite.reference(record)])[0]


def read_sections(recipe: Recipe) -> list[SectionRows]:
    """What a recipe wants measured beside its held-out rows.

    Raises what reading a file raises, and TL-DATA-EVALUATE where none of its rows has an answer.
    """
    part, system = recipe.evaluate, recipe.prepare.system
    return [*general_sections(part, system), *(_of_file(file, part, system) for file in part.files)]


def sections_size(recipe: Recipe, tokenizer: Any) -> SectionsSize:
    """What the sections will cost to measure. Raises as `read_sections` does."""
    sections = read_sections(recipe)
    records = [record for section in sections for record in section.records]
    samples = tokenize(tokenizer, records, empty_thoughts=recipe.prepare.empty_thoughts)
    tokens, labels = int(samples.lengths.sum()), int(samples.labels.sum())
    return SectionsSize(len(records), tokens, labels, sum(len(section.answered) for section in sections))


def general_sections(part: EvaluatePart, system: str | None) -> list[SectionRows]:
    """The general set as `evaluate.general` wants it; the loss is of the same 96 rows in any case."""
    if part.general == "off":
        return []
    sections: dict[str, list[GeneralRow]] = {}
    for row in general_set.general_rows():
        sections.setdefault(row.name, []).append(row)
    out = []
    for name, own in sections.items():
        records = {row.id: row.record(system) for row in own}
        out.append(
            SectionRows(
                name,
                [records[row.id] for row in own if row.counts_loss],
                list(records.values()) if part.general == "answers" else [],
                {records[row.id].id: row for row in own},
            )
        )
    return out


def _of_file(file: EvaluateFile, part: EvaluatePart, system: str | None) -> SectionRows:
    records = dialogues([record for record in formats.read(file.source) if isinstance(record, Record)])
    records = [_with_system(record, system) for record in records if KINDS[record.kind].encoding in WRITTEN]
    records = list({record.id: record for record in records}.values())
    if not any(suite.reference(record).strip() for record in records):
        raise DataError("TL-DATA-EVALUATE", where=file.path)
    name = file.name or PurePath(file.path).name
    return SectionRows(f"file/{name}", records, suite.pick(records, part.rows))


def _with_system(record: Record, system: str | None) -> Record:
    """The record with the run's system prompt, where it has none: as preparing would have it."""
    if not system or KINDS[record.kind].encoding != "answers" or record.messages[0].role == "system":
        return record
    return replace(record, messages=(Message("system", system), *record.messages))


def reference_losses(
    model: nn.Module,
    tokenizer: Any,
    records: Sequence[Record],
    budget: int,
    *,
    empty_thoughts: bool = False,
    say: Say = lambda text: None,
) -> list[float | None]:
    """The mean loss of each record's label tokens in nats; None for one without any, or longer than the context."""
    losses: dict[int, float] = {}
    measure = held_out_loss(
        model,
        tokenizer,
        budget,
        empty_thoughts=empty_thoughts,
        most=longest(model),
        each=lambda record, lost, tokens: losses.update({id(record): lost / tokens}),
        say=say,
    )
    measure(list(records))
    finite = {key: loss for key, loss in losses.items() if math.isfinite(loss)}
    return [finite.get(id(record)) for record in records]


@dataclass(frozen=True, slots=True)
class SectionScores:
    """What one model scores on the sections: each row's metrics, and its replies, by section and id."""

    rows: Mapping[tuple[str, str], Mapping[str, float | None]]
    replies: Mapping[tuple[str, str], Reply] = field(default_factory=dict)


def losses(
    sections: Sequence[SectionRows], trained: Trained, model: nn.Module, say: Say = lambda text: None
) -> SectionScores:
    """The loss of each row of the sections; all of them share the passes through the model."""
    model.eval()
    every = [(section.name, record) for section in sections for record in section.records]
    figures = reference_losses(
        model,
        trained.tokenizer,
        [record for _, record in every],
        trained.recipe.train.token_budget,
        empty_thoughts=trained.recipe.prepare.empty_thoughts,
        say=say,
    )
    return SectionScores(
        {(name, record.id): {"loss": loss} for (name, record), loss in zip(every, figures, strict=True)}
    )


def answers(sections: Sequence[SectionRows], answerer: suite.ToolAnswerer, part: EvaluatePart) -> SectionScores:
    """The answers to those rows of the sections that are to be answered, all at once, and what they score."""
    fits = suite.fitting(answerer, part.max_new_tokens)
    every = [(section, record) for section in sections for record in section.answered if fits(record)]
    chats = [[m.as_chat() for m in suite.prompt(record)] for _, record in every]
    how = {"max_new_tokens": part.max_new_tokens, "batch_size": part.batch_size}
    replies = dict(zip(((s.name, r.id) for s, r in every), answerer.answer(chats, **how) if chats else [], strict=True))
    scored = {(s.name, r.id): s.scored(r, replies[s.name, r.id]) for s, r in every}
    return SectionScores(scored, replies)


def joined(one: SectionScores, other: SectionScores) -> SectionScores:
    """The metrics and replies of both, row by row."""
    keys = dict.fromkeys((*one.rows, *other.rows))
    return SectionScores(
        {key: {**one.rows.get(key, {}), **other.rows.get(key, {})} for key in keys}, {**one.replies, **other.replies}
    )


def measure_sections(
    trained: Trained, sections: Sequence[SectionRows], say: Say
) -> tuple[SectionScores, SectionScores]:
    """The sections measured with the model before and after training."""
    part = trained.recipe.evaluate
    total = sum(len(section.answered) for section in sections)

    def measure(model: nn.Module) -> SectionScores:
        scores = losses(sections, trained, model, say)
        if not total:
            return scores
        writer = Answerer(model, trained.tokenizer, answer_prefix=trained.answer_prefix)
        counted = Counted(writer, total, say, journal=journal_in(trained.folder))
        return joined(scores, answers(sections, counted, part))

    placed(trained.model)
    say(t("Measuring {sections} beside the held-out rows", sections=listed(_titles(sections))))
    say(t("Measuring before training"))
    with untrained(trained) as base:
        before = measure(base)
    say(t("Measuring after training"))
    return before, measure(trained.model)


def _titles(sections: Sequence[SectionRows]) -> list[str]:
    """What the sections are to a reader: the general set, and each file by its name."""
    titles = [t("the general set") if section.general else section.name.partition("/")[2] for section in sections]
    return list(dict.fromkeys(titles))


def with_sections(
    evaluation: Evaluation, sections: Sequence[SectionRows], before: SectionScores, after: SectionScores
) -> Evaluation:
    """The evaluation with the rows of the sections, their answers, metrics and intervals, and what was forgotten."""
    rows_ = [
        RowScores(record.id, section.name, before.rows[key], after.rows[key])
        for section in sections
        for record in {r.id: r for r in (*section.records, *section.answered)}.values()
        if (key := (section.name, record.id)) in before.rows and key in after.rows
    ]
    pairs = [defined_above_chance(pair, rows_) for pair in compare_rows(rows_)]
    written = [
        answer(section, record, before.replies[key], after.replies[key])
        for section in sections
        for record in section.answered
        if (key := (section.name, record.id)) in before.replies and key in after.replies
    ]
    return replace(
        evaluation,
        row_scores=(*evaluation.row_scores, *rows_),
        paired=(*evaluation.paired, *pairs),
        section_answers=tuple(written),
        forgetting=forgetting(rows_),
    )


def answer(section: SectionRows, record: Record, before: Reply, after: Reply) -> Answer:
    """One row of a section, answered by both models."""
    shown = compare.side_by_side(compare.question(record), before, after, suite.reference(record))
    return replace(
        shown, context=compare.context(record), id=record.id, section=section.name, file=record.file, line=record.line
    )


def defined_above_chance(pair: Paired, scores: Sequence[RowScores]) -> Paired:
    """An accuracy of the general set, or why it is none: a base model that only guesses has nothing to forget."""
    if pair.metric != "accuracy" or not pair.section.startswith("general/") or pair.before.estimate is None:
        return pair
    right = [row.before["accuracy"] for row in scores if row.section == pair.section and "accuracy" in row.before]
    if general_set.above_chance(pair.section, int(sum(r or 0 for r in right)), len(right)):
        return pair
    nothing = Estimate(rows=len(right), note="at chance")
    return replace(pair, before=nothing, after=nothing, difference=nothing, separation="not defined", p=None)
