"""tuneloop predict as its user meets it: what it prints, Ctrl-C, pipes, and what it will not do."""

from __future__ import annotations

import codecs
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import TALK
from tests.made import jsonl
from tuneloop.base.errors import TuneloopError
from tuneloop.cli.main import app
from tuneloop.inference.output import Output


def predict(run: Path, source: object, *options: object, given: str | None = None) -> Result:
    words = ["predict", source, "--run", run, "--max-new-tokens", 4, "--batch-size", 1, *options]
    return CliRunner().invoke(app, [str(word) for word in words], input=given)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "questions.jsonl", [*({"question": q} for q, _ in TALK), {"question": ""}])


def test_it_says_what_came_of_it(tiny_run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = predict(tiny_run, source.name)
    assert result.exit_code == 0, result.output
    assert "Rows: 9" in result.stdout
    assert "Rows without a result, see their column error: 1" in result.stdout
    assert "Written: questions.predicted.jsonl" in result.stdout
    again = predict(tiny_run, source.name)
    assert "All 9 rows were there already; --again writes them anew." in again.stdout
    summary = json.loads(predict(tiny_run, source.name, "--json").stdout)
    assert (summary["rows"], summary["failed"], summary["resumed"]) == (9, 1, 9)
    assert summary["path"] == "questions.predicted.jsonl"


def test_a_wrong_file_is_refused_before_anything_is_loaded(tiny_run: Path, source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("\n", encoding="utf-8")
    for given, code in ((tmp_path / "none.csv", "TL-DATA-MISSING"), (empty, "TL-DATA-EMPTY")):
        done = predict(tiny_run, given)
        assert code in str(done.exception)
        assert "recipe" not in str(done.exception)
        assert "Loading" not in done.stderr
    done = predict(tiny_run, source, "--to", tmp_path / "out.xlsx")
    assert "a name that ends in .jsonl or .csv" in str(done.exception)
    assert not (tmp_path / "out.xlsx").exists()


def test_stopped_by_hand_the_same_command_goes_on(
    tiny_run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    inner = Output.append

    def append(self: Output, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "append", append)
        stopped = predict(tiny_run, source, "--to", out)
    assert stopped.exit_code == 130
    assert "Stopped. The same command goes on where it was." in stopped.stderr
    assert not out.exists()
    resumed = predict(tiny_run, source, "--to", out)
    assert "Going on after 4 rows" in resumed.stderr
    predict(tiny_run, source, "--to", whole)
    assert out.read_bytes() == whole.read_bytes()
    assert out.read_bytes().startswith(codecs.BOM_UTF8), "as Excel wants it"
    with out.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(row["input"])["question"] for row in table] == [*(q for q, _ in TALK), ""], "lines are no table"
    assert [bool(row["error"]) for row in table] == [False] * 8 + [True]


def test_lines_of_a_text_are_answered(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = tmp_path / "in.txt"
    lines.write_text("Who are you?\n你是谁？\n", encoding="utf-8")
    result = predict(tiny_run, lines)
    assert result.exit_code == 0, result.output
    out = [json.loads(line) for line in (tmp_path / "in.predicted.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in out] == ["Who are you?", "你是谁？"]


def test_what_is_not_its_own_is_refused_with_a_code(tiny_run: Path, source: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("mine\n")
    result = predict(tiny_run, source, "--to", theirs)
    assert isinstance(result.exception, TuneloopError)
    assert result.exception.code == "TL-RUN-OUT-EXISTS"
    nothing = predict(tmp_path / "no-such-run", source)
    assert isinstance(nothing.exception, TuneloopError)
    assert nothing.exception.code == "TL-MODEL-PATH"
