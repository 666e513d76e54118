"""The floor: arithmetic that LoRA training cannot do without, over the rate at which this machine multiplies matrices.

    python -m benchmarks.floor MODEL ROWS.JSON     prints one RESULT line

Counted are the forward pass and the gradients of the activations through every linear layer, causal attention on the
half of each matrix that is not masked, and the head on the tokens that carry a label. Gradients of frozen weights,
logits without a label, padding, and all that is no matrix product are not. A product of n x k by k x m is 2nkm.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 8.0
"""How long the rate is measured, after a second of warming up: long enough to be sustained."""
TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of Llama's build: what its config.json says."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    width: int
    words: int

    @staticmethod
    def of(config: dict[str, Any]) -> Shape:
        heads = config["num_attention_heads"]
        return Shape(
            hidden=config["hidden_size"], inner=config["intermediate_size"], layers=config["num_hidden_layers"],
            heads=heads, keys=config.get("num_key_value_heads") or heads,
            width=config.get("head_dim") or config["hidden_size"] // heads, words=config["vocab_size"],
        )  # fmt: skip

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.width, self.keys * self.width
        return [
            (self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden),
            (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden),
        ]  # fmt: skip


def flops(shape: Shape, samples: Sequence[tuple[int, int]], rank: int = 8) -> float:
    """Of one pass over `samples`, (tokens, label tokens) each, with LoRA of `rank` on q and v.

    A sample attends to n (n + 1) / 2 pairs of places; scores and mixing are a product each, and two each backwards.

    >>> tiny = Shape(hidden=2, inner=4, layers=1, heads=1, keys=1, width=2, words=10)
    >>> flops(tiny, [(3, 2)], rank=0)  # 4 x 40 weights x 3 tokens, 3 x 4 x 2 x 6 pairs, 4 x 20 weights x 2 labels
    784.0
    """
    tokens = sum(n for n, _ in samples)
    labels = sum(m for _, m in samples)
    pairs = sum(n * (n + 1) / 2 for n, _ in samples)
    weights = shape.layers * sum(a * b for a, b in shape.linears)
    q, _, v, *_ = shape.linears
    adapters = shape.layers * rank * (sum(q) + sum(v))
    attention = 3 * 4 * shape.heads * shape.width * pairs * shape.layers
    # An adapter's own weights do learn, so it multiplies three times where a frozen layer does twice.
    return float(4 * weights * tokens + 6 * adapters * tokens + attention + 4 * shape.hidden * shape.words * labels)


def rate(shape: Shape) -> float:
    """Sustained float32 FLOP/s of the model's own products: each block's, forward and back, and the head's in part.

    The median over rounds, so that a moment's disturbance does not count.
    """
    import torch

    weights = [torch.randn(out, into) for into, out in shape.linears]
    head, some = torch.randn(shape.words, shape.hidden), torch.randn(TOKENS // 8, shape.hidden)
    inputs = [torch.randn(TOKENS, w.shape[1]) for w in weights]
    back = [torch.randn(TOKENS, w.shape[0]) for w in weights]
    up = torch.randn(len(some), shape.words)
    work = sum(4 * TOKENS * w.numel() for w in weights) * 4 + 4 * len(some) * head.numel()

    def block() -> None:
        for _ in range(4):
            for x, g, w in zip(inputs, back, weights, strict=True):
                torch.mm(x, w.t())
                torch.mm(g, w)
        torch.mm(some, head.t())
        torch.mm(up, head)

    rounds, began = [], time.perf_counter()
    while time.perf_counter() < began + 1 + SECONDS:
        start = time.perf_counter()
        block()
        if start > began + 1:
            rounds.append(work / (time.perf_counter() - start))
    return statistics.median(rounds)


def main() -> None:
    from transformers import AutoTokenizer

    from benchmarks.peers.shared import asked, encode, report

    model, rows = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    shape = Shape.of(json.loads((model / "config.json").read_text(encoding="utf-8")))
    samples = []
    for row in rows:
        ids, prompt = encode(tokenizer, asked(row), row["completion"])
        samples.append((len(ids), len(ids) - prompt))
    needed, speed = flops(shape, samples), rate(shape)
    tokens = sum(n for n, _ in samples)
    report({
        "flops": needed, "rate": speed, "tokens": tokens, "labels": sum(m for _, m in samples),
        "seconds": needed / speed, "tokens_per_second": tokens * speed / needed,
    })  # fmt: skip


if __name__ == "__main__":
    main()
