"""A decoding step without modules between its products, for models whose blocks are known by their parts.

A step of few rows through transformers' modules spends more on the way than on the numbers: a mask and a copy of the
shared heads' keys for each layer, dozens of small operations. Here query, key and value are one product, gate and up
are one, heads that share keys are read as rows of one query, and weights lie as oneDNN reads them for a few dozen rows.
Llama, Mistral, Qwen 2 and 3, Gemma 3 and what is built like them have it; it is used where it gives the model's own
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tuneloop.inference.row_adapters import SITE
from tuneloop.inference.slots import cache_of
from tuneloop.model.kernels.gated import ACTS
from tuneloop.model.kernels.install import LIMITS, TOLERANCE

PACKED = 16
"""Rows that the weights are laid out for; the layout is the same for any few dozen."""
FEWEST = 4
"""Rows that are multiplied at once at least, zeros among them: 4 take oneDNN three quarters of the time of 1 (float32,
AMD EPYC with AVX-512), for one row is a product of another kind that does not read memory as fast."""
SHARE = 0.25
"""Of the free memory that laid out weights may take."""
PROVEN = 1100
"""Windows up to this length are tried before use; the model's own step is taken where a longer one is at its end."""
UNKNOWN = (*LIMITS, "attn_logit_softcapping", "final_logit_softcapping")
"""Keys of configurations for what a trial of small numbers would not show."""

FUSED = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_pytorch_tanh": ("gelu", "tanh")}
"""Activation -> what oneDNN calls it, and its variant."""
_POINTWISE: Any = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
Norm = tuple[Tensor, Tensor]
"""(gain times the root of the width, root of width times eps), see `_normed`."""
KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""Of each layer: keys and values [rows, shared heads, columns, width]; the last column is written by the step."""


class _Product:
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
class _Block:
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
    three: _Product
    out: _Product
    gate: _Product
    up: _Product
    down: _Product
    act: str


class FastStep:
    """The step of one model. Its weights must stay as they are; row adapters may come and go."""

    def __init__(self, base: Any) -> None:
        """Raises AttributeError, TypeError or ValueError where the model is built otherwise."""
        self.base, self.inner = base, getattr(base, base.base_model_prefix)
        inner, config = self.inner, base.config.get_text_config()
        packed = _fits(base)
        self.blocks = [_block(layer, config, n, packed) for n, layer in enumerate(inner.layers)]
        self.norm = _norm(inner.norm)
        self.head = _Product([_linear(base.get_output_embeddings())], packed)
        self.turns = sorted({block.turn for block in self.blocks})
        windows = {block.window for block in self.blocks if block.window} | {getattr(config, "sliding_window", None)}
        self.longest = min((w for w in windows if w and w > PROVEN), default=1 << 40)
        """Columns up to which no window is at its end that was not tried."""

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, places: Tensor, before: Sequence[int], memory: KeysAndValues, adapted: int = 0
    ) -> Tensor:
        """tokens, places int64 [rows], how many unread columns each row begins with -> logits [rows, vocabulary].

        `adapted` is the number of rows where some go through adapters, else 0.
        """
        inner, columns, rows = self.inner, memory[0][0].shape[2], len(tokens)
        hidden = inner.embed_tokens(tokens)
        turns = {turn: self._turn(hidden, places, turn) for turn in self.turns}
        masks = {w: _mask(before, columns, w, hidden.device) for w in {block.window for block in self.blocks}}
        if rows < FEWEST and self.head.packed is not None:
            hidden = pad(hidden, (0, 0, 0, FEWEST - rows))
        buffers = {width: hidden.new_zeros(len(hidden), width) for width in {b.heads * b.width for b in self.blocks}}
        for block, (keys, values) in zip(self.blocks, memory, strict=True):
            out = _attend(block, hidden, turns[block.turn], masks[block.window], keys, values, buffers, adapted)
            hidden = _added(block.out, out, hidden, block.after[0], adapted)
            out = _gated(block, _normed(hidden, block.before[1]), adapted)
            hidden = _added(block.down, out, hidden, block.after[1], adapted)
        return self.head(_normed(hidden, self.norm), adapted)[:rows]

    def _turn(self, hidden: Tensor, places: Tensor, turn: str) -> tuple[Tensor, Tensor]:
        """cos and sin [rows, 1, width] of the rows' positions, sin negative in the first half (see `_turned`)."""
        kind = () if not turn else (turn,)
        cos, sin = self.inner.rotary_emb(hidden.unsqueeze(1), places.unsqueeze(-1), *kind)
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


