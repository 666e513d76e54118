"""tests/training/test_guarded_session.py has results that are the best state."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training.test_session import Sessions, lines
from tuneloop.training.digests import weights_digest


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


def test_the_result_is_there_whole_and_the_event_knows_it(sessions: Sessions) -> None:
    run = sessions.run(save_strategy="steps", save_steps=5)
    (finished,) = [e for e in lines(run.events) if e["event"] == "finished"]
    assert finished["step"] == 5
    assert finished["weights"] == weights_digest(run.path / "adapter")
    assert not [p.name for p in run.path.iterdir() if "adapter" in p.name and p.name != "adapter"]
    assert "The adapter of s-1" in (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    trained = load_file(run.path / "adapter" / "adapter_model.safetensors")
    saved = load_file(run.checkpoints / "step-5" / "trained.safetensors")
    assert len(trained) == len(saved)
    assert sorted(float(w.double().sum()) for w in trained.values()) == sorted(
        float(w.double().sum()) for w in saved.values()
    )
