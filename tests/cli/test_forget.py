"""tuneloop forget: what it prints, in both languages, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.base.errors import RecipeError
from tuneloop.cli.main import app
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.feedback import Feedback, put_feedback


def say_something(workspace: Path, user: str) -> None:
    archive = Archive(workspace)
    word = Feedback("shop", "chatcmpl-0", 0, archive.users.of(user), 1, "key", "up", None, "")
    archive.store.retried(lambda connection: put_feedback(connection, word))
    archive.close()


def test_a_user_is_forgotten_once(tmp_path: Path) -> None:
    say_something(tmp_path, "li")
    say_something(tmp_path, "wang")
    line = ["forget", "--user", "li", "-w", str(tmp_path)]
    done = CliRunner().invoke(app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["feedback"] == 1
    assert CliRunner().invoke(app, line).stdout == "Nothing was kept of this user.\n"
    shown = CliRunner().invoke(app, ["forget", "--user", "wang", "--key", "shop", "-w", str(tmp_path)]).stdout
    assert "feedback" in shown
    assert "1" in shown


def test_somebody_must_be_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["forget", "-w", str(tmp_path)])
    assert isinstance(done.exception, RecipeError)
    assert done.exception.code == "TL-RECIPE-USAGE"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["forget", "--help"]])
def test_its_page_is_there(words: list[str]) -> None:
    assert "--user" in CliRunner().invoke(app, words).stdout
