"""What a run changed, in one or two sentences: the first line of the report and the last of the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.language import listed, sentences, t
from tuneloop.evaluation import compare
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.form import visible
from tuneloop.evaluation.paired import too_few
from tuneloop.planning.cautions import nothing_held

Tone = Literal["good", "bad", "plain"]
ENDS, STARTS = frozenset({"finished", "stopped", "paused", "failed"}), frozenset({"started", "resumed"})
"""Events that end a stretch of training, and that begin one."""
RISE = 0.01
"""A file's held-out loss that rose by less than this share is not worth a sentence."""


@dataclass(frozen=True, slots=True)
class Headline:
    """Sentences, the bad news first, and their tone: "bad" as soon as one thing is bad."""

    tone: Tone
    text: str


def verdict(
    evaluation: Evaluation | None, events: Sequence[dict[str, Any]] = (), metrics: Sequence[dict[str, Any]] = ()
) -> Headline:
    """The verdict on a run's evaluation (None if there is none), events.jsonl and metrics.jsonl.

    >>> from tuneloop.evaluation.evaluation import Scores
    >>> verdict(Evaluation(Scores({"loss": 2.0}), Scores({"loss": 1.5})))
    Headline(tone='good', text='The held-out loss fell from 2.00 to 1.50.')
    """
    parts: list[tuple[Tone, str]] = []
    if evaluation is not None:
        changes = {change.metric: change for change in compare.changes(evaluation)}
        parts = [*_probes(evaluation), *_form(evaluation), *_preference(changes), *_loss(evaluation, changes)]
        parts += _thoughts(changes)
    parts += _state(evaluation, events, metrics)
    tones = {tone for tone, _ in parts}
    tone: Tone = "bad" if "bad" in tones else "good" if "good" in tones else "plain"
    return Headline(tone, sentences(*(text for _, text in sorted(parts, key=lambda s: s[0] != "bad"))))


def _probes(evaluation: Evaluation) -> Iterator[tuple[Tone, str]]:
    probes = evaluation.probes
    failed = [probe.name for probe in probes if not probe.passed]
    if failed:
        facts = {"failed": len(failed), "total": len(probes), "names": listed(failed)}
        yield "bad", t("{failed} of {total} probes failed: {names}.", **facts)
    elif len(probes) == 1:
        yield "good", t('The probe "{name}" passed.', name=probes[0].name)
    elif probes:
        yield "good", t("All {total} probes passed.", total=len(probes))


def _form(evaluation: Evaluation) -> Iterator[tuple[Tone, str]]:
    answers = [*evaluation.show, *evaluation.answers, *(a for probe in evaluation.probes for a in probe.answers)]
    if answers and not any(visible(answer.after).strip() for answer in answers):
        yield "bad", t("All {n} answers after training are empty.", n=len(answers))
    if repeats := sum(answer.after_fault == "repeats" for answer in answers):
        yield "bad", t("{n} of {total} answers after training repeat themselves.", n=repeats, total=len(answers))


def _preference(changes: dict[str, compare.Change]) -> Iterator[tuple[Tone, str]]:
    share, margin = changes.get("preferred"), changes.get("margin")
    if share is None or share.before is None or share.after is None:
        return
    better = margin.better if margin is not None and share.better is None else share.better
    tone: Tone = "plain" if better is None else "good" if better else "bad"
    facts = {"before": f"{share.before:.0f}", "after": f"{share.after:.0f}"}
    text = t("Of the held-out pairs, the better answer is preferred in {after} %, before in {before} %.", **facts)
    yield tone, sentences(text, _chance(share) if better is None else "")


def _loss(evaluation: Evaluation, changes: dict[str, compare.Change]) -> Iterator[tuple[Tone, str]]:
    # Preference losses look at the distance between two answers, so both may become less likely.
    apart = "margin" in changes and changes["margin"].measured
    loss = changes["loss"]
    if loss.before is None or loss.after is None:
        if evaluation.after.measured_on and loss.after is None:
            yield "bad", t("The held-out loss after training is not a number: do not use this version.")
        return
    before, after = f"{loss.before:.2f}", f"{loss.after:.2f}"
    if before == after:
        yield "plain", t("The held-out loss stayed at {after}.", after=after)
    elif loss.separation in ("not separable", "not defined"):
        facts = {"before": before, "after": after}
        yield "plain", sentences(t("The held-out loss was {before} and is {after}.", **facts), _chance(loss))
    elif loss.better:
        yield "good", t("The held-out loss fell from {before} to {after}.", before=before, after=after)
    else:
        yield (
            "plain" if apart else "bad",
            t("The held-out loss rose from {before} to {after}.", before=before, after=after),
        )
    parts = [c for c in changes.values() if c.metric.startswith("loss/") and None not in (c.before, c.after)]
    rose = [
        f"{c.metric.partition('/')[2]} ({c.before:.2f} → {c.after:.2f})"
        for c in parts
        if (c.change or 0.0) > RISE * (c.before or 0.0) and c.separation in ("worse", None)
    ]
    if rose and loss.better:
        yield "plain", t("But it rose on {files}.", files=listed(rose))


def _chance(change: compare.Change) -> str:
    """That a change is not separable from chance, and on how many rows; "" where nothing is known of them."""
    if change.difference is None or change.separation != "not separable":
        return ""
    if change.difference.note == "too small":
        return t("Another seed changes as much.")
    if few := too_few(change.difference.rows):
        return few
    return t("On {n} rows that is not separable from chance.", n=change.difference.rows)


def _thoughts(changes: dict[str, compare.Change]) -> Iterator[tuple[Tone, str]]:
    """Of a model that thinks: how often, how long, and how often thought and answer are well formed."""
    names = ("thinks", "thought_length", "thought_seconds", "well_formed")
    after = {name: changes[name].after for name in names if name in changes}
    if len(after) < len(names) or None in after.values():
        return
    rate, words, seconds, formed = (after[name] or 0.0 for name in names)
    facts = {
        "rate": f"{rate:.0f}",
        "before": f"{changes['thinks'].before or 0.0:.0f}",
        "words": f"{words:.0f}",
        "seconds": f"{seconds:.1f}",
        "formed": f"{formed:.0f}",
    }
    yield (
        "plain",
        t(
            "It thinks before {rate} % of its answers (before training {before} %), on average {words} words and "
            "{seconds} s; {formed} % of the answers are well formed.",
            **facts,
        ),
    )


def _state(
    evaluation: Evaluation | None, events: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]
) -> Iterator[tuple[Tone, str]]:
    last = next((e["event"] for e in reversed(events) if e.get("event") in ENDS | STARTS), "")
    step = max((m["step"] for m in metrics if isinstance(m.get("step"), int)), default=0)
    if last == "stopped":
        yield "plain", t("Training was stopped at step {step}.", step=f"{step:,}")
    elif last == "paused":
        yield "plain", t("Training paused at step {step}: the disk is full.", step=f"{step:,}")
    elif last == "failed":
        yield "plain", t("Training ended with an error after step {step}.", step=f"{step:,}")
    elif last in STARTS and evaluation is None:
        yield "plain", t("Training has not finished; the last step on record is {step}.", step=f"{step:,}")
    if evaluation is not None and compare.nothing_held(evaluation):
        yield "plain", nothing_held()
    if evaluation is None:
        yield "plain", t("Nothing was evaluated, so what changed is not known.")
