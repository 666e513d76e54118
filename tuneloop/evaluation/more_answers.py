"""What a model that writes is asked beside its prompts, and what all its answers say of each row.

Rows with tools are answered with these on offer. Where the template has a switch for thoughts, the compared rows are
answered once more with thoughts on and with thoughts off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.base.records import Record, Reply
from tuneloop.data.tokens.templates import switches_thoughts
from tuneloop.evaluation import suite
from tuneloop.evaluation.by_row import (
    LossByRow,
    SideEvidence,
    answer_rows,
    compare_held,
    joined,
    loss_rows,
    reasons,
    section_texts,
)
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import Need
from tuneloop.evaluation.paired import Paired, RowScores
from tuneloop.evaluation.preference import dialogues
from tuneloop.evaluation.progress import Counted
from tuneloop.recipe.schema import EvaluatePart

THOUGHTS = {"thinking/on": True, "thinking/off": False}
"""Sections of the suite in which a template's thoughts are switched on and off."""


@dataclass(frozen=True, slots=True)
class SideMeasured:
    """What was measured of one model: its scores, its replies, and the losses and leads of the rows."""

    scores: Scores
    answers: Sequence[Reply]
    show: Sequence[Reply]
    probes: Sequence[Sequence[Reply]]
    losses: LossByRow
    leads: Mapping[str, Mapping[str, float | None]]
    calls: Sequence[Reply]
    switched: Mapping[str, Sequence[Reply]]
    """Section of THOUGHTS -> the replies to the compared rows."""


@dataclass(frozen=True, slots=True)
class MoreAnswers:
    """Asks a model what is beside its prompts. `picked` are the compared rows, `calling` those with tools."""

    tokenizer: Any
    part: EvaluatePart
    picked: Sequence[Record]
    calling: Sequence[Record]

    @property
    def sections(self) -> dict[str, bool]:
        """Sections with a switch."""
        return THOUGHTS if self.picked and switches_thoughts(self.tokenizer) else {}

    @property
    def most(self) -> int:
        """Answers at most."""
        return len(self.calling) + len(self.sections) * len(self.picked)

    def calls(self, answerer: Counted) -> list[Reply]:
        """The replies to the rows with tools."""
        tools = [record.tools for record in self.calling]
        return answerer.answer(_chats(self.calling), tools=tools, **self._options) if self.calling else []

    def switched(self, answerer: Counted, answers: Sequence[Reply]) -> dict[str, Sequence[Reply]]:
        """The replies to the compared rows with thoughts on and off; `answers` where that is how they were written."""
        chats = _chats(self.picked)
        prompt = answerer.answerer.prompt
        return {
            section: answers
            if prompt(chats[0]) == prompt(chats[0], thinking=on)
            else answerer.answer(chats, thinking=on, **self._options)
            for section, on in self.sections.items()
        }

    @property
    def _options(self) -> dict[str, Any]:
        return {"max_new_tokens": self.part.max_new_tokens, "batch_size": self.part.batch_size}


def _chats(records: Sequence[Record]) -> list[list[dict[str, Any]]]:
    return [[m.as_chat() for m in suite.prompt(record)] for record in records]


def with_rows(
    evaluation: Evaluation, held: Sequence[Record], before: SideMeasured, after: SideMeasured, more: MoreAnswers
) -> Evaluation:
    """The evaluation with what each row scored, and the metrics of both sides compared."""
    answered, names = dialogues(held), {row.id: one.id for row in held for one in dialogues([row])}
    needs: tuple[Need, ...] = ("answers", "replies")
    if more.sections or reasons(before.answers, after.answers):
        needs = (*needs, "thoughts")
    leads = [RowScores(names.get(id_, id_), "", own, after.leads.get(id_, {})) for id_, own in before.leads.items()]
    rows = joined(
        loss_rows(answered, before.losses, after.losses),
        leads,
        answer_rows(more.picked, before.answers, after.answers, needs),
        answer_rows(more.calling, before.calls, after.calls, ("calls",)),
        *(answer_rows(more.picked, before.switched[name], after.switched[name], needs, name) for name in more.sections),
    )
    texts = {"": section_texts(more.picked, before.answers, after.answers)} if more.picked else {}
    texts |= {name: section_texts(more.picked, before.switched[name], after.switched[name]) for name in more.sections}
    return replace(
        evaluation,
        before=_with_more(before, more, needs),
        after=_with_more(after, more, needs),
        row_scores=tuple(rows),
        paired=(*compare_held(rows, texts, suite.by_file(answered)), *_without_rows(before, after)),
    )


def _without_rows(before: SideMeasured, after: SideMeasured) -> list[Paired]:
    """Of judged answers the lead of the good over the bad: a figure, and none of single rows to tell it from chance."""
    old, new = before.scores["margin"], after.scores["margin"]
    if before.leads or old is None or new is None:
        return []
    sides = [Estimate(figure, note="no rows apart") for figure in (old, new, new - old)]
    return [Paired("margin", "", sides[0], sides[1], sides[2], "not defined")]


def _with_more(side: SideMeasured, more: MoreAnswers, needs: Sequence[Need]) -> Scores:
    """The scores with the metrics of thoughts and calls, where there are any."""
    thoughts = SideEvidence(more.picked, side.answers).measured([need for need in needs if need == "thoughts"])
    calls = SideEvidence(more.calling, side.calls).measured(["calls"])
    return replace(side.scores, metrics={**side.scores.metrics, **thoughts, **calls})
