from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests import confined
from tests.evaluations import evaluation
from tuneloop.base import language
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.report import chart
from tuneloop.runs.journal import Journal


def lines(steps: int) -> list[dict[str, Any]]:
    """Metrics as training writes them."""
    chance = random.Random(steps)
    out: list[dict[str, Any]] = []
    for k in range(1, steps + 1):
        out.append(
            {"step": k, "epoch": k / steps, "loss": 1 + 2 * math.exp(-3 * k / steps) + chance.gauss(0, 0.1),
             "grad_norm": 1 + chance.random(), "learning_rate": 2e-4 * k / steps, "clock": {"time": 1.0 + k}}
        )  # fmt: skip
        if k % max(1, steps // 3) == 0:
            out.append({"step": k, "eval_loss": 1.5 + 1 / k, "clock": {"seconds": 1.0}})
    return out


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    return path


def size(png: Path) -> tuple[int, int]:
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.parametrize("steps", [1, 2, 40, 10_000])
def test_the_png_is_drawn_for_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    metrics = write(tmp_path / "metrics.jsonl", lines(steps))
    png = tmp_path / "loss_curve.png"
    assert chart.loss_curve(metrics, png) == png
    assert size(png) == (1200, 800)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss_curve.png", "metrics.jsonl"]


def test_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    png = tmp_path / "loss_curve.png"
    assert chart.loss_curve(tmp_path / "metrics.jsonl", png) is None
    assert chart.loss_curve(write(tmp_path / "metrics.jsonl", []), png) is None
    assert not png.exists()
    assert chart.svg([]) == ""


@pytest.mark.parametrize("cut", ['{"step": 99, "lo', '{"step": 99, "loss": 1.2', "\x00\x00", "[1]", "null"])
def test_a_half_written_line_is_passed_over(tmp_path: Path, cut: str) -> None:
    path = write(tmp_path / "metrics.jsonl", lines(5))
    whole = list(Journal(path).lines())
    with path.open("a", encoding="utf-8") as file:
        file.write(cut)
    assert list(Journal(path).lines()) == whole
    with path.open("a", encoding="utf-8") as file:
        file.write('\n{"step": 6, "loss": 1.0}\n')
    assert list(Journal(path).lines()) == [*whole, {"step": 6, "loss": 1.0}]


def test_a_character_cut_in_half_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + '{"event": "停'.encode()[:-1])
    assert list(Journal(path).lines()) == [{"step": 1, "loss": 2.0}]


def test_only_finite_numbers_are_drawn(tmp_path: Path) -> None:
    odd = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": math.inf},
        {"step": 4, "loss": None},
        {"step": 5, "loss": "x"},
        {"step": 6, "loss": True},
        {"loss": 1.0},
        {"step": 7, "loss": 1.0, "grad_norm": 0.0},
    ]
    found = chart.curves(list(Journal(write(tmp_path / "m.jsonl", odd)).lines()))
    assert found.loss == [(1, 2.0), (7, 1.0)]
    assert chart.loss_curve(tmp_path / "m.jsonl", tmp_path / "c.png")
    ElementTree.fromstring(chart.svg(odd))


def test_a_resumed_step_counts_once() -> None:
    twice = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    assert chart.curves(twice).loss == [(1, 3.0), (2, 2.0)]


def test_smoothing_follows_the_level_and_not_a_spike() -> None:
    points = [(k, 2.0 + (-1) ** k * 0.5) for k in range(400)]
    assert all(1.8 < y < 2.2 for _, y in chart.smoothed(points)[20:])
    points[200] = (200, 1e6)
    assert max(y for _, y in chart.smoothed(points, chart.span(points)[1])) < 2.7


def test_thinning_keeps_both_ends_and_every_spike() -> None:
    points = [(k, 1.0) for k in range(20_000)]
    points[7_777] = (7_777, 50.0)
    points[7_778] = (7_778, -50.0)
    thin = chart.thinned(points)
    assert len(thin) <= 1_600
    assert thin == sorted(thin)
    assert {points[0], points[7_777], points[7_778], points[-1]} <= set(thin)


def test_a_spike_does_not_flatten_the_rest_and_is_counted() -> None:
    points = [(k, 1.0 + k / 1000) for k in range(1000)]
    assert chart.span(points)[2] == 0
    low, high, above = chart.span([*points, (1000, 1e4)])
    assert (low < 1.0, high < 4.0, above) == (True, True, 1)
    drawn = chart.svg([{"step": s, "loss": v} for s, v in [*points, (1000, 1e4)]])
    assert "▲ 1 points above the frame" in drawn


@pytest.mark.parametrize("values", [[2.0], [0.0], [-1.0, -1.0], [1e-9, 2e-9], [1e9]])
def test_any_level_has_a_frame(values: list[float]) -> None:
    low, high, above = chart.span(list(enumerate(values)))
    assert low < high
    assert above == 0
    ElementTree.fromstring(chart.svg([{"step": k, "loss": v, "grad_norm": v} for k, v in enumerate(values)]))


