"""`tuneloop doctor --notify`: the addresses of a file are tried before a run counts on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.robots import listening
from tuneloop.base import language
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
    assert (said.exit_code, as_json.exit_code) == (1, 1)
    body = json.loads(robots.got[0][1])
    assert {"en": "This is a test", "zh": "测试消息"}[tongue] in body["message"]
    assert SECRET not in said.output + as_json.output
    fine = [one["fine"] for one in json.loads(as_json.stdout)]
    assert (fine, len(robots.got)) == ([True, False], 2)
    assert {"en": "line 3, JSON", "zh": "第 3 行"}[tongue] in said.output
