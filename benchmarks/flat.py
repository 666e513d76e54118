"""What a token costs before it reaches the model, with 1,000 to 1,000,000 samples: python -m benchmarks.flat.

The samples lie on the disk, as a dataset's do. Counted are the batch plan, its order of an epoch, and the packing of
steps from all over the epoch, for each token that they concern.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.shared import peak_gb, report
from tuneloop.data.batches.loader import Steps
from tuneloop.data.batches.plan import BatchPlan
from tuneloop.data.tokens.samples import Sequences, starts_of

SIZES = (1_000, 10_000, 100_000, 1_000_000)
STEPS, TIMES = 125, 5


def made(count: int, folder: Path) -> Sequences:
    """Random samples of 20 to 180 tokens, half of them answers."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 181, count)
    tokens = int(lengths.sum())
    return Sequences(
        ids=rng.integers(0, 49_000, tokens, np.int32), trained=np.arange(tokens) % 2 == 1, starts=starts_of(lengths),
        labels=(lengths // 2).astype(np.int32), ended=np.ones(count, np.bool_), row=np.arange(count, dtype=np.int32),
        names=np.char.mod("%010d", np.arange(count)).astype("S12"), records=count,
    ).write(folder)  # fmt: skip


def cost(samples: Sequences, seed: int) -> tuple[float, float]:
    """Nanoseconds of processor a token: (plan and order, steps)."""
    began = time.process_time()
    plan = BatchPlan(samples.lengths, 8, 2048, seed)
    plan.step(0)
    planned = time.process_time() - began
    steps = Steps(plan, samples, 0, plan.steps_per_epoch)
    chosen = np.linspace(0, len(steps) - 1, STEPS).astype(int).tolist()
    began = time.process_time()
    tokens = sum(steps[k].tokens for k in chosen)
    return planned / samples.tokens * 1e9, (time.process_time() - began) / tokens * 1e9


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            samples = made(size, Path(folder) / str(size))
            cost(samples, 0)  # the first time pays for imports and for pages of the disk
            every = [cost(samples, seed) for seed in range(1, TIMES + 1)]
            found[str(size)] = [round(min(part), 2) for part in zip(*every, strict=True)]
    report({"nanoseconds": found, "peak_gb": peak_gb()})


if __name__ == "__main__":
    main()
