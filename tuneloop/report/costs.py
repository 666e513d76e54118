"""What a run was planned to cost, and what it cost: time, tokens, memory, trained weights, and what an epoch brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.base.duration import about, duration
from tuneloop.base.language import t
from tuneloop.report.run_view import Folder, clock, spent


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost; None for what its files do not tell."""

    seconds: float | None
    epochs: float | None
    tokens: int | None
    """Of training, each row counted as often as it was trained on."""
    memory_gb: float | None
    trained: int | None
    """Weights."""
    parameters: int | None
    """Weights in all."""

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def cost(folder: Folder) -> Cost:
    """The cost of a run, from its metrics, events and plan."""
    steps = [line for line in folder.metrics if "loss" in line and isinstance(line.get("step"), int)]
    last = {line["step"]: line for line in steps}  # a step written twice, before and after a resume, counts once
    memory, model = clock(folder, "memory_gb"), folder.plan.get("model") or {}
    epochs = [line["epoch"] for line in steps if isinstance(line.get("epoch"), int | float)]
    tokens = [line["tokens"] for line in last.values() if isinstance(line.get("tokens"), int)]
    dense = len(tokens) == max(last, default=0)  # a line for each step, else what is between them is not known
    return Cost(
        seconds=spent(folder) or None,
        epochs=max(epochs, default=None),
        tokens=sum(tokens) if tokens and dense else None,
        memory_gb=max(memory, default=None),
        trained=model.get("trainable"),
        parameters=model.get("parameters"),
    )


def planned(folder: Folder) -> list[tuple[str, str, str]]:
    """(what, planned, what happened); the latter "" where it is not known."""
    plan, paid = folder.plan, cost(folder)
    steps = [m["step"] for m in folder.metrics if "loss" in m and isinstance(m.get("step"), int)]
    foreseen, wanted = plan.get("evaluation") or {}, (plan.get("data") or {}).get("steps")
    took = next((e.get("seconds") for e in reversed(folder.events) if e.get("event") == "evaluated"), None)
    each = paid.seconds / paid.epochs if paid.seconds and paid.epochs else 0.0
    trained, every = paid.trained, paid.parameters
    share = f"{short(trained)} ({100 * trained / every:.3g} %)" if trained and every else ""
    rows = [
        (t("training time"), about(plan["seconds"]) if plan.get("seconds") else "",
         duration(paid.seconds) if paid.seconds else ""),
        (t("one epoch"), "", duration(each) if each else ""),
        (t("evaluation time"), about(foreseen["seconds"]) if foreseen.get("seconds") else "",
         duration(took) if took else ""),
        (t("memory at its peak"), f"{plan['memory_gb']:.1f} GB" if plan.get("memory_gb") else "",
         f"{paid.memory_gb:.1f} GB" if paid.memory_gb else ""),
        (t("optimizer steps"), f"{wanted:,}" if wanted else "", f"{max(steps):,}" if steps else ""),
        (t("tokens trained on"), "", f"{paid.tokens:,}" if paid.tokens else ""),
        (t("trained weights"), "", share),
    ]  # fmt: skip
    return [row for row in rows if row[1] or row[2]]


def epochs(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(epoch, held-out loss, change since the one before) of each measurement while training; [] of fewer than two.

    >>> epochs([{"epoch": 1, "eval_loss": 2.0}, {"epoch": 2.0, "eval_loss": 1.75}])
    [('1', '2.000', ''), ('2', '1.750', '−0.250')]
    """
    held = [
        (line["epoch"], line["eval_loss"])
        for line in lines
        if isinstance(line.get("eval_loss"), int | float) and isinstance(line.get("epoch"), int | float)
    ]
    if len(held) < 2:
        return []
    before = [None, *(loss for _, loss in held)]
    return [
        (f"{epoch:g}", f"{loss:.3f}", "" if was is None else f"{loss - was:+.3f}".replace("-", "\u2212"))
        for (epoch, loss), was in zip(held, before, strict=False)
    ]


def short(number: float) -> str:
    """A large number in three digits.

    >>> short(134515008), short(4884480), short(950), short(6738415616)
    ('135 M', '4.88 M', '950', '6.74 B')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
