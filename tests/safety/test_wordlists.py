"""Word lists as they are found: tables, JSON, encodings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real import shared
from tuneloop.base.errors import DataError
from tuneloop.safety.guard import TextGuard
from tuneloop.safety.wordlists import read_words


def listed(path: Path) -> list[tuple[str, str]]:
    return [(word.text, word.category) for word in read_words(path)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mine.txt", "# 注释\n竞品甲,\n!竞品甲虫\n", [("竞品甲", "mine"), ("竞品甲虫", "")]),
        ("a.csv", 'word,category\n竞品甲,rivals\n"Acme, Inc",\n', [("竞品甲", "rivals"), ("Acme, Inc", "a")]),
        ("a.csv", "编号,敏感词,分类\n1,竞品甲,对手\n", [("竞品甲", "对手")]),
        ("a.csv", "竞品甲,rivals\n竞品乙\n", [("竞品甲", "rivals"), ("竞品乙", "a")]),
        ("a.tsv", "keyword\ttype\nAcme Corp\trivals\n", [("Acme Corp", "rivals")]),
        ("a.json", json.dumps(["竞品甲", "!竞品甲虫"]), [("竞品甲", "a"), ("竞品甲虫", "")]),
        (
            "a.json",
            json.dumps([{"word": "竞品甲", "category": "rivals"}, {"词": "竞品乙"}]),
            [("竞品甲", "rivals"), ("竞品乙", "a")],
        ),
        ("a.json", json.dumps({"rivals": ["竞品甲"], "spam": ["竞品乙"]}), [("竞品甲", "rivals"), ("竞品乙", "spam")]),
        ("a.json", json.dumps({"words": ["竞品甲"]}), [("竞品甲", "a")]),
        ("a.jsonl", '{"text": "竞品甲", "label": "rivals"}\n"竞品乙"\n', [("竞品甲", "rivals"), ("竞品乙", "a")]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_reads(tmp_path: Path, name: str, content: str, words: list[tuple[str, str]], encoding: str) -> None:
    if encoding == "utf-16" and "\n" not in content:
        content += "\n"
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert listed(tmp_path / name) == words


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b"{"), ("a.json", b"[1]"), ("a.csv", b""), ("a.jsonl", b"x"), ("a.json", b"[" * 100_000)],
)
def test_a_list_that_cannot_be_used_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_words(tmp_path / name)
    assert caught.value.code == "TL-DATA-LEXICON"


def test_lists_as_others_publish_them() -> None:
    for name in (
        "ldnoobw/zh.txt",
        "sensitive_stop_words/porn.txt",
        "sensitive_stop_words/ads.txt",
        "sensitive_lexicon/violence.txt",
    ):
        words = read_words(shared(f"lexicons/{name}"))
        assert len(words) > 90
        assert all(word.text == word.text.strip(" ,，\r") for word in words)


def test_a_policy_takes_lists_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "rivals.csv").write_text("word,category\nAcme Corp,rivals\n", encoding="utf-8")
    (tmp_path / "guard.yaml").write_text(
        "lists: [rivals.csv]\nactions: {rivals: mask}\nallow: [Acme Corp Park]\n", encoding="utf-8"
    )
    guard = TextGuard.load(tmp_path / "guard.yaml")
    assert guard.filter("A C M E Corp and Acme Corp Park").text == "*** and Acme Corp Park"
    assert guard.filter("代开发票").blocked
    (tmp_path / "alone.yaml").write_text("shipped: false\nwords: {spam: [竞品甲]}\n", encoding="utf-8")
    alone = TextGuard.load(tmp_path / "alone.yaml")
    assert not alone.filter("代开发票").blocked
    assert alone.filter("买竞-品-甲").text == "买"
