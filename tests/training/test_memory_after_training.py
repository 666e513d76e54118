"""What is loaded behind training (for evaluation, on a card of the same size) finds the trained model's memory free."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tuneloop.selftest import subject
from tuneloop.selftest.training import Ground
from tuneloop.training import state


@pytest.mark.parametrize(
    ("method", "dtype"), [("lora", "float32"), ("full", "bfloat16"), ("freeze", "bfloat16"), ("ptuning_v2", "bfloat16")]
)
def test_no_module_outlives_its_training(
    method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, left = state.starting_model, list[Any]()

    def started(*args: Any) -> nn.Module:
        model = own(*args)
        left.extend(weakref.ref(module) for module in model.modules())
        return model

    monkeypatch.setattr(state, "starting_model", started)
    ground = Ground(tmp_path, subject.model_folder(tmp_path / "tiny"), longest=200)
    gc.disable()  # else it may be collected in time, by chance
    try:
        ground.chat(dtype, method=method)
        alive = [one for one in left if one() is not None]
    finally:
        gc.enable()
    assert len(left) > 10
    assert not alive
