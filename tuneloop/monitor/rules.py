"""What is looked out for in a run: one dict of rules. Each is a function of the run so far and compares it with itself.

A rule answers how it stands now; that an alert neither flickers nor comes twice is the matter of `standing`. Its words
are in messages/<language>/watch.toml.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tuneloop.monitor import overfitting
from tuneloop.monitor.detection import Detection
from tuneloop.monitor.history import BLOCK, LEVEL, RECENT, YOUNG, History, Point, finite, middle, token_seconds
from tuneloop.recipe.watch import ExplodingRule, Level, MemoryRule, ReboundRule, RulesPart, VanishingRule

Rule = Callable[[History, RulesPart], Detection | None]
"""None: all is well. Settings that are switched off are the caller's matter."""

NOISE, WIDE_NOISE = 3.0, 4.0
"""So many standard deviations of a single line must the loss rise; its level, a median of lines, has half of one. The
second over what is a single line itself, and of what the level changes by from block to block."""
GAIN = 0.1
"""Share of all that the loss had fallen that it must rise again."""
WORSE = 0.5
"""Share above the loss of the first lines, those of the model as it came, that is bad."""
RUNAWAY = 1.0
"""The same above the largest of them, for a run that is too young to know its noise."""
YOUNG_NOISE = 1.5
"""So many of its standard deviations there, which are themselves wide by then."""
LEAST = math.log(2)
"""Loss of a guess between two: a model that came with less may lose that much and not have run away."""
LARGE: dict[Level, float] = {"bad": 25.0, "watch": 5.0}
"""So many times the largest usual gradient."""
MOST = 4
"""Of the last RECENT norms."""
SMALL = 0.05
"""Share of the usual gradient below which it has faded."""
UNLEARNED = 0.25
"""Share of the first loss above which small gradients are no sign of rows learned by heart."""
SLOW: dict[Level, float] = {"bad": 20.0, "watch": 4.0, "note": 3.0}
"""So many times the usual time a token, in each of the last lines."""
DISK_GB, DISK_SHARE = 1.0, 0.02
"""Free room to watch where the size of checkpoints is not known: the smaller of both."""
FLAT_LINES = 30
"""Lines that must bring nothing for a plateau."""
FLAT_SHARE = 0.01
"""Share of the loss by which those and as many before may differ; the standard error must be half of it at most."""
MEDIAN_ERROR = 1.2533
"""Standard error of a median, in those of a mean."""
RATE_SHARE = 0.1
"""Share of the highest rate below which a flat loss is the schedule's doing."""


def rebound(history: History, rules: RulesPart) -> Detection | None:
    """The loss has risen over its lowest by more than its noise and by more than a tenth of what it had fallen, or the
    held-out loss with it; bad where it is far worse than before the first steps."""
    part: ReboundRule = rules.rebound
    if history.count < BLOCK:
        return _young_rebound(history, part)
    level, noise, wander = history.level, history.noise(), history.wander()
    rise = level - history.low
    least = max(
        NOISE * noise if math.isfinite(noise) else 0.0,
        WIDE_NOISE * wander if math.isfinite(wander) else 0.0,
        part.above * abs(history.low),
        GAIN * (history.first - history.low),
    )
    if (runaway := _runaway(history, level)) is not None:
        return runaway
    before = max(middle(history.first_losses), LEAST)
    if level - before > WORSE * before and _beyond(history, level, before, WIDE_NOISE):
        return _risen("bad", history, level, min(least, level - before))
    if rise > least and _beyond(history, level, history.low, NOISE):
        return _risen("watch", history, level, least)
    return overfitting.diverging(history)


def _beyond(history: History, level: float, low: float, times: float) -> bool:
    """Whether the loss has grown to so many times its own noise; by factors, since the noise of a loss goes with it and
    that of one which runs away is its own."""
    noise = history.log_noise()
    if not (math.isfinite(noise) and low > 0):
        return level - low > times * history.noise()
    return math.log(level / low) > times * max(noise, history.log_wander())


