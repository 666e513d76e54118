"""The command line as a whole: quick to start, every verb's help shows an example, exit statuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

VERBS = (
    "run",
    "prepare",
    "plan",
    "train",
    "evaluate",
    "compare",
    "export",
    "chat",
    "serve",
    "model",
    "explain",
    "doctor",
)
HEAVY = {"torch", "transformers", "peft", "accelerate", "pydantic", "numpy", "pyarrow", "matplotlib", "fastapi",
         "sqlalchemy", "jieba", "huggingface_hub"}  # fmt: skip


def tuneloop(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneloop", *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "TUNELOOP_LANG": "" if "LANG" in environment else "en", "PYTHONUTF8": "1", **environment},
    )  # fmt: skip


def test_help_names_every_verb() -> None:
    done = tuneloop("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuneloop", "--help", "--lang", "zh"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("verb", [*VERBS, "model list", "model pull", "model where"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = tuneloop(*verb.split(), "--help")
    assert done.returncode == 0
    assert verb == "model" or f"tuneloop {verb}" in done.stdout.split("Example")[1]


def test_the_version_is_told() -> None:
    from tuneloop import __version__

    assert tuneloop("--version").stdout.strip() == f"tuneloop {__version__}"


def test_a_wrong_word_ends_with_two() -> None:
    for words in (["tarin"], ["run"], ["train"], ["train", "--resume", "nothing"], ["explain", "TL-DATA-JSOM"]):
        done = tuneloop(*words)
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr
    assert "TL-DATA-JSON" in done.stderr


def test_chinese_is_spoken_when_asked() -> None:
    assert "没有这样的错误代码" in tuneloop("--lang", "zh", "explain", "TL-NO").stderr


@pytest.mark.parametrize(
    "words",
    [["--lang", "cn", "explain", "TL-NO"], ["explain", "TL-NO", "--lang=zh_CN"], ["explain", "--lang", "Chinese", "TL-NO"],
     ["model", "pull", "nothing", "--lang", "zh"], ["modle", "--lang", "zh"], ["run", "--lang", "zh"]],
)  # fmt: skip
def test_the_language_may_be_named_anywhere(words: list[str]) -> None:
    done = tuneloop(*words)
    assert done.returncode == 2
    assert re.search(r"[\u4e00-\u9fff]{3}", done.stderr)


def test_a_language_that_is_not_spoken_is_an_error() -> None:
    for done in (
        tuneloop("--lang", "fr", "doctor"),
        tuneloop("doctor", "--lang"),
        tuneloop("doctor", TUNELOOP_LANG="fr"),
    ):
        assert done.returncode == 2
        assert "TL-RECIPE-LANGUAGE" in done.stderr
        assert "en or zh" in done.stderr
    assert tuneloop("explain", "TL-DATA-JSON", LANG="fr_FR.UTF-8").returncode == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tarin"], "tuneloop train"),
        (["model", "psuh"], "tuneloop model pull"),
        (["run"], "targets"),
        (["run", "demo", "--modl", "x"], "--model"),
        (["run", "demo", "--model"], "the value of --model is missing"),
        (["doctor", "--json=2"], "--json is a switch"),
        (["serve", "x", "--port", "70000"], "--port takes a whole number (0 to 65535)"),
        (["chat", "x", "--max-tokens", "many"], "--max-tokens takes a whole number (1 or more)"),
        (["chat", "x", "--temperature", "hot"], "--temperature takes a number (0 to 2)"),
        (["evaluate", "a", "b"], "a word too many: b"),
    ],
)
def test_a_line_that_does_not_fit_is_told_in_our_words(words: list[str], wanted: str) -> None:
    done = tuneloop(*words)
    assert done.returncode == 2
    code, said = done.stderr.split("  ", 1)
    assert code in {"TL-RECIPE-VERB", "TL-RECIPE-USAGE"}
    assert wanted in said
    verb = " ".join(["tuneloop", *words[:1]]) if words[0] in VERBS else "tuneloop"
    assert f"{verb} --help" in said
    assert tuneloop(*words, "--lang", "zh").stderr.count("\n") == 3
    assert "argument" not in said


def test_no_run_yet_is_said_plainly(tmp_path: Path) -> None:
    for verb in ("evaluate", "export"):
        done = tuneloop(verb, "--workspace", str(tmp_path))
        assert done.returncode == 2
        assert "TL-RUN-NONE" in done.stderr
        assert "tuneloop run demo" in done.stderr
        assert "--workspace" in done.stderr


def test_doctor_tells_what_is_here() -> None:
    import json

    found = json.loads(tuneloop("doctor", "--json").stdout)
    names = {f["what"]: f for f in found}
    assert names["Python"]["fine"]
    assert names["torch"]["value"]
    assert all(f["remedy"] for f in found if not f["fine"])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(
        f"extra {name}" in names
        for name in project["optional-dependencies"]
        if name not in {"dev", "dev-slow", "trackers"}
    )
