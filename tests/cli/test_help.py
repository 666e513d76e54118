"""Help pages: every text has its Chinese, the examples are commands, and columns are counted as a terminal does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.test_docs import fault
from tuneloop.base import language
from tuneloop.cli import help
from tuneloop.cli.main import app

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def texts() -> Iterator[str]:
    """Every sentence of every page; examples are not among them, a command line may need no Chinese."""
    yield "Show this message and exit."
    for command in ALL.values():
        yield from help.parts(command.help)[0]
        yield from (param.help for param in command.params if param.help)


def table() -> dict[str, str]:
    loaded: dict[str, str] = json.loads(
        files("tuneloop").joinpath("messages", "zh", "help.json").read_text(encoding="utf-8")
    )
    return loaded


def test_every_text_of_a_page_has_its_chinese() -> None:
    assert not sorted(set(texts()) - table().keys())
    assert all(CHINESE.search(table()[text]) for text in texts())


def test_no_chinese_is_left_over() -> None:
    examples = {help.parts(command.help)[1] for command in ALL.values()}
    assert not sorted(table().keys() - set(texts()) - examples)


def test_chinese_examples_are_commands() -> None:
    for command in ALL.values():
        for one in table().get(help.parts(command.help)[1], "").split(" | "):
            assert not one or (one.startswith("tuneloop ") and not fault(one)), one


def test_options_of_one_name_are_named_in_full_in_their_help() -> None:
    assert all(param.help for command in ALL.values() for param in command.params)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_a_page_fits_the_terminal_and_is_of_one_language(
    path: tuple[str, ...], tongue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, [*path, "--help", "--lang", tongue])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    examples = [line for line in lines if line.startswith("  tuneloop ")]
    assert all(help._cells(line) <= 80 for line in lines if line not in examples)
    assert bool(examples) == (not hasattr(ALL[path], "commands"))
    assert bool(CHINESE.search(done.stdout)) == (tongue == "zh")
    if tongue == "zh":
        said = [line for line in lines if line not in examples]
        assert not [line for line in said if re.search(r"[A-Za-z]+ [a-z]+ [a-z]+ [a-z]+", line)]
        assert not [word for word in ("Usage", "Options", "Arguments", "required", "default") if word in done.stdout]


def test_a_line_does_not_begin_with_a_closing_sign() -> None:
    text = "一二三四五，六七八九十。" * 9
    for width in range(10, 40):
        lines = help._wrapped(text, width, "  ")
        assert "".join(line.strip() for line in lines) == text
        assert all(help._cells(line) <= width for line in lines)
        assert all(line.strip()[0] not in "，。" for line in lines)
