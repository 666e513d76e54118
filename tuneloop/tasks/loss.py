"""The training loss: cross entropy on label positions only, in chunks; the full logits never exist.

Source of the idea: "Cut Your Losses in Large-Vocabulary Language Models" (Wijmans et al. 2024, arXiv:2411.09009) and
the fused linear cross entropy of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989); here the head stays a module call,
so that wrapped and sharded heads work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tuneloop.model.backbone import packed_inputs, states, unwrap

CHUNK = 1 << 24
"""Logits (label positions x vocabulary) that may exist at a time: 64 MiB in fp32."""


def _summed(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Summed loss of all chunks. Forward computes the gradients as well, so no chunk's logits outlive it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Any, rows: int, *weights: Tensor) -> Tensor:
        trained = [w for w in weights if w.requires_grad]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grads = [torch.zeros_like(w) for w in trained]
        back = torch.empty_like(hidden)
        for start in range(0, len(hidden), rows):
            with torch.enable_grad():
                part = hidden[start : start + rows].detach().requires_grad_(True)
                loss = _summed(head, part, targets[start : start + rows])
                mine, *theirs = torch.autograd.grad(loss, [part, *trained])
            total += loss.detach()
            back[start : start + rows] = mine
            for grad, piece in zip(grads, theirs, strict=True):
                grad += piece
        ctx.save_for_backward(back, *grads)
        ctx.trained = [w.requires_grad for w in weights]
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        back, *grads = ctx.saved_tensors
        left = iter(grads)
        return (back * scale, None, None, None, *(next(left) * scale if t else None for t in ctx.trained))


class _LinearLoss(torch.autograd.Function):
    """The same for a head that is one matrix [vocabulary, width]: the logits of all chunks lie in one place.

    The gradient of a logit is its probability, less 1 for the target's (softmax and cross entropy taken together).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, rows: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        back = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        space = hidden.new_empty(min(rows, len(hidden)), len(weight))
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows]
            logits = space[: len(part)]
            torch.mm(part, weight.t(), out=logits)
            torch.log_softmax(logits, -1, out=logits)
            at = target.unsqueeze(1)
            total -= logits.gather(1, at).sum()
            logits.exp_()
            logits.scatter_add_(1, at, logits.new_full((len(part), 1), -1.0))
            torch.mm(logits, weight, out=back[start : start + rows])
            if of_weight is not None:
                of_weight.addmm_(logits.t(), part)
        ctx.save_for_backward(back, of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        back, of_weight = ctx.saved_tensors
        scale = outputs[0]
        return back * scale, None, of_weight * scale if of_weight is not None else None, None


class LossModel(nn.Module):
    """Trunk, head and loss in one forward: the module that accelerate wraps.

    Forward takes a `Packed` row (data/batches/plan.py) and returns the sum of the label tokens' losses, float32 [].
    """

    def __init__(self, model: nn.Module, *, own_head: bool = False) -> None:
        """`own_head` asks the model itself for the logits, unchunked: for a model whose head we do not match."""
        super().__init__()
        self.model = model
        self.own_head = own_head
        self.training = model.training  # else putting this back as it was would switch the model's dropout on

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [n, width] -> [n, vocabulary], with the model's own scaling and capping.

        Gemma 2 and 3 cap (final_logit_softcapping), Granite divides (logits_scaling), Cohere multiplies (logit_scale).
        """
        base = unwrap(self.model)
        config = base.config.get_text_config()
        logits: Tensor = base.get_output_embeddings()(hidden)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _bare(self, head: nn.Module) -> bool:
        """Whether the logits are one float32 product on a CPU, and nothing else: no bias, no adapter, no scaling."""
        config = unwrap(self.model).config.get_text_config()
        scaled = any(getattr(config, k, None) for k in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
        plainly = type(head) is nn.Linear and head.bias is None and not scaled and not head._forward_hooks
        return plainly and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        segments: tuple[int, ...] | None = None,
        columns: dict[str, Tensor] | None = None,
        members: tuple[int, ...] = (),
    ) -> Tensor:
        base = unwrap(self.model)
        if self.own_head and len(targets):
            given = packed_inputs(self.model, input_ids, position_ids, segments)
            own = base(**given.inputs, logits_to_keep=given.tokens(positions))
            whole: Tensor = cross_entropy(own.logits[0].float(), targets, reduction="sum")
            return whole
        every = states(self.model, input_ids, position_ids, segments, members)
        hidden = every.index_select(0, positions)
        head = base.get_output_embeddings()
        if len(targets) == 0:  # an idle rank's pass: no loss, but a graph that reaches every trained weight
            ends = [w.flatten()[0].float() for w in head.parameters() if w.requires_grad]
            return torch.stack([every.float().sum(), *ends]).sum() * 0.0
        rows = max(1, CHUNK // int(base.config.get_text_config().vocab_size))
        if not torch.is_grad_enabled():
            losses = [_summed(self.head, h, y) for h, y in zip(hidden.split(rows), targets.split(rows), strict=True)]
            return torch.stack(losses).sum()
        if self._bare(head) and hidden.dtype == torch.float32:
            bare: Tensor = _LinearLoss.apply(hidden, targets, head.weight, max(1, rows))  # type: ignore[no-untyped-call]
            return bare
        loss: Tensor = _ChunkedLoss.apply(hidden, targets, self.head, rows, *head.parameters())  # type: ignore[no-untyped-call]
        return loss


def head_is_exact(model: nn.Module, ids: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether our head gives the logits of the model's own forward, for ids int64 [1, length]."""
    base = unwrap(model)
    with torch.no_grad():
        own = base(input_ids=ids, use_cache=False).logits[0].float()
        hidden = getattr(base, base.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = LossModel(model).head(hidden).float()
    return bool((own - ours).abs().max() <= tolerance * max(1.0, float(own.abs().max())))
