"""The length histogram of a dataset card as SVG, with a logarithmic axis, so that short and long rows are both seen.

Colours come from the page's style sheet (classes kept, over, limit, grid, tick), so that it follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from tuneloop.base.language import t

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 600.0, 280.0, 44.0, 14.0, 62.0, 34.0
FAR = 12
"""Bars (three doublings) behind the last one within which the model's context length is drawn."""


def lengths(within: Sequence[Sequence[int]], over: Sequence[Sequence[int]], limit: int, context: int) -> Markup:
    """Bars of [upper bound, rows] as `profile.histogram` gives them; "" where there are none.

    `within` are rows that fit, `over` those dropped as too long; `limit` is max_length, `context` the model's, or 0.
    """
    bars = {k: [n, 0] for k, n in ((_place(top), n) for top, n in within)}
    for top, n in over:
        bars.setdefault(_place(top), [0, 0])[1] += n
    if not bars:
        return Markup("")
    first, last = min(bars), max(*bars, math.ceil(4 * math.log2(limit)))
    if context and 4 * math.log2(context) - last <= FAR:
        last = max(last, math.ceil(4 * math.log2(context)))
    wide = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    most = max(a + b for a, b in bars.values())
    tall = (HEIGHT - TOP - BOTTOM) / most

    def across(length: float) -> float:
        return LEFT + (4 * math.log2(length) - first + 1) * wide

    floor = HEIGHT - BOTTOM
    out = [_grid(most, tall), _marks(first, last, across)]
    for k, (a, b) in bars.items():
        x = LEFT + (k - first) * wide
        for name, low, n in (("kept", 0, a), ("over", a, b)):
            if n:
                out.append(
                    f'<rect class="{name}" x="{x + 0.8:.1f}" y="{floor - (low + n) * tall:.1f}" '
                    f'width="{max(wide - 1.6, 1):.1f}" height="{n * tall:.1f}"/>'
                )
    out.append(_line(across(limit), TOP - 38, t("max_length {n:,}", n=limit)))
    if context and across(context) <= WIDTH - RIGHT + 1:
        out.append(_line(across(context), TOP - 12, t("the model's context {n:,}", n=context)))
    title = escape(t("Length in tokens"))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{title}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(out)}</svg>'
    )  # every text in it is escaped


def _place(top: int) -> int:
    return round(4 * math.log2(top))


def _grid(most: int, tall: float) -> str:
    step = 10 ** math.floor(math.log10(most))
    step = next((s for s in (step // 5, step // 2, step, 2 * step) if s and most / s <= 5), 5 * step)
    out = []
    for n in range(0, most + 1, step):
        y = HEIGHT - BOTTOM - n * tall
        out.append(
            f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
            + _text(LEFT - 6, y + 4, short(n), "end")
        )
    return "".join(out)


def _marks(first: int, last: int, across: Callable[[float], float]) -> str:
    """Lengths below the bars: each doubling, or where that would be one or none, the bounds of each bar."""
    step = 4 if last - first >= 6 else 1
    out = []
    for n, k in enumerate(range(-(-(first - 1) // step) * step, last + 1, step)):
        x = across(2 ** (k / 4))
        if x <= WIDTH - RIGHT + 1:
            out.append(
                _text(
                    min(x, WIDTH - RIGHT - 6),
                    HEIGHT - BOTTOM + 18,
                    short(round(2 ** (k / 4))),
                    "middle",
                    "tick odd" if n % 2 else "tick",
                )
            )
    return "".join(out)


def _line(x: float, y: float, text: str) -> str:
    anchor = "end" if x > WIDTH / 2 else "start"
    beside = x - 5 if anchor == "end" else x + 5
    return f'<path class="limit" d="M{x:.1f} {y - 10:.1f}V{HEIGHT - BOTTOM:.0f}"/>' + _text(
        beside, y, text, anchor, "tick limit"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def short(n: int) -> str:
    """A number on an axis: 1024 tokens are 1k, and so are 1000 rows.

    >>> short(512), short(2048), short(1500), short(3_000_000)
    ('512', '2k', '1.5k', '3M')
    """
    for size, unit in ((1 << 20, "M"), (1_000_000, "M"), (1024, "k"), (1000, "k")):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)
