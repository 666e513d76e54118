"""Lines of metrics.jsonl that a run could have written, and what its rules give for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.history import History, RunLimits
from tuneloop.monitor.standing import Standings
from tuneloop.recipe.watch import RulesPart


def line(step: int, loss: float = 2.0, **fields: Any) -> dict[str, Any]:
    """A training line; keywords that a line does not have at its top are of its clock."""
    top: dict[str, Any] = {
        name: fields.pop(name) for name in ("grad_norm", "learning_rate", "tokens") if name in fields
    }
    clock = {"seconds": 0.5, "memory_gb": 1.0, **fields}
    return {"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-4, "tokens": 500, **top, "clock": clock}


def course(
    steps: int, loss: Callable[[int], float], *, noise: float = 0.1, seed: int = 1, **fields: Callable[[int], float]
) -> list[dict[str, Any]]:
    """The lines of a run whose loss is `loss(step)` times noise; other fields are functions of the step as well."""
    draw = random.Random(seed)
    return [
        line(step, loss(step) * math.exp(draw.gauss(0, noise)), **{name: of(step) for name, of in fields.items()})
        for step in range(1, steps + 1)
    ]


def falling(step: int) -> float:
    """A loss that falls from 3 to 1."""
    return 1 + 2 * math.exp(-step / 30)


def cosine(steps: int, *, rate: float = 1e-4) -> Callable[[int], float]:
    """The rate of a step with a warm-up of a tenth."""
    warm = max(1, steps // 10)

    def of(step: int) -> float:
        done = (step - 1 - warm) / max(1, steps - warm)
        return rate * min(1.0, step / warm, 0.5 * (1 + math.cos(math.pi * max(0.0, done))))

    return of


def alerts(lines: Iterable[dict[str, Any]], limits: RunLimits | None = None, **rules: Any) -> list[Alert]:
    """What the rules give for the lines, all of it in order."""
    standings = Standings(RulesPart.model_validate(rules), History(limits or RunLimits()))
    return [alert for one in lines for alert in standings.add(one)]


def serious(given: Iterable[Alert]) -> list[tuple[str, str]]:
    """Rule and level of what is more than a note."""
    return [(one.rule, one.level) for one in given if one.level in {"watch", "bad"}]
