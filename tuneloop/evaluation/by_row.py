"""What both models score on each row, and the metrics of all rows compared: what `paired` and `row_scores` hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuneloop.base.records import Record, Reply
from tuneloop.evaluation import suite
from tuneloop.evaluation.corpus import SectionTexts
from tuneloop.evaluation.form import thinks, visible
from tuneloop.evaluation.metrics import Need, measured, perplexity, row_figures
from tuneloop.evaluation.paired import SOURCE, Paired, RowScores, compare_rows

LossByRow = Mapping[int, tuple[float, int]]
"""id() of a record -> (sum of its losses in nats, its label tokens)."""


@dataclass(frozen=True, slots=True)
class SideEvidence:
    """What one model wrote to some rows, each with its reply."""

    records: Sequence[Record]
    replies: Sequence[Reply]

    def figures(self, needs: Sequence[Need]) -> list[dict[str, float | None]]:
        """Of each row its figures of the metrics of these needs."""
        rows: list[dict[str, float | None]] = [{} for _ in self.replies]
        for need in needs:
            for row, own in zip(rows, row_figures(need, *self.evidence(need)), strict=True):
                row.update(own)
        return rows

    def measured(self, needs: Sequence[Need]) -> dict[str, float | None]:
        """The metrics of these needs over all rows; {} of no rows."""
        every = [measured(need, *self.evidence(need)) for need in needs if self.replies]
        return {name: figure for metrics in every for name, figure in metrics.items()}

    def evidence(self, need: Need) -> tuple[Sequence[object], ...]:
        """What `measured` takes of a need."""
        if need == "answers":
            return [visible(reply.text) for reply in self.replies], [suite.reference(r) for r in self.records]
        return (self.replies, self.records) if need == "calls" else (self.replies,)


def reasons(*sides: Sequence[Reply]) -> bool:
    """Whether some reply of a model thinks: metrics of thoughts are measured only then.

    >>> reasons([Reply("4", 1, 1, "stop")], [Reply("<think>2+2</think>4", 1, 1, "stop")])
    True
    """
    return any(thinks(reply) for replies in sides for reply in replies)


def answer_rows(
    records: Sequence[Record], before: Sequence[Reply], after: Sequence[Reply], needs: Sequence[Need], section: str = ""
) -> list[RowScores]:
    """What both models score on rows that they answered. `needs`: "answers", "replies", "thoughts" or "calls"."""
    first, last = (SideEvidence(records, replies).figures(needs) for replies in (before, after))
    return [RowScores(r.id, section, b, a) for r, b, a in zip(records, first, last, strict=True)]


def section_texts(records: Sequence[Record], before: Sequence[Reply], after: Sequence[Reply]) -> SectionTexts:
    """The answers to some rows, without thoughts, and their references."""
    first, last = ([visible(reply.text) for reply in replies] for replies in (before, after))
    return SectionTexts([suite.reference(record) for record in records], first, last)


def loss_rows(records: Sequence[Record], before: LossByRow, after: LossByRow) -> list[RowScores]:
    """The loss a label token of held-out rows; a row without labels has none."""
    rows = []
    for record in records:
        (old, tokens), (new, _) = (side.get(id(record), (0.0, 0)) for side in (before, after))
        if tokens:
            rows.append(RowScores(record.id, "", _of_loss(old / tokens), _of_loss(new / tokens), float(tokens)))
    return rows


def _of_loss(loss: float) -> dict[str, float | None]:
    return {"loss": loss, "perplexity": perplexity(loss)}


def joined(*groups: Sequence[RowScores]) -> list[RowScores]:
    """Rows of one section and id as one row, with the figures of all; its weight is that of the first.

    >>> joined([RowScores("a", "", {"loss": 1.0}, {"loss": 2.0}, 9.0)], [RowScores("a", "", {"x": 0.0}, {"x": 1.0})])
    [RowScores(id='a', section='', before={'loss': 1.0, 'x': 0.0}, after={'loss': 2.0, 'x': 1.0}, weight=9.0)]
    """
    rows: dict[tuple[str, str, int], RowScores] = {}
    for group in groups:
        times: Counter[tuple[str, str]] = Counter()  # of two equal rows each has its own figures
        for row in group:
            key = (row.section, row.id, times[row.section, row.id])
            times[row.section, row.id] += 1
            old = rows.get(key)
            if old is not None:
                row = replace(old, before={**old.before, **row.before}, after={**old.after, **row.after})
            rows[key] = row
    return list(rows.values())


def compare_held(
    rows: Sequence[RowScores], texts: Mapping[str, SectionTexts], files: Mapping[str, Sequence[Record]]
) -> tuple[Paired, ...]:
    """`compare_rows`, and of each file the loss of its rows, where there are several."""
    own = {row.id: row for row in rows if row.section == "" and "loss" in row.before}
    sources = [
        RowScores(row.id, SOURCE + name, {"loss": row.before["loss"]}, {"loss": row.after.get("loss")}, row.weight)
        for name, records in files.items()
        for record in records
        if len(files) > 1 and (row := own.get(record.id)) is not None
    ]
    losses = [pair for pair in compare_rows(sources) if pair.metric == "loss"]
    return (*compare_rows(rows, texts), *losses)
