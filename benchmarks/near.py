"""python -m benchmarks.near [ROWS LENGTH]: repetitions planted in random Chinese text; time, memory, recall, precision.

Without arguments both sizes, each in a process of its own, so that each has its own peak of memory. The characters are
as uneven as Zipf's law; every twentieth row is a copy of an earlier one with up to a tenth of its characters replaced.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedupe.near import Sketches, groups, near_pairs, representative
from tuneloop.data.dedupe.shingles import jaccard

SIZES = ((1_000_000, 40), (100_000, 2_500))
THRESHOLD, BATCH = 0.8, 10_000
Codes = NDArray[np.uint16]
Rows = NDArray[np.int64]


def planted(rows: int, length: int) -> tuple[Codes, Rows, Rows]:
    """[rows, length] code points; the rows that were copied, and their changed copies."""
    rng = np.random.default_rng(0)
    codes = np.empty((rows, length), np.uint16)
    for at in range(0, rows, BATCH):
        block = codes[at : at + BATCH]
        block[:] = rng.zipf(1.3, block.shape) % 3000 + 0x4E00
    copies = rng.choice(np.arange(rows // 2, rows), rows // 20, replace=False)
    sources = rng.choice(rows // 2, len(copies), replace=False)
    codes[copies] = codes[sources]
    changes = rng.integers(0, length // 10 + 1, len(copies))
    for n in range(int(changes.max())):
        changed = copies[changes > n]
        codes[changed, rng.integers(0, length, len(changed))] = 0x4E00 + 3000 + rng.integers(0, 3000, len(changed))
    return codes, sources, copies


def texts(codes: Codes) -> list[str]:
    whole, length = codes.tobytes().decode("utf-16-le"), codes.shape[1]
    return [whole[at : at + length] for at in range(0, len(whole), length)]


def measure(rows: int, length: int) -> dict[str, Any]:
    """Figures of one search. Recall counts copies that are truly near; precision is of a sample of the pairs found."""
    codes, sources, copies = planted(rows, length)
    wall, cpu = time.perf_counter(), time.process_time()
    sketches = Sketches()
    for at in range(0, rows, BATCH):
        sketches.add(texts(codes[at : at + BATCH]))
    sketched = time.process_time() - cpu
    pairs = near_pairs(sketches, lambda wanted: texts(codes[wanted]), THRESHOLD)
    kept = int((representative(pairs, rows) == np.arange(rows)).sum())
    group = groups(pairs, rows)
    figures = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "sketching": sketched}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sample = np.random.default_rng(1).permutation(len(copies))[:20_000]
    near = [s for s in sample if jaccard(*texts(codes[[sources[s], copies[s]]])) >= THRESHOLD]
    found = group[sources[near]] == group[copies[near]]
    some = np.random.default_rng(2).permutation(len(pairs))[:20_000]
    right = [jaccard(*texts(codes[[pairs.i[s], pairs.j[s]]])) >= THRESHOLD for s in some]
    return figures | {
        "gigabytes": peak, "pairs": len(pairs), "dropped": rows - kept, "near": len(near),
        "recall": float(found.mean()), "precision": float(np.mean(right)),
    }  # fmt: skip


def main() -> None:
    if len(sys.argv) != 3:
        for size in SIZES:
            subprocess.run([sys.executable, "-m", "benchmarks.near", *map(str, size)], check=True)
        return
    rows, length = int(sys.argv[1]), int(sys.argv[2])
    found = measure(rows, length)
    print(
        f"{rows:,} rows of {length:,} characters: {found['seconds']:.1f} s ({found['cpu']:.1f} s of processor, "
        f"{found['sketching']:.1f} of it sketching), peak {found['gigabytes']:.2f} GiB; "
        f"recall {found['recall']:.4f} of {found['near']:,} planted pairs from {THRESHOLD} on, "
        f"precision {found['precision']:.4f}, {found['dropped']:,} rows to drop"
    )


if __name__ == "__main__":
    main()
