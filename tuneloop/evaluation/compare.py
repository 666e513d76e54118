"""Before and after training, side by side: the same questions to both, and what changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, RecipeError, nearby, os_words
from tuneloop.base.language import t
from tuneloop.base.records import Message, Record, Reply
from tuneloop.evaluation import suite
from tuneloop.evaluation.evaluation import Answer, Evaluation, ProbeResult, Scores
from tuneloop.evaluation.faults import fault
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import ALWAYS, METRICS, matches
from tuneloop.evaluation.paired import SOURCE, Paired, Separation, separation_word, separations
from tuneloop.evaluation.run_figures import paired_runs
from tuneloop.recipe.schema import Probe, Recipe


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the closing table. `change` is after minus before; `better` is None where nothing can be said."""

    metric: str
    """"loss", "perplexity", "bleu", …; "loss/<file>" for one file's loss, "probe/<name>" for a probe's matches."""
    before: float | None
    after: float | None
    change: float | None
    better: bool | None
    total: int | None = None
    """Of a probe: answers in all."""
    difference: Estimate | None = None
    """The change with its interval; None where nothing of single rows is known, as in evaluations of old versions."""
    separation: Separation | None = None
    """Whether the change is more than chance; None where that is not known."""
    p: float | None = None
    """Two-sided p-value of the exact test, where there is one."""

    @property
    def word(self) -> str:
        """The change for the reader: better, worse, not separable, or nothing."""
        if self.separation in ("better", "worse", "not separable"):
            return separation_word(self.separation, self.difference.rows if self.difference else 0)
        return "" if self.better is None else separations()["better" if self.better else "worse"]

    @property
    def interval(self) -> str:
        """The interval of the change, in as many decimals as the change; "" where there is none.

        >>> Change("loss", 2.0, 1.5, -0.5, True, difference=Estimate(-0.5, -0.7, -0.3)).interval
        '-0.700 … -0.300'
        """
        return "" if self.difference is None else self.difference.bounds

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return self.before is not None or self.after is not None

    def shown(self, number: float | None, digits: int = 3) -> str:
        """One of its values for a table: matches with the number of answers; "" for what was not measured.

        >>> Change("probe/x", 0, 1, 1, True, 20).shown(1), Change("loss", 2.0, 1.5, -0.5, True).shown(2.0)
        ('1/20', '2.000')
        """
        if number is None:
            return ""
        return f"{number:,.{digits}f}" if self.total is None else f"{number:.0f}/{self.total}"

    @property
    def digits(self) -> int:
        """Decimals that the report shows of its values."""
        kind = self.metric.partition("/")[0]
        return METRICS[kind].digits if kind in METRICS else 0

    @property
    def label(self) -> str:
        """The metric in the reader's language."""
        kind, _, name = self.metric.partition("/")
        if kind == "probe":
            return t('answers that match "{name}"', name=name)
        if name:
            return t("held-out loss on {file}", file=name)
        return METRICS[kind].label()


def read_prompts(prompts: str | list[str]) -> list[str]:
    """The prompts themselves, or those of a UTF-8 text file, one a line; blank lines are left out.

    Raises DataError TL-DATA-MISSING (no such file), TL-DATA-EMPTY (no prompt in it) or TL-DATA-PROMPTS (not UTF-8).

    >>> read_prompts(["Who are you?", " "])
    ['Who are you?']
    """
    if not isinstance(prompts, str):
        return [p.strip() for p in prompts if p.strip()]
    path = Path(prompts)
    if not path.is_file():
        raise DataError("TL-DATA-MISSING", where=prompts, path=prompts, near=nearby(prompts))
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError("TL-DATA-PROMPTS", where=prompts, error=os_words(error)) from error
    named = [line.strip() for line in lines if line.strip()]
    if not named:
        raise DataError("TL-DATA-EMPTY", where=prompts, path=prompts)
    return named


def ask(
    answerer: suite.AnswererLike,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    system: str | None = None,
) -> list[Reply]:
    """The greedy answer to each prompt, each a dialogue of its own (after `system`, if there is one)."""
    if not prompts:
        return []
    head = [{"role": "system", "content": system}] if system else []
    chats = [[*head, {"role": "user", "content": p}] for p in prompts]
    return answerer.answer(chats, max_new_tokens=max_new_tokens, batch_size=batch_size)


