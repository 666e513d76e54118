"""The sections of a proof, in the order in which they tell most. Each has a time limit and makes its own ground."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the parent of a proof must not need what its sections need
    from tuneloop.selftest.lines import Lines
    from tuneloop.selftest.speed import Workload
    from tuneloop.selftest.training import Ground

SHAPES = ("qwen2", "qwen3", "gemma3_text", "deepseek_v3")
REAL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class ProofSection:
    """`prove` writes its lines; it is stopped after `seconds`."""

    name: str
    prove: Callable[[Lines, Path], None]
    seconds: float


def _ground(folder: Path, family: str = "llama") -> Ground:
    from tuneloop.selftest import subject, training

    return training.Ground(folder, subject.model_folder(folder / family, family), longest=200)


def _attention(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import device, kernels

    kernels.prove(lines, device.here())


def _compiled(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import device, kernels

    kernels.compiled(lines, device.here())


def _equal(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import device, training

    ground = _ground(folder)
    training.equal_recipes(ground, lines)
    training.types(ground, lines, device.halves())


def _shapes(lines: Lines, folder: Path) -> None:
    from tuneloop.base.language import t
    from tuneloop.selftest import device, parity, training

    for family in SHAPES:
        (folder / family).mkdir()
        ground = _ground(folder / family, family)
        training.equal_recipes(ground, lines, ("lora",), family)
        lines.claim(t("training"), f"{family}: lora x chat", lambda g=ground: training.combination(g, "lora", "chat"))  # type: ignore[misc]
        parity.prove(lines, ground, device.here(), family)
        parity.merged(lines, ground, family)


def _methods(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import training

    training.combinations(_ground(folder), lines)


def _parity(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import device, parity

    ground = _ground(folder)
    parity.prove(lines, ground, device.here(), "llama")
    parity.merged(lines, ground, "llama")


def _quantised(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import quantised

    quantised.prove(lines, _ground(folder))


def _large(folder: Path) -> Ground:
    """On a card the shape of Qwen2-1.5B and rows of up to 2,048 tokens (1,024 where less than 12 GB are free); a small
    one on a CPU, to walk the same way."""
    from tuneloop.selftest import device, subject, training

    place, family = device.here(), "qwen2"
    on_card = place.type == "cuda"
    shape = subject.QWEN2_1_5B if on_card else {"num_hidden_layers": 4, "vocab_size": 8192}
    model = subject.model_folder(folder / "large", family, device=place.type, dtype=device.weights_dtype(), **shape)
    rows, longest = (128, min(2048, device.budget())) if on_card else (24, 512)
    return training.Ground(
        folder, model, rows=partial(subject.long_rows, rows, longest), prepare={"max_length": longest, "validation": 0}
    )


def _work() -> Workload:
    from tuneloop.selftest import device, speed

    if device.here().type == "cuda":
        budget = device.budget()
        return speed.Workload(steps=9, rows=128, batch=16, micro=max(1, budget // 2048), budget=budget, rank=16)
    return speed.Workload(steps=3, rows=24, batch=8, micro=4, budget=1024, rank=16)


def _speed(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import device, speed

    ground = _large(folder)
    speed.measure(lines, ground, device.here(), _work(), device.size(ground.model))


def _costs(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import costs, device

    ground = _large(folder)
    costs.measure(lines, ground, device.here(), _work())


def _real(lines: Lines, folder: Path) -> None:
    from tuneloop.selftest import real

    real.prove(lines, folder, REAL)


SECTIONS = (
    ProofSection("attention", _attention, 60),
    ProofSection("equal recipes", _equal, 120),
    ProofSection("merging", _parity, 60),
    ProofSection("quantised", _quantised, 60),
    ProofSection("speed", _speed, 150),
    ProofSection("methods and tasks", _methods, 180),
    ProofSection("other shapes", _shapes, 150),
    ProofSection("cost of exact resume", _costs, 90),
    ProofSection("compiled attention", _compiled, 150),
    ProofSection("a real model", _real, 120),
)
"""The sections. Their limits add up to more than the proof may take: what is left of that counts as well. On an H200
with 16 cores each begins with 15 s of imports; the first five took 280 s."""
