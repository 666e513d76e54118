"""The command line as a whole: quick to start, every verb's help shows an example, exit statuses."""

from __future__ import annotations

import subprocess
import sys
import time

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


def tuneloop(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tuneloop", *words], capture_output=True, text=True, timeout=120)


def test_help_is_quick() -> None:
    """The best of ten: what it costs, not what a busy machine adds."""
    best = 9.0
    for _ in range(10):
        began = time.perf_counter()
        done = tuneloop("--help")
        best = min(best, time.perf_counter() - began)
        assert done.returncode == 0
        if best < 0.4:
            break
    assert all(verb in done.stdout for verb in VERBS)
    assert best < 0.4


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuneloop", "--help"], capture_output=True, text=True, check=True
    )
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


def test_doctor_tells_what_is_here() -> None:
    import json

    found = json.loads(tuneloop("doctor", "--json").stdout)
    names = {f["what"]: f for f in found}
    assert names["Python"]["fine"]
    assert names["torch"]["value"]
    assert all(f["remedy"] for f in found if not f["fine"])