@pytest.mark.parametrize("steps", [1, 3, 60, 10_000])
def test_the_svg_is_small_well_formed_and_without_script(steps: int) -> None:
    drawn = chart.svg(lines(steps))
    root = ElementTree.fromstring(drawn)
    assert len(drawn) < 120_000
    assert {e.tag.split("}")[1] for e in root.iter()} <= {"svg", "path", "circle", "text"}
    assert not [a for e in root.iter() for a in e.attrib if a.startswith("on") or a in {"style", "href", "fill"}]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


def test_chinese_words_need_a_font_with_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.font_manager

    metrics = write(tmp_path / "metrics.jsonl", lines(20))
    english = chart.loss_curve(metrics, tmp_path / "en.png")
    assert english is not None
    monkeypatch.setattr(
        language, "_catalogue", lambda chosen: {"loss": "损失", "optimizer step": "步"} if chosen == "zh" else {}
    )
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", [])
    language.use("zh")
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", list)  # a machine without fonts
    assert chart.cjk_font("步") is None
    without = chart.loss_curve(metrics, tmp_path / "zh.png")
    assert without is not None
    assert without.read_bytes() == english.read_bytes()
    assert "步" in chart.svg(lines(3))


FONT = """
import sys
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

name, text, path = sys.argv[1:]
pen = TTGlyphPen(None)
pen.moveTo((0, 0)), pen.lineTo((500, 0)), pen.lineTo((500, 700)), pen.lineTo((0, 700)), pen.closePath()
box, characters = pen.glyph(), {ord(c): f"u{ord(c):04X}" for c in text}
glyphs = [".notdef", *dict.fromkeys(characters.values())]
font = FontBuilder(1000, isTTF=True)
font.setupGlyphOrder(glyphs), font.setupCharacterMap(characters)
font.setupGlyf(dict.fromkeys(glyphs, box))
font.setupHorizontalMetrics(dict.fromkeys(glyphs, (600, 0))), font.setupHorizontalHeader(ascent=800, descent=-200)
font.setupNameTable({"familyName": name, "styleName": "Regular"}), font.setupOS2(), font.setupPost()
font.save(path)
"""
DRAW = """
import sys
from pathlib import Path
from tuneloop.base import language
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.report import chart

language.use("zh")
print(chart.cjk_font("".join(chart.words().values())))
chart.loss_curve(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="fonts are installed otherwise there")
@pytest.mark.parametrize("name", ["WenQuanYi Micro Hei", "A Font Of Another Name"])
def test_a_chinese_font_that_is_installed_later_is_used(tmp_path: Path, name: str) -> None:
    """matplotlib's memory of the fonts is older than the font: the curve speaks Chinese from the next run on."""
    language.use("zh")
    text = "".join(chart.words().values()) + "0123456789.-▲eE×"
    language.use("en")
    metrics = write(tmp_path / "metrics.jsonl", lines(5))
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "MPLCONFIGDIR": str(tmp_path / "cache"),
            "XDG_CACHE_HOME": str(tmp_path / "xdg"), "FONTCONFIG_FILE": str(tmp_path / "fonts.conf")}  # fmt: skip
    fonts = tmp_path / "data" / "fonts"
    fonts.mkdir(parents=True)
    (tmp_path / "fonts.conf").write_text(
        f"<fontconfig><dir>{fonts}</dir><cachedir>{tmp_path}/fc</cachedir></fontconfig>"
    )

    def drawn(png: str) -> str:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", DRAW, str(metrics), str(tmp_path / png)], check=True,
                              capture_output=True, text=True, env=os.environ | home,
                              preexec_fn=confined.without_fonts if confined.can_mount() else None)  # fmt: skip
        assert "missing from" not in done.stderr
        return done.stdout.strip()

    if (before := drawn("before.png")) != "None":
        pytest.skip(f"{before} is installed where matplotlib always looks")
    subprocess.run([sys.executable, "-c", FONT, name, text, str(fonts / "later.ttf")], check=True)
    assert drawn("after.png") == name
    assert (tmp_path / "after.png").read_bytes() != (tmp_path / "before.png").read_bytes()
    (fonts / "later.ttf").unlink()
    assert drawn("gone.png") == "None"


def test_the_curve_begins_before_the_first_step() -> None:
    """The drop that training brought, of the evaluation that measured the same loss."""
    told = [{"step": 5, "loss": 3.2}, {"step": 5, "eval_loss": 3.09}]
    before_after = evaluation(4.15, 3.0901)
    assert chart.curves(chart.with_start(told, before_after)).held == [(0, 4.15), (5, 3.09)]
    assert chart.steps(chart.curves(chart.with_start(told, before_after))) == (0, 5)
    for other in (None, evaluation(None, 3.09), Evaluation(), evaluation(4.15, 0.41)):
        assert chart.with_start(told, other) == told
    assert chart.with_start([{"step": 5, "loss": 3.2}], before_after) == [{"step": 5, "loss": 3.2}]
