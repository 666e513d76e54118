from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tuneloop.base import language
from tuneloop.base.language import listed, sentences, t

SOURCE = Path(str(files("tuneloop")))


def texts() -> Iterator[tuple[str, str, set[str] | None]]:
    """(where, text, names of the facts or None) of each t("…") in the code."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t":
                where = f"{path.relative_to(SOURCE)}:{node.lineno}"
                first = node.args[0]
                assert isinstance(first, ast.Constant), f"{where}: t() takes a literal text"
                assert isinstance(first.value, str), where
                names = {k.arg for k in node.keywords}
                yield where, first.value, None if None in names else {n for n in names if n}


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"(?<!\{)\{(\w+)(?::[^{} ]*)?\}(?!\})", text))


def test_every_placeholder_gets_its_fact() -> None:
    for where, text, names in texts():
        if names is not None:
            assert placeholders(text) == names, where


def test_a_text_is_said_in_the_chosen_language() -> None:
    text = "Stopped."
    assert t(text) == text
    language.use("zh")
    assert language.current() == "zh"
    assert any("\u4e00" <= c <= "\u9fff" for c in t(text))
    language.use("en")
    assert t(text) == text


@pytest.mark.parametrize(
    ("wanted", "got"),
    [("zh_CN.UTF-8", "zh"), ("ZH", "zh"), ("zh-Hant", "zh"), ("cn", "zh"), ("Chinese", "zh"), (" 中文 ", "zh"),
     ("en", "en"), ("EN_gb", "en"), ("English", "en")],
)  # fmt: skip
def test_a_language_has_many_names(wanted: str, got: str) -> None:
    language.use("zh" if got == "en" else "en")
    language.use(wanted)
    assert language.current() == got


@pytest.mark.parametrize("wanted", ["de", "fr_FR.UTF-8", "C", "", "zhx", "enter"])
def test_another_word_is_no_language(wanted: str) -> None:
    language.use("zh")
    with pytest.raises(ValueError, match="en, zh"):
        language.use(wanted)
    assert language.current() == "zh"


@pytest.mark.parametrize(("said", "word"), [("zh", "已停止"), ("cn", "已停止"), ("en", "Stopped"), ("fr", "Stopped")])
def test_a_program_that_imports_tuneloop_is_answered_in_its_language(said: str, word: str) -> None:
    """Nobody has called `use` there."""
    code = "import sys; sys.stdout.reconfigure(encoding='utf-8'); import tuneloop; tuneloop.make_recipe; from tuneloop.base.language import t; print(t('Stopped.'))"
    env = {**os.environ, "TUNELOOP_LANG": said}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True, encoding="utf-8")
    assert word in done.stdout


def test_facts_are_never_read_as_placeholders() -> None:
    assert t("{n} rows", n="{n!r} {0}") == "{n!r} {0} rows"


def test_names_and_sentences_in_a_row_follow_the_language() -> None:
    language.use("zh")
    assert listed(["a.csv", "b.csv"]) == "a.csv、b.csv"
    assert sentences("找不到。", "", "请检查路径。") == "找不到。请检查路径。"
