"""The words: every text of the code and of the report has its Chinese, every error code its three texts, twice."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from tuneloop.base import language
from tuneloop.base.errors import FAMILIES, NOTICES, catalogue
from tuneloop.recipe.watch import RemediesPart, RulesPart

SOURCE = Path(str(files("tuneloop")))
CLASSES = {c.__name__: c.family for c in FAMILIES.values()}
CODE = re.compile(r"TL-[A-Z]+(?:-[A-Z0-9]+)+")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
IN_JINJA = re.compile(r"""(?<![\w.])t\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')?""")


def placeholders(text: str) -> list[str]:
    """The facts a text takes, each with its format, sorted.

    >>> placeholders("{n:,} of {name!r}, but {no fact}")
    ['{n:,}', '{name!r}']
    """
    return sorted(re.findall(r"\{\w+(?:[:!][^{} ]*)?\}", text))


@cache
def modules() -> dict[str, ast.Module]:
    return {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call, with the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, getattr(node.func, "id", "") or getattr(node.func, "attr", "")


def said() -> Iterator[tuple[str, str | None]]:
    """(where, text) of each t(…) in Python and in templates; None for what is not one literal text."""
    for name, tree in modules().items():
        for node, called in calls(tree):
            if called == "t" and isinstance(node.func, ast.Name):  # a matrix has a method t
                first = node.args[0] if node.args else None
                text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
                yield f"{name}:{node.lineno}", text
    for path in sorted(SOURCE.rglob("*.jinja")):
        page = path.read_text(encoding="utf-8")
        for match in IN_JINJA.finditer(page):
            where = f"{path.relative_to(SOURCE).as_posix()}:{page.count(chr(10), 0, match.start()) + 1}"
            yield where, ast.literal_eval(match[1]) if match[1] else None


def console() -> dict[str, str]:
    """The Chinese as it lies on the disk; a text that stands there twice is an error."""

    def once(pairs: list[tuple[str, str]]) -> dict[str, str]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    text = (SOURCE / "messages" / "zh" / "console.json").read_text(encoding="utf-8")
    loaded: dict[str, str] = json.loads(text, object_pairs_hook=once)
    return loaded


def test_the_scan_finds_texts_in_python_and_in_templates() -> None:
    found = {text: where for where, text in said()}
    assert found["This machine"].startswith("cli/doctor.py:")
    assert found["Before and after"].startswith("report/report.html.jinja:")
    assert any(text and len(text) > 100 for text in found)  # neighbouring literals count as one


def test_a_text_is_always_written_out() -> None:
    assert not [where for where, text in said() if text is None]


def test_every_text_has_chinese() -> None:
    chinese = console()
    assert not sorted(f"{where} {text}" for where, text in said() if text and text not in chinese)


def test_no_chinese_is_left_over() -> None:
    assert not sorted(console().keys() - {text for _, text in said()})


def test_the_chinese_takes_the_same_facts_and_keeps_the_blanks_around_it() -> None:
    language.use("zh")
    for english, chinese in console().items():
        assert placeholders(chinese) == placeholders(english), english
        assert chinese.strip(), english
        # A full-width bracket or semicolon brings its own blank.
        assert chinese[-1].isspace() == (english[-1].isspace() and chinese[-1] != "；"), english
        assert chinese[0].isspace() == (english[0].isspace() and chinese[0] != "（"), english
        assert language.t(english) == chinese


def used() -> dict[str, str]:
    """Code -> a place that hands it on: a text in the code that is this code and nothing else."""
    found: dict[str, str] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found.setdefault(node.value, f"{name}:{node.lineno}")
    return found


def known(tongue: str) -> dict[str, dict[str, str]]:
    return {code: entry for family in (*FAMILIES, *NOTICES) for code, entry in catalogue(family, tongue).items()}


def announced() -> set[str]:
    """The codes of alerts and remedies: their names are those of the recipe."""
    remedies = [name for name, field in RemediesPart.model_fields.items() if field.annotation is bool]
    named = [*(f"TL-WATCH-{name}" for name in RulesPart.model_fields), *(f"TL-REMEDY-{name}" for name in remedies)]
    return {name.upper() for name in named}


CODES = sorted(known("en"))


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_every_code_in_use_has_words_and_none_is_left_over(tongue: str) -> None:
    assert not sorted(f"{where} {code}" for code, where in used().items() if code not in known(tongue))
    assert not sorted(known(tongue).keys() - used().keys() - announced())
    assert not sorted(announced() - known(tongue).keys())


def test_codes_named_in_passing_exist() -> None:
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in {".py", ".toml", ".jinja", ".json", ".yaml"}:
            named = set(CODE.findall(path.read_text(encoding="utf-8")))
            assert not sorted(named - set(CODES)), path


def test_both_languages_have_the_same_parts_and_facts() -> None:
    for code in CODES:
        english, chinese = known("en")[code], known("zh")[code]
        parts = {"what", "do", "more"} | ({"why"} if code in announced() else set())
        assert english.keys() == chinese.keys() == parts, code
        for part, text in english.items():
            assert text.strip(), (code, part)
            assert not CHINESE.search(text), (code, part)
            assert CHINESE.search(chinese[part]), (code, part)
            assert placeholders(text) == placeholders(chinese[part]), (code, part)


@pytest.mark.parametrize("tongue", language.LANGUAGES)
@pytest.mark.parametrize("family", [*FAMILIES, *NOTICES])
def test_a_code_lies_in_the_file_of_its_family(family: str, tongue: str) -> None:
    assert {code.split("-")[1] for code in catalogue(family, tongue)} == {family.upper()}


def raised() -> Iterator[tuple[str, str, str]]:
    """(where, family of the class, code) of each error made; where a variable brings the code, all of its function."""
    for name, tree in modules().items():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call, called in calls(function):
                if called in CLASSES and call.args:
                    within = function if isinstance(call.args[0], ast.Name) else call.args[0]
                    for node in ast.walk(within):
                        if isinstance(node, ast.Constant) and CODE.fullmatch(str(node.value)):
                            yield f"{name}:{call.lineno}", CLASSES[called], str(node.value)


def test_a_code_is_raised_by_the_class_of_its_family() -> None:
    found = list(raised())
    assert len(found) > 100
    assert not [one for one in found if one[2].split("-")[1] != one[1].upper()]


@pytest.mark.slow
def test_explain_knows_every_code_in_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    from tuneloop.cli.main import app

    for code in CODES:
        for arguments, tongue in (
            (["explain", code], "en"),
            (["explain", code.lower(), "--lang", "zh"], "zh"),
            (["--lang", "zh", "explain", code], "zh"),
        ):
            language.use("en")
            app(arguments, standalone_mode=False)
            head, *rest = capsys.readouterr().out.splitlines()
            assert head == code
            text = "\n".join(line.removeprefix("  ") for line in rest)
            for part in known(tongue)[code].keys() - {"more"}:
                whole = re.sub(
                    r"(?<=[^ ：])\{(near|detail|then)\}", "", known(tongue)[code][part]
                )  # a clause or nothing
                shown = re.sub(r"\{(\w+)(?:[:!][^{} ]*)?\}", r"‹\1›", whole)
                assert shown.replace("{{", "{").replace("}}", "}").strip() in text, arguments
            assert known(tongue)[code]["more"].strip() in text, arguments
            assert bool(CHINESE.search(text)) == (tongue == "zh"), arguments


def test_explain_lists_all_codes(capsys: pytest.CaptureFixture[str]) -> None:
    from tuneloop.cli.explain import explain

    explain(json=True)
    assert json.loads(capsys.readouterr().out) == known("en")
    language.use("zh")
    explain(json=True)
    assert json.loads(capsys.readouterr().out) == known("zh")
