"""`tuneloop doctor --notify`: the addresses of a file are tried before a run counts on them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.robots import listening
from tuneloop.base import language
from tuneloop.base.errors import RecipeError
from tuneloop.cli import doctor
from tuneloop.cli.main import app

pytest.importorskip("apprise", reason="the extra notify is not installed")
SECRET = "a" * 20


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_each_address_gets_a_message_and_is_answered_for(tongue: str, tmp_path: Path) -> None:
    """The second address has nobody behind it."""
    file = tmp_path / "addresses.txt"
    with listening() as robots, language.speaking(tongue):
        file.write_text(f"json://me:{SECRET}@{robots.at[7:]}\n\njson://me:{SECRET}@127.0.0.1:9\n", encoding="utf-8")
        said = CliRunner().invoke(app, ["doctor", "--notify", str(file)], env={"COLUMNS": "120"})
        as_json = CliRunner().invoke(app, ["doctor", "--json", "--notify", str(file)])
    assert (said.exit_code, as_json.exit_code) == (2, 2)
    body = json.loads(robots.got[0][1])
    assert {"en": "This is a test", "zh": "测试消息"}[tongue] in body["message"]
    assert SECRET not in said.output + as_json.output
    fine = [one["fine"] for one in json.loads(as_json.stdout)]
    assert (fine, len(robots.got)) == ([True, False], 2)
    assert {"en": "line 3, JSON", "zh": "第 3 行"}[tongue] in said.output


def test_a_server_that_never_answers_is_waited_for_no_longer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.5)
    file = tmp_path / "addresses.txt"
    with socket.create_server(("127.0.0.1", 0)) as silent, listening() as robots:
        ports = [silent.getsockname()[1], robots.server_address[1]]
        file.write_text("".join(f"json://127.0.0.1:{port}\n" for port in ports), encoding="utf-8")
        said = CliRunner().invoke(app, ["doctor", "--json", "--notify", str(file)])
    assert [one["fine"] for one in json.loads(said.stdout)] == [False, True]


def test_an_address_in_place_of_a_file_is_not_repeated() -> None:
    said = CliRunner().invoke(app, ["doctor", "--notify", f"dingtalk://{SECRET}"])
    assert isinstance(said.exception, RecipeError)
    assert said.exception.code == "TL-RECIPE-NOTIFY-FILE"
    assert SECRET not in str(said.exception) + said.output