def check_probe(probe: Probe) -> list[str]:
    """The prompts of a probe whose pattern compiles: ask this before training, it costs nothing.

    Raises RecipeError TL-RECIPE-VALUE for a broken pattern, and what `read_prompts` raises.
    """
    try:
        re.compile(probe.expect)
    except re.error as error:
        where = f"evaluate.probes.{probe.name}.expect"
        raise RecipeError("TL-RECIPE-VALUE", where=where, got=repr(probe.expect)[:80], need=str(error)) from error
    return read_prompts(probe.prompts)


def evaluation_prompts(recipe: Recipe) -> list[str]:
    """The prompts that an evaluation asks before and after: of `evaluate.show`, then of all probes.

    Raises what `read_prompts` and `check_probe` raise.
    """
    part = recipe.evaluate
    return [*read_prompts(part.show), *(prompt for probe in part.probes for prompt in check_probe(probe))]


def probe(probe: Probe, before: Sequence[Reply], after: Sequence[Reply]) -> ProbeResult:
    """Count the pattern in the answers to the probe's prompts; passed when the count after training is in bounds.

    An answer that repeats itself or does not end counts for nothing that is wanted. Where the pattern is not wanted
    (`at_most` alone), a match in such an answer is a match. Raises as `check_probe` does, and
    ValueError when there is not one answer before and one after a prompt.
    """
    prompts = check_probe(probe)
    answers = tuple(side_by_side(p, b, a) for p, b, a in zip(prompts, before, after, strict=True))
    low, high = probe.at_least, probe.at_most
    wanted = low is not None or high is None

    def count(replies: Iterable[tuple[str, str]], sound: bool) -> int:
        return sum(matches(probe.expect, text) and not (sound and faulty) for text, faulty in replies)

    first, last = [(a.before, a.before_fault) for a in answers], [(a.after, a.after_fault) for a in answers]
    return ProbeResult(
        name=probe.name,
        expect=probe.expect,
        total=len(answers),
        before=count(first, wanted),
        after=count(last, wanted),
        passed=(low is None or count(last, True) >= low) and (high is None or count(last, False) <= high),
        at_least=low,
        at_most=high,
        answers=answers,
    )


def assemble(
    *,
    before: Scores,
    after: Scores,
    task: str = "",
    rows: Sequence[Record] = (),
    held: Sequence[Record] = (),
    answers_before: Sequence[Reply] = (),
    answers_after: Sequence[Reply] = (),
    show: Sequence[str] = (),
    show_before: Sequence[Reply] = (),
    show_after: Sequence[Reply] = (),
    probes: Sequence[ProbeResult] = (),
) -> Evaluation:
    """The evaluation of both models. `rows` are the records whose last answer was generated (`suite.pick`), in order.

    `held` are all records that the loss was measured on: their ids tell later which scores may be compared.
    Raises ValueError when a list of answers is not as long as its questions.
    """
    written = zip(rows, answers_before, answers_after, strict=True)
    shown = zip(show, show_before, show_after, strict=True)
    return Evaluation(
        before,
        after,
        task,
        held=tuple(r.id for r in held),
        answers=tuple(
            replace(
                side_by_side(question(r), b, a, suite.reference(r)),
                context=context(r),
                id=r.id,
                file=r.file,
                line=r.line,
            )
            for r, b, a in written
        ),
        show=tuple(side_by_side(p, b, a) for p, b, a in shown),
        probes=tuple(probes),
    )


def side_by_side(prompt: str, before: Reply, after: Reply, reference: str = "") -> Answer:
    """Two replies to one prompt, and what is wrong with the form of each."""
    return Answer(prompt, before.text, after.text, reference, fault(before), fault(after))


def _question_index(record: Record) -> int:
    """Where the last user turn before the answer stands; the last turn where there is none of the user."""
    turns = suite.prompt(record)
    return max((i for i, m in enumerate(turns) if m.role == "user"), default=len(turns) - 1)


def question(record: Record) -> str:
    """The last user turn before the answer: what a reader needs to see first."""
    return suite.prompt(record)[_question_index(record)].content


def context(record: Record) -> tuple[Message, ...]:
    """The turns before that question, which the answer knew as well."""
    return suite.prompt(record)[: _question_index(record)]


