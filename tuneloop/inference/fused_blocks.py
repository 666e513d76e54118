"""The blocks of a model by their parts: query, key and value as one product, weights laid out for oneDNN, what stands
between products in few operations. Llama, Mistral, Qwen 2 and 3, Gemma 3 and what is built like them are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear

from tuneloop.inference.row_adapters import SITE
from tuneloop.model.kernels.gated import ACTS
from tuneloop.model.kernels.install import LIMITS, TOLERANCE

PACKED = 16
"""Rows that the weights are laid out for; the layout is the same for any few dozen."""
UNKNOWN = (*LIMITS, "attn_logit_softcapping", "final_logit_softcapping")
"""Keys of configurations for what a trial of small numbers would not show."""

FUSED = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_pytorch_tanh": ("gelu", "tanh")}
"""Activation -> what oneDNN calls it, and its variant."""
_POINTWISE: Any = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
Norm = tuple[Tensor, Tensor]
"""(gain times the root of the width, root of width times eps), see `normed`."""


class Product:
    """Linear layers with one input, as one."""

    def __init__(self, layers: Sequence[Any], packed: bool) -> None:
        self.layers = layers
        weights = [layer.weight.detach() for layer in layers]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.widths = [len(w) for w in weights]
        biases = [layer.bias for layer in layers]
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            zeros = (w.new_zeros(len(w)) for w in weights)
            self.bias = torch.cat([z if b is None else b.detach() for z, b in zip(zeros, biases, strict=True)])
        self.packed: Any = None
        if packed:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED)
        if len(layers) > 1:  # the layers' own weights are rows of the common one: no second copy in memory
            for layer, rows in zip(layers, self.weight.split(self.widths), strict=True):
                layer.weight.set_(rows)

    def __call__(self, x: Tensor, adapted: int) -> Tensor:
        """x [rows, in] -> [rows, out of all]; what the adapters add to the first `adapted` rows is included."""
        if self.packed is not None:
            out: Tensor = _POINTWISE(x, self.packed, self.bias, "none", [], "")
        else:
            out = linear(x, self.weight, self.bias)
        if adapted:
            self._adapt(x, out, adapted)
        return out

    def plus(self, x: Tensor, other: Tensor, adapted: int) -> Tensor:
        """The product, and other [rows, out] added to it."""
        if self.packed is None or adapted:
            return self(x, adapted).add_(other)
        out: Tensor = _POINTWISE.binary(x, other, self.packed, self.bias, "add")
        return out

    def _adapt(self, x: Tensor, out: Tensor, adapted: int) -> None:
        for layer, part in zip(self.layers, out[:adapted].split(self.widths, -1), strict=True):
            site = getattr(layer, SITE, None)
            update = None if site is None else site.update(x[:adapted])
            if update is not None:
                part += update


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One layer's parts."""

    heads: int
    shared: int
    width: int
    scale: float
    window: int | None
    turn: str
    """Which rotary positions it takes: a key of `FastStep._turns`."""
    before: tuple[Norm, Norm]
    """The norms before attention and before the feed-forward block."""
    after: tuple[Norm | None, Norm | None]
    """Those behind them, where the model has such."""
    of_heads: tuple[Norm, Norm] | None
    """Those of query and key heads."""
    three: Product
    out: Product
    gate: Product
    up: Product
    down: Product
    act: str


def linear_layer(module: Any) -> Any:
    if type(module) is not nn.Linear:
        raise TypeError(type(module).__name__)
    return module


def norm_of(module: Any) -> Norm:
    """A root mean square norm as `normed` takes it; some weights are written as what is added to 1."""
    if [name for name, _ in module.named_parameters()] != ["weight"] or not type(module).__name__.endswith("RMSNorm"):
        raise TypeError(type(module).__name__)
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    weight = module.weight.detach()
    x = torch.linspace(1, 2, len(weight))[None]
    with torch.no_grad():
        own = module(x)
    for gain in (weight, weight + 1):
        norm = gain * len(weight) ** 0.5, torch.tensor([(eps * len(weight)) ** 0.5])
        if torch.allclose(normed(x, norm), own, rtol=TOLERANCE, atol=TOLERANCE):
            return norm
    raise ValueError(type(module).__name__)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """x / sqrt(mean of squares + eps) x gain, in four operations: hypot(|x|, sqrt(width eps)) is sqrt(width) times the
    denominator."""
    return torch.div(x, vector_norm(x, 2, -1, True).hypot_(norm[1])).mul_(norm[0])


def added(product: Product, x: Tensor, hidden: Tensor, norm: Norm | None, adapted: int) -> Tensor:
    """The residual stream behind a block that ends with a product, and with a norm in some models."""
    if norm is None:
        return product.plus(x, hidden, adapted)
    return normed(product(x, adapted), norm).add_(hidden)


def gated(block: Block, x: Tensor, adapted: int) -> Tensor:
    """act(gate) x up: where weights are laid out, oneDNN does both within the products."""
    if adapted or block.gate.packed is None:
        return ACTS[block.act][0](block.gate(x, adapted)).mul_(block.up(x, adapted))
    name, variant = FUSED[block.act]
    gate = _POINTWISE(x, block.gate.packed, block.gate.bias, name, [], variant)
    out: Tensor = _POINTWISE.binary(x, gate, block.up.packed, block.up.bias, "mul")
    return out


def block_of(layer: Any, config: Any, number: int, packed: bool) -> Block:
    if any(getattr(config, key, None) is not None for key in UNKNOWN):
        raise ValueError("limits")
    attention, feed = layer.self_attn, layer.mlp
    # With four norms the names of two of them mean something else.
    four = hasattr(layer, "pre_feedforward_layernorm")
    behind = (
        (norm_of(layer.post_attention_layernorm), norm_of(layer.post_feedforward_layernorm)) if four else (None, None)
    )
    second = layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm
    three = [linear_layer(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
    width = int(attention.head_dim)
    kinds = getattr(config, "layer_types", None)
    rope = getattr(config, "rope_parameters", None) or {}
    act = next(name for name, act in ACTS.items() if torch.equal(act[0](PROBE), feed.act_fn(PROBE)))
    return Block(
        heads=three[0].out_features // width,
        shared=three[1].out_features // width,
        width=width,
        scale=float(attention.scaling),
        window=getattr(attention, "sliding_window", None)
        or (None if kinds else getattr(config, "sliding_window", None)),
        turn=kinds[number] if kinds and kinds[number] in rope else "",
        before=(norm_of(layer.input_layernorm), norm_of(second)),
        after=behind,
        of_heads=(norm_of(attention.q_norm), norm_of(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        three=Product(three, packed),
        out=Product([linear_layer(attention.o_proj)], packed),
        gate=Product([linear_layer(feed.gate_proj)], packed),
        up=Product([linear_layer(feed.up_proj)], packed),
        down=Product([linear_layer(feed.down_proj)], packed),
        act=act,
    )


PROBE = torch.linspace(-4, 4, 33)
"""Where activations are compared."""


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [rows, heads, width] by rotary positions (arXiv:2104.09864): x cos + (second half, first half) (-sin, sin)."""
    cos, sin = turn
    return torch.addcmul(x.roll(x.shape[-1] // 2, -1).mul_(sin), x, cos)
