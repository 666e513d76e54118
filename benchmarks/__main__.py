"""python -m benchmarks: measure this machine and print ratios. Run it on a quiet machine; it takes a few minutes.

python -m benchmarks             training, and how soon the command line answers
python -m benchmarks prepare     from raw rows to packed batches, beside the peers (see prepare.py)
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time

import torch

from benchmarks import prepare, training


def startup() -> float:
    """Seconds of `tuneloop --help`, the best of five."""
    best = 9.0
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tuneloop", "--help"], check=True, capture_output=True)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    if sys.argv[1:2] == ["prepare"]:
        prepare.main(sys.argv[2:])
        return
    found = training.measure()
    machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    base = found["padded to 512"]
    print(f"\nLoRA (r=8, q and v) on SmolLM2-135M, {found['rows']} real rows, 8 a step, float32; {machine}\n")
    print(f"{'':34}{'real tok/s':>12}{'ratio':>8}{'loss after':>12}")
    for name in ("padded to 512", "padded to the longest", "tuneloop"):
        one = found[name]
        ratio = one["tokens_per_second"] / base["tokens_per_second"]
        print(f"{name:34}{one['tokens_per_second']:12.0f}{ratio:8.2f}{one['loss']:12.4f}")
    print(f"\ntuneloop --help: {startup():.2f} s")
    print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main()
