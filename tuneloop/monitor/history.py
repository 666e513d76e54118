"""What a run was so far, as its rules see it: built from the lines of metrics.jsonl, one by one.

All of it is a function of the lines and of what the caller knows of the run (`RunLimits`), so a run that is taken up
again sees what it would have seen. A line costs the length of a window, however long the run is.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

RECENT = 5
"""Lines that are looked at as "now", of norms and clocks: one hard batch among them changes no median."""
LEVEL = 8
"""Lines whose median is where the loss is: it differs more from step to step than what it changes by."""
YOUNG = 3
"""Lines that a run begins with."""
BLOCK = 10
"""Lines that are summed up by one median; a run that has fewer does not know itself."""
WINDOW = 60
"""Training lines that stay."""
MEASURED = 8
"""Measurements whose single rows stay, beside those of the best one."""
BLOCKS = 400
"""Blocks that stay: what was usual in the last 4,000 lines."""
WANDERS, BLOCKS_COMPARED = 4, 60
"""Blocks from which on, and over how many of which, it is known how the loss wanders."""
MEAN_TO_DEVIATION = math.sqrt(math.pi) / 2
"""What the mean difference of neighbours must be multiplied by to be the standard deviation of normal numbers."""
MAD_TO_DEVIATION = 1.4826
"""What the median absolute deviation of normal numbers must be multiplied by to be their standard deviation."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What the caller knows of the run; None where nobody does.

    `total`: its optimizer steps. `checkpoint_gb`: room (GB, 1e9 bytes) that the next checkpoints need. `disk_gb`: the
    size of the disk. `chance`: what an even guess among all tokens or labels loses on average, in nats.
    """

    total: int | None = None
    checkpoint_gb: float | None = None
    disk_gb: float | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A training line. What is NaN, infinite or null in it is NaN here; `clock` has the finite numbers of its clock."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: float
    clock: Mapping[str, float]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Point:
        clock = line.get("clock")
        numbers = {name: number(raw) for name, raw in clock.items()} if isinstance(clock, Mapping) else {}
        return cls(
            int(line["step"]),
            number(line.get("loss")),
            number(line.get("grad_norm")),
            number(line.get("learning_rate")),
            number(line.get("tokens")),
            {name: one for name, one in numbers.items() if math.isfinite(one)},
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """A held-out line: the mean loss, its standard error over rows and their number, None where it does not say."""

    step: int
    loss: float
    error: float | None
    rows: int | None
    level: float
    """The level of the training loss at that time, NaN where there was none."""


@dataclass(frozen=True, slots=True)
class RowLosses:
    """A line of held.jsonl: what each held-out row lost on average, and its weight in the mean of all."""

    step: int
    losses: Sequence[float]
    weights: Sequence[float]


@dataclass(frozen=True, slots=True)
class BlockMedians:
    """Medians of BLOCK training lines; `norm_high` is the largest norm but one. `last` is the last line's step."""

    last: int
    loss: float
    norm: float
    norm_high: float
    token_seconds: float


