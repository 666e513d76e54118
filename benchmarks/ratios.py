"""From results to ratios and targets. Pure: results in, numbers out; None where something is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
OURS, REDUCED = "tuneloop", "tuneloop-reduced"


def rate(one: Result) -> float:
    """Real tokens a second in steady state: the median over the steps after the first one.

    >>> rate({"step_seconds": [9, 2, 4, 2], "step_tokens": [100, 100, 100, 120]})
    50.0
    """
    seconds, tokens = one["step_seconds"], one["step_tokens"]
    after = slice(1, None) if len(seconds) > 1 else slice(None)
    return float(statistics.median(t / s for s, t in zip(seconds[after], tokens[after], strict=True)))


def step(one: Result) -> float:
    """Median seconds of the steps after the first one."""
    seconds = one["step_seconds"]
    return float(statistics.median(seconds[1:] if len(seconds) > 1 else seconds))


class Found:
    """The results of one session, asked by section and way."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.all = [one for one in results if "error" not in one]

    def ways(self, section: str) -> dict[str, Result]:
        return {one["way"]: one for one in self.all if one["section"] == section}

    def peers(self, section: str) -> dict[str, Result]:
        return {name: one for name, one in self.ways(section).items() if not name.startswith(OURS)}

    def one(self, section: str, way: str = "") -> Result | None:
        return self.ways(section).get(way or section)

    def faster(self, section: str, than: str = "", way: str = OURS) -> float | None:
        """Our steady rate over that of another way, or over the best peer's."""
        ours = self.one(section, way)
        others = [self.one(section, than)] if than else list(self.peers(section).values())
        rates = [rate(one) for one in others if one]
        return rate(ours) / max(rates) if ours and rates else None

    def quicker(self, section: str, epochs: int) -> float | None:
        """How many times as long the quickest peer takes for so many epochs of the loop."""
        ours, ends = self.one(section, OURS), []
        for one in self.peers(section).values():
            if len(one["epoch_ends"]) >= epochs:
                ends.append(one["epoch_ends"][epochs - 1])
        if not ours or not ends or len(ours["epoch_ends"]) < epochs:
            return None
        return float(min(ends) / ours["epoch_ends"][epochs - 1])

    def pairs(self) -> float | None:
        """The best of TRL's seconds over ours, from loading the model to the last step.

        Ours weighs the answers with the reference before its first step, TRL in each: so steps do not compare.
        """
        ours, peers = self.one("dpo", OURS), [one["work"] for one in self.peers("dpo").values()]
        return float(min(peers) / ours["work"]) if ours and peers else None

    def over_floor(self) -> float | None:
        ours, floor = self.one("lora", OURS), self.one("floor")
        return floor["tokens_per_second"] / rate(ours) if ours and floor else None

    def memory(self, section: str = "lora") -> float | None:
        """Our peak over that of the leanest peer."""
        ours, peers = self.one(section, OURS), [one["peak_gb"] for one in self.peers(section).values()]
        return ours["peak_gb"] / min(peers) if ours and peers else None

    def loss(self, section: str, than: str = "", way: str = OURS) -> float | None:
        """Our held-out loss over another way's, or over the lowest of the peers'."""
        ours = self.one(section, way)
        others = [self.one(section, than)] if than else list(self.peers(section).values())
        losses = [one["held"] for one in others if one]
        return ours["held"] / min(losses) if ours and losses else None

    def whole(self) -> float | None:
        """Seconds from the start of the process to the saved result, cold: TRL's over ours."""
        ours, trl = self.one("whole", OURS), self.one("whole", "trl")
        return trl["whole"] / ours["whole"] if ours and trl else None

    def start(self) -> float | None:
        one = self.one("start")
        return one["start"] / one["imports"] if one else None

    def flat(self) -> float | None:
        """Cost of a token with the most samples over that with the fewest."""
        one = self.one("flat")
        if not one:
            return None
        costs = {int(size): sum(parts) for size, parts in one["nanoseconds"].items()}
        return float(costs[max(costs)] / costs[min(costs)])


@dataclass(frozen=True, slots=True)
class Target:
    """`key` names its words; `sign` is >= or <=, or ~ for a ratio that is 1 within `limit`."""

    key: str
    sign: str
    limit: float
    value: float | None

    @property
    def reached(self) -> bool | None:
        """Judged as it is shown, with two places."""
        if self.value is None:
            return None
        shown = round(self.value, 2 if self.sign != "~" else 4)
        if self.sign == "~":
            return abs(shown - 1) <= self.limit
        return shown >= self.limit if self.sign == ">=" else shown <= self.limit


def targets(found: Found) -> list[Target]:
    """Every target, in order."""
    return [
        Target("lora_trl", ">=", 5, found.faster("lora", "trl")),
        Target("lora_llamafactory", ">=", 4, found.faster("lora", "llamafactory")),
        Target("lora_best", ">=", 2.2, found.faster("lora")),
        Target("lora_tutorial", ">=", 3, found.faster("lora", "tutorial")),
        Target("lora_floor", "<=", 1.25, found.over_floor()),
        Target("lora_memory", "<=", 0.7, found.memory()),
        Target("lora_loss", "~", 0.01, found.loss("lora", "trl")),
        Target("whole", ">=", 3.5, found.whole()),
        Target("reduced", ">=", 1.3, found.faster("lora", OURS, REDUCED)),
        Target("reduced_loss", "~", 0.01, found.loss("lora", OURS, REDUCED)),
        Target("full", ">=", 1.6, found.faster("full")),
        Target("full_loss", "~", 0.01, found.loss("full", "trl-no-checkpointing")),
        Target("freeze_3", ">=", 3, found.quicker("freeze", 3)),
        Target("freeze_10", ">=", 4, found.quicker("freeze", 10)),
        Target("freeze_loss", "~", 0.01, found.loss("freeze", "llamafactory")),
        Target("classify", ">=", 5, found.quicker("classify", 5)),
        Target("classify_loss", "~", 0.01, found.loss("classify")),
        Target("dpo", ">=", 1.5, found.pairs()),
        Target("dpo_loss", "~", 0.01, found.loss("dpo", "trl")),
        Target("start", "<=", 1.6, found.start()),
        Target("flat", "<=", 1.5, found.flat()),
    ]
