"""By what a served model is known: another one wherever its answers may be others, the same one wherever it is copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tuneloop.serving import identity
from tuneloop.serving.identity import base_digest, folder_digest, run_digest, served_digest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run shaped as one, without a model that could be loaded."""
    base, run = tmp_path / "base", tmp_path / "runs" / "a-1"
    for folder in (base, run / "adapter"):
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{}")
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (base / "model.safetensors").write_bytes(bytes(100))
    (run / "adapter" / "adapter_model.safetensors").write_bytes(bytes(50))
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    (run / "recipe.yaml").write_text(json.dumps({"name": "a", "model": str(base)}))
    return run


def test_whatever_an_answer_comes_from_changes_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "model_folder", lambda part: Path(part.name))
    base, seen = run.parents[1] / "base", {run_digest(run)}
    for file in (run / "adapter" / "adapter_model.safetensors", run / "adapter" / "chat_template.jinja",
                 run / "adapter" / "tokenizer.json", base / "model.safetensors", base / "config.json"):  # fmt: skip
        octets = bytearray(file.read_bytes())
        octets[-1] ^= 1
        file.write_bytes(octets)
        assert run_digest(run) not in seen, file.name
        seen.add(run_digest(run))
    assert base_digest(run) == folder_digest(base) not in seen
    assert served_digest(str(run), run.parents[1]) == run_digest(run)


def test_what_is_written_beside_it_changes_nothing_and_a_copy_is_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "model_folder", lambda part: Path(part.name))
    before = run_digest(run)
    (run / "metrics.jsonl").write_text("{}")
    (run / "report.html").write_text("x")
    shutil.copytree(run, tmp_path / "elsewhere" / "b-2")
    assert run_digest(run) == run_digest(tmp_path / "elsewhere" / "b-2") == before


def test_of_a_large_file_its_size_and_samples_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LARGE", 1 << 20)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(8 << 20))
    seen = {folder_digest(tmp_path)}
    for octets in (b"\x01" + bytes((8 << 20) - 1), bytes((8 << 20) - 1) + b"\x01", bytes((8 << 20) + 1)):
        file.write_bytes(octets)
        assert folder_digest(tmp_path) not in seen
        seen.add(folder_digest(tmp_path))
