"""tuneloop data inspect, diff, trace and export, as a person types them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.versions_on_disk import build, chat, rows
from tuneloop.base import language
from tuneloop.base.errors import TuneloopError
from tuneloop.cli.main import app
from tuneloop.data.version.dataset import Dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("inspect"))


def workspace(made: Dataset) -> str:
    return str(made.path.parents[2])


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def line(text: str, *start: str) -> list[str]:
    """The cells of the table row that begins with these."""
    rows = [re.split(r" {2,}", one.strip()) for one in text.splitlines()]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_inspect_says_it_in_plain_lines(made: Dataset) -> None:
    said = run("inspect", "talk", "--workspace", workspace(made))
    assert "\x1b" not in said
    assert max(map(len, said[said.index("Data: talk") :].splitlines()[:-1])) <= 120
    assert line(said, "rows read")[1:] == ["40", "4 dropped"]
    assert line(said, "length")[1:4] == ["38", "36", "2"]
    assert line(said, "2", "length")[2:] == [
        "longer than max_length",
        "talk.jsonl:35 " + said.split("talk.jsonl:35 ")[1].split("\n")[0].strip(),
    ]
    assert line(said, "exact repetitions")[1:] == ["1", "dropped"]
    assert line(said, "Chinese")[1:3] == ["20", "55.6 %"]
    assert re.search(r"<\|im_start\|>assistant\n⟦.+<\|im_end\|>⟧", said)
    assert str(made.path / "card.html") in said


def test_inspect_speaks_chinese(made: Dataset) -> None:
    said = run("inspect", "talk", "--workspace", workspace(made), "--lang", "zh", "--samples", "0")
    assert not re.search(
        r"\b(rows|read|dropped|step|before|languages|sources|trained|repetitions)\b", said, re.IGNORECASE
    )
    assert line(said, "中文")[1] == "20"


def test_a_terminal_gets_colours(made: Dataset) -> None:
    code = (
        "import sys; from rich.console import Console; import rich.console as c; c.Console.is_terminal = property(lambda s: True);"
        "from tuneloop.cli.main import main; sys.argv = ['tuneloop', *sys.argv[1:]]; main()"
    )
    env = {**os.environ, "TERM": "xterm-256color", "FORCE_COLOR": "1", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "inspect", "talk", "--workspace", workspace(made), "--lang", "en"],
        capture_output=True, text=True, env=env, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "⟦" not in done.stdout
    assert re.search("\x1b\\[1;32m[^\x1b]*<\\|im_end\\|>\x1b\\[0m", done.stdout)


def test_json_is_the_profile(made: Dataset) -> None:
    told = json.loads(run("inspect", made.hash[:8], "--workspace", workspace(made), "--json"))
    assert told["path"] == str(made.path)
    assert told["counts"]["train"] == made.manifest["counts"]["train"]
    assert told["samples"][0]["id"]


def test_the_page_in_the_other_language(made: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "页.html"
    run("inspect", "talk", "--workspace", workspace(made), "--page", str(target), "--lang", "zh")
    assert '<html lang="zh-CN">' in target.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["页.html"]
    with pytest.raises(TuneloopError, match="TL-MACHINE-FOLDER"):
        run("inspect", "talk", "--workspace", workspace(made), "--page", str(tmp_path / "none" / "a.html"))


def test_a_version_that_is_not_there(made: Dataset) -> None:
    with pytest.raises(TuneloopError, match="TL-DATA-VERSION"):
        run("inspect", "nothing", "--workspace", workspace(made))


def test_diff(tmp_path: Path) -> None:
    first = build(tmp_path, rows())
    second = build(
        tmp_path, [*rows()[:-1], chat("something else?", "yes, this"), chat("one more?", "and this")], max_length=256
    )
    one, other = f"talk/{first.hash}", f"talk/{second.hash}"
    told = json.loads(run("diff", one, other, "--workspace", str(tmp_path), "--json"))
    assert told["rows"]["added"] == 1
    assert told["rows"]["changed"] == 1
    assert told["settings"]["prepare.max_length"] == [512, 256]
    said = run("diff", one, other, "--workspace", str(tmp_path))
    assert line(said, f"only in {other}")[1] == "1"
    assert line(said, "other content at the same line")[1:] == ["1", *line(said, "other content at the same line")[2:]]
    assert line(said, "prepare.max_length")[1:] == ["512", "256"]
    assert line(said, "talk.jsonl")[1] == "changed"
    assert "多" not in said
    language.use("zh")
    assert line(run("diff", one, other, "--workspace", str(tmp_path)), "talk.jsonl")[1] == "修改"


def test_trace(made: Dataset) -> None:
    record = next(record for record, _, _ in made.rows() if record.line == 38)
    told = json.loads(run("trace", "talk", record.id[:9], "--workspace", workspace(made), "--json"))
    assert told["record"]["id"] == record.id
    assert told["source"]["sha256"] == made.manifest["sources"][0]["sha256"]
    assert [e["step"] for e in told["ledger"]] == ["unanswered"]
    assert json.loads(run("trace", record.id[:9], "--workspace", workspace(made), "--json")) == told, (
        "the newest version"
    )
    said = run("trace", "talk", record.id, "--workspace", workspace(made))
    assert line(said, "row")[1] == "talk.jsonl:38"
    assert line(said, "user")[1] == "who is there?"
    assert line(said, "changed")[1] == "turns without an answer"
    with pytest.raises(TuneloopError, match="TL-DATA-NO-ROW"):
        run("trace", "talk", "zzz", "--workspace", workspace(made))


def test_export_comes_back_as_the_same_rows(made: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    count = made.manifest["counts"]["train"]
    said = run("export", "talk", str(target), "--side", "train", "--workspace", workspace(made))
    assert said == f"{count} rows written to {target}.\n"
    again = build(
        tmp_path, [json.loads(text) for text in target.read_text(encoding="utf-8").splitlines()], validation=0
    )
    assert {r.id for r, _, _ in again.rows()} == {r.id for r, _, _ in made.rows("train")}


def test_export_in_a_shape_that_cannot_hold_a_row_writes_nothing(made: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    with pytest.raises(TuneloopError, match="TL-DATA-HOLD"):
        run("export", "talk", str(target), "--shape", "question", "--workspace", workspace(made))
    assert list(tmp_path.iterdir()) == []


def test_export_guards_a_spreadsheet_and_says_so(tmp_path: Path) -> None:
    made = build(tmp_path, [{"text": f"=SUM(A{n})", "label": "good"} for n in range(12)], validation=0)
    target = tmp_path / "out.csv"
    said = run("export", "talk", str(target), "--workspace", workspace(made))
    assert "12 cells got a ' in front" in said
    assert next(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8-sig"))))["text"].startswith("'=SUM")


def test_export_names_the_sides_and_kinds_there_are(made: Dataset, tmp_path: Path) -> None:
    for option, known in (("--side", "train, validation, test"), ("--kind", "chat")):
        with pytest.raises(TuneloopError, match=f"{option} takes {known}"):
            run("export", "talk", str(tmp_path / "a.jsonl"), option, "wrong", "--workspace", workspace(made))
