"""Products below float32: what a frozen layer's would cost in bfloat16 and in int8: python -m benchmarks.products.

The shapes are those of SmolLM2-135M's widest layers at 2,048 tokens. int8 is quantised by row (each token and each
output has a scale of its own); to its product the quantising of the activations is added and the scaling of
the result, since training pays for both. Errors are relative to float32, as norms.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.shared import report
from tuneloop.model.kernels.matmul import matmul_precision

TOKENS = 2048
SHAPES = ((576, 1536), (1536, 576), (576, 576))
"""(inputs, outputs)."""


def best(work: Callable[[], Tensor], seconds: float = 1.0) -> float:
    """Milliseconds of the quickest of many runs."""
    found, began = float("inf"), time.perf_counter()
    while time.perf_counter() < began + seconds:
        start = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - start)
    return found * 1e3


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8, and the scale of each."""
    scale = x.abs().amax(-1, keepdim=True).div_(127)
    return (x / scale).round_().to(torch.int8), scale


def main() -> None:
    torch.manual_seed(0)
    found = []
    for into, out in SHAPES:
        x, weight = torch.randn(TOKENS, into), torch.randn(out, into) / into**0.5
        held, scales = quantised(weight)
        held, scales = held.t().contiguous(), scales.t()

        def whole(x: Tensor = x, held: Tensor = held, scales: Tensor = scales) -> Tensor:
            rows, scale = quantised(x)
            return torch._int_mm(rows, held).float().mul_(scale).mul_(scales)

        def plain(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return torch.mm(x, weight.t())

        rows, exact = quantised(x)[0], plain()
        with matmul_precision("bfloat16"):
            coarse, reduced = plain(), best(plain)
        found.append(
            {
                "shape": f"{into} x {out}", "float32": best(plain), "bfloat16": reduced, "int8": best(whole),
                "int8_product": best(lambda rows=rows, held=held: torch._int_mm(rows, held)),  # type: ignore[misc]
                "bfloat16_error": float((coarse - exact).norm() / exact.norm()),
                "int8_error": float((whole() - exact).norm() / exact.norm()),
            }
        )  # fmt: skip
    report({"products": found})


if __name__ == "__main__":
    main()
