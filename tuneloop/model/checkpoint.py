"""Checkpoints that are whole or absent: everything a run needs to go on as if it had never stopped.

    checkpoints/step-<n>/  trained.safetensors    the trained weights
                           optimizer.safetensors  the optimizer's tensors, named <parameter>.<key>
                           random.safetensors     torch's generators
                           state.json             step, scheduler, optimizer settings, Python's generator
                           manifest.json          sha256 of each file; written last

A checkpoint is written into a temporary sibling, synced, renamed, and its parent synced. Reading takes the newest one
whose manifest verifies. safetensors and JSON only: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tuneloop.base.errors import RunError
from tuneloop.base.files import folder_atomic, sha256_of


@dataclass(slots=True)
class State:
    """Where a run stands: `step` optimizer steps are done."""

    step: int = 0


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that change, by name; a shared weight under its first name only."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def _random_state() -> tuple[dict[str, Tensor], Any]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, random.getstate()


def _split_optimizer(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "<parameter>.<key>"; the settings of each group with parameters by name, and what are numbers."""
    names = {p: n for n, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, state in optimizer.state.get(parameter, {}).items():
                if not isinstance(state, Tensor):
                    numbers[f"{names[parameter]}.{key}"] = state
                    continue
                copy = state.detach().cpu().contiguous()
                # The 8-bit optimizers share one table of codes; safetensors takes no memory twice.
                copy = copy.clone() if copy.data_ptr() in seen else copy
                seen.add(copy.data_ptr())
                tensors[f"{names[parameter]}.{key}"] = copy
    groups = [
        {k: v for k, v in g.items() if k != "params"} | {"params": [names[p] for p in g["params"]]}
        for g in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "numbers": numbers}


def save(
    folder: Path,
    state: State,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    keep: int | None,
    spare: int | None = None,
) -> Path:
    """Write checkpoints/step-<n> under `folder` and remove all but the newest `keep` afterwards; returns its path.

    The one of step `spare` stays beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step}"
    if target.exists() and verified(target):
        return target
    with folder_atomic(target, sync=True) as draft:
        _write(draft, state, model, optimizer, scheduler)
    _prune(folder, keep, state.step, spare)
    return target


def _write(draft: Path, state: State, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """The files of a checkpoint; the manifest of all others last."""
    tensors, settings = _split_optimizer(model, optimizer)
    generators, python = _random_state()
    save_file(trained_weights(model), draft / "trained.safetensors")
    save_file(tensors, draft / "optimizer.safetensors")
    save_file(generators, draft / "random.safetensors")
    content = {
        "step": state.step, "scheduler": scheduler.state_dict(), "optimizer": settings, "python": python,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    (draft / "state.json").write_text(json.dumps(content), encoding="utf-8")
    manifest = {p.name: sha256_of(p) for p in sorted(draft.iterdir())}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _prune(folder: Path, keep: int | None, step: int, spare: int | None) -> None:
    for draft in folder.glob(".*draft*"):
        shutil.rmtree(draft, ignore_errors=True)
    if keep is not None:
        # One of a later step is broken, else the run would have gone on from it: it must not take a good one's place.
        old_ones = [p for p in _newest_first(folder) if step_of(p) <= step][keep:]
        for old in [p for p in old_ones if step_of(p) != spare]:
            _remove(old)


def _remove(path: Path) -> None:
    # Out of the way first: a removal that is cut short must not leave a folder that looks like a checkpoint.
    gone = path.with_name(f".draft-old-{path.name}")
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def thin(folder: Path, spare: int | None = None) -> tuple[int, int]:
    """Remove all checkpoints but the newest whole one and that of step `spare`, and what crashes left of others.

    How many were removed, and their bytes.
    """
    for draft in folder.glob(".*draft*"):
        shutil.rmtree(draft, ignore_errors=True)
    stays = newest(folder)
    if stays is None:
        return 0, 0
    gone = [p for p in _newest_first(folder) if p != stays and step_of(p) != spare]
    size = sum(size_of(p) for p in gone)
    for path in gone:
        _remove(path)
    return len(gone), size


def size_of(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(p.stat().st_size for p in path.iterdir())


def back_to(folder: Path, before: int) -> int:
    """Remove the checkpoints of step `before` and later ones; the step of the newest whole one that is left, else 0."""
    for path in [p for p in _newest_first(folder) if step_of(p) >= before]:
        _remove(path)
    left = newest(folder)
    return step_of(left) if left else 0


def step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(path.name.removeprefix("step-"))


def _newest_first(folder: Path) -> Iterator[Path]:
    folders = [p for p in folder.glob("step-*") if p.name[5:].isdigit()]
    yield from sorted(folders, key=step_of, reverse=True)


def verified(path: Path) -> bool:
    """Whether every file of the manifest is there with its sha256."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest) and all(sha256_of(path / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None."""
    return next((p for p in _newest_first(folder) if verified(p)), None)


def restore_weights(path: Path, model: nn.Module) -> dict[str, nn.Parameter]:
    """Load a checkpoint's weights; returns the trained parameters by name. Raises TL-RUN-CHECKPOINT."""
    weights = load_file(path / "trained.safetensors")
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != own.keys() or any(weights[n].shape != p.shape for n, p in own.items()):
        raise RunError("TL-RUN-CHECKPOINT", where=str(path))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return own


def restore(path: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> State:
    """Load everything back; returns where the run stood. Raises TL-RUN-CHECKPOINT when the weights do not fit."""
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    own = restore_weights(path, model)
    _restore_optimizer(path, own, optimizer, **content["optimizer"])
    scheduler.load_state_dict(content["scheduler"])
    _set_rates(optimizer, scheduler)
    generators = load_file(path / "random.safetensors")
    torch.set_rng_state(generators["cpu"])
    if torch.cuda.is_available():
        for name, state in generators.items():
            number = int(name.removeprefix("cuda.")) if name.startswith("cuda.") else -1
            if 0 <= number < torch.cuda.device_count():  # another card than the one trained on may be gone
                torch.cuda.set_rng_state(state, number)
    version, internal, gauss = content["python"]
    random.setstate((version, tuple(internal), gauss))
    return State(step=content["step"])


def _set_rates(optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """The rates that the schedule has now: a remedy may have changed it since the checkpoint was written."""
    if isinstance(scheduler, LambdaLR):
        factors = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base, factor in factors:
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _restore_optimizer(
    path: Path,
    own: dict[str, nn.Parameter],
    optimizer: Optimizer,
    groups: list[dict[str, Any]],
    numbers: dict[str, int | float] | None = None,
) -> None:
    """Hand the optimizer its state in its own numbering: parameters counted in the order of its groups."""
    number = {p: i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    names = {number[p]: n for n, p in own.items()}
    state: dict[int, dict[str, Any]] = {}
    for full, moment in {**load_file(path / "optimizer.safetensors"), **(numbers or {})}.items():
        name, _, key = full.rpartition(".")
        if name not in own:
            raise RunError("TL-RUN-CHECKPOINT", where=str(path))
        state.setdefault(number[own[name]], {})[key] = moment
    current = optimizer.state_dict()["param_groups"]
    merged = [
        {**g, **{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "params"}}
        for g, saved in zip(current, groups, strict=True)
    ]
    assert all(i in names for i in state)
    optimizer.load_state_dict({"state": state, "param_groups": merged})
    for parameter, place in number.items():
        for key, moment in state.get(place, {}).items():
            loaded = optimizer.state[parameter][key]
            if isinstance(loaded, Tensor) and loaded.dtype != moment.dtype:  # torch casts to the parameter's type
                optimizer.state[parameter][key] = moment.to(loaded.device)
