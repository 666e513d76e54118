"""How training went, as a picture: loss_curve.png, and the same as SVG inside the report.

Both are drawn from metrics.jsonl alone. No pyplot: its global state and choice of a screen have no place in a library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.files import draft_of
from tuneloop.base.language import LANGUAGES, speaking, t
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.report import marks
from tuneloop.runs.journal import Journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RAW, SMOOTH, HELD, GRADIENT, RATE = "#9db8dd", "#1f5fbf", "#d9480f", "#5f6b7a", "#2b8a3e"
CJK_FONTS = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans SC", "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Heiti SC", "Hiragino Sans GB", "SimHei",
)  # fmt: skip
FEW = 12
"""Up to so many points, a curve is drawn with its points and without smoothing."""

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curves:
    """(step, value) of each curve, steps rising, every value finite."""

    loss: Points
    held: Points
    grad_norm: Points
    learning_rate: Points

    @property
    def empty(self) -> bool:
        return not (self.loss or self.held)


def curves(lines: Sequence[dict[str, Any]]) -> Curves:
    """The curves in lines of metrics. A step written twice (before and after a resume) counts as written last.

    >>> curves([{"step": 1, "loss": 2.0}, {"step": 1, "loss": 1.5}, {"step": 1, "eval_loss": 3.0}]).loss
    [(1, 1.5)]
    """

    def one(key: str) -> Points:
        points = {x["step"]: x[key] for x in lines if _is_number(x.get("step")) and _is_number(x.get(key))}
        return sorted(points.items())

    return Curves(one("loss"), one("eval_loss"), one("grad_norm"), one("learning_rate"))


def _is_number(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def smoothed(points: Points, ceiling: float = math.inf) -> Points:
    """An exponential moving average over about a twentieth of the points (at least 8), without a bias to the start.

    A value above the ceiling counts as the ceiling: one spike may not bend the curve for a hundred steps.

    >>> smoothed([(1, 2.0), (2, 2.0)])
    [(1, 2.0), (2, 2.0)]
    """
    keep = 1 - 2 / (max(8, len(points) / 20) + 1)
    total, weight, out = 0.0, 0.0, []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * min(y, ceiling), keep * weight + (1 - keep)
        out.append((x, total / weight))
    return out


def thinned(points: Points, buckets: int = 400) -> Points:
    """At most 4 points a bucket (first, lowest, highest, last), so that no spike is lost.

    >>> len(thinned([(i, 0.0) for i in range(100000)], 100)) <= 400
    True
    """
    if len(points) <= 4 * buckets:
        return points
    out: Points = []
    size = len(points) / buckets
    for b in range(buckets):
        part = points[int(b * size) : int((b + 1) * size)]
        keep = {part[0], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]), part[-1]}
        out += sorted(keep)
    return out


def span(*groups: Points) -> tuple[float, float, int]:
    """(low, high, points above high) of the values to show: a few spikes may not flatten all the rest.

    >>> span([(i, 1.0 + i / 100) for i in range(100)] + [(100, 900.0)])[2]
    1
    """
    values = sorted(y for group in groups for _, y in group)
    low, high = values[0], values[-1]
    usual = values[min(len(values) - 1, int(len(values) * 0.99) - 1)] if len(values) >= 100 else high
    if high - low > 4 * (usual - low) > 0:
        high = usual + (usual - low) * 0.15
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return max(low - pad, 0.0) if low >= 0 else low - pad, high + pad, sum(v > high + pad for v in values)


def words() -> dict[str, str]:
    """The words in the picture: English -> in the reader's language."""
    return {
        "optimizer step": t("optimizer step"),
        "loss": t("loss"),
        "training loss": t("training loss"),
        "training loss, smoothed": t("training loss, smoothed"),
        "held-out loss": t("held-out loss"),
        "gradient norm": t("gradient norm"),
        "learning rate": t("learning rate"),
        "points above the frame": t("points above the frame"),
    }


