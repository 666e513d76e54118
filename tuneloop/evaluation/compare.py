"""Before and after training, side by side: the same questions to both, and what changed.

Whether a change is more than chance is not judged here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, RecipeError, nearby, os_words
from tuneloop.base.language import t
from tuneloop.base.records import Answer, ProbeResult, Record, Reply
from tuneloop.evaluation import metrics, suite
from tuneloop.evaluation.faults import fault
from tuneloop.recipe.schema import Probe, Recipe

HIGHER_IS_BETTER = {
    "loss": False,
    "accuracy": True,
    "macro_f1": True,
    "perplexity": False,
    "preferred": True,
    "margin": True,
    "bleu": True,
    "rouge1": True,
    "rouge2": True,
    "rougeL": True,
}
OF_SOME_TASKS = frozenset({"accuracy", "macro_f1", "preferred", "margin"})
"""Metrics that an evaluation holds only where its task has them."""


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

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return self.before is not None or self.after is not None

    def shown(self, value: float | None, digits: int = 3) -> str:
        """One of its values for a table: matches with the number of answers; "" for what was not measured.

        >>> Change("probe/x", 0, 1, 1, True, 20).shown(1), Change("loss", 2.0, 1.5, -0.5, True).shown(2.0)
        ('1/20', '2.000')
        """
        if value is None:
            return ""
        return f"{value:,.{digits}f}" if self.total is None else f"{value:.0f}/{self.total}"

    @property
    def label(self) -> str:
        """The metric in the reader's language."""
        kind, _, name = self.metric.partition("/")
        if kind == "probe":
            return t('answers that match "{name}"', name=name)
        if name:
            return t("held-out loss on {file}", file=name)
        return labels()[kind]


def labels() -> dict[str, str]:
    """Metric -> its name for the reader."""
    return {
        "loss": t("held-out loss"),
        "accuracy": t("accuracy"),
        "macro_f1": t("macro F1"),
        "perplexity": t("perplexity"),
        "preferred": t("better answer preferred, % of pairs"),
        "margin": t("lead of the better answer"),
        "bleu": "BLEU",
        "rouge1": "ROUGE-1",
        "rouge2": "ROUGE-2",
        "rougeL": "ROUGE-L",
    }


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
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError("TL-DATA-EMPTY", where=prompts, path=prompts)
    return found


def ask(
    answerer: suite.Answerer,
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

    def count(said: Iterable[tuple[str, str]], whole: bool) -> int:
        return sum(metrics.matches(probe.expect, text) and not (whole and faulty) for text, faulty in said)

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
    before: suite.Scores,
    after: suite.Scores,
    rows: Sequence[Record] = (),
    held: Sequence[Record] = (),
    answers_before: Sequence[Reply] = (),
    answers_after: Sequence[Reply] = (),
    show: Sequence[str] = (),
    show_before: Sequence[Reply] = (),
    show_after: Sequence[Reply] = (),
    probes: Sequence[ProbeResult] = (),
) -> dict[str, Any]:
    """What evaluation.json holds. `rows` are the records whose last answer was generated (`suite.pick`), in order.

    `held` are all records that the loss was measured on: their ids tell later which scores may be compared.
    A value that is not finite becomes None, since JSON has no word for it; `label_tokens` tells that it was measured.
    Raises ValueError when a list of answers is not as long as its questions.
    """
    said = zip(rows, answers_before, answers_after, strict=True)
    shown = zip(show, show_before, show_after, strict=True)
    sources = {name: (before.by_source.get(name), after.by_source.get(name)) for name in before.by_source}
    return {
        "before": _plain(before),
        "after": _plain(after),
        "by_source": {name: {"before": _source(b), "after": _source(a)} for name, (b, a) in sources.items()},
        "held": [r.id for r in held],
        "answers": [
            asdict(side_by_side(_question(r), b, a, suite.reference(r))) | {"context": _context(r)} for r, b, a in said
        ],
        "show": [asdict(side_by_side(p, b, a)) for p, b, a in shown],
        "probes": [plain_probe(p) for p in probes],
    }


