"""The words of the Chinese: one term for each thing, those that the fine-tuning guides use, and clean punctuation."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.evaluations import evaluation
from tuneloop.base import language
from tuneloop.evaluation import compare

SOURCE = Path(str(files("tuneloop")))
ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs" / "zh").glob("*.md")),
    ROOT / "README.zh-CN.md",
    *sorted((SOURCE / "recipes").glob("*.yaml")),
]
RETIRED = (
    "模型站", "留出", "留作", "派生", "台账", "探针", "剔除", "登记", "词元", "标签 token", "训练 token", "训练的 token",
    "安全词",
)  # fmt: skip
PLAIN = re.compile(
    r"训练轮数|对话轮次|轮对话|轮训练|训练(?:到某|不止)?\s?(?:[一十\d]+|\{\w+\})?\s?轮|指南：\d+～\d+ 轮|第[一二]轮(?=[,\]]|, )|对话的各轮|一轮很长时|系统提示词"
)
BARE = re.compile("轮|系统提示")
"""轮 may be an epoch or a turn, 系统提示 a prompt or a hint; beside one of PLAIN it is clear which."""


def bare(text: str) -> list[str]:
    return BARE.findall(PLAIN.sub("", text))


HAN = r"[\u4e00-\u9fff]"
MARKS = "，。；：！？、（）“”《》"
UNCLEAN = re.compile(rf"{HAN} +[{MARKS}]|[{MARKS}] +{HAN}|{HAN}[,;?!]{HAN}|{HAN}{HAN}\([^)]*{HAN}")


def messages() -> Iterator[tuple[str, str]]:
    """(where, Chinese text) of every message."""
    for path in sorted((SOURCE / "messages" / "zh").iterdir()):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            yield from ((f"{path.name}: {key}", said) for key, said in json.loads(text).items())
        else:
            for code, fields in tomllib.loads(text).items():
                yield from ((f"{code}.{name}", said) for name, said in fields.items())


def lines() -> Iterator[tuple[str, str]]:
    """(where, line) of every page and recipe that a Chinese reader opens."""
    for path in PAGES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.name}:{number}", line


TEXTS = [*messages(), *lines()]


def test_the_texts_are_found() -> None:
    assert len(TEXTS) > 2000
    assert {"TL-RUN-NAN.what", "README.zh-CN.md:1", "demo-zh.yaml:1"} <= {where for where, _ in TEXTS}


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_gone(word: str) -> None:
    assert not [where for where, text in TEXTS if word in text]


def test_no_bare_word_that_means_two_things() -> None:
    assert not [(where, text) for where, text in TEXTS if bare(text)]


@pytest.mark.parametrize("text", ["轮数少于下限", "按轮次切开", "系统提示设置好了", "供轮使用"])
def test_the_search_for_bare_words_finds_them(text: str) -> None:
    assert bare(text)


def test_the_punctuation_is_chinese() -> None:
    assert not [(where, found[0]) for where, text in TEXTS if (found := UNCLEAN.search(re.sub("`[^`]*`", "`", text)))]


@pytest.mark.parametrize("text", ["你好 ，世界", "你好， 世界", "你好,世界", "“你好” 世界", "你好(世界)"])
def test_the_search_for_punctuation_finds_it(text: str) -> None:
    assert UNCLEAN.search(text)


@pytest.mark.parametrize(
    ("word", "where"),
    [("数据增强", "recipe.md"), ("数据增强", "README.zh-CN.md"), ("数据增强", "TL-DATA-AUGMENT"), ("魔搭", "README.zh-CN.md"),
     ("魔搭", "recipe.md"), ("魔搭", "help.json"), ("魔搭", "TL-MODEL-HUB"), ("过拟合", "training.md"),
     ("过拟合", "recipe.md"), ("过拟合", "README.zh-CN.md"), ("过拟合", "console.json"), ("敏感词", "recipe.md"),
     ("敏感词", "TL-DATA-LEXICON"), ("人工", "recipe.md"), ("人工", "files.md"), ("人工", "console.json"),
     ("计入损失的 token", "training.md"), ("验证集", "recipe.md"), ("检查题", "recipe.md"), ("处理记录", "files.md")],
)  # fmt: skip
def test_a_word_of_the_guides_stands_where_it_is_looked_for(word: str, where: str) -> None:
    assert [text for place, text in TEXTS if place.startswith(where) and word in text]


def test_a_probe_says_what_it_counts() -> None:
    language.use("zh")
    found = next(c for c in compare.changes(evaluation(2.0, 1.5, True)) if c.metric == "probe/p0")
    assert found.label == "检查题“p0”：出现指定内容的回答"
