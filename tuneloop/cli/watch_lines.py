"""What `tuneloop watch` prints where no terminal is: a line of plain text for each thing; and how a run has ended."""

from __future__ import annotations

from datetime import datetime

from tuneloop.base.duration import about
from tuneloop.base.language import sentences, t
from tuneloop.cli.show import command
from tuneloop.cli.watch_page import NORMAL, number
from tuneloop.monitor.alerts import SIGNS
from tuneloop.monitor.live import HeldFigures, LiveRun, TrainingFigures
from tuneloop.monitor.notices import Notice, tone_word


def training_line(run: LiveRun, latest: TrainingFigures) -> str:
    """A training line's figures as plain text."""
    parts = [
        t("step {step}/{total}", step=latest.step, total=run.total or "?"),
        t("loss {loss}", loss=number(latest.loss)),
        t("smoothed {loss}", loss=number(latest.smooth)) if latest.smooth is not None else "",
        t("grad {norm}", norm=number(latest.grad_norm)) if latest.grad_norm is not None else "",
        t("rate {rate}", rate=f"{latest.learning_rate:.2e}") if latest.learning_rate is not None else "",
        t("{n} tok/s", n=f"{latest.tokens_per_second:.0f}") if latest.tokens_per_second is not None else "",
        f"{latest.memory_gb:.1f} GB" if latest.memory_gb is not None else "",
        t("{time} left", time=about(run.seconds_left)) if run.seconds_left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def held_line(held: HeldFigures) -> str:
    """A held-out line's figures as plain text."""
    loss = f"{held.loss:.4f}"
    if held.error is not None:
        loss += f" ± {NORMAL * held.error:.4f}"
    return t("step {step}: held-out loss {loss}", step=held.step, loss=loss)


def notice_line(notice: Notice) -> str:
    """A notice as plain text on one line, with the time of day."""
    words, when = notice.words(), datetime.fromtimestamp(notice.time).strftime("%H:%M:%S")
    word = f"{SIGNS[notice.tone]} {tone_word(notice.tone)}"
    what = words.what if words.what.endswith((".", "。")) else t("{sentence}.", sentence=words.what)
    text = sentences(what, *(() if notice.tone == "good" else (words.why, words.do)))
    place = "" if notice.tone == "remedy" else t("step {step}", step=notice.step) + "  "
    code = "" if notice.tone == "good" else f" ({notice.source.code})"
    return f"[{word}] {when}  {place}{text}{code}"


def closing(run: LiveRun, path: object, *, evaluated: bool) -> str:
    """How a run ended, and what to do next."""
    step, total = f"{run.step:,}", f"{run.total:,}" if run.total else "?"
    again = command("train", "--resume", path)
    if run.status == "finished":
        following = command("chat", path) if evaluated else command("evaluate", path)
        return t("Training ended at step {step} of {total}. Next: {command}", step=step, total=total, command=following)
    if run.status == "paused":
        return t("Paused at step {step}: the disk is full. Make room, then: {command}", step=step, command=again)
    if run.status == "stopped":
        return t("Stopped at step {step} of {total}. Go on with: {command}", step=step, total=total, command=again)
    if not run.has_checkpoint:
        again = command("train", f"{path}/recipe.yaml")
        return t(
            "It ended after step {step}, and no checkpoint is there. Begin again: {command}", step=step, command=again
        )
    if run.status == "failed":
        return t("It ended with an error after step {step}. Go on with: {command}", step=step, command=again)
    return t("Its process is gone after step {step}. Go on with: {command}", step=step, command=again)
