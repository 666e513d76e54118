"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor

from tuneloop.base.errors import MachineError
from tuneloop.base.optional import need
from tuneloop.monitor.remedies import Slower
from tuneloop.recipe.schema import TrainPart

QUANTISED = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw": "PagedAdamW"}
"""Optimizers of bitsandbytes (Dettmers et al. 2021, arXiv:2110.02861), by our name."""

SECOND = re.compile(r"\.lora_(embedding_)?B\b")
"""Names of the matrices B of adapters, which LoRA+ lets learn faster."""


def total_steps(train: TrainPart, steps_per_epoch: int) -> int:
    """Optimizer steps of a run; a fraction of an epoch is rounded up to whole steps.

    >>> total_steps(TrainPart(epochs=1.5), 3)
    5
    """
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(round(train.epochs * steps_per_epoch, 6)))


def warmup_steps(train: TrainPart, steps: int) -> int:
    """Steps over which the learning rate rises.

    >>> warmup_steps(TrainPart(warmup_ratio=0.1), 25)
    3
    """
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * steps)


def curve(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Step (from 0) -> factor of the peak rate: rises linearly, then falls to 0 by cosine or line, or stays.

    >>> [round(curve("linear", 2, 6)(k), 2) for k in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def factor(k: int) -> float:
        if k < warmup:
            return (k + 1) / warmup
        done = (k - warmup) / max(1, steps - warmup)
        if schedule == "constant":
            return 1.0
        return max(0.0, 1 - done) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def slowed(factor: Callable[[int], float], slower: Sequence[Slower]) -> Callable[[int], float]:
    """The schedule `factor` with what remedies have changed: from a step on a lower rate, which rises anew.

    >>> [round(slowed(lambda k: 1.0, [Slower(step=2, rate=0.5, warmup=2)])(k), 2) for k in range(5)]
    [1.0, 1.0, 0.25, 0.5, 0.5]
    """

    def changed(k: int) -> float:
        past = [one for one in slower if k >= one.step]
        rise = min((min(1.0, (k - one.step + 1) / max(1, one.warmup)) for one in past), default=1.0)
        return factor(k) * math.prod(one.rate for one in past) * rise

    return changed if slower else factor


def groups_for(model: nn.Module, train: TrainPart) -> list[dict[str, Any]]:
    """The trained parameters in groups of one rate and one decay each; biases and norms are not decayed.

    The first group has the recipe's own rate. With `lora.plus_ratio` the matrices B learn so many times as fast
    (LoRA+, Hayou et al. 2024, arXiv:2402.12354).
    """
    ratio = train.lora.plus_ratio or 1.0
    sides: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            second = ratio != 1 and SECOND.search(name) is not None
            sides.setdefault((second, parameter.ndim < 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": train.learning_rate * (ratio if second else 1.0),
            "weight_decay": 0.0 if flat else train.weight_decay,
        }
        for (second, flat), parameters in sorted(sides.items(), key=lambda side: side[0])
    ]


def optimizer_for(model: nn.Module, train: TrainPart) -> Optimizer:
    """The optimizer of `train.optimizer` over what `model` trains.

    adamw: Loshchilov & Hutter 2017, arXiv:1711.05101, in one fused pass where the device has that. adafactor: Shazeer &
    Stern 2018, arXiv:1804.04235, with the recipe's rate instead of a relative one, as adapters that begin at zero need.
    sgd: without momentum, so without state. Raises TL-MACHINE-EXTRA, TL-MACHINE-OPTIMIZER.
    """
    groups, rate = groups_for(model, train), train.learning_rate
    if train.optimizer == "adafactor":
        optimizer = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False, warmup_init=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if train.optimizer in QUANTISED:
        return _quantised(groups, train)
    devices = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(groups, lr=rate, betas=train.betas, fused=devices <= {"cpu", "cuda"})


def _quantised(groups: list[dict[str, Any]], train: TrainPart) -> Optimizer:
    """An optimizer of bitsandbytes. It is tried first: what cannot run is known before the first step."""
    # On a CPU there is no card to page out of; the paged ones say so at every new tensor and work as the others do.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kind = getattr(need("bitsandbytes", extra="qlora").optim, QUANTISED[train.optimizer])
    first = groups[0]["params"][0]
    probe = nn.Parameter(torch.ones(4096, dtype=first.dtype, device=first.device))
    probe.grad = torch.ones_like(probe)
    try:
        kind([probe], lr=1e-3).step()
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        raise MachineError(
            "TL-MACHINE-OPTIMIZER",
            where="train.optimizer",
            optimizer=train.optimizer,
            device=first.device.type,
            error=str(error).partition("\n")[0][:200],
        ) from error
    optimizer = kind(groups, lr=train.learning_rate, betas=train.betas)
    assert isinstance(optimizer, Optimizer)
    return optimizer


def scheduler_for(optimizer: Optimizer, train: TrainPart, steps: int, slower: Sequence[Slower] = ()) -> LambdaLR:
    """The schedule over `steps` optimizer steps, with what remedies have changed of it."""
    return LambdaLR(optimizer, slowed(curve(train.schedule, warmup_steps(train, steps), steps), slower))
