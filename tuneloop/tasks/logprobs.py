"""How likely a model finds given tokens: one log-probability a label position, in chunks; the full logits never exist.

What preference losses are made of. Unlike the summed loss (loss.py), each position has a gradient of its own coming in,
since a pair's loss is no sum over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuneloop.data.batches.pack import Batch
from tuneloop.model.backbone import packed_inputs, unwrap
from tuneloop.tasks.loss import CHUNK, LossModel, sample_of


def _log_probs(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, float32 [n]."""
    return -cross_entropy(head(hidden).float(), targets, reduction="none")


def _casting(device: str) -> torch.autocast:
    """Autocast as it is now, to enter later: a backward pass runs outside the one that the forward pass ran in."""
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


class _Chunked(torch.autograd.Function):
    """Log-probabilities of all chunks.

    Each depends on one hidden state alone, so the gradient that comes in only scales that state's row: with a frozen
    head the rows are made in the forward pass and nothing is computed again. A head that is trained needs the sum over
    rows of what comes in, so it computes each chunk once more on the way back, in the types of the way there.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Any, rows: int, *weights: Tensor) -> Tensor:
        ctx.head, ctx.rows = head, rows
        ctx.trained = [w.requires_grad for w in weights]
        ctx.casting = _casting(hidden.device.type)
        logs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        if any(ctx.trained):
            ctx.random = _random(hidden.device)
            for start in range(0, len(hidden), rows):
                logs[start : start + rows] = _log_probs(
                    head, hidden[start : start + rows], targets[start : start + rows]
                )
            ctx.save_for_backward(hidden, targets, *(w for w in weights if w.requires_grad))
            return logs
        back = torch.empty_like(hidden)
        for start in range(0, len(hidden), rows):
            with torch.enable_grad():
                part = hidden[start : start + rows].detach().requires_grad_(True)
                logs_of = _log_probs(head, part, targets[start : start + rows])
                (back[start : start + rows],) = torch.autograd.grad(logs_of.sum(), part)
            logs[start : start + rows] = logs_of.detach()
        ctx.save_for_backward(back)
        return logs

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        first, *rest = ctx.saved_tensors
        if not rest:
            return (first * scale.unsqueeze(1).to(first.dtype), None, None, None, *(None for _ in ctx.trained))
        targets, *trained = rest
        back, grads = torch.empty_like(first), [torch.zeros_like(w) for w in trained]
        with _drawing_again(ctx.random, first.device):  # the dropout of an adapted head
            for start in range(0, len(first), ctx.rows):
                at = slice(start, start + ctx.rows)
                with torch.enable_grad(), ctx.casting:
                    part = first[at].detach().requires_grad_(True)
                    mine, *theirs = torch.autograd.grad(
                        _log_probs(ctx.head, part, targets[at]), [part, *trained], grad_outputs=scale[at]
                    )
                back[at] = mine
                for grad, piece in zip(grads, theirs, strict=True):
                    grad += piece
        left = iter(grads)
        return (back, None, None, None, *(next(left) if t else None for t in ctx.trained))


def _random(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the generators stand: the processor's, and the card's that `device` is on."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _drawing_again(random: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw what was drawn from there on; afterwards the generators stand where they stood."""
    own, cards = random
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(own)
        if cards is not None:
            torch.cuda.set_rng_state(cards, device)
        yield


class LogProbModel(LossModel):
    """A model with its head, for objectives that compare whole answers."""

    chance = None

    def log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of each label of a batch, float32 [labels]."""
        base, targets = unwrap(self.model), batch.targets
        if self.own_head:
            given = packed_inputs(self.model, batch.input_ids, batch.position_ids, batch.segments)
            own = base(**given.inputs, logits_to_keep=given.tokens(batch.positions))
            return -cross_entropy(own.logits[0].float(), targets, reduction="none")
        hidden = self.states(batch).index_select(0, batch.positions)
        rows = max(1, CHUNK // int(base.config.get_text_config().vocab_size))
        if not torch.is_grad_enabled():
            pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
            return torch.cat([_log_probs(self.head, h, y) for h, y in pieces])
        logs: Tensor = _Chunked.apply(hidden, targets, self.head, rows, *base.get_output_embeddings().parameters())  # type: ignore[no-untyped-call]
        return logs


def by_sample(values: Tensor, positions: Tensor, segments: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sum of the values [labels] of each sample of a batch, and how many they are: two float32 [samples].

    positions int64 [labels]: where each label is predicted from, which is in its own sample.

    >>> by_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 5]), (3, 2, 2))[0].tolist()
    [3.0, 0.0, 4.0]
    """
    which = sample_of(positions, segments)
    sums = torch.zeros(len(segments), device=values.device).index_add(0, which, values)
    return sums, torch.bincount(which, minlength=len(segments)).to(values.dtype)