def changes(evaluation: Evaluation) -> list[Change]:
    """The rows of the closing table: the metrics, the loss of each file (where there are several), the probes."""
    before, after = evaluation.before, evaluation.after
    paired = {(pair.metric, pair.section): pair for pair in evaluation.paired}
    rows = [
        _change(name, before[name], after[name], metric.higher_is_better)
        for name, metric in METRICS.items()
        if metric.needs in ALWAYS or name in {*before.metrics, *after.metrics}
    ]
    files = before.by_source
    if len(files) > 1:
        up = METRICS["loss"].higher_is_better
        rows[1:1] = [
            _change(f"loss/{name}", files[name]["loss"], after.by_source.get(name, Scores())["loss"], up)
            for name in files
        ]
    rows = [_judged(row, paired.get(_pair_of(row.metric))) for row in rows]
    return rows + [_probe_change(one) for one in evaluation.probes]


def _pair_of(metric: str) -> tuple[str, str]:
    """The metric and the section of the suite that a row of the table is of."""
    kind, _, file = metric.partition("/")
    return kind, f"{SOURCE}{file}" if file else ""


def _judged(change: Change, pair: Paired | None) -> Change:
    """A change that is better or worse only where the rows show it; as it was where nothing is known of them."""
    if pair is None or change.change is None:
        return change
    better = {"better": True, "worse": False}.get(pair.separation)
    return replace(change, better=better, difference=pair.difference, separation=pair.separation, p=pair.p)


def of_two_runs(left: Evaluation, right: Evaluation) -> list[Change]:
    """The rows of a table of two runs: `before` is the left one's score after training, `after` the right one's."""
    theirs = {c.metric: c for c in changes(right)}
    paired = {pair.metric: pair for pair in paired_runs(left, right) if pair.section == ""}
    return [_of_runs(c, theirs[c.metric], paired.get(c.metric)) for c in changes(left) if c.metric in theirs]


def _of_runs(left: Change, right: Change, pair: Paired | None) -> Change:
    row = Change(left.metric, left.after, right.after, None, None, left.total)
    if pair is None or row.before is None or row.after is None:
        return row
    return _judged(replace(row, change=row.after - row.before), pair)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same prompts answered by two models, `before` by the left one, and their metrics in the same way."""

    answers: tuple[Answer, ...]
    metrics: tuple[Change, ...]
    warning: str
    """Why the metrics of two runs must not be compared, "" if they may be."""

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        metrics: list[dict[str, Any]] = []
        for c in self.metrics:
            metrics.append({"metric": c.label, "left": c.before, "right": c.after, "of": c.total})
            if c.difference is not None:
                metrics[-1] |= {"difference": c.difference.as_dict(), "separation": c.separation, "p": c.p}
        return {"answers": [a.as_dict() for a in self.answers], "metrics": metrics, "warning": self.warning}


def fresh(evaluation: Evaluation) -> str:
    """What is to be said of a score before training that is chance, "" where it is not."""
    if evaluation.classes is None or not evaluation.classes.fresh:
        return ""
    return t("Before training the head is new: its answers are chance.")


def nothing_held(evaluation: Evaluation) -> bool:
    """Whether an evaluation was made without a held-out row, so that it says nothing about loss."""
    return evaluation.after.measured_on == 0


def different_rows(left: Evaluation, right: Evaluation, held: Sequence[Sequence[str] | None]) -> str:
    """Why the held-out scores of two evaluations must not be compared, "" if they may be.

    `held` are the ids of the rows that each was measured on, None where that is not known.
    """
    mine, theirs = held
    if mine is None or theirs is None:
        return t("Which rows the two runs held out is not known, so their losses may not be comparable.")
    if set(mine) != set(theirs):
        facts = {"left": len(set(mine)), "right": len(set(theirs)), "both": len(set(mine) & set(theirs))}
        return t(
            "The two runs were measured on different held-out rows ({left} and {right}, {both} of them in both): "
            "do not compare their losses and scores.",
            **facts,
        )
    if left.after.label_tokens != right.after.label_tokens:
        return t("The two models count tokens differently: their losses a token cannot be compared.")
    return ""


def _probe_change(one: ProbeResult) -> Change:
    """Better or worse by the one bound that is set; neither for a step the wrong way that stays within it."""
    low, high = one.at_least is not None, one.at_most is not None
    row = _change(f"probe/{one.name}", one.before, one.after, None if low == high else low)
    better = None if one.passed and row.better is False else row.better
    return replace(row, better=better, total=one.total)


def _change(metric: str, before: float | None, after: float | None, up: bool | None) -> Change:
    if before is None or after is None:
        return Change(metric, before, after, None, None)
    change = after - before
    better = None if up is None or change == 0 else (change > 0) == up
    return Change(metric, before, after, change, better)