@torch.no_grad()
def fast_step(base: nn.Module) -> FastStep | None:
    """The fast step of a model that answers, in float32 on a CPU; None where it has none that agrees with its own."""
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in base.parameters()) or _watched(base):
        return None
    try:
        step = FastStep(base)
        return step if _agrees(step) else None
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError):
        return None  # it is built otherwise than its names say


def _watched(base: nn.Module) -> bool:
    """Whether somebody listens at a module beside the row adapters, or put a forward of his own into it."""
    return any(
        m._forward_pre_hooks or (m._forward_hooks and not hasattr(m, SITE)) or "forward" in vars(m)
        for m in base.modules()
    )


def _fits(base: nn.Module) -> bool:
    size = sum(m.weight.numel() * m.weight.element_size() for m in base.modules() if type(m) is nn.Linear)
    return torch.backends.mkldnn.is_available() and size < SHARE * psutil.virtual_memory().available


def _linear(module: Any) -> Any:
    if type(module) is not nn.Linear:
        raise TypeError(type(module).__name__)
    return module


def _norm(module: Any) -> Norm:
    """A root mean square norm as `_normed` takes it; some weights are written as what is added to 1."""
    if [name for name, _ in module.named_parameters()] != ["weight"] or not type(module).__name__.endswith("RMSNorm"):
        raise TypeError(type(module).__name__)
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    weight = module.weight.detach()
    x = torch.linspace(1, 2, len(weight))[None]
    with torch.no_grad():
        own = module(x)
    for gain in (weight, weight + 1):
        norm = gain * len(weight) ** 0.5, torch.tensor([(eps * len(weight)) ** 0.5])
        if torch.allclose(_normed(x, norm), own, rtol=TOLERANCE, atol=TOLERANCE):
            return norm
    raise ValueError(type(module).__name__)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    """x / sqrt(mean of squares + eps) x gain, in four operations: hypot(|x|, sqrt(width eps)) is sqrt(width) times the
    denominator."""
    return torch.div(x, vector_norm(x, 2, -1, True).hypot_(norm[1])).mul_(norm[0])


def _added(product: _Product, x: Tensor, hidden: Tensor, norm: Norm | None, adapted: int) -> Tensor:
    """The residual stream behind a block that ends with a product, and with a norm in some models."""
    if norm is None:
        return product.plus(x, hidden, adapted)
    return _normed(product(x, adapted), norm).add_(hidden)


def _gated(block: _Block, x: Tensor, adapted: int) -> Tensor:
    """act(gate) x up: where weights are laid out, oneDNN does both within the products."""
    if adapted or block.gate.packed is None:
        return ACTS[block.act][0](block.gate(x, adapted)).mul_(block.up(x, adapted))
    name, variant = FUSED[block.act]
    gate = _POINTWISE(x, block.gate.packed, block.gate.bias, name, [], variant)
    out: Tensor = _POINTWISE.binary(x, gate, block.up.packed, block.up.bias, "mul")
    return out


