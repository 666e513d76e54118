"""The tables that several verbs print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuneloop.base.language import current, t
from tuneloop.cli.show import command, number, table, trained_text
from tuneloop.data import ledger
from tuneloop.data.tokens.preflight import Preflight
from tuneloop.data.version.dataset import Dataset
from tuneloop.evaluation import compare
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import p_shown, too_few
from tuneloop.monitor.notices import sum_up
from tuneloop.planning import choices, planner
from tuneloop.planning.cautions import nothing_held
from tuneloop.planning.planner import Plan
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run


def dataset(version: Dataset) -> None:
    """Sources, counts and what the ledger holds."""
    manifest = version.manifest
    rows = [
        (s["file"], s["split"], s["shape"], s["encoding"], s["rows"], f"{100 * s['sure']:.0f} %", s["why"])
        for s in manifest["sources"]
    ]
    table(
        t("Data: {name} {hash}", name=version.name, hash=version.hash),
        [t("file"), t("side"), t("shape"), t("encoding"), t("rows"), t("sure"), t("why")],
        rows,
    )
    counts_line(version)
    words = ledger.words()
    kinds = {"dropped": t("dropped"), "changed": t("changed"), "marked": t("marked"), "added": t("added")}
    there = [kind for kind in kinds if any(s[kind] for s in manifest["steps"])]
    reasons = [(words.get(s["reason"], s["reason"]), *(s[kind] for kind in there)) for s in manifest["steps"]]
    if reasons:
        table(t("What the ledger holds"), [t("reason"), *(kinds[kind] for kind in there)], reasons)
    else:
        print()


def counts_line(version: Dataset) -> None:
    """One line: what was read, kept, dropped and changed, and where that is written down."""
    counts = version.manifest["counts"]
    print(
        t(
            "Rows read: {rows}. To train: {train}, held out: {held}, dropped: {dropped}, changed: {changed}. "
            "Ledger: {path}",
            rows=counts["rows_in"],
            train=counts["train"],
            held=counts["validation"],
            dropped=counts["dropped"],
            changed=counts["changed"],
            path=version.path / "ledger.jsonl",
        )
    )
    more = {"test": t("for a test"), "marked": t("marked"), "added": t("added")}
    if any(counts[kind] for kind in more):
        parts = [t("{what}: {n}", what=words, n=counts[kind]) for kind, words in more.items() if counts[kind]]
        print(choices.COMMA[current()].join(parts))


def plan(foreseen: Plan, checked: Preflight) -> None:
    """One sample as the model sees it, then what will be used, why, how long, how much memory."""
    trained_text(checked.sample)
    for warning in checked.warnings:
        print(t("Take note: {warning}.", warning=warning))
    cautions(foreseen.warnings)
    rows = [(c.what, c.value, c.why) for c in foreseen.choices]
    if foreseen.costed:
        rows += [(c.what, c.value, c.why) for c in planner.times(foreseen)]
        free = t("estimated; {gb} GB are free", gb=foreseen.machine.room_gb)
        rows.append((t("memory"), f"{foreseen.memory_gb:.1f} GB", free))
    table(t("Plan"), [t("what"), t("value"), t("why")], rows)


def answers(evaluation: Evaluation) -> None:
    """The show prompts side by side."""
    if evaluation.show:
        side_by_side(evaluation.show, t("before"), t("after"))


def side_by_side(rows: Sequence[Answer], left: str, right: str) -> None:
    """Prompts with two answers each."""
    table(
        t("The same prompts, side by side"),
        [t("prompt"), left, right],
        [(r.prompt, _text(r.before, r.before_fault), _text(r.after, r.after_fault)) for r in rows],
    )


def _text(answer: str, fault: str) -> str:
    """An answer, and behind it what is wrong with its form."""
    from tuneloop.evaluation import faults

    wrong = faults.words(fault)
    return t("{answer} [{fault}]", answer=answer.strip(), fault=wrong) if wrong else answer.strip()


def changes(evaluation: Evaluation) -> None:
    """The closing table: every metric before and after, the change with its interval, and whether that is better."""
    changed = [c for c in compare.changes(evaluation) if c.measured]
    has_intervals = any(c.interval for c in changed)
    rows = [
        (
            c.label,
            c.shown(c.before) or number(None),
            c.shown(c.after) or number(None),
            number(c.change, 0 if c.total else 3),
            *([c.interval, p_shown(c.p) if c.word else ""] if has_intervals else []),
            c.word,
        )
        for c in changed
    ]
    if compare.nothing_held(evaluation):
        cautions([nothing_held()])
    if not rows:
        return
    intervals = [t("95 % interval"), "p"] if has_intervals else []
    table(t("What changed"), [t("measure"), t("before"), t("after"), t("change"), *intervals, ""], rows)
    few_rows(changed)
    thinking(evaluation)
    classes(evaluation)


def few_rows(changed: Sequence[compare.Change]) -> None:
    """What so few held-out rows cannot show, and that their intervals may be too narrow."""
    held = [c.difference for c in changed if c.difference and "/" not in c.metric]
    if sentence := too_few(max((one.rows for one in held), default=0)):
        print(sentence)
    elif few := sorted({c.difference.rows for c in changed if c.difference and c.difference.note == "few rows"}):
        print(t("Few rows ({n}): the intervals may be too narrow.", n="–".join(map(str, few[:1] + few[1:][-1:]))))


def thinking(evaluation: Evaluation) -> None:
    """Of a model whose template has a switch for thoughts: its scores with thoughts on and off."""
    sections = {"thinking/on": t("thoughts on"), "thinking/off": t("thoughts off")}
    rows = [
        (
            sections[pair.section],
            METRICS[pair.metric].label(),
            number(pair.before.estimate),
            number(pair.after.estimate),
            pair.word if METRICS[pair.metric].higher_is_better is not None else "",
        )
        for pair in evaluation.paired
        if pair.section in sections
    ]
    if rows:
        table(t("With thoughts on and off"), ["", t("measure"), t("before"), t("after"), ""], rows)


WIDEST = 12
"""Labels up to which what was taken for what is shown as a table of all with all; of more, the mistakes alone."""


def classes(evaluation: Evaluation) -> None:
    """Of a classifier: how well each class is found, and what is taken for what."""
    if evaluation.classes is None or not evaluation.after.texts:
        return
    labels, after = evaluation.classes.labels, evaluation.classes.after
    rows = [
        (label, one.texts, number(one.precision), number(one.recall), number(one.f1))
        for label, one in zip(labels, after.each, strict=True)
    ]
    table(t("Classes after training"), [t("label"), t("texts"), t("precision"), t("recall"), "F1"], rows)
    confusion = after.confusion
    if len(labels) <= WIDEST:
        matrix = [(label, *row) for label, row in zip(labels, confusion, strict=True)]
        table(t("What was taken for what"), [t("is ↓ called →"), *labels], matrix)
    elif wrong := sorted(
        ((n, labels[i], labels[j]) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j),
        key=lambda one: -one[0],
    ):
        table(t("What was taken for what"), [t("is"), t("called"), t("texts")], [(i, j, n) for n, i, j in wrong[:20]])
    if warning := compare.fresh(evaluation):
        print(warning)


def metrics(rows: Sequence[compare.Change], left: str, right: str) -> None:
    """Metrics of two runs."""

    def cell(row: compare.Change, score: float | None) -> str:
        return row.shown(score) if row.total and score is not None else number(score)

    judged = any(row.separation for row in rows)
    lines = [
        (
            row.label,
            cell(row, row.before),
            cell(row, row.after),
            *((row.interval, p_shown(row.p), row.word) if judged else ()),
        )
        for row in rows
    ]
    more = [t("95 % interval"), "p", t("{right} against {left}", left=left, right=right)] if judged else []
    table(t("Metrics"), [t("measure"), left, right, *more], lines)
    few_rows(rows)


def cautions(texts: Iterable[str]) -> None:
    """What nobody may overlook, red on a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for text in texts:
        console.print(t("Warning: {said}", said=text), style="bold red", markup=False)


def noticed(run: Run) -> None:
    """How many alerts and remedies a run had, and which command shows them; nothing where it had none."""
    if sentence := sum_up(Journal(run.events).lines()):
        print(sentence, t("They are shown by: {command}", command=command("watch", run.path)))
