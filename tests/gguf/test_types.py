from __future__ import annotations

import pytest

from tuneloop.gguf.types import tensor_types

GEMMA = {0, 1, 4, 7, 10, 13, 15, 16, 17}
"""Layers of gemma-3-270m's Q4_K_M file whose attn_v is Q8_0 and whose ffn_down is Q6_K."""
QWEN = {0, 1, 3, 6, 7, 8, 9, 10, 13, 16, 19, 21}
"""Those of Qwen2.5-Coder-0.5B-Instruct's: the llama.cpp that wrote it counted layers as its file has them, by name."""


def gemma_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (640,), "token_embd.weight": (262144, 640)}
    for n in range(18):
        shapes |= {
            f"blk.{n}.attn_k.weight": (256, 640), f"blk.{n}.attn_k_norm.weight": (256,),
            f"blk.{n}.attn_norm.weight": (640,), f"blk.{n}.attn_output.weight": (640, 1024),
            f"blk.{n}.attn_q.weight": (1024, 640), f"blk.{n}.attn_v.weight": (256, 640),
            f"blk.{n}.ffn_down.weight": (640, 2048), f"blk.{n}.ffn_gate.weight": (2048, 640),
            f"blk.{n}.ffn_up.weight": (2048, 640),
        }  # fmt: skip
    return shapes


def test_types_are_those_of_gemmas_own_file() -> None:
    types = tensor_types(gemma_shapes(), "q4_k_m")
    assert types["token_embd.weight"] == "Q8_0"  # Q6_K, as the output that it is, but 640 is not 2.5 blocks
    assert types["output_norm.weight"] == "F32"
    for n in range(18):
        layer = {part.split(".", 2)[2]: kind for part, kind in types.items() if part.startswith(f"blk.{n}.")}
        assert layer == {
            "attn_k.weight": "Q5_0", "attn_k_norm.weight": "F32", "attn_norm.weight": "F32",
            "attn_output.weight": "Q4_K", "attn_q.weight": "Q5_0", "attn_v.weight": "Q8_0" if n in GEMMA else "Q5_0",
            "ffn_down.weight": "Q6_K" if n in GEMMA else "Q4_K", "ffn_gate.weight": "Q5_0", "ffn_up.weight": "Q5_0",
        }  # fmt: skip


def test_types_are_those_of_qwens_own_file() -> None:
    shapes: dict[str, tuple[int, ...]] = {"output.weight": (151936, 896), "token_embd.weight": (151936, 896)}
    for n in sorted(range(24), key=str):
        shapes |= {f"blk.{n}.attn_v.bias": (128,), f"blk.{n}.attn_v.weight": (128, 896),
                   f"blk.{n}.ffn_down.weight": (896, 4864), f"blk.{n}.attn_q.weight": (896, 896)}  # fmt: skip
    types = tensor_types(shapes, "q4_k_m")
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q8_0", "Q5_0")
    for n in range(24):
        assert types[f"blk.{n}.attn_v.weight"] == ("Q8_0" if n in QWEN else "Q5_0")
        assert types[f"blk.{n}.ffn_down.weight"] == ("Q6_K" if n in QWEN else "Q4_K")
        assert (types[f"blk.{n}.attn_v.bias"], types[f"blk.{n}.attn_q.weight"]) == ("F32", "Q5_0")


@pytest.mark.parametrize(
    ("layers", "higher"),
    [
        (28, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]),
        (34, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29, 30, 31, 32, 33]),
        (40, [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 35, 36, 37, 38, 39]),
        (80, [*range(10), *range(12, 70, 3), *range(70, 80)]),
    ],
    ids=["qwen3-0.6b", "gemma-3-4b", "qwen3-14b", "llama-3.1-70b"],
)
def test_the_layers_with_more_bits_are_those_of_llama_cpps_own_tests(layers: int, higher: list[int]) -> None:
    """As the snapshots of its test-quant-type-selection have them (August 2026)."""
    shapes = {f"blk.{n}.{part}.weight": (512, 512) for n in range(layers) for part in ("attn_v", "ffn_down")}
    for kind, most in (("q4_k_m", "Q4_K"), ("q5_k_m", "Q5_K")):
        expected = {name: "Q6_K" if int(name.split(".")[1]) in higher else most for name in shapes}
        assert tensor_types(shapes, kind) == expected


@pytest.mark.parametrize(
    ("kind", "output", "embedding", "most"),
    [
        ("f16", "F16", "F16", "F16"), ("bf16", "BF16", "BF16", "BF16"), ("q8_0", "Q8_0", "Q8_0", "Q8_0"),
        ("q4_0", "Q6_K", "Q4_0", "Q4_0"), ("q4_k_m", "Q6_K", "Q4_K", "Q4_K"), ("q5_k_m", "Q6_K", "Q5_K", "Q5_K"),
        ("q6_k", "Q6_K", "Q6_K", "Q6_K"),
    ],
)  # fmt: skip
def test_the_output_keeps_more_bits_and_so_does_what_is_tied_to_it(
    kind: str, output: str, embedding: str, most: str
) -> None:
    shapes = {"token_embd.weight": (600, 512), "blk.0.attn_q.weight": (512, 512)}
    alone = tensor_types(shapes | {"output.weight": (600, 512)}, kind)
    assert (alone["output.weight"], alone["token_embd.weight"]) == (output, embedding)
    assert tensor_types(shapes, kind) == {"token_embd.weight": output, "blk.0.attn_q.weight": most}


def test_seventy_billion_keep_more_of_the_shared_values() -> None:
    shapes = {f"blk.{n}.attn_v.weight": (1024, 8192) for n in range(80)}
    narrow, wide = (set(tensor_types(shapes, "q4_k_m", wide=wide).values()) for wide in (False, True))
    assert (narrow, wide) == ({"Q4_K", "Q6_K"}, {"Q5_K", "Q6_K"})


def test_rows_that_no_block_divides_are_half_precision() -> None:
    shapes = {"token_embd.weight": (9, 40), "blk.0.attn_q.weight": (9, 40), "blk.0.ffn_down.weight": (9, 288)}
    assert tensor_types(shapes, "q4_0") == {
        "token_embd.weight": "F16", "blk.0.attn_q.weight": "F16", "blk.0.ffn_down.weight": "Q4_0"
    }  # fmt: skip
    assert tensor_types(shapes, "q5_k_m")["blk.0.ffn_down.weight"] == "Q8_0"  # the last layer's: Q6_K, then narrower