@dataclass(slots=True)
class History:
    """The last training lines, the medians of those before, and the held-out measurements.

    `since` has, of each rule that stands, the step it holds from: what is usual is what was so before.
    """

    limits: RunLimits = field(default_factory=RunLimits)
    since: dict[str, int] = field(default_factory=dict)
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=WINDOW))
    blocks: deque[BlockMedians] = field(default_factory=lambda: deque(maxlen=BLOCKS))
    measurements: deque[Measurement] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0
    """Training lines so far."""
    start: float = math.nan
    """The loss of the first line, which is that of the model before it had learned anything."""
    first_losses: list[float] = field(default_factory=list)
    """The losses of the first YOUNG lines, without what is no number."""
    first_step: int = 0
    first: float = math.nan
    """The level of the loss over the first LEVEL lines, or of all while there are fewer."""
    first_norms: list[float] = field(default_factory=list)
    """The gradient norms of the first three lines, without what is no number."""
    ran_away: bool = False
    """Whether the model has become worse than one that guesses: YOUNG lines in a row lost more, and twice the first."""
    low: float = math.inf
    """The lowest level of the loss so far, over LEVEL lines; infinite before there are as many."""
    low_step: int = 0
    peak_rate: float = 0.0
    """The highest learning rate so far."""
    best: Measurement | None = None
    best_rows: RowLosses | None = None
    rows: deque[RowLosses] = field(default_factory=lambda: deque(maxlen=MEASURED))

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one line of metrics.jsonl; one that is neither a training line nor a held-out one changes nothing."""
        if "eval_loss" in line:
            self._measured(line)
        elif "loss" in line and "step" in line:
            self._trained(Point.of(line))

    def add_rows(self, line: Mapping[str, Any]) -> None:
        """Take one line of held.jsonl. It belongs to the measurement after the same step, which may come later."""
        losses, weights = ([number(one) for one in line.get(key, ())] for key in ("losses", "weights"))
        rows = RowLosses(int(line["step"]), losses, weights)
        self.rows.append(rows)
        if self.best is not None and self.best.step == rows.step:
            self.best_rows = rows

    def _trained(self, point: Point) -> None:
        self.points.append(point)
        self.count += 1
        if point.learning_rate > self.peak_rate:
            self.peak_rate = point.learning_rate
        level = self.level
        if self.count <= LEVEL:
            self.first = level
        if self.count == 1:
            self.start, self.first_step = point.loss, point.step
        if self.count <= YOUNG:
            self.first_norms += finite([point.grad_norm])
            self.first_losses += finite([point.loss])
        chance = self.limits.chance
        if chance is not None and self.count > YOUNG:
            self.ran_away |= min(one.loss for one in self.last(YOUNG)) > max(chance, 2 * self.start)
        if self.count >= LEVEL and level < self.low:
            self.low, self.low_step = level, self.middle_step
        if self.count % BLOCK == 0:
            last = list(self.points)[-BLOCK:]
            norms = sorted(finite(one.grad_norm for one in last))
            self.blocks.append(
                BlockMedians(
                    point.step,
                    middle(finite(one.loss for one in last)),
                    middle(norms),
                    norms[-2] if len(norms) > 1 else math.nan,
                    middle(finite(token_seconds(one) for one in last)),
                )
            )

    def _measured(self, line: Mapping[str, Any]) -> None:
        error, rows = number(line.get("eval_error")), number(line.get("eval_rows"))
        one = Measurement(
            int(line["step"]),
            number(line["eval_loss"]),
            error if math.isfinite(error) else None,
            int(rows) if math.isfinite(rows) else None,
            self.level,
        )
        self.measurements.append(one)
        if math.isfinite(one.loss) and (self.best is None or one.loss < self.best.loss):
            self.best = one
            self.best_rows = self.rows_after(one.step)

    @property
    def step(self) -> int:
        """The step of the last line, 0 before the first."""
        steps = [some[-1].step for some in (self.points, self.measurements) if some]
        return max(steps, default=0)

    @property
    def steps_left(self) -> int | None:
        """Optimizer steps still to come, None where their number is not known."""
        return None if self.limits.total is None else max(0, self.limits.total - self.step)

    @property
    def level(self) -> float:
        """Where the loss is now: the median of the last lines; NaN without any."""
        return middle(finite(one.loss for one in self.last(LEVEL)))

    @property
    def middle_step(self) -> int:
        """The step in the middle of the last lines: what `level` is of."""
        last = self.last(LEVEL)
        return last[len(last) // 2].step if last else 0

    def last(self, n: int) -> list[Point]:
        """The last `n` training lines, fewer where there are fewer."""
        return list(self.points)[-n:]

    def rows_after(self, step: int) -> RowLosses | None:
        """What each held-out row lost after `step`; None where nobody wrote it, or it is long ago."""
        known = self.rows if self.best_rows is None else (self.best_rows, *self.rows)
        return next((rows for rows in known if rows.step == step), None)

    def noise(self) -> float:
        """Standard deviation of a line's loss around where the loss is, by the differences of neighbours.

        By medians, so neither a hard batch nor the fall itself counts; wider where few lines tell (twice as wide with
        ten). NaN below BLOCK lines.
        """
        losses = finite(one.loss for one in self.points)
        if len(losses) < BLOCK:
            return math.nan
        return (
            spread([after - before for before, after in itertools.pairwise(losses)])
            / math.sqrt(2)
            * (1 + BLOCK / len(losses))
        )

    def log_noise(self) -> float:
        """Standard deviation of the logarithm of a line's loss, by the mean difference of neighbours.

        Every line counts, as hard batches do; what it rose or fell by in all does not. Wider where few lines tell.
        NaN below YOUNG lines, and where a loss is not above zero.
        """
        losses = finite(one.loss for one in self.points)
        if len(losses) < YOUNG or min(losses) <= 0:
            return math.nan
        logs = [math.log(one) for one in losses]
        moved = sum(abs(after - before) for before, after in itertools.pairwise(logs))
        mean = max(0.0, moved - abs(middle(logs[-YOUNG:]) - middle(logs[:YOUNG]))) / (len(logs) - 1)
        return MEAN_TO_DEVIATION * mean * (1 + BLOCK / len(logs))

    def log_wander(self) -> float:
        """Standard deviation of what the logarithm of the loss changes by over LEVEL lines, and from block to block
        (without the largest tenth of those changes): more than noise explains where neighbouring batches are alike.

        0 below two BLOCK lines, and where a loss is not above zero.
        """
        losses = finite(one.loss for one in self.points)
        if len(losses) < 2 * BLOCK or min(losses) <= 0:
            return 0.0
        logs = [math.log(one) for one in losses]
        lately = spread([after - before for before, after in zip(logs, logs[LEVEL:], strict=False)]) / math.sqrt(2)
        levels = finite(block.loss for block in self.blocks)[-BLOCKS_COMPARED:]
        if len(levels) < WANDERS or min(levels) <= 0:
            return lately
        changes = sorted(abs(math.log(after / before)) for before, after in itertools.pairwise(levels))
        most = changes[: math.ceil(0.9 * len(changes))]
        return max(lately, math.sqrt(sum(one * one for one in most) / len(most)))

    def began(self, step: float) -> int:
        """The step with which the loss left where it lay within the last WINDOW lines: the first of the last lines
        among which no two in a row lie below half of `step`, or of the rise where that is less."""
        points = [one for one in self.points if math.isfinite(one.loss)]
        losses = [one.loss for one in points]
        lows = [middle(losses[k : k + LEVEL]) for k in range(len(losses) - LEVEL + 1)]
        if self.count <= WINDOW:
            lows.append(middle(self.first_losses))
        low = min(lows)
        cut = low + min(step, max(0.0, middle(losses[-YOUNG:]) - low)) / 2
        at = len(points) - 1
        while at > 0 and (losses[at - 1] > cut or (at > 1 and losses[at - 2] > cut)):
            at -= 1
        while at < len(points) - 1 and losses[at] <= cut:
            at += 1
        return points[at].step

    def wander(self) -> float:
        """Standard deviation of what the loss changes by from block to block, NaN below WANDERS blocks: more than noise
        explains where neighbouring batches are alike."""
        levels = finite(block.loss for block in self.blocks)
        if len(levels) < WANDERS:
            return math.nan
        return spread([after - before for before, after in itertools.pairwise(levels[-BLOCKS_COMPARED:])])

    def usual(self, rule: str, measure: Callable[[BlockMedians], float]) -> list[float]:
        """`measure` of the blocks that were complete before now and before `rule` began to hold; [] if young."""
        if not self.points:
            return []
        recent = self.last(RECENT)[0].step
        before = min(recent, self.since.get(rule, recent))
        return finite(measure(block) for block in self.blocks if block.last < before)


def number(raw: Any) -> float:
    """A number of a JSON line; NaN for what is none: null, a text like "NaN", a truth value.

    >>> number(2), number(None), number("Infinity")
    (2.0, nan, nan)
    """
    return float(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else math.nan


def token_seconds(point: Point) -> float:
    """Seconds of a step a token, NaN where the line does not tell."""
    seconds = point.clock.get("seconds", math.nan)
    return seconds / point.tokens if point.tokens > 0 and seconds > 0 else math.nan


def finite(numbers: Iterable[float]) -> list[float]:
    """The numbers that are some.

    >>> finite([1.0, math.nan, math.inf, 2.0])
    [1.0, 2.0]
    """
    return [one for one in numbers if math.isfinite(one)]


def middle(numbers: Sequence[float]) -> float:
    """The median, NaN of nothing."""
    return median(numbers) if numbers else math.nan


def spread(numbers: Sequence[float]) -> float:
    """The standard deviation as the median absolute deviation has it; NaN of nothing.

    >>> round(spread([1.0, 2.0, 3.0, 4.0, 1000.0]), 4)
    1.4826
    """
    centre = middle(numbers)
    return MAD_TO_DEVIATION * middle([abs(one - centre) for one in numbers])
