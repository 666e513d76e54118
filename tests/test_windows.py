"""The core as on Windows: no fcntl, resource, os.fork or POSIX signal, its line ends, its paths. Nothing was run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from tuneloop.cli.target import below
from tuneloop.data.version.find import parted
from tuneloop.hub.resolve import is_path
from tuneloop.recipe.paths import is_beside

ROOT = Path(__file__).parents[1]


def windows(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONPATH": str(ROOT),
        "TUNELOOP_LANG": "en",
        "TUNELOOP_HOME": str(cwd / "home"),
        "PYTHONUTF8": "1",
    }
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-m", "tests.windows", *words], capture_output=True, text=True,
        encoding="utf-8", timeout=300, cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip


def test_prepare_plan_and_train_without_what_windows_lacks(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "我的 文件"  # a blank and Chinese, as in a user's folder
    place.mkdir()
    (place / "chats.jsonl").write_bytes(talk_file.read_bytes().replace(b"\n", b"\r\n"))
    (place / "my.yaml").write_bytes(
        f"name: talk\r\nmodel: {json.dumps(str(tiny_model))}\r\ndata: chats.jsonl\r\n"
        "train: {max_steps: 3, learning_rate: 0.01, save_steps: 1}\r\n".encode()
    )
    done = windows(place, "prepare", "my.yaml", "--json", "--then", "plan", "my.yaml", "--json", "--then", "train",
                   "my.yaml", "--json", "--then", "train", "--resume", "talk-1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    prepared, planned, trained, _ = done.stdout.split("-----\n")[:4]
    counts = json.loads(prepared)["counts"]
    assert counts["rows_in"] == counts["train"] + counts["validation"] + counts["dropped"] == 40
    assert json.loads(planned)["data"]["steps"] == 3
    assert Path(json.loads(trained)["result"]) == Path("runs/talk-1/adapter")
    assert "finished" in done.stderr, "said by train --resume"
    run = place / "runs" / "talk-1"
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert b"\r\n" in (run / "recipe.yaml").read_bytes(), "text is written as there"
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == "step-3"
    assert not list(place.rglob(".draft*"))


def test_the_play_takes_away_what_it_says() -> None:
    code = (
        "import tests.windows as w; w.LIBRARIES = (); w.take_away()\n"  # none of them is asked for here
        "import os, signal, importlib\n"
        "print(hasattr(os, 'fork'), hasattr(signal, 'SIGKILL'), hasattr(signal, 'pthread_sigmask'))\n"
        "for name in ('fcntl', 'resource'):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError: print('gone')\n"
        "try: os.open('.', os.O_RDONLY)\n"
        "except PermissionError: print('closed')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False", "False", "gone", "gone", "closed"]


@pytest.mark.parametrize("name", [".\\models\\mine", "..\\mine", "./mine", "../mine"])
def test_a_model_beside_the_recipe_is_written_with_either_slash(name: str) -> None:
    assert is_beside(name)
    assert is_path(name)
    assert is_path("C:\\models\\mine")
    assert not is_beside("mine")
    assert not is_beside("org/mine")


@pytest.mark.parametrize(
    ("path", "folder", "wanted"),
    [
        (PureWindowsPath("C:\\work\\chats\\a.jsonl"), PureWindowsPath("C:\\work"), "chats/a.jsonl"),
        (PureWindowsPath("c:\\WORK\\a.jsonl"), PureWindowsPath("C:\\work"), "a.jsonl"),
        (PureWindowsPath("D:\\a.jsonl"), PureWindowsPath("C:\\work"), "D:/a.jsonl"),
        (PureWindowsPath("C:\\workshop\\a.jsonl"), PureWindowsPath("C:\\work"), "C:/workshop/a.jsonl"),
        (PureWindowsPath("chats\\*.jsonl"), PureWindowsPath("C:\\work"), "chats/*.jsonl"),
        (PurePosixPath("/work/chats/a.jsonl"), PurePosixPath("/work"), "chats/a.jsonl"),
        (PurePosixPath("/workshop/a.jsonl"), PurePosixPath("/work"), "/workshop/a.jsonl"),
    ],
)
def test_a_written_recipe_has_slashes_that_both_systems_read(
    path: PureWindowsPath | PurePosixPath, folder: PureWindowsPath | PurePosixPath, wanted: str
) -> None:
    assert below(path, folder) == wanted


@pytest.mark.parametrize("name", ["chats/1a2b3c", "chats\\1a2b3c", "chats/1a2b3c/", "chats\\1a2b3c\\"])
def test_a_version_is_named_with_either_slash(name: str) -> None:
    assert parted(name) == ("chats", "1a2b3c")
