from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from tuneloop.environment import environment, quiet_libraries

LANGUAGE = ("TUNELOOP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
OFFLINE = ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LANGUAGE, *OFFLINE, "TUNELOOP_HOME", "HF_ENDPOINT", "TUNELOOP_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_set() -> None:
    found = environment()
    assert found.home == Path.home() / ".cache" / "tuneloop"
    assert (found.language, found.offline, found.hub_endpoint, found.verbose) == ("en", False, "", False)


def test_home_is_taken_with_its_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TUNELOOP_HOME", "~/kept")
    assert environment().home == tmp_path / "kept"
    monkeypatch.setenv("TUNELOOP_HOME", "")
    assert environment().home == tmp_path / ".cache" / "tuneloop"


def test_the_first_language_that_is_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, expected in reversed(
        [
            ("TUNELOOP_LANG", "zh", "zh"),
            ("LC_ALL", "en_GB.UTF-8", "en"),
            ("LC_MESSAGES", "zh_CN.UTF-8", "zh"),
            ("LANG", "C", "en"),
        ]
    ):
        monkeypatch.setenv(name, value)
        assert environment().language == expected, name


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("TUNELOOP_LANG", "CN", "zh"), ("TUNELOOP_LANG", " zh-CN ", "zh"), ("TUNELOOP_LANG", "English", "en"),
     ("TUNELOOP_LANG", "fr", "fr"), ("LANG", "fr_FR.UTF-8", "en"), ("LANG", "zh_TW.UTF-8", "zh")],
)  # fmt: skip
def test_a_wrong_word_of_our_own_is_kept_to_be_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    assert environment().language == expected


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), (" ON ", True), ("0", False), ("", False), ("no", False)]
)
def test_any_of_three_switches_means_offline(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert environment().offline is expected


def test_no_other_file_reads_a_variable() -> None:
    """Handing the whole environment on to a child process is no reading."""
    source = Path(str(files("tuneloop")))
    for path in source.rglob("*.py"):
        if path.name == "environment.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Subscript):
                assert not re.match(r"os\.(getenv|environ[.\[])", ast.unparse(node)), f"{path}: {ast.unparse(node)}"


def test_every_variable_is_told_in_its_docstring() -> None:
    path = Path(str(files("tuneloop").joinpath("environment.py")))
    text = path.read_text(encoding="utf-8")
    told = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", " ".join(re.findall(r'"""(.*?)"""', text, re.S))))
    read = set(re.findall(r'(?:get|_flag)\("([A-Z_]+)"', text))
    assert read <= told | {"LANG"}


def test_what_a_user_set_for_a_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    quiet_libraries()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_importing_tuneloop_or_its_command_line_loads_nothing_heavy() -> None:
    code = "import sys, tuneloop, tuneloop.cli.main; print(sorted({'torch','transformers','peft','pyarrow','fastapi'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
