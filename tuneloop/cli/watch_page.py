"""How `tuneloop watch` draws a run: a page for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuneloop.base.duration import about
from tuneloop.base.language import t
from tuneloop.monitor.alerts import SIGNS, Tone
from tuneloop.monitor.live import HeldFigures, LiveRun, Status, TrainingFigures, group_word
from tuneloop.monitor.notices import Notice, still_on, tone_word

WIDE = 120
"""Columns from which alerts stand beside the figures and not below them."""
GAP = 3
RESERVED = 6
"""Lines that alerts and remedies get at least, where there are so many, on a terminal with too few."""
MOST = 20
"""Alerts and remedies that are drawn where their room has no end, beside those that are still on."""
NORMAL = 1.96
"""Standard errors to each side of a mean that make a 95 % interval."""
BARS = "▁▂▃▄▅▆▇█"
CHIPS: Mapping[Tone | Status, str] = {
    "good": "black on green", "note": "black on cyan", "watch": "black on yellow", "bad": "bold white on red",
    "remedy": "bold white on blue", "beginning": "black on cyan", "running": "black on green",
    "finished": "black on green", "stopped": "black on yellow", "paused": "black on yellow",
    "failed": "bold white on red", "gone": "bold white on red",
}  # fmt: skip
"""Letters on a ground of their own: they can be read on dark and on light terminals."""


def words_of_status(status: Status) -> str:
    """A status in the reader's language."""
    words: dict[Status, str] = {
        "beginning": t("beginning"),
        "running": t("running"),
        "finished": t("finished"),
        "stopped": t("stopped"),
        "paused": t("paused"),
        "failed": t("ended with an error"),
        "gone": t("its process is gone"),
    }
    return words[status]


@dataclass(frozen=True, slots=True)
class WatchPage:
    """A run drawn as a page. `height`: lines there are, None for as many as it takes; `hint`: its last line."""

    run: LiveRun
    height: int | None = None
    hint: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        wide = width >= WIDE
        column = (width - GAP) // 2 if wide else width
        rows = _figures(self.run, _columns_left(self.run, column))
        head = [_head(self.run), _progress(self.run), Text()]
        foot = [Text(), Text(self.hint, style="dim")] if self.hint else []

        def lines(*parts: RenderableType, columns: int = width) -> int:
            return len(console.render_lines(Group(*parts), options.update(width=columns, height=None), pad=False))

        free = None if self.height is None else self.height - lines(*head, *foot)
        if free is not None:
            reserved = 0 if wide else 1 + min(lines(_notices(self.run, None, lines), columns=column), RESERVED)
            rows = _cropped(rows, lambda some: lines(_table(some), columns=column) <= free - reserved)
        figures = _table(rows)
        limit = None if free is None else max(free - (0 if wide else lines(figures, Text())), 3)
        notices = _notices(self.run, limit, lambda *parts: lines(*parts, columns=column))
        yield from head
        if wide:
            grid = Table.grid(padding=(0, GAP, 0, 0), expand=True)
            grid.add_column(width=column, overflow="fold")
            grid.add_column(ratio=1, overflow="fold")
            grid.add_row(figures, notices)
            yield grid
        else:
            yield Group(figures, Text(), notices)
        yield from foot


def _cropped(
    rows: Sequence[tuple[str, Text]], fits: Callable[[Sequence[tuple[str, Text]]], bool]
) -> list[tuple[str, Text]]:
    """The rows that there is room for: those that one can best do without go first, then the last ones."""
    left = list(rows)
    for label in (t("by layer group"), t("Loss by file"), t("A step"), t("Disk"), t("Load")):
        if not fits(left):
            left = [row for row in left if row[0] != label]
    while left and not fits(left):
        left.pop()
    return left


def _head(run: LiveRun) -> RenderableType:
    """The run's name, model and method; at the other end how it stands."""
    name = Text.assemble((run.name, "bold"), ("  " + "  ".join(x for x in (_short(run.model), run.method) if x), "dim"))
    status = Text.assemble((f" {words_of_status(run.status)} ", CHIPS[run.status]))
    if run.seconds_left is not None:
        status.append("  " + t("{time} left", time=about(run.seconds_left)))
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(name, status)
    return grid


def _short(model: str) -> str:
    return model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def _progress(run: LiveRun) -> RenderableType:
    text = t("step {step} of {total}", step=f"{run.step:,}", total=f"{run.total:,}" if run.total else "?")
    if run.total:
        text += f"  {100 * run.step // run.total} %"
    grid = Table.grid(expand=True, padding=(0, 0, 0, 0))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    bar = ProgressBar(total=run.total or 1, completed=min(run.step, run.total), complete_style="green")
    grid.add_row(bar, Text(f"  {text}"))
    return grid