def _young_rebound(history: History, part: ReboundRule) -> Detection | None:
    """Three lines in a row, all above three in a row before: the noise is not known, so it is a note only, unless they
    are far above all that it began with, and rise."""
    losses = [one.loss for one in history.last(BLOCK)]
    if losses and (runaway := _runaway(history, min(losses[-YOUNG:]))) is not None:
        return runaway
    last, before = losses[-YOUNG:], max([*history.first_losses, LEAST])
    if (
        len(losses) >= LEVEL - 2
        and min(last) > (1 + RUNAWAY) * before
        and _beyond(history, middle(last), before, YOUNG_NOISE)
    ):
        return _risen("bad", history, min(last), RUNAWAY * before)
    highs = [max(three) for three in zip(losses, losses[1:], losses[2:], strict=False)]
    if len(highs) < LEVEL - 2 or not all(math.isfinite(one) for one in losses):
        return None
    at = highs.index(min(highs))
    if min(last) - highs[at] > part.above * abs(highs[at]):
        low_step = history.last(BLOCK)[at + 1].step
        facts = {"loss": min(last), "low": highs[at], "low_step": low_step}
        return Detection("note", low_step + 1, facts | {"share": _share(min(last), highs[at])})
    return None


def _runaway(history: History, loss: float) -> Detection | None:
    """The model has become worse than one that guesses, and is still far worse than it came: no noise does that."""
    start = history.start
    if not history.ran_away or not loss > (1 + WORSE) * start:
        return None
    low, low_step = (history.low, history.low_step) if history.low < start else (start, history.first_step)
    facts = {"loss": loss, "low": low, "low_step": low_step, "share": _share(loss, low)}
    return Detection("bad", history.began(loss - low), facts)


def _risen(level: Level, history: History, loss: float, least: float) -> Detection:
    """Against the lowest that the loss was: over LEVEL lines, or over the first ones."""
    low, low_step = middle(history.first_losses), history.first_step
    if history.low < low:
        low, low_step = history.low, history.low_step
    facts = {"loss": loss, "low": low, "low_step": low_step, "share": _share(loss, low)}
    return Detection(level, history.began(least), facts)


def _share(loss: float, low: float) -> float:
    """Of the lowest loss, how much it has risen."""
    return (loss - low) / max(abs(low), 1e-12)


def exploding(history: History, rules: RulesPart) -> Detection | None:
    """Most of the last gradient norms are far above all that was usual."""
    part: ExplodingRule = rules.exploding
    recent = history.last(RECENT)
    usual = history.usual("exploding", lambda block: block.norm_high)
    if not usual:
        return _young_exploding(history, part)
    for level, times in LARGE.items():
        limit = times * max(usual)
        above = [one for one in recent if one.grad_norm > limit]
        if len(above) >= MOST:
            facts = {"norm": middle([one.grad_norm for one in above]), "limit": limit}
            return Detection(level, above[0].step, facts)
    return None


def _young_exploding(history: History, part: ExplodingRule) -> Detection | None:
    """Within the first steps: above the guides' numbers, and more than a note only where the norm has grown."""
    recent, start = history.last(3), middle(history.first_norms)
    norm = min((one.grad_norm for one in recent), default=math.nan)
    if len(recent) < 3 or not norm > part.high:
        return None
    level: Level = "note"
    if norm > LARGE["watch"] * start and history.count > LEVEL:
        level = "bad" if norm > part.alarm else "watch"
    limit = part.alarm if level == "bad" else part.high
    return Detection(level, recent[0].step, {"norm": norm, "limit": limit})


def vanishing(history: History, rules: RulesPart) -> Detection | None:
    """The last gradient norms are far below what was usual, and the loss is not; or they are zero."""
    part: VanishingRule = rules.vanishing
    recent = history.last(RECENT)
    norm = max((one.grad_norm for one in recent), default=math.nan)
    if len(recent) < RECENT or not math.isfinite(norm):
        return None
    since, learned = recent[0].step, history.level < UNLEARNED * abs(history.first)
    if norm == 0 and not learned:
        return Detection("bad", since, {"norm": norm, "limit": part.low})
    usual = history.usual("vanishing", lambda block: block.norm) or history.first_norms
    limit = SMALL * middle(usual)
    if norm < limit and not learned:
        return Detection("watch", since, {"norm": norm, "limit": limit})
    young = history.count < BLOCK
    return Detection("note", since, {"norm": norm, "limit": part.low}) if young and norm < part.low else None


def nan(history: History, rules: RulesPart) -> Detection | None:
    """The last line has a loss or a gradient norm that is no number."""
    measured = [one for one in history.measurements if one.step == history.step]
    if measured and not math.isfinite(measured[-1].loss):
        return Detection("bad", history.step, {"name": "eval_loss"})
    for point in history.last(1):
        for name in ("loss", "grad_norm"):
            if not math.isfinite(getattr(point, name)):
                return Detection("bad", point.step, {"name": name})
    return None


