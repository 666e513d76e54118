from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tuneloop.cli import show


def test_progress_goes_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show.say("准备数据")
    show.as_json({"path": Path("a"), "answer": "小石"})
    out, err = capsys.readouterr()
    assert err == "准备数据\n"
    assert json.loads(out) == {"path": "a", "answer": "小石"}
    assert "小石" in out


def test_a_table_shows_every_word_of_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"word{n}" for n in range(60)]
    show.table("Title", ["prompt", "answer"], [("[bold]not markup[/]", " ".join(words)), (1, None)])
    out, _ = capsys.readouterr()
    assert out.startswith("Title")
    assert "[bold]not markup[/]" in out
    assert all(word in out for word in words)
    assert "None" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 120
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_the_trained_part_of_a_sample_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    show.trained_text([("<|user|>Who [are] you?<|assistant|>", False), ("Pebble.<|end|>", True), ("\n", False)])
    out, _ = capsys.readouterr()
    assert "<|user|>Who [are] you?<|assistant|>⟦Pebble.<|end|>⟧\n" in out


def test_on_a_terminal_it_is_marked_by_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show.trained_text([("Who?", False), ("Pebble.", True)])
    assert "⟦" not in file.getvalue()
    assert "Pebble." in file.getvalue()
    assert "\x1b[1;32m" in file.getvalue()


def test_a_long_sample_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    text = "x" * 500
    show.trained_text([(text, True)])
    assert f"⟦{text}⟧" in capsys.readouterr().out


def test_numbers_for_people() -> None:
    assert show.number(None) == "–"
    assert show.number(0.0) == "0.000"
    assert show.number(-1.2345, 1) == "-1.2"
