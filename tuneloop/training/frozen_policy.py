"""Whether a run keeps what its frozen blocks compute, and for how long."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tuneloop.base.errors import ModelError
from tuneloop.base.files import format_bytes
from tuneloop.base.language import LANGUAGES, current, in_each, t
from tuneloop.base.refusals import require_space
from tuneloop.data.batches.examples import Examples
from tuneloop.model.backbone import FROZEN_CACHE, unwrap
from tuneloop.model.blocks import blocks
from tuneloop.model.frozen_cache import Frozen, frozen
from tuneloop.model.kernels.matmul import matmul_precision
from tuneloop.recipe.schema import TrainPart
from tuneloop.training import distributed

SHARE = 4
"""auto keeps where at least one block in so many is frozen; less is not worth a file."""


@dataclass(frozen=True, slots=True)
class CacheQuestion:
    """What decides. `below` of `of` blocks are frozen; `size` in bytes of what would be kept, `free` of the disk."""

    below: int
    of: int
    size: int
    free: int
    epochs: float


def objection(train: TrainPart, question: CacheQuestion) -> str:
    """Why the frozen blocks' output is not kept, "" where it is.

    Raises TL-MODEL-KEEP where the recipe asks for what cannot be.

    >>> objection(TrainPart(), CacheQuestion(28, 30, 10**8, 10**11, 3))
    ''
    >>> objection(TrainPart(), CacheQuestion(28, 30, 10**8, 10**11, 1))
    'there is one epoch'
    """
    if train.keep_trunk == "off":
        return t("train.keep_trunk is off")
    cannot = ""
    if not question.below:
        cannot = t("training reaches the lowest block")
    elif train.neftune_alpha:
        cannot = t("NEFTune's noise makes the frozen blocks' output another one each time")
    if cannot and train.keep_trunk == "on":
        raise ModelError("TL-MODEL-KEEP", where="train.keep_trunk", why=cannot)
    if cannot or train.keep_trunk == "on":
        return cannot
    if question.epochs <= 1:
        return t("there is one epoch")
    if question.below * SHARE < question.of:
        return t("frozen blocks: {n} of {all} only", n=question.below, all=question.of)
    if question.size > question.free // 2:
        return t(
            "{need} would be kept and {free} are free on the disk",
            need=format_bytes(question.size),
            free=format_bytes(question.free),
        )
    return ""


def measurements(train: TrainPart, steps: int, per_epoch: int) -> int:
    """How often the held-out loss is measured during training.

    >>> measurements(TrainPart(epochs=1.5), 15, 10), measurements(TrainPart(eval_strategy="no"), 15, 10)
    (2, 0)
    """
    every = {"no": 0, "epoch": math.ceil(steps / per_epoch - 1e-9), "steps": math.ceil(steps / train.eval_steps)}
    return every[train.eval_strategy]


def kept_bytes(items: Examples, width: int, itemsize: int) -> int:
    """Bytes of the hidden states of all samples that the items use."""
    return int(items.samples.lengths[np.unique(items.members)].sum()) * width * itemsize


@dataclass(frozen=True, slots=True, eq=False)
class CachePolicy:
    """What keeping needs of a run. `sides` are the items by side, "train" first; `folder` is where states are kept.

    `decided` is what the run decided when it began, None at its beginning: a resumed run must go on as it began.
    `told` hears what was decided: whether, why not, the bytes kept, and the seconds that it took.
    """

    train: TrainPart
    folder: Path
    sides: dict[str, Examples]
    epochs: float
    packing: bool
    decided: bool | None
    report: Callable[[bool, Mapping[str, str], int, float], None]


@contextlib.contextmanager
def kept_blocks(model: nn.Module, cache: CachePolicy) -> Iterator[None]:
    """Inside, blocks that no training reaches run without gradient and dropout; where it pays, once in all.

    Raises TL-MODEL-KEEP, TL-MACHINE-DISK.
    """
    below = frozen(model)
    if below is None:
        objection(cache.train, CacheQuestion(0, len(blocks(unwrap(model))), 0, 0, cache.epochs))
        yield
        return
    try:
        _decide(below, cache)
        with below.of("train"):
            yield
    finally:
        below.release()


def _decide(below: Frozen, cache: CachePolicy) -> None:
    began, why = time.perf_counter(), dict.fromkeys(LANGUAGES, "")
    size = sum(kept_bytes(items, below.width, below.base.dtype.itemsize) for items in cache.sides.values())
    if cache.decided is None:
        free = shutil.disk_usage(cache.folder.parent).free
        question = CacheQuestion(len(below.blocks), len(blocks(below.base)), size, free, cache.epochs)
        why = distributed.shared(in_each(lambda: objection(cache.train, question)))
    if cache.decided is not False and not any(why.values()):
        why = _keep(below, cache, size)
    if cache.decided is None or cache.decided:
        refused = any(why.values())
        cache.report(not refused, why, 0 if refused else size, round(time.perf_counter() - began, 2))


def _keep(below: Frozen, cache: CachePolicy, size: int) -> dict[str, str]:
    """Fill the stores; why that is not possible, else "", in each language."""

    def fill() -> None:
        for side, items in cache.sides.items():
            # What is held out is measured in float32, whatever training multiplies in.
            with matmul_precision("float32") if side == "validation" else contextlib.nullcontext():
                below.keep(side, items, cache.folder, cache.train.token_budget, packing=cache.packing)

    with torch.random.fork_rng([below.base.device] if below.base.device.type == "cuda" else []):
        if distributed.leads():  # the others find what the first one made
            if not cache.folder.exists():
                require_space(cache.folder, size)
            fill()
        distributed.world().wait_for_everyone()
        if not distributed.leads():
            fill()
        exact = distributed.shared(
            all(below.exact(side, items, packing=cache.packing) for side, items in cache.sides.items() if len(items))
        )
    if exact:
        return dict.fromkeys(LANGUAGES, "")
    below.stores.clear()
    why = in_each(lambda: t("its blocks hand on more than hidden states"))
    if cache.train.keep_trunk == "on":
        raise ModelError("TL-MODEL-KEEP", where="train.keep_trunk", why=why[current()])
    if distributed.leads():
        shutil.rmtree(cache.folder, ignore_errors=True)
    return why


@contextlib.contextmanager
def held_out(objective: nn.Module) -> Iterator[None]:
    """Inside, rows are made of held-out samples."""
    below = next((below_blocks for m in objective.modules() if (below_blocks := vars(m).get(FROZEN_CACHE))), None)
    with below.of("validation") if below is not None else contextlib.nullcontext():
        yield