def side_by_side(prompt: str, before: Reply, after: Reply, reference: str = "") -> Answer:
    """Two replies to one prompt, and what is wrong with the form of each."""
    return Answer(prompt, before.text, after.text, reference, fault(before), fault(after))


def _asked(record: Record) -> int:
    """Where the last user turn before the answer stands; the last turn where there is none of the user."""
    turns = suite.prompt(record)
    return max((i for i, m in enumerate(turns) if m.role == "user"), default=len(turns) - 1)


def _question(record: Record) -> str:
    """The last user turn before the answer: what a reader needs to see first."""
    return suite.prompt(record)[_asked(record)].content


def _context(record: Record) -> list[dict[str, str]]:
    """The turns before that question, which the answer knew as well."""
    return [{"role": m.role, "content": m.content} for m in suite.prompt(record)[: _asked(record)]]


def _plain(scores: suite.Scores) -> dict[str, Any]:
    out: dict[str, Any] = {name: _finite(getattr(scores, name)) for name in HIGHER_IS_BETTER if hasattr(scores, name)}
    out = {name: value for name, value in out.items() if value is not None or name not in OF_SOME_TASKS}
    return {**out, "rows": scores.rows, "label_tokens": scores.label_tokens}


def _source(one: suite.SourceLoss | None) -> dict[str, Any]:
    return {"loss": _finite(one.loss) if one else None, "label_tokens": one.label_tokens if one else 0}


def plain_probe(result: ProbeResult) -> dict[str, Any]:
    """A probe's result as evaluation.json holds it."""
    plain = asdict(result)
    return {**plain, "answers": [dict(a) for a in plain["answers"]]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def changes(evaluation: dict[str, Any]) -> list[Change]:
    """The rows of the closing table: the metrics, the loss of each file (where there are several), the probes."""
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    named = [m for m in HIGHER_IS_BETTER if m not in OF_SOME_TASKS or m in {*before, *after}]
    rows = [_change(m, before.get(m), after.get(m), HIGHER_IS_BETTER[m]) for m in named]
    sources = evaluation.get("by_source") or {}
    if len(sources) > 1:
        rows[1:1] = [_change(f"loss/{n}", s["before"]["loss"], s["after"]["loss"], False) for n, s in sources.items()]
    return rows + [_probe_change(one) for one in evaluation.get("probes") or ()]


def fresh(evaluation: dict[str, Any]) -> str:
    """What is to be said of a score before training that is chance, "" where it is not."""
    if not (evaluation.get("classes") or {}).get("fresh"):
        return ""
    return t("Before training the head is new: its answers are chance.")


def nothing_held(evaluation: dict[str, Any]) -> bool:
    """Whether an evaluation was made without a held-out row, so that it says nothing about loss."""
    after = evaluation.get("after") or {}
    return bool(evaluation) and not after.get("label_tokens", after.get("texts", 1))


def different_rows(left: dict[str, Any], right: dict[str, Any], held: Sequence[Sequence[str] | None]) -> str:
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
    labels = [(e.get("after") or {}).get("label_tokens") for e in (left, right)]
    if labels[0] != labels[1]:
        return t("The two models count tokens differently: their losses a token cannot be compared.")
    return ""


def _probe_change(one: dict[str, Any]) -> Change:
    """Better or worse by the one bound that is set; neither for a step the wrong way that stays within it."""
    low, high = one.get("at_least") is not None, one.get("at_most") is not None
    row = _change(f"probe/{one['name']}", one["before"], one["after"], None if low == high else low)
    better = None if one["passed"] and row.better is False else row.better
    return replace(row, better=better, total=one.get("total"))


def _change(metric: str, before: float | None, after: float | None, up: bool | None) -> Change:
    if before is None or after is None:
        return Change(metric, before, after, None, None)
    change = after - before
    better = None if up is None or change == 0 else (change > 0) == up
    return Change(metric, before, after, change, better)