def with_start(lines: Sequence[dict[str, Any]], evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """Lines of metrics with the held-out loss before the first step, where an evaluation has measured the same thing.

    It has where its loss after training is one of the curve's; for preferences, say, it measures another one.

    >>> from tuneloop.evaluation.evaluation import Scores
    >>> lines = [{"step": 4, "eval_loss": 3.0}]
    >>> with_start(lines, Evaluation(Scores({"loss": 4.0}), Scores({"loss": 3.001})))[0]
    {'step': 0, 'eval_loss': 4.0}
    >>> with_start(lines, Evaluation(Scores({"loss": 4.0}), Scores({"loss": 2.0}))) == lines
    True
    """
    before, after = (None, None) if evaluation is None else (evaluation.before["loss"], evaluation.after["loss"])
    if before is None or after is None:
        return list(lines)
    same = any(math.isclose(y, after, rel_tol=0.005) for _, y in curves(lines).held)
    return [*([{"step": 0, "eval_loss": before}] if same else []), *lines]


def loss_curve(metrics_path: Path, out_png: Path, evaluation: Evaluation | None = None) -> Path | None:
    """Draw metrics.jsonl to a PNG of 1200 x 800 pixels; None, and no file, while there is nothing to draw.

    With the run's `evaluation` the held-out loss begins at step 0, before training.
    """
    series = curves(with_start(list(Journal(metrics_path).lines()), evaluation))
    if series.empty:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    say, fonts = words(), ["DejaVu Sans"]
    if any(ord(c) > 0x2E80 for text in say.values() for c in text):
        font = cjk_font("".join(say.values()))
        say, fonts = (say, [font, *fonts]) if font else ({english: english for english in say}, fonts)
    style: Any = {
        "font.family": fonts, "font.size": 12, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#8a94a3", "axes.labelcolor": "#3a4350", "xtick.color": "#5f6b7a", "ytick.color": "#5f6b7a",
        "axes.grid": True, "grid.color": "#e6e9ee", "axes.axisbelow": True, "axes.unicode_minus": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(3, 1, sharex=True, height_ratios=[5, 1.3, 1.1]), series, say)
        with draft_of(out_png) as draft:
            figure.savefig(draft, format="png")
    return out_png


def cjk_font(text: str) -> str | None:
    """An installed font with the characters of `text`: one of the usual ones, else any; None if there is none.

    matplotlib remembers the fonts it found when it first ran here: those that were installed since are looked for, and
    those that are gone are passed over.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    def usual() -> str | None:
        there = {font.name for font in fontManager.ttflist if font.name in CJK_FONTS and Path(font.fname).is_file()}
        return next((name for name in CJK_FONTS if name in there), None)

    if usual_font := usual():
        return usual_font
    known = {font.fname for font in fontManager.ttflist}
    for file in findSystemFonts():
        if file not in known:
            with suppress(OSError, RuntimeError, ValueError, KeyError):  # not every font file can be read
                fontManager.addfont(file)
    return usual() or next((one.name for one in fontManager.ttflist if _has(Path(one.fname), text)), None)


def _has(font: Path, text: str) -> bool:
    """Whether a font has a glyph for every character of a text; "last resort" fonts have a box for all there are."""
    from matplotlib.ft2font import FT2Font

    if not font.is_file() or "lastresort" in font.name.lower():
        return False
    with suppress(OSError, RuntimeError):
        face = FT2Font(str(font))
        return all(face.get_char_index(ord(c)) for c in text if not c.isspace())
    return False


def _draw(axes: Sequence[Axes], series: Curves, say: dict[str, str]) -> None:
    top, middle, bottom = axes
    few = len(series.loss) <= FEW
    low, high, above = span(series.loss, series.held)
    if series.loss:
        top.plot(
            *_xy(thinned(series.loss)),
            color=SMOOTH if few else RAW,
            lw=2 if few else 0.9,
            marker="o" if few else None,
            ms=5,
            label=say["training loss"],
        )
        if not few:
            smooth = thinned(smoothed(series.loss, high))
            top.plot(*_xy(smooth), color=SMOOTH, lw=2.2, label=say["training loss, smoothed"])
    if series.held:
        top.plot(*_xy(series.held), color=HELD, lw=1.6, marker="o", ms=7, mec="white", label=say["held-out loss"])
        top.annotate(
            f"{series.held[-1][1]:.3f}",
            series.held[-1],
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=HELD,
            fontweight="bold",
        )
    top.set_ylim(low, high)
    if above:
        note = f"▲ {above} {say['points above the frame']}"
        top.text(0.01, 0.98, note, transform=top.transAxes, va="top", color="#5f6b7a", size=10)
    top.set_ylabel(say["loss"])
    top.legend(frameon=False, loc="upper right")
    for axis, points, color, name in (
        (middle, series.grad_norm, GRADIENT, "gradient norm"),
        (bottom, series.learning_rate, RATE, "learning rate"),
    ):
        axis.plot(*_xy(thinned(points)), color=color, lw=1.1, marker="o" if few else None, ms=3)
        axis.set_title(say[name], loc="left", fontsize=11, color=color)
        axis.locator_params(axis="y", nbins=3)
    norms = [y for _, y in series.grad_norm]
    if norms and min(norms) > 0 and max(norms) > 50 * min(norms):
        middle.set_yscale("log")
    else:
        middle.set_ylim(bottom=0)
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    bottom.set_xlabel(say["optimizer step"])
    bottom.margins(x=0.015)
    left, right = steps(series)
    if left == right:
        bottom.set_xlim(left - 1, left + 1)
    bottom.locator_params(axis="x", integer=True)


def steps(series: Curves) -> tuple[float, float]:
    """The first and the last step on record."""
    xs = [x for points in (series.loss, series.held) for x, _ in points]
    return min(xs), max(xs)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# The SVG of the report takes its colours from the page's style sheet (classes raw, smooth, held, grad, rate, tick), so
# that it follows light and dark; that is why it is not matplotlib's.
WIDTH, LEFT, RIGHT = 760.0, 48.0, 58.0
PANELS = (("loss", 14.0, 250.0), ("grad", 300.0, 352.0), ("rate", 392.0, 436.0))


def svg(lines: Sequence[dict[str, Any]], noticed: Sequence[marks.CurveMark] = ()) -> str:
    """The same picture as one SVG element without a script or a fixed colour; "" while there is nothing to draw.

    Its words stand there in both languages, each with its `lang`: the page shows one of them. `noticed` is marked.
    """
    series = curves(lines)
    if series.empty:
        return ""
    few = len(series.loss) <= FEW
    left, right = steps(series)
    high = span(series.loss, series.held)[1]
    if left == right:
        left, right = left - 1, right + 1
    groups = {
        "loss": [
            ("raw" + (" few" if few else ""), series.loss),
            ("smooth", [] if few else smoothed(series.loss, high)),
            ("held", series.held),
        ],
        "grad": [("grad", series.grad_norm)],
        "rate": [("rate", series.learning_rate)],
    }
    titles = {"loss": "", "grad": "gradient norm", "rate": "learning rate"}
    parts = [_panel(groups[n], (left, right), (top, bottom), titles[n], few) for n, top, bottom in PANELS]
    parts += marks.drawn((m for m in noticed if m.step <= right), lambda step: _across(step, left, right), 14, 250)
    parts += [_text(_across(step, left, right), 454, label, "middle") for step, label in _steps(left, right)]
    parts.append(_label(WIDTH - RIGHT, 476, lambda: words()["optimizer step"], "end"))
    name = _escaped(_in_both(lambda: words()["loss"]))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} 484" role="img" aria-label="{name}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _panel(
    groups: list[tuple[str, Points]], x: tuple[float, float], y: tuple[float, float], title: str, few: bool
) -> str:
    if not any(points for _, points in groups):
        return ""
    low, high, above = span(*(points for name, points in groups if name != "smooth"))
    if title:
        low = min(low, 0.0)
    top, bottom = y

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return _across(point[0], *x), max(bottom - (point[1] - low) / (high - low) * (bottom - top), top - 4)

    out = []
    for tick in ticks(low, high, 2 if title else 5):
        line = at((x[0], tick))[1]
        out.append(f'<path class="grid" d="M{LEFT:.0f} {line:.1f}H{WIDTH - RIGHT:.0f}"/>')
        out.append(_text(LEFT - 6, line + 3.5, _short(tick), "end"))
    if title:
        out.append(_label(LEFT, top - 8, lambda: words()[title], "start"))
    if above:
        place = (WIDTH - RIGHT, top - 8 if title else top)
        out.append(_label(*place, lambda: f"▲ {above} {words()['points above the frame']}", "end"))
    for name, points in groups:
        places = [at(p) for p in thinned(points)]
        if len(places) > 1:
            out.append(f'<path class="{name}" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in places) + '"/>')
        if name == "held" or few or len(places) == 1:
            out += [f'<circle class="{name}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in places]
        if name == "held" and places:
            out.append(_text(places[-1][0] + 8, places[-1][1] + 3.5, f"{points[-1][1]:.3f}", "start", "tick held"))
    return "".join(out)


def _short(number: float) -> str:
    return f"{number:g}" if number == 0 or abs(number) >= 0.001 else f"{number:.0e}".replace("e-0", "e-")


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between low and high, about as many as wanted.

    >>> ticks(0.9, 3.2, 5)
    [1.0, 1.5, 2.0, 2.5, 3.0]
    """
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _steps(left: float, right: float) -> list[tuple[float, str]]:
    return [(v, f"{v:,.0f}") for v in ticks(left, right, 8) if v == int(v) and v >= 0]


def _across(step: float, left: float, right: float) -> float:
    return LEFT + (step - left) / (right - left) * (WIDTH - LEFT - RIGHT)


def _spoken(say: Callable[[], str]) -> dict[str, str]:
    """What is said in each language: HTML's name of it -> text."""
    out = {}
    for language, tag in zip(LANGUAGES, ("en", "zh-CN"), strict=True):
        with speaking(language):
            out[tag] = say()
    return out


def _in_both(say: Callable[[], str]) -> str:
    return " / ".join(dict.fromkeys(_spoken(say).values()))


def _label(x: float, y: float, say: Callable[[], str], anchor: str) -> str:
    """A word of the picture in each language."""
    return "".join(
        _text(x, y, text, anchor).replace("<text ", f'<text lang="{tag}" ', 1) for tag, text in _spoken(say).items()
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
