"""The card: right numbers, nothing fetched, nothing of the data unescaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tuneloop import language
from tuneloop.data import profile
from tuneloop.data.dataset import Dataset, build
from tuneloop.recipe import make_recipe
from tuneloop.records import Record

EVIL = "<script>alert('x')</script>&\"</div><img src=http://example.org/a.png>"


@pytest.fixture
def made(tmp_path: Path) -> Dataset:
    rows = [
        {"messages": [{"role": "user", "content": f"你好 {n}"}, {"role": "assistant", "content": EVIL}]}
        for n in range(9)
    ]
    rows.append(
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "hello there"},
                {"role": "assistant", "content": "x" * 3000, "reasoning_content": "let me think"},
                {"role": "user", "content": "thanks"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": EVIL}}}]},
            ],
            "tools": [{"name": "f"}],
        }
    )
    rows.append({"messages": []})
    path = tmp_path / f"{'<b>'}.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    recipe, _ = make_recipe({"name": "card", "data": str(path), "prepare": {"max_length": 2000, "validation": 0},
                             "train": {"token_budget": 2000}})  # fmt: skip

    def thirds(records: list[Record]) -> list[int]:
        return [sum(len(m.content) for m in r.messages) // 3 for r in records]

    return build(recipe, tmp_path, thirds)


def test_summary(made: Dataset) -> None:
    numbers = profile.summary(made)
    assert (numbers["name"], numbers["hash"]) == ("card", made.hash)
    assert numbers["counts"] == {"rows_in": 11, "train": 10, "validation": 0, "dropped": 1, "changed": 0}
    assert numbers["turns"] == [[1, 9], [2, 1]]
    assert numbers["languages"] == {"latin": 10}
    assert numbers["with"] == {"system": 1, "tools": 1, "reasoning": 1}
    assert numbers["lengths"] == [[32, 9], [64, 0], [128, 0], [256, 0], [512, 0], [1024, 1]]
    assert sum(n for _, n in numbers["lengths"]) == 10
    json.dumps(numbers)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_harmless(made: Dataset) -> None:
    page = (made.path / "card.html").read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert {tag for tag, _ in tags.seen} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "small", "p", "table", "tr", "th", "td", "svg",
        "rect", "text", "div", "b",
    }  # fmt: skip
    assert not any(key in ("src", "href", "onload") for _, attrs in tags.seen for key in attrs)
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;.jsonl" in page
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_bars_are_the_numbers(made: Dataset) -> None:
    page = profile.card(made)
    widths = [float(w) for w in re.findall(r'<rect x="200" y="\d+" width="([\d.]+)"', page)]
    assert len(widths) == 6 + 2 + 1
    assert max(widths) == 420.0
    assert widths[5] == pytest.approx(420 / 9, abs=0.1)


def test_long_turns_say_how_much_is_not_shown(made: Dataset) -> None:
    assert "and 1015 more characters" in profile.card(made)


def test_samples_come_from_all_over(made: Dataset) -> None:
    shown = profile.samples(made)
    assert len(shown) == 5
    assert [r.line for r in shown] == sorted({r.line for r in shown})
    assert (shown[0].line, shown[-1].line) == (1, 10)
    assert [r.line for r in profile.samples(made, 1000)] == list(range(1, 11))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好", "zh"),
        ("请用 pandas DataFrame 读取文件", "zh"),
        ("今日は天気がいいですね", "ja"),
        ("오늘 날씨가 좋네요", "ko"),
        ("naïve café", "latin"),
        ("Привет, мир", "cyrillic"),
        ("مرحبا", "arabic"),
        ("שלום", "other"),
        ("12345 !?", "other"),
        ("", "other"),
    ],
)
def test_script(text: str, expected: str) -> None:
    assert profile.script(text) == expected
    assert expected in profile.languages()


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], []), ([0], [[16, 1]]), ([16], [[16, 1]]), ([17], [[32, 1]]), ([1024, 1025], [[1024, 1], [2048, 1]])],
)
def test_histogram(values: list[int], bars: list[list[int]]) -> None:
    assert profile.histogram(values) == bars


def test_many_turns_are_one_bar() -> None:
    assert profile._grouped([[n, 1] for n in range(1, 40)])[-1] == ("≥ 13", 27)


def test_the_card_speaks_the_chosen_language(made: Dataset) -> None:
    language.use("zh")
    assert '<html lang="zh-CN">' in profile.card(made)