def _block(layer: Any, config: Any, number: int, packed: bool) -> _Block:
    if any(getattr(config, key, None) is not None for key in UNKNOWN):
        raise ValueError("limits")
    attention, feed = layer.self_attn, layer.mlp
    # With four norms the names of two of them mean something else.
    four = hasattr(layer, "pre_feedforward_layernorm")
    behind = (_norm(layer.post_attention_layernorm), _norm(layer.post_feedforward_layernorm)) if four else (None, None)
    second = layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm
    three = [_linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
    width = int(attention.head_dim)
    kinds = getattr(config, "layer_types", None)
    rope = getattr(config, "rope_parameters", None) or {}
    act = next(name for name, act in ACTS.items() if torch.equal(act[0](PROBE), feed.act_fn(PROBE)))
    return _Block(
        heads=three[0].out_features // width,
        shared=three[1].out_features // width,
        width=width,
        scale=float(attention.scaling),
        window=getattr(attention, "sliding_window", None)
        or (None if kinds else getattr(config, "sliding_window", None)),
        turn=kinds[number] if kinds and kinds[number] in rope else "",
        before=(_norm(layer.input_layernorm), _norm(second)),
        after=behind,
        of_heads=(_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        three=_Product(three, packed),
        out=_Product([_linear(attention.o_proj)], packed),
        gate=_Product([_linear(feed.gate_proj)], packed),
        up=_Product([_linear(feed.up_proj)], packed),
        down=_Product([_linear(feed.down_proj)], packed),
        act=act,
    )


PROBE = torch.linspace(-4, 4, 33)
"""Where activations are compared."""


def _mask(before: Sequence[int], columns: int, window: int | None, device: torch.device) -> Tensor | None:
    """[rows, 1, 1, columns], added to the scores: the unread columns before a row, and those behind a window.

    >>> _mask([0, 1], 4, 2, torch.device("cpu"))[:, 0, 0].tolist()
    [[-inf, -inf, 0.0, 0.0], [-inf, -inf, 0.0, 0.0]]
    """
    first = columns - window if window else 0
    if max(0, first, *before) == 0:
        return None
    begins = torch.tensor([max(first, b) for b in before], device=device)
    unread = torch.arange(columns, device=device) < begins[:, None]
    return torch.zeros(unread.shape, device=device).masked_fill_(unread, -torch.inf)[:, None, None]


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [rows, heads, width] by rotary positions (arXiv:2104.09864): x cos + (second half, first half) (-sin, sin)."""
    cos, sin = turn
    return torch.addcmul(x.roll(x.shape[-1] // 2, -1).mul_(sin), x, cos)


def _attend(
    block: _Block,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None,
    keys: Tensor,
    values: Tensor,
    buffers: dict[int, Tensor],
    adapted: int,
) -> Tensor:
    """hidden [rows, width of all] -> what the heads have read [rows, heads x width]."""
    rows, heads, shared, width = len(keys), block.heads, block.shared, block.width
    three = block.three(_normed(hidden, block.before[0]), adapted)[:rows].view(rows, -1, width)
    if block.of_heads is None:
        turned = _turned(three[:, : heads + shared], turn)
        query, key = turned[:, :heads], turned[:, heads:]
    else:
        query = _turned(_normed(three[:, :heads], block.of_heads[0]), turn)
        key = _turned(_normed(three[:, heads : heads + shared], block.of_heads[1]), turn)
    keys[:, :, -1] = key
    values[:, :, -1] = three[:, heads + shared :]
    # The heads that share keys are so many queries of one head: no key is copied.
    query = query.reshape(rows, shared, heads // shared, width)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=block.scale)
    if rows == len(hidden):
        return out.reshape(rows, heads * width)
    padded = buffers[heads * width]
    padded[:rows].view(out.shape).copy_(out)
    return padded


@torch.no_grad()
def _agrees(step: FastStep) -> bool:
    """Whether it gives the model's own logits: two rows of different lengths, behind the end of a window."""
    window = max((b.window for b in step.blocks if b.window and b.window <= PROVEN), default=0)
    columns = max(12, window + 5)
    generator = torch.Generator().manual_seed(0)
    memory = [
        (
            torch.randn(2, b.shared, columns, b.width, generator=generator),
            torch.randn(2, b.shared, columns, b.width, generator=generator),
        )
        for b in step.blocks
    ]
    tokens = torch.tensor([1, step.base.get_input_embeddings().weight.shape[0] // 2])
    before, places = [0, 5], torch.tensor([columns - 1, columns - 6])
    own = _own(step.base, tokens, places, before, [(k[:, :, :-1].clone(), v[:, :, :-1].clone()) for k, v in memory])
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        ours = step(tokens[rows], places[rows], before[rows], [(k[rows], v[rows]) for k, v in memory])
        if not bool((ours - own[rows]).abs().max() <= TOLERANCE * own.abs().max().clamp(min=1e-6)):
            return False
    return True


def _own(base: Any, tokens: Tensor, places: Tensor, before: Sequence[int], memory: KeysAndValues) -> Tensor:
    """The same step by the model's own forward: logits [rows, vocabulary]."""
    layers: list[CacheLayerMixin] = []
    for keys, values in memory:
        layer = DynamicLayer()
        layer.update(keys, values)
        layers.append(layer)
    columns = memory[0][0].shape[2] + 1
    mask = (torch.arange(columns) >= torch.tensor(before)[:, None]).long()
    logits: Tensor = base(
        input_ids=tokens.unsqueeze(-1),
        past_key_values=cache_of(layers),
        attention_mask=mask,
        position_ids=places.unsqueeze(-1),
        use_cache=True,
    ).logits[:, -1]
    return logits
