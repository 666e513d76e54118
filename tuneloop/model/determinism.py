"""The same sums in the same order on a card: what a resumed run needs to be bit for bit the one that was never stopped.

torch has two degrees. With `warn_only` every kernel that has a deterministic form takes it, but for the backward passes
of flash attention and of memory-efficient attention: these add up in any order and only warn of it (torch's
attention_backward.cu). They want `warn_only=False`, under which every operation without a deterministic form raises,
also in forward passes where it does no harm (histc in mixtures of experts, cumsum of floats while answers are drawn).
So: `warn_only` throughout, strict inside backward passes, and not where a forward pass is computed again within one.
A model whose own backward pass has such an operation (linear attention adds floats up by cumsum) is trained without.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

REFUSED = "does not have a deterministic implementation"
"""What torch says of an operation that has no fixed order, behind the operation's name."""
_unordered: set[str] = set()
"""Operations in the backward pass of the model that is trained which torch refuses to run in a fixed order."""


def settle(device: torch.device) -> None:
    """From now on, on a card. On a CPU sums are made in one order anyway.

    cuDNN's attention has no fixed order at all. torch chooses it in the forward pass, where it would be allowed, and
    prefers it on H100 and B200.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only takes time
    # What forward passes may warn of is harmless there; see above.
    for warning in (f".*{REFUSED}", ".*defaults to a non-deterministic algorithm"):
        warnings.filterwarnings("ignore", message=warning, category=UserWarning)


@contextlib.contextmanager
def _degree(*, warn_only: bool) -> Iterator[None]:
    """Inside, this degree; nothing where determinism is not asked for. It holds in all threads, autograd's as well."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)


def backward() -> AbstractContextManager[None]:
    """Around a backward pass."""
    return _degree(warn_only=bool(_unordered))


def probe(loss: Callable[[], Tensor]) -> str:
    """The operation for which backward passes of `loss` cannot be strict, and from now on are not; "" where they can.

    The gradients that it leaves behind are the caller's to remove.
    """
    _unordered.clear()
    if not torch.are_deterministic_algorithms_enabled():
        return ""
    total = loss()
    try:
        with backward():
            total.backward()
    except RuntimeError as error:
        name, refused, _ = str(error).partition(f" {REFUSED}")
        if not refused:
            raise
        _unordered.add(name.rpartition("\n")[2])
    return next(iter(_unordered), "")


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts that torch.utils.checkpoint runs a forward pass in: the first time, and within the backward pass."""
    return contextlib.nullcontext(), _degree(warn_only=True)
