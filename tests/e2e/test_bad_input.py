"""Bad input gets its coded error that says what, where and what to do, exit status 2, and leaves nothing half-made."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.cli.main import main

Told = tuple[int, str, str]


@pytest.fixture
def tuneloop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Told]:
    """Run the command line in an empty folder: (exit status, stdout, stderr)."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("TUNELOOP_LANG", "en")

    def call(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["tuneloop", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def refused(told: Told, *expected: str) -> str:
    status, _, err = told
    assert status == 2, err
    assert "Traceback" not in err
    assert "  -> " in err  # what to do
    for word in expected:
        assert word in err
    return err


def nothing_left() -> None:
    """No run, no dataset, no draft: at most the recipe that was written for the user."""
    left = [p for p in Path().rglob("*") if p.is_file() and p.suffix != ".yaml"]
    assert not left
    assert not list(Path().glob("runs/*"))
    assert not list(Path().glob("datasets/*/*"))


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("missing.jsonl", None, "TL-DATA-MISSING"),
        ("empty.jsonl", b"", "TL-DATA-EMPTY"),
        ("broken.json", b'[{"instruction": "a", "output": "b"},\n {"instruction": ', "TL-DATA-JSON"),
        ("strange.json", b'[{"colour": "red", "size": 3}]', "TL-DATA-SHAPE"),
        ("binary.jsonl", bytes(range(256)) * 8, "TL-DATA-"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "prepare", "train"])
def test_a_bad_file(
    tuneloop: Callable[..., Told],
    tmp_path: Path,
    tiny_model: Path,
    verb: str,
    name: str,
    content: bytes | None,
    code: str,
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    refused(tuneloop(verb, file, "--model", tiny_model), code, name)
    nothing_left()


def test_a_bad_recipe_tells_all_at_once(tuneloop: Callable[..., Told], tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(
        "data: x.jsonl\ntrain:\n  learning_rat: 1e-4\n  epochs: many\n  warmup_steps: 3\n  warmup_ratio: 0.2\nlora_rnak: 8\n",
        encoding="utf-8",
    )
    err = refused(tuneloop("run", recipe), "TL-RECIPE-INVALID", "bad.yaml")
    for word in ("learning_rat", "train.learning_rate", "epochs", "many", "lora_rnak", "train.lora.rank"):
        assert word in err
    recipe.write_text("train: {warmup_steps: 3, warmup_ratio: 0.2, method: full, lora: {rank: 4}}\n", encoding="utf-8")
    err = refused(tuneloop("plan", recipe), "warmup_steps", "warmup_ratio", "lora")
    nothing_left()


def test_a_recipe_that_is_not_there_or_not_yaml(tuneloop: Callable[..., Told], tmp_path: Path) -> None:
    refused(tuneloop("run", tmp_path / "none.yaml"), "TL-RECIPE-MISSING")
    (tmp_path / "torn.yaml").write_text("a: [1, 2", encoding="utf-8")
    refused(tuneloop("run", tmp_path / "torn.yaml"), "TL-RECIPE-YAML")
    refused(tuneloop("run", "demmo"), "TL-RECIPE-NAME", "demo")


def test_a_bad_model_folder(tuneloop: Callable[..., Told], tmp_path: Path, tiny_model: Path, talk_file: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "model.safetensors").unlink()
    refused(tuneloop("train", talk_file, "--model", bare), "TL-MODEL-WEIGHTS", "bare")
    (bare / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tuneloop("train", talk_file, "--model", bare), "TL-MODEL-PICKLE", "bare")
    refused(tuneloop("train", talk_file, "--model", "smollm9"), "TL-MODEL-NAME", "smollm2")
    nothing_left()


def test_a_full_disk(
    tuneloop: Callable[..., Told], tiny_model: Path, talk_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    refused(tuneloop("run", talk_file, "--model", tiny_model), "TL-MACHINE-DISK")
    nothing_left()


def test_a_run_folder_that_exists(tuneloop: Callable[..., Told], tiny_model: Path, talk_file: Path) -> None:
    words = ("train", talk_file, "--model", tiny_model, "--set", "train.max_steps=1", "--number", 1)
    assert tuneloop(*words)[0] == 0
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    refused(tuneloop(*words), "TL-RUN-EXISTS", "talk-1")
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before


def test_a_target_module_that_is_not_there(tuneloop: Callable[..., Told], tiny_model: Path, talk_file: Path) -> None:
    told = tuneloop("train", talk_file, "--model", tiny_model, "--set", "train.lora.targets=[q_porj]")
    refused(told, "TL-MODEL-MODULE", "q_porj", "q_proj")
    assert not list(Path().glob("runs/*"))


def test_raw_files_need_no_recipe(tuneloop: Callable[..., Told], tiny_model: Path, talk_file: Path) -> None:
    """The whole way from a file and a model, with nothing else said; and the recipe it wrote runs again."""
    status, out, err = tuneloop("run", talk_file, "--model", tiny_model, "--set", "train.max_steps=2")
    assert status == 0, err
    assert "What changed" in out
    run = Path("runs/talk-1")
    assert {"recipe.yaml", "plan.json", "events.jsonl", "metrics.jsonl", "loss_curve.png", "evaluation.json",
            "report.html", "adapter", "checkpoints", "dataset.json"} <= {p.name for p in run.iterdir()}  # fmt: skip
    status, out, err = tuneloop("run", "talk.yaml", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["version"] == "talk:v2"
    assert Path(told["run"]).name == "talk-2"
