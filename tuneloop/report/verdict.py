"""What a run changed, in one or two sentences: the first line of the report and the last of the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.language import listed, sentences, t
from tuneloop.evaluation import compare
from tuneloop.planning.cautions import nothing_held

Tone = Literal["good", "bad", "plain"]
ENDS, STARTS = frozenset({"finished", "stopped"}), frozenset({"started", "resumed"})
"""Events that end a stretch of training, and that begin one."""
RISE = 0.01
"""A file's held-out loss that rose by less than this share is not worth a sentence."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sentences, the bad news first, and their tone: "bad" as soon as one thing is bad."""

    tone: Tone
    text: str


def verdict(
    evaluation: dict[str, Any], events: Sequence[dict[str, Any]] = (), metrics: Sequence[dict[str, Any]] = ()
) -> Verdict:
    """The verdict on the contents of evaluation.json ({} if there is none), events.jsonl and metrics.jsonl.

    >>> verdict({"before": {"loss": 2.0}, "after": {"loss": 1.5}})
    Verdict(tone='good', text='The held-out loss fell from 2.00 to 1.50.')
    """
    found = [
        *_probes(evaluation),
        *_form(evaluation),
        *_preference(evaluation),
        *_loss(evaluation),
        *_state(evaluation, events, metrics),
    ]
    tones = {tone for tone, _ in found}
    tone: Tone = "bad" if "bad" in tones else "good" if "good" in tones else "plain"
    return Verdict(tone, sentences(*(text for _, text in sorted(found, key=lambda f: f[0] != "bad"))))


def _probes(evaluation: dict[str, Any]) -> Iterator[tuple[Tone, str]]:
    probes = evaluation.get("probes") or []
    failed = [p["name"] for p in probes if not p["passed"]]
    if failed:
        facts = {"failed": len(failed), "total": len(probes), "names": listed(failed)}
        yield "bad", t("{failed} of {total} probes failed: {names}.", **facts)
    elif len(probes) == 1:
        yield "good", t('The probe "{name}" passed.', name=probes[0]["name"])
    elif probes:
        yield "good", t("All {total} probes passed.", total=len(probes))


def _form(evaluation: dict[str, Any]) -> Iterator[tuple[Tone, str]]:
    said = [a for key in ("show", "answers") for a in evaluation.get(key) or ()]
    said += [a for probe in evaluation.get("probes") or () for a in probe.get("answers") or ()]
    if repeats := sum(a.get("after_fault") == "repeats" for a in said):
        yield "bad", t("{n} of {total} answers after training repeat themselves.", n=repeats, total=len(said))


def _preference(evaluation: dict[str, Any]) -> Iterator[tuple[Tone, str]]:
    found = {c.metric: c for c in compare.changes(evaluation)}
    share, margin = found.get("preferred"), found.get("margin")
    if share is None or share.before is None or share.after is None:
        return
    better = margin.better if margin is not None and share.better is None else share.better
    tone: Tone = "plain" if better is None else "good" if better else "bad"
    facts = {"before": f"{share.before:.0f}", "after": f"{share.after:.0f}"}
    yield tone, t("Of the held-out pairs, the better answer is preferred in {after} %, before in {before} %.", **facts)


def _loss(evaluation: dict[str, Any]) -> Iterator[tuple[Tone, str]]:
    changes = compare.changes(evaluation)
    # Preference losses look at the distance between two answers, so both may become less likely.
    apart = any(c.metric == "margin" and c.measured for c in changes)
    loss = next(c for c in changes if c.metric == "loss")
    if loss.before is None or loss.after is None:
        after_all = evaluation.get("after") or {}
        if (after_all.get("label_tokens") or after_all.get("texts")) and loss.after is None:
            yield "bad", t("The held-out loss after training is not a number: do not use this version.")
        return
    before, after = f"{loss.before:.2f}", f"{loss.after:.2f}"
    if before == after:
        yield "plain", t("The held-out loss stayed at {after}.", after=after)
    elif loss.better:
        yield "good", t("The held-out loss fell from {before} to {after}.", before=before, after=after)
    else:
        yield (
            "plain" if apart else "bad",
            t("The held-out loss rose from {before} to {after}.", before=before, after=after),
        )
    parts = [c for c in changes if c.metric.startswith("loss/") and c.before is not None and c.after is not None]
    rose = [
        f"{c.metric.partition('/')[2]} ({c.before:.2f} → {c.after:.2f})"
        for c in parts
        if (c.change or 0.0) > RISE * (c.before or 0.0)
    ]
    if rose and loss.better:
        yield "plain", t("But it rose on {files}.", files=listed(rose))


def _state(
    evaluation: dict[str, Any], events: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]
) -> Iterator[tuple[Tone, str]]:
    last = next((e["event"] for e in reversed(events) if e.get("event") in ENDS | STARTS), "")
    step = max((m["step"] for m in metrics if isinstance(m.get("step"), int)), default=0)
    if last == "stopped":
        yield "plain", t("Training was stopped at step {step}.", step=f"{step:,}")
    elif last in STARTS and not evaluation:
        yield "plain", t("Training has not finished; the last step on record is {step}.", step=f"{step:,}")
    if compare.nothing_held(evaluation):
        yield "plain", nothing_held()
    if not evaluation:
        yield "plain", t("Nothing was evaluated, so what changed is not known.")
