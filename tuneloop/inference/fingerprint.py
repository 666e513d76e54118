"""By what a model is known again: its weights to the last bit, and what it makes of a few tokens."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from tuneloop.model.backbone import unwrap, virtual_kind

PROBE = 16
"""Tokens of which the logits are taken."""


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """12 hex digits of the names, shapes, types and bits of all weights, and of what stands before a text."""
    digest = hashlib.sha256(virtual_kind(model).encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            bits = _bits(tensor) if tensor.numel() else 0
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {bits}\n".encode())
    return digest.hexdigest()[:12]


@torch.no_grad()
def fingerprint_of(model: nn.Module) -> str:
    """12 hex digits of the weights and of the model's own logits: other where an adapter is set aside, where weights
    are held in fewer bits, or where this machine computes otherwise."""
    base = unwrap(model)
    vocabulary = int(base.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    ids = (torch.arange(1, PROBE + 1, device=device) * (vocabulary // (PROBE + 2) + 1)).clamp(max=vocabulary - 1)[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    bits = _bits(logits.float())
    return hashlib.sha256(f"{weights_fingerprint(model)} {device.type} {bits}".encode()).hexdigest()[:12]


def _bits(tensor: torch.Tensor) -> int:
    """A hash of a tensor's bits, the same in whatever order they are read."""
    bare = tensor.detach().as_subclass(torch.Tensor)  # weights in 4 bits are a class of their own
    try:
        return int(torch.hash_tensor(bare).item())
    except (RuntimeError, NotImplementedError):  # not on this device, or not of this type
        return int(torch.hash_tensor(bare.cpu().contiguous().flatten().view(torch.uint8)).item())