def plateau(history: History, rules: RulesPart) -> Detection | None:
    """The loss falls no more although rate and steps are left. The held-out loss alone makes more than a note of it."""
    points, left = history.last(2 * FLAT_LINES), history.steps_left
    if not points or points[-1].learning_rate < RATE_SHARE * history.peak_rate:
        return None
    if left is not None and left <= FLAT_LINES:
        return None
    held = overfitting.flat(history)
    if held is not None and left is not None:
        return held
    if len(points) < 2 * FLAT_LINES:
        return None
    before, after = (middle(finite(one.loss for one in half)) for half in (points[:FLAT_LINES], points[FLAT_LINES:]))
    error = MEDIAN_ERROR * history.noise() * math.sqrt(2 / FLAT_LINES)
    if not (abs(before - after) < FLAT_SHARE * abs(before) and error < FLAT_SHARE / 2 * abs(before)):
        return None
    return Detection("note", points[FLAT_LINES].step, {"loss": after, "steps": points[-1].step - points[0].step})


def throughput(history: History, rules: RulesPart) -> Detection | None:
    """Each of the last lines took many times as long a token as was usual."""
    usual = middle(history.usual("throughput", lambda block: block.token_seconds))
    recent = history.last(RECENT)
    times = [token_seconds(one) / usual for one in recent]
    if len(recent) < RECENT or not math.isfinite(usual) or not all(math.isfinite(one) for one in times):
        return None
    for level, many in SLOW.items():
        if min(times) > many:
            now = middle(times)
            facts = {"speed": 1 / (usual * now), "usual": 1 / usual, "times": now}
            return Detection(level, recent[0].step, facts)
    return None


def memory(history: History, rules: RulesPart) -> Detection | None:
    """The memory of the machine, or of the card, is nearly used up in two lines in a row."""
    part: MemoryRule = rules.memory
    worst: Detection | None = None
    for place, measure in (("CPU", _host), ("GPU", _card)):
        shares = [measure(point) for point in history.last(2)]
        known = [one for one in shares if one is not None]
        if len(known) < 2:
            continue
        used, total = min(known, key=lambda one: one[0] / one[1])
        share = used / total
        if share > part.watch and (worst is None or share > worst.facts["share"]):
            facts = {"used": used, "total": total, "share": share, "place": place}
            worst = Detection("bad" if share > part.bad else "watch", history.last(2)[0].step, facts)
    return worst


def _host(point: Point) -> tuple[float, float] | None:
    """GB in use and GB there are, of the container or machine."""
    clock = point.clock
    total = clock.get("memory_total_gb", 0.0)
    used = total - clock["memory_free_gb"] if "memory_free_gb" in clock else clock.get("process_gb")
    return (used, total) if total > 0 and used is not None else None


def _card(point: Point) -> tuple[float, float] | None:
    """GB in use and GB there are, of the card."""
    total, used = point.clock.get("device_total_gb", 0.0), point.clock.get("device_gb")
    return (used, total) if total > 0 and used is not None else None


def disk(history: History, rules: RulesPart) -> Detection | None:
    """What is free is less than the next checkpoints need."""
    free = next((one.clock["disk_free_gb"] for one in history.last(1) if "disk_free_gb" in one.clock), math.nan)
    needed = history.limits.checkpoint_gb
    if not math.isfinite(free):
        return None
    if needed is None:
        size = history.limits.disk_gb
        needed = DISK_GB if size is None else min(DISK_GB, DISK_SHARE * size)
    if free >= 2 * needed:
        return None
    return Detection("bad" if free < needed else "watch", history.step, {"free": free, "needed": needed})


def rate(history: History, rules: RulesPart) -> Detection | None:
    """The learning rate was zero in two lines in a row after the first step, and steps are left."""
    left, recent = history.steps_left, history.last(2)
    if not left or len(recent) < 2 or recent[0].step <= 1:
        return None
    zero = all(point.learning_rate == 0 for point in recent)
    return Detection("bad", recent[0].step, {"left": left}) if zero else None


RULES: dict[str, Rule] = {
    "rebound": rebound,
    "exploding": exploding,
    "vanishing": vanishing,
    "nan": nan,
    "plateau": plateau,
    "overfit": overfitting.overfit,
    "throughput": throughput,
    "memory": memory,
    "disk": disk,
    "rate": rate,
}
"""All that is looked out for in the lines of metrics.jsonl, in the order in which it is told.
Single rows (`labels`) are looked at in row_losses."""
