"""The training loss: cross entropy on label positions only, in chunks; the full logits never exist.

Source of the idea: "Cut Your Losses in Large-Vocabulary Language Models" (Wijmans et al. 2024, arXiv:2411.09009) and
the fused linear cross entropy of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989); here the head stays a module call,
so that wrapped and sharded heads work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from tuneloop.data.batches.pack import Batch
from tuneloop.model.backbone import packed_inputs, states, unwrap
from tuneloop.tasks.objective import Losses, Objective

CHUNK = 1 << 24
"""Logits (label positions x vocabulary) that may exist at a time: 64 MiB in fp32."""


Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Logits [n, vocabulary] and targets -> the sum of the losses, and each of them, detached."""


def _summed(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits [n, vocabulary]: the sum, float32 [], and of each position, float32 [n], detached."""
    logs = log_softmax(logits.float(), -1)
    return nll_loss(logs, targets, reduction="sum"), -logs.detach().gather(1, targets.unsqueeze(1)).squeeze(1)


class _ChunkedLoss(torch.autograd.Function):
    """Summed loss of all chunks. Forward computes the gradients as well, so no chunk's logits outlive it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Any, measure: Measure, rows: int, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        trained = [w for w in weights if w.requires_grad]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        each = total.new_empty(len(targets))
        grads = [torch.zeros_like(w) for w in trained]
        back = torch.empty_like(hidden)
        for start in range(0, len(hidden), rows):
            with torch.enable_grad():
                part = hidden[start : start + rows].detach().requires_grad_(True)
                loss, each[start : start + rows] = measure(head(part), targets[start : start + rows])
                mine, *theirs = torch.autograd.grad(loss, [part, *trained])
            total += loss.detach()
            back[start : start + rows] = mine
            for grad, piece in zip(grads, theirs, strict=True):
                grad += piece
        ctx.save_for_backward(back, *grads)
        ctx.trained = [w.requires_grad for w in weights]
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale, _ = outputs
        back, *grads = ctx.saved_tensors
        left = iter(grads)
        return (back * scale, None, None, None, None, *(next(left) * scale if t else None for t in ctx.trained))


class _LinearLoss(torch.autograd.Function):
    """The same for a head that is one matrix [vocabulary, width]: the logits of all chunks lie in one place.

    The gradient of a logit is its probability, less 1 for the target's (softmax and cross entropy taken together).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float32)
        each = total.new_empty(len(targets))
        back = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        space = hidden.new_empty(min(rows, len(hidden)), len(weight))
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows]
            logits = space[: len(part)]
            torch.mm(part, weight.t(), out=logits)
            torch.log_softmax(logits, -1, out=logits)
            at = target.unsqueeze(1)
            own = logits.gather(1, at)
            total -= own.sum()
            each[start : start + rows] = -own.squeeze(1)
            logits.exp_()
            logits.scatter_add_(1, at, logits.new_full((len(part), 1), -1.0))
            torch.mm(logits, weight, out=back[start : start + rows])
            if of_weight is not None:
                of_weight.addmm_(logits.t(), part)
        ctx.save_for_backward(back, of_weight)
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        back, of_weight = ctx.saved_tensors
        scale = outputs[0]
        return back * scale, None, of_weight * scale if of_weight is not None else None, None


class LossModel(Objective):
    """Cross entropy of the label tokens; what an example loses is the sum over its own."""

    def __init__(
        self, model: nn.Module, *, own_head: bool = False, token_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        """`own_head` asks the model itself for the logits, unchunked: for a model whose head we do not match.

        `token_loss` makes of logits float32 [n, vocabulary] and targets what each token loses in training, float32 [n].
        """
        super().__init__(model)
        self.own_head, self.token_loss = own_head, token_loss

    @property
    def chance(self) -> float | None:
        return math.log(int(unwrap(self.model).config.get_text_config().vocab_size))

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

    def forward(self, batch: Batch) -> Losses:
        if not batch.labels:
            total = self.idle(batch)
            return Losses(total, total.new_zeros(0).detach())
        total, each = self._losses(batch)
        return Losses(total, per_sample(each, batch.positions, batch.segments))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the label tokens' losses, float32 [], and each of them, float32 [labels], detached."""
        base, targets = unwrap(self.model), batch.targets
        if self.own_head:
            given = packed_inputs(self.model, batch.input_ids, batch.position_ids, batch.segments)
            logits = base(**given.inputs, logits_to_keep=given.tokens(batch.positions)).logits[0]
            return self._measure(logits, targets)
        hidden = self.states(batch).index_select(0, batch.positions)
        head = base.get_output_embeddings()
        rows = max(1, CHUNK // int(base.config.get_text_config().vocab_size))
        losses: tuple[Tensor, Tensor]
        if not torch.is_grad_enabled():
            pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
            sums, each = zip(*(_summed(self.head(h), y) for h, y in pieces), strict=True)
            return torch.stack(sums).sum(), torch.cat(each)
        if self.token_loss is None and self._bare(head) and hidden.dtype == torch.float32:
            losses = _LinearLoss.apply(hidden, targets, head.weight, rows)  # type: ignore[no-untyped-call]
        else:
            parts = hidden, targets, self.head, self._measure, rows, *head.parameters()
            losses = _ChunkedLoss.apply(*parts)  # type: ignore[no-untyped-call]
        return losses

    def _measure(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of what tokens lose, float32 [], and each of them, float32 [n], detached."""
        if self.token_loss is None or not (self.training and torch.is_grad_enabled()):
            return _summed(logits, targets)
        each = self.token_loss(logits.float(), targets)
        return each.sum(), each.detach()

    def states(self, batch: Batch) -> Tensor:
        """The last hidden states of a batch, [length, width]."""
        return states(self.model, batch.input_ids, batch.position_ids, batch.segments, batch.members)

    def idle(self, batch: Batch) -> Tensor:
        """No loss, but a graph that reaches every trained weight: the pass of a rank that has nothing to do."""
        return touched(self.states(batch), unwrap(self.model).get_output_embeddings())


def touched(every: Tensor, head: nn.Module) -> Tensor:
    """Zero, with a graph that reaches hidden states and a head's trained weights, float32 []."""
    ends = [w.flatten()[0].float() for w in head.parameters() if w.requires_grad]
    return torch.stack([every.float().sum(), *ends]).sum() * 0.0


def per_sample(values: Tensor, positions: Tensor, segments: tuple[int, ...]) -> Tensor:
    """Sum of the values [labels] of each sample of a batch, float32 [samples].

    positions int64 [labels]: where each label is predicted from, which is in its own sample.

    >>> per_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 5]), (3, 2, 2)).tolist()
    [3.0, 0.0, 4.0]
    """
    return torch.zeros(len(segments), device=values.device).index_add(0, sample_of(positions, segments), values)


def sample_of(positions: Tensor, segments: tuple[int, ...]) -> Tensor:
    """The sample that each of these positions in a batch is in, int64."""
    ends = torch.tensor(segments, device=positions.device).cumsum(0)
    return torch.searchsorted(ends, positions, right=True)


def head_is_exact(model: nn.Module, ids: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether our head gives the logits of the model's own forward, for ids int64 [1, length]."""
    base = unwrap(model)
    with torch.no_grad():
        own = base(input_ids=ids, use_cache=False).logits[0].float()
        hidden = getattr(base, base.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = LossModel(model).head(hidden).float()
    return bool((own - ours).abs().max() <= tolerance * max(1.0, float(own.abs().max())))
