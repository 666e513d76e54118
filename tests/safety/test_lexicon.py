"""The word lists: what they find, and what they leave alone."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import pytest

from tests.real import shared
from tuneloop.base.errors import DataError
from tuneloop.safety.lexicon import Lexicon
from tuneloop.safety.normalise import fold

LISTS = sorted(p for p in Path(str(files("tuneloop") / "safety" / "lexicons")).iterdir() if p.suffix == ".txt")


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon.load()


def own(tmp_path: Path, text: str | bytes, name: str = "mine.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("专业代开发票，价格从优", [("ads", "代开发票")]),
        ("教你怎么自制燃烧弹", [("weapons", "怎么自制燃烧弹")]),
        ("你这个王八蛋", [("profanity", "王八蛋")]),
        ("上色情网站", [("porn", "色情网站")]),
        ("What the FUCK!", [("profanity", "FUCK")]),
        ("ｆｕｃｋ、王\u200b八蛋", [("profanity", "ｆｕｃｋ"), ("profanity", "王\u200b八蛋")]),
        ("fuckery Scunthorpe shitake bitchen", []),
        ("son of a bitch。", [("profanity", "bitch")]),
        ("他说fuck你", [("profanity", "fuck")]),
        ("路口交通拥堵，出口交易额，人口交流", []),
        ("杂种优势明显", []),
        ("男女性别比例、异性交往、性格内向", []),
        ("我会代替考试中心通知你", []),
        ("", []),
    ],
)
def test_finds(lexicon: Lexicon, text: str, found: list[tuple[str, str]]) -> None:
    spans = lexicon.find(text)
    assert [(s.kind, s.text) for s in spans] == found
    assert all(text[s.start : s.end] == s.text for s in spans)


def test_the_longest_word_wins(tmp_path: Path) -> None:
    lexicon = Lexicon.load([own(tmp_path, "苹果\n苹果手机壳\n手机\n")], packaged=False)
    assert [s.text for s in lexicon.find("苹果手机壳和苹果手机")] == ["苹果手机壳", "苹果", "手机"]


def test_a_list_of_your_own(tmp_path: Path) -> None:
    text = "\ufeff# 注释\r\n竞品甲,\r\n性\r\n  Acme   Corp \r\n\r\n!竞品甲虫\r\n竞品甲\r\n"
    path = own(tmp_path, text, "rivals.v2.txt")
    lexicon = Lexicon.load([path], packaged=False)
    assert len(lexicon) == 2
    found = lexicon.find("竞品甲、竞品甲虫、ACME CORP、acme corps、性")
    assert [(s.kind, s.text) for s in found] == [("rivals", "竞品甲"), ("rivals", "ACME CORP")]
    both = Lexicon.load([path])
    assert len(both) == len(Lexicon.load()) + 2


@pytest.mark.parametrize("text", [b"\xff\xfe\x00bad", b"", "性\n淫\n# 只有单字\n!允许的\n".encode()])
def test_a_list_that_cannot_be_used_says_so(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DataError, match="mine") as caught:
        Lexicon.load([own(tmp_path, text)])
    assert caught.value.code == "TL-DATA-LEXICON"
    assert "?" not in caught.value.what


def test_a_missing_list_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Lexicon.load([tmp_path / "none.txt"])
    assert caught.value.code == "TL-DATA-LEXICON"


def test_the_shipped_lists_are_clean(lexicon: Lexicon) -> None:
    assert {p.name.split(".")[0] for p in LISTS} == {"porn", "profanity", "ads", "weapons"}
    for path in LISTS:
        raw = path.read_bytes()
        assert b"\r" not in raw
        words = [line for line in raw.decode().splitlines() if not line.startswith(("#", "!"))]
        assert all(w == w.strip(" ,，") and len(fold(w).text) > 1 for w in words), path.name
        assert len({fold(w).text for w in words}) == len(words), path.name
        source = path.name.split(".")[1].removesuffix("_zh").removesuffix("_en")
        assert (path.parent / f"LICENSE-{source}").exists()
        assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")
    assert 700 < len(lexicon) < 3000


def test_each_shipped_word_is_found(lexicon: Lexicon) -> None:
    for path in LISTS:
        for word in path.read_text(encoding="utf-8").splitlines():
            if not word.startswith(("#", "!")):
                assert [s.text for s in lexicon.find(f"。{word}。")] == [word]


def test_harmless_counselling_turns_are_left_alone(lexicon: Lexicon) -> None:
    rows = json.loads(shared("emollm/data.json").read_text(encoding="utf-8"))
    turns = [turn for row in rows for turn in row["conversation"]]
    assert len(turns) == 1582
    flagged = [turn for turn in turns if lexicon.find(turn["input"] + "\n" + turn["output"])]
    assert len(flagged) <= 3  # 0 when this was written; by substring, the raw lists flag 431


def test_harmless_medical_answers_are_left_alone(lexicon: Lexicon) -> None:
    lines = shared("medicalgpt/medical_sft_1K_format.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [turn["value"] for line in lines for turn in json.loads(line)["conversations"]]
    assert sum(bool(lexicon.find(turn)) for turn in turns) <= 0.005 * len(turns)


def test_few_film_reviews_are_flagged(lexicon: Lexicon) -> None:
    with shared("imdb/test.csv").open(encoding="utf-8", newline="") as file:
        reviews = [row["review"] for row in csv.DictReader(file)]
    assert len(reviews) == 300
    assert sum(bool(lexicon.find(review)) for review in reviews) <= 6  # 2 when this was written, both do swear


@pytest.mark.parametrize("piece", ["王八蛋", "路口交通", "fuck ", "a", "口交", "e\u0301"])
@pytest.mark.timeout(60)
def test_a_long_text_comes_to_an_end(lexicon: Lexicon, piece: str) -> None:
    """A quadratic search would take minutes."""
    text = (piece * 200_000)[:200_000]
    assert bool(lexicon.find(text)) == bool(lexicon.find(piece))
