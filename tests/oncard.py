"""A graphics card that is none: tensors that say they are elsewhere, and refuse what a card refuses.

A tensor on the "meta" device is here one with numbers, which lie in a plain tensor inside. Every operation of torch
comes by: one that mixes it with a tensor of the processor raises, as on a card, and so does `numpy()`. What goes over
must be sent over by `.to(device)` or `.cpu()`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")
COPIES = frozenset({"aten::copy_", "aten::_to_copy", "aten::set_data"})
"""Operations that go from one device to another."""
INDEXED = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
"""Those that take places from the processor as well."""


class MixedError(RuntimeError):
    """Tensors of both devices met in one operation."""


class OnCard(Tensor):
    """A tensor on the card; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        made: OnCard = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CARD,
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"OnCard({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """Inside, what is made on the card or moved there is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the plain tensors inside."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [isinstance(x, OnCard) for x in tensors]
    on_card, name = any(there), func._schema.name
    if on_card and name not in COPIES | INDEXED:
        here = [x for x, card in zip(tensors, there, strict=True) if not card and x.dim()]
        if here:
            raise MixedError(f"{name}: {[(type(x).__name__, tuple(x.shape)) for x in tensors]}")
    device = kwargs.get("device")
    if device is not None:
        on_card = torch.device(device).type == CARD.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "aten::histc":  # a card counts whole numbers as well
        args = (args[0].to(torch.float32), *args[1:])
    out = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    if name.endswith("_") and args and isinstance(args[0], Tensor):  # in place: what was handed in comes back
        return args[0]
    return tree_map(_put, out) if on_card else out


def _inside(value: Any) -> Any:
    return value.inner if isinstance(value, OnCard) else value


def _put(value: Any) -> Any:
    return OnCard(value) if isinstance(value, Tensor) and not isinstance(value, OnCard) else value