def _table(rows: Sequence[tuple[str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    for label, text in rows:
        grid.add_row(Text(label), text)
    return grid


def _columns_left(run: LiveRun, column: int) -> int:
    """Columns that are left for a figure beside its label."""
    widest = max((Text(label).cell_len for label, _ in _figures(run, 0)), default=0)
    return max(column - widest - 2, 10)


def _figures(run: LiveRun, columns: int) -> list[tuple[str, Text]]:
    """(label, figure) of all that is known; what is not there has no row."""
    latest = run.latest
    rows = [*_losses(run, latest, columns)]
    if latest is not None:
        rows += [*_gradient(latest, columns), *_sources(run, columns), *_speed(latest, columns)]
        rows += _machine(run, latest, columns)
    return rows


def _losses(run: LiveRun, latest: TrainingFigures | None, columns: int) -> Iterator[tuple[str, Text]]:
    if latest is not None:
        loss = Text(number(latest.loss), style="bold")
        if latest.smooth is not None:
            loss.append("  " + t("smoothed {loss}", loss=number(latest.smooth)), style="not bold")
        yield t("Loss"), loss
        curve = run.smooth if len(run.smooth) > 1 else run.losses
        if len(curve) > 1 and columns:
            first, last = number(curve[0][1]), number(curve[-1][1])
            bars = sparkline([y for _, y in curve], max(min(columns - len(first) - len(last) - 2, 60), 8))
            yield "", Text.assemble((f"{first} ", "dim"), (bars, "blue"), (f" {last}", "dim"))
    if run.held:
        yield t("Held-out loss"), _held(run.held)


def _held(held: Sequence[HeldFigures]) -> Text:
    last, lowest = held[-1], min(held, key=lambda h: (math.isnan(h.loss), h.loss))
    text = Text(number(last.loss), style="bold")
    if last.error is not None:
        text.append(f" ± {number(NORMAL * last.error)}", style="not bold")
    more = [t("at step {step}", step=f"{last.step:,}")]
    if last.rows:
        more.append(t("{n} rows", n=f"{last.rows:,}"))
    if lowest.step != last.step:
        more.append(t("lowest {loss} at step {step}", loss=number(lowest.loss), step=f"{lowest.step:,}"))
    return text.append("  " + "  ".join(more), style="not bold")


def _gradient(latest: TrainingFigures, columns: int) -> Iterator[tuple[str, Text]]:
    if latest.learning_rate is not None:
        yield t("Learning rate"), Text(f"{latest.learning_rate:.2e}", style="bold")
    if latest.grad_norm is not None:
        yield t("Gradient norm"), Text(number(latest.grad_norm), style="bold")
    if latest.grad_groups:
        yield t("by layer group"), _pairs({group_word(k): n for k, n in latest.grad_groups.items()}, columns)


def _sources(run: LiveRun, columns: int) -> Iterator[tuple[str, Text]]:
    if run.sources:
        yield t("Loss by file"), _pairs(run.sources, columns)


def _pairs(figures: Mapping[str, float], columns: int) -> Text:
    return _filled([f"{name} {number(figure)}" for name, figure in figures.items()], columns)


def _filled(parts: Sequence[str], columns: int) -> Text:
    """Parts in a row, as many on a line as it has columns for: no line ends within a part. 0 columns: all on one."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}  {part}" if lines else part
        if lines and (not columns or Text(longer).cell_len <= columns):
            lines[-1] = longer
        else:
            lines.append(part)
    return Text("\n".join(lines))


def _speed(latest: TrainingFigures, columns: int) -> Iterator[tuple[str, Text]]:
    parts = []
    if latest.tokens_per_second is not None:
        parts.append(t("{n} tokens a second", n=f"{latest.tokens_per_second:,.0f}"))
    if latest.padding:
        parts.append(t("{percent} % of it padding", percent=f"{100 * latest.padding:.0f}"))
    if latest.seconds is not None:
        parts.append(t("{s} s a step", s=f"{latest.seconds:.3g}"))
    if parts:
        yield t("Speed"), _filled(parts, columns)
    seconds = sum(latest.phases.values())
    if seconds:
        names = {
            "data": t("data"),
            "forward": t("forward"),
            "backward": t("backward"),
            "optimizer": t("optimizer"),
        }
        shares = [f"{names.get(k, k)} {100 * s / seconds:.0f} %" for k, s in latest.phases.items()]
        yield t("A step"), _filled(shares, columns)


def _machine(run: LiveRun, latest: TrainingFigures, columns: int) -> Iterator[tuple[str, Text]]:
    memory = Text()
    process = latest.process_gb if latest.process_gb is not None else latest.memory_gb
    if process is not None:
        memory.append(t("this run {gb} GB", gb=f"{process:.1f}"))
    total, free = latest.memory_total_gb, latest.memory_free_gb
    if total and free is not None:
        memory.append("  " if memory else "").append_text(_share(t("in use"), total - free, total, run.limits))
    if memory:
        yield t("Memory"), memory
    if latest.device_gb is not None and latest.device_total_gb:
        yield t("On the card"), _share("", latest.device_gb, latest.device_total_gb, run.limits)
    parts = []
    if latest.cpu is not None:
        parts.append(f"CPU {100 * latest.cpu:.0f} %")
    if latest.gpu is not None:
        parts.append(f"GPU {100 * latest.gpu:.0f} %")
    if latest.temperature is not None:
        parts.append(f"{latest.temperature:.0f} °C")
    if parts:
        yield t("Load"), _filled(parts, columns)
    if latest.disk_free_gb is not None:
        yield t("Disk"), Text(t("{gb} GB free", gb=f"{latest.disk_free_gb:,.1f}"))


def _share(name: str, used: float, total: float, limits: tuple[float, float]) -> Text:
    """So much of so much, marked where it is past a limit."""
    share = used / total
    words = t(
        "{used} of {total} GB ({percent} %)", used=f"{used:.1f}", total=f"{total:.1f}", percent=f"{100 * share:.0f}"
    )
    text = Text(f"{name} {words}".strip())
    tone: Tone | None = "bad" if share >= limits[1] else "watch" if share >= limits[0] else None
    if tone:
        text.append(" ").append_text(chip(tone))
    return text


def chip(tone: Tone, *, past: bool = False) -> Text:
    """The sign and the word of a level; without a ground of its own where that is past."""
    return Text(f" {SIGNS[tone]} {tone_word(tone)} ", style="dim" if past else CHIPS[tone])


def _notices(run: LiveRun, limit: int | None, lines: Callable[..., int]) -> RenderableType:
    """Alerts that are still on, the worst first, then what else was noticed or done, the newest first: as many as there
    is room for, the first ones with why and what to do."""
    title, more = Text(t("Alerts and remedies"), style="bold"), 0
    if not run.notices:
        return Group(title, Text(t("None so far."), style="dim"))
    on = still_on(run.notices)
    ordered = [*on, *(n for n in reversed(run.notices) if n not in on)]
    if limit is None:
        more = len(ordered) - len(on) - MOST
        ordered = ordered[: len(on) + MOST]
    shown: list[RenderableType] = [title]
    for k, notice in enumerate(ordered):
        left = len(ordered) - k - 1
        rest = [_older(left)] if left else []
        fitting = [
            parts
            for parts in (_drawn(notice, notice in on), _drawn(notice, notice in on, short=True))
            if limit is None or lines(*shown, *parts, *rest) <= limit
        ]
        if not fitting:
            shown.append(_older(left + 1))
            break
        shown += fitting[0]
    return Group(*shown, *([_older(more)] if more > 0 else []))


def _older(n: int) -> Text:
    return Text(t("… and {n} more", n=n), style="dim")


def _drawn(notice: Notice, stands: bool, *, short: bool = False) -> list[RenderableType]:
    """A notice: its chip, and beside it step, what and code; below that why and what to do, of remedies and of alerts
    that stand, where there is room. What is past is dim."""
    words, past = notice.words(), not stands and notice.tone != "remedy"
    with_reason = not (past or short)
    place = "" if notice.tone == "remedy" else f"{notice.place()}  "  # a remedy's words name its step
    code = "" if notice.tone == "good" else f"  {notice.source.code}"
    text = Text.assemble((place, "dim"), (words.what, "bold" if with_reason else "dim" if past else ""), (code, "dim"))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, width=max(chip(tone).cell_len for tone in SIGNS))
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(chip(notice.tone, past=past), text)
    more = (words.why, t("To do: {advice}", advice=words.do) if words.do else "") if with_reason else ()
    for one in more:
        if one:
            grid.add_row("", Text(one))
    return [grid]


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in at most `width` signs, each the mean of its part of the values.

    >>> sparkline([3.0, 2.0, 1.0, 1.0], 4)
    '█▅▁▁'
    """
    width = min(width, len(values))
    edges = [k * len(values) // width for k in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def number(figure: float | None) -> str:
    """A loss or a norm with as many digits as one can use.

    >>> number(1.23456), number(0.00123), number(1234.5), number(None)
    ('1.235', '0.00123', '1,234', '–')
    """
    if figure is None:
        return "–"
    if not math.isfinite(figure):
        return str(figure)
    if figure and abs(figure) < 0.01:
        return f"{figure:.3g}"
    return f"{figure:.3f}" if abs(figure) < 100 else f"{figure:,.0f}"
