"""tuneloop data: what it prints and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROW = '{"question": "q", "answer": "a"}\n'


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneloop", "data", *words], input=stdin, capture_output=True, text=True, check=False
    )


def test_sniff_says_what_files_are(tmp_path: Path) -> None:
    (tmp_path / "chats").write_text(ROW * 3)
    (tmp_path / "README").write_text("About it.\n")
    done = run("sniff", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["files"]
    assert (first["file"], first["container"], first["encoding"]) == ("chats", "jsonl", "utf-8")
    assert (first["shape"], first["kind"], first["rows_looked_at"]) == ("question_answer", "chat", 3)
    assert first["roles"] == {"user": "question", "assistant": "answer"}
    assert second["file"] == "README"
    assert second["left_out"]
    table = run("sniff", str(tmp_path))
    assert "question_answer" in table.stdout
    assert "README" in table.stdout


def test_sniff_of_stdin_and_of_nothing_in_chinese(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    done = run("sniff", "-", str(tmp_path / "empty"), "--lang", "zh", stdin=ROW)
    assert done.returncode == 2
    assert "stdin" in done.stdout
    assert "TL-DATA-EMPTY" in done.stderr
    assert "里面什么也没有" in done.stderr


def test_sniff_with_a_task(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"text": "t", "label": 1}\n')
    done = run("sniff", str(tmp_path / "f"), "--task", "text", "--json")
    assert json.loads(done.stdout)["files"][0]["kind"] == "text"
    assert run("sniff", str(tmp_path / "f"), "--task", "poetry").returncode == 2
