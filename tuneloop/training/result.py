"""The result of a run, written as it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import PeftModel
from torch import nn

from tuneloop.base.files import folder_atomic
from tuneloop.hub.resolve import on_hub
from tuneloop.methods.wrap import bits_of
from tuneloop.model import checkpoint
from tuneloop.model.anatomy import never_quantised, scores_labels
from tuneloop.model.backbone import unwrap
from tuneloop.tasks.labels_file import write_classes
from tuneloop.training.adapter_card import adapter_card
from tuneloop.training.digests import ending
from tuneloop.training.guards import Guard
from tuneloop.training.input import TrainingInput
from tuneloop.training.model_folder import save_result
from tuneloop.training.state import TrainState


def _card(setup: TrainState, state: checkpoint.State, model: nn.Module, base: Path) -> str:
    dataset = str(setup.run.read("dataset.json").get("hash") or "")
    hub = on_hub(setup.recipe.model.name)
    base_model = unwrap(model)
    scores = int(base_model.config.num_labels or 0) if scores_labels(base_model) else 0
    return adapter_card(
        setup.run.path,
        setup.recipe,
        base,
        steps=state.step,
        dataset=dataset,
        hub=hub,
        scores=scores,
        skipped=never_quantised(base_model) if scores else (),
    )


def close(setup: TrainState, state: checkpoint.State, assembled: TrainingInput, guard: Guard) -> None:
    """Write the result into a temporary sibling, then give it its name; or note that the run stopped early."""
    model, setting, folder = setup.model, assembled.context, assembled.folder
    if state.step < setup.total and not guard.stops:
        setup.events.event("stopped", step=state.step)
        return
    best = guard.best(setup.run.checkpoints, state.step)
    if best is not None:
        checkpoint.restore_weights(best, setup.objective)
    target = setup.run.path / ("adapter" if isinstance(model, PeftModel) else "model")
    with folder_atomic(target, sync=True) as draft:
        save_result(model, setting.tokenizer, folder, draft, setup.recipe.model, bits_of(setup.recipe.train))
        write_classes(draft, setting)
        if target.name == "adapter":  # in place of the empty form that PEFT leaves
            (draft / "README.md").write_text(_card(setup, state, model, folder), encoding="utf-8")
    shutil.rmtree(setup.run.path / "trunk", ignore_errors=True)  # nothing is left to resume
    meter = setup.meter
    setup.events.event(
        "finished",
        step=state.step,
        seconds=round(meter.total_seconds, 2),
        tokens_per_second=round(meter.tokens_per_second, 1),
        memory_gb=round(meter.peak_gb, 3),
        **ending(target, setting.tokenizer, setup.held.samples),
    )
