"""The page: whole, harmless, the right numbers in the right bars, and looked at by a real browser in both languages."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from tests import browser
from tests.versions_on_disk import EVIL, KEY, build, view
from tuneloop.base import language
from tuneloop.data.card import page as card
from tuneloop.data.card import plots, profile
from tuneloop.data.version.dataset import Dataset

VOID = {"meta", "rect", "path", "br"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("page"), file="<b>talk.jsonl")


@pytest.fixture
def data(made: Dataset) -> dict[str, Any]:
    return profile.of(made)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_the_page_is_whole_and_harmless(made: Dataset, data: dict[str, Any], tongue: str) -> None:
    language.use(tongue)
    data["samples"][0] |= {"file": EVIL, "label": EVIL}
    data["reasons"][0]["examples"][0] |= {"file": EVIL, "detail": EVIL}
    data["labels"] = [{"label": EVIL, "train": 2, "validation": 1, "test": 1}]
    data["left_out"] = [{"file": EVIL, "why": EVIL}]
    page = card.card({**data, "name": EVIL, "model": EVIL})
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.seen} & {"script", "img", "link", "iframe", "a", "b-talk"}
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in tags.seen for key in attrs)
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;talk.jsonl" in page
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_beside_the_version_is_that_of_its_profile(made: Dataset, data: dict[str, Any]) -> None:
    assert (made.path / "card.html").read_text(encoding="utf-8") == card.card(data)


def test_what_is_trained_is_marked(made: Dataset) -> None:
    page = (made.path / "card.html").read_text(encoding="utf-8")
    assert re.search(r"&lt;\|im_start\|&gt;assistant\n<mark>[^<]+&lt;\|im_end\|&gt;</mark>", page)
    assert "<mark>&lt;|im_start|&gt;" not in page


def test_the_bars_of_the_histogram_are_the_rows(data: dict[str, Any]) -> None:
    svg = plots.lengths([[16, 4], [19, 0], [23, 1]], [[23, 1], [32, 2]], 20, 64)
    bars = [
        (name, float(y), float(tall))
        for name, y, tall in re.findall(r'rect class="(\w+)" .*?y="([\d.]+)".*?height="([\d.]+)"', svg)
    ]
    unit = bars[0][2] / 4
    assert [(name, round(tall / unit)) for name, _, tall in bars] == [
        ("kept", 4),
        ("kept", 1),
        ("over", 1),
        ("over", 2),
    ]
    assert bars[2][1] + bars[2][2] == pytest.approx(bars[1][1], abs=0.11)  # on top of the other
    limits = [float(x) for x in re.findall(r'class="limit" d="M([\d.]+) ', svg)]
    left = [float(x) for x in re.findall(r'rect class="\w+" x="([\d.]+)"', svg)]
    assert left[0] < left[1] == left[2] < left[3] < limits[1]
    assert left[0] < limits[0] < left[3]


def test_a_context_that_is_far_away_is_not_drawn_but_said(data: dict[str, Any]) -> None:
    assert plots.lengths([[16, 1]], [], 32, 131_072).count('path class="limit"') == 1
    assert "context: 131,072." in card.card({**data, "context": 131_072})
    assert plots.lengths([], [], 32, 0) == ""


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 99, 1000, 123_456])
def test_the_grid_has_a_few_lines_whatever_is_counted(most: int) -> None:
    assert 2 <= plots.lengths([[16, most]], [], 16, 0).count('class="grid"') <= 7


def test_a_version_that_lacks_nearly_everything_has_a_page(tmp_path: Path) -> None:
    made = build(tmp_path, [{"text": "a text without an end, and it is all there is"}], validation=0)
    card.write(made)
    page = (made.path / "card.html").read_text(encoding="utf-8")
    assert "No row was dropped." in page
    assert "no tokenizer was at hand" in page
    assert json.loads((made.path / profile.PROFILE).read_text(encoding="utf-8"))["context"] == 0


def test_both_languages_say_the_same_numbers(data: dict[str, Any]) -> None:
    pages = {}
    for tongue in language.LANGUAGES:
        language.use(tongue)
        pages[tongue] = card.card(data)
    numbers = {tongue: re.findall(r">[\d,]+<", page) for tongue, page in pages.items()}
    assert numbers["en"] == numbers["zh"]
    assert '<html lang="zh-CN">' in pages["zh"]
    headings = re.findall(r"<h2>(.*?)</h2>", pages["zh"])
    assert len(headings) >= 7
    assert all(re.search("[\u4e00-\u9fff]", text) for text in headings)


def _page(made: Dataset, tmp_path: Path, tongue: str) -> Path:
    language.use(tongue)
    if tongue == "zh":
        browser.chinese_fonts()
    shutil.copytree(made.path, tmp_path / tongue)
    card.write(Dataset(tmp_path / tongue, made.name, made.hash, made.manifest), KEY, view())
    return tmp_path / tongue / "card.html"


def _share(pixels: Any, colour: str) -> float:
    wanted = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    return float((np.abs(pixels[..., :3] - wanted).max(-1) < 0.02).mean())


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize(("width", "height", "dark"), [(1000, 3200, False), (400, 4600, True)])
def test_a_browser_draws_it(made: Dataset, tmp_path: Path, tongue: str, width: int, height: int, dark: bool) -> None:
    page = _page(made, tmp_path, tongue)
    pixels = imread(browser.screenshot(tmp_path, page, width, height, dark=dark))
    assert pixels.shape[:2] == (height, width)
    style = page.read_text(encoding="utf-8").partition("prefers-color-scheme: dark")[2 if dark else 0]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", style.partition("* {")[0]))
    assert _share(pixels[:8, :8], colours["page"]) == 1  # light or dark, as it was asked for
    assert 0.3 < _share(pixels, colours["card"]) + _share(pixels, colours["well"]) < 0.95
    assert _share(pixels, colours["trained"]) > 0.002  # the trained tokens stand out
    assert _share(pixels, colours["accent"]) > 0.001  # bars
    assert _share(pixels, colours["over"]) > 0.0001  # what was dropped
    assert 0.01 < float((np.abs(pixels[..., :3] - pixels[0, 0, :3]).max(-1) > 0.5).mean()) < 0.3  # letters
    assert _share(pixels[:, -6:], colours["page"]) > 0.99  # a margin on the right: nothing is cut off
    codes = (pixels[..., :3] * 255).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    assert len(np.unique(codes)) > 100


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_nothing_sticks_out_of_a_narrow_window(made: Dataset, tmp_path: Path, tongue: str) -> None:
    page = _page(made, tmp_path, tongue)
    seen = browser.measured(tmp_path, page, 400)
    assert seen["wide"] <= 400
    assert seen["outside"] == 0
    assert seen["tall"] > 2500


def test_a_page_that_is_too_wide_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text('<html><title>x</title><body><main><p style="width: 900px">x</p></main></body></html>')
    seen = browser.measured(tmp_path, page, 400)
    assert seen["wide"] >= 900
    assert seen["outside"] == 1
