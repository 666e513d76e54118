"""Limits: how far an exported model may be from the trained one, by how its weights are held."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

NEAR_TIE = 1e-3
"""Lead of the best token, in standard deviations of a step's logits, below which evaluation calls it a near tie."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed, as means over answer tokens in the context that the trained model gives."""

    kld: float
    """Mean Kullback-Leibler divergence of the exported model's next token from the trained one's, in nats."""
    noise: float
    """Size of the difference of both models' logits over the size of the trained one's, each without its mean: what is
    allowed however flat or sharp the distributions are."""
    same_top: float
    """Share of the tokens at which both hold the same next token for the most likely one; near ties (`NEAR_TIE`)
    count as the same."""
    loss: float
    """How far the mean losses of an answer token may be apart, in nats."""
    greedy: float | None
    """Share of greedy tokens up to the first near tie that are the same; None where rounding turns greedy answers."""
    tie: float
    """Lead below which a greedy step is a near tie: `NEAR_TIE`, or what the rounding of this type can turn."""

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


LIMITS: dict[str, Limits] = {
    "float32":     Limits(1e-5,  1e-3,  1.00, 1e-3,  1.00, NEAR_TIE),
    "float16":     Limits(1e-4,  0.01,  0.98, 0.005, 1.00, 0.02),
    "bfloat16":    Limits(5e-3,  0.05,  0.94, 0.03,  1.00, 0.10),
    "gguf-f16":    Limits(1e-4,  0.005, 0.98, 0.005, 1.00, 0.01),
    "gguf-bf16":   Limits(1e-3,  0.03,  0.95, 0.01,  1.00, 0.06),
    "gguf-q8_0":   Limits(0.015, 0.10,  0.92, 0.05,  None, NEAR_TIE),
    "gguf-q6_k":   Limits(0.06,  0.20,  0.87, 0.10,  None, NEAR_TIE),
    "gguf-q5_k_m": Limits(0.25,  0.35,  0.75, 0.25,  None, NEAR_TIE),
    "gguf-q4_k_m": Limits(0.25,  0.40,  0.75, 0.25,  None, NEAR_TIE),
    "gguf-q4_0":   Limits(0.80,  0.60,  0.55, 0.80,  None, NEAR_TIE),
    "nf4":         Limits(0.80,  0.60,  0.60, 0.60,  None, NEAR_TIE),
    "int8":        Limits(0.10,  0.25,  0.85, 0.10,  None, NEAR_TIE),
}  # fmt: skip
"""How weights are held -> limits: about three times the divergence, and twice the noise, that was measured first.

That was on SmolLM2-135M-Instruct in float32, 312 answer tokens of five real Chinese and English dialogues, GGUF files
read by llama.cpp (`tests/exports/test_certificate_real.py` measures it again and prints it). Its rows of 576 numbers
are no whole blocks of 256, so most of its K-quants are the types that llama.cpp falls back to:

    GGUF    f16      bf16     q8_0     q6_k     q5_k_m   q4_k_m   q4_0
    kld     5.8e-6   2.3e-4   0.0050   0.015    0.091    0.061    0.39
    noise   0.0015   0.0094   0.046    0.080    0.19     0.17     0.38
    top     1.00     0.98     0.97     0.94     0.84     0.88     0.68
    loss    -0.000   +0.001   +0.016   +0.025   +0.085   +0.052   +0.36

    folder  float32  float16  bfloat16 nf4      int8
    kld     1.4e-11  2.3e-5   1.4e-3   0.34     0.032
    noise   2.1e-6   0.0029   0.021    0.38     0.11
    top     1.00     1.00     0.96     0.73     0.89
    loss    -0.000   -0.001   -0.004   +0.26    +0.012

A Qwen2.5-Coder-0.5B-Instruct that four epochs of `demo-zh` made very sure of its answers loses more by four bits (248
answer tokens): as q4_k_m and q4_0 it is past the limits, and is refused with the type as the cause:

    GGUF    f16      q8_0     q6_k     q5_k_m   q4_k_m   q4_0     | nf4      int8
    kld     1.7e-6   0.0019   0.0051   0.036    0.32     1.6      | 0.16     0.0063
    noise   0.0008   0.026    0.042    0.10     0.27     0.59     | 0.23     0.050
    top     1.00     0.98     0.96     0.90     0.72     0.50     | 0.81     0.96
    loss    +0.000   +0.002   -0.019   +0.007   -0.17    +1.9     | -0.055   -0.026
"""


def limits_of(target: str, form: torch.dtype, reference: torch.dtype = torch.float32) -> Limits:
    """The limits of a target: those of its name, or of the type of its weights where it has none of its own.

    A reference that computes in less than float32 rounds as well: both roundings add up, as divergences of independent
    small errors do.

    >>> limits_of("merged", torch.float32) == LIMITS["float32"]
    True
    >>> limits_of("gguf-q8_0", torch.float32, torch.bfloat16).kld
    0.02
    """
    own = LIMITS[LIMITED_AS.get(target, target) or _named(form)]
    if _named(reference) == "float32":
        return own
    theirs = LIMITS[_named(reference)]
    return Limits(
        own.kld + theirs.kld,
        own.noise + theirs.noise,
        own.same_top + theirs.same_top - 1.0,
        own.loss + theirs.loss,
        None if own.greedy is None or theirs.greedy is None else own.greedy + theirs.greedy - 1.0,
        own.tie + theirs.tie,
    )


LIMITED_AS: dict[str, str] = {"merged": "", "adapter": "", "gguf-lora": "gguf-f16"}
"""Targets that round nothing but by the type of their weights ("": whichever that is)."""


def _named(dtype: torch.dtype) -> str:
    return {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(dtype, "float32")


def fewest(share: float, of: int) -> int:
    """How many of `of` must be the same for a share to be within its limit: three standard deviations of chance less,
    so that a few tokens are not judged as if they were many.

    >>> fewest(1.0, 50), fewest(0.9, 200), fewest(0.9, 5)
    (50, 168, 3)
    """
    return max(0, math.ceil(share * of - 3 * math.sqrt(of * share * (1 - share))))


def most(mean: float, of: int) -> float:
    """The largest mean of `of` numbers that is within a limit: rare tokens make up most of a divergence, so the mean of
    few scatters; the excess that is allowed falls with the root of their number.

    >>> round(most(0.1, 100), 3), round(most(0.1, 4), 3)
    (0.14, 0.3)
    """
    return mean * (1 + 4 / math.sqrt(max(1, of)))


ROUNDING: dict[str, float] = {
    "float32": 1e-5, "float16": 1e-3, "bfloat16": 6e-3, "gguf-f16": 1e-3, "gguf-bf16": 6e-3, "gguf-q8_0": 0.02,
    "gguf-q6_k": 0.05, "gguf-q5_k_m": 0.09, "gguf-q4_k_m": 0.18, "gguf-q4_0": 0.2, "nf4": 0.2, "int8": 0.03,
}  # fmt: skip
"""How weights are held -> how far the rounded tensor may lie from the tensor, over its size."""


def rounding_of(target: str, form: torch.dtype, reference: torch.dtype, moved: float = 0.0) -> float:
    """How far a tensor of an export may be from the trained one's by rounding alone, over its size; `moved` is how far
    the trained model's own weights were from those that they are compared with.

    >>> rounding_of("gguf-q8_0", torch.float32, torch.float32)
    0.02
    """
    own = ROUNDING[LIMITED_AS.get(target, target) or _named(form)]
    theirs = ROUNDING[_named(reference)] if reference in (torch.float16, torch.bfloat16) else 0.0
    return own + theirs + 2 * moved
