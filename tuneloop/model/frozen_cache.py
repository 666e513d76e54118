"""Blocks that are not trained: run without gradient and dropout, and, where it pays, run once for all epochs.

What goes into the lowest trained block is the same in every epoch. It is computed before the first step, in a fixed
order, and written to a file that is mapped into memory:

    <run>/trunk/<side>.states   the hidden states of all samples behind each other, [tokens, width], in the model's type
    <run>/trunk/<side>.json     what they were computed from, size and sha256; written last

A step then takes its samples' states from there, and the frozen blocks pass them through. A resumed run finds the file,
or computes the same once more: order and packing of that pass depend on the samples and the recipe alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tuneloop.base.files import draft_of, sha256_of, write_atomic
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.samples import Sequences
from tuneloop.model.backbone import FROZEN_CACHE, states, unwrap
from tuneloop.model.blocks import blocks, lowest_trained
from tuneloop.model.precision import computing

FORMAT = 1


class _Reached(Exception):
    """The states in front of the lowest trained block; what lies behind need not be run for them."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@dataclass(frozen=True, slots=True, eq=False)
class StateStore:
    """The kept states of some samples: sample m begins at starts[m] (-1: not kept) and has lengths[m] rows."""

    states: Tensor
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def row(self, members: Sequence[int]) -> Tensor:
        """The states of these samples behind each other, [1, length, width], as a copy."""
        parts = [self.states[self.starts[m] : self.starts[m] + self.lengths[m]] for m in members]
        return torch.cat(parts).unsqueeze(0)


class Frozen:
    """The blocks below the lowest trained one, told to run without gradient and without dropout.

    They keep their places, names and weights; only their `forward` and `train` are covered, until `release`. Without
    dropout, because it is there to keep weights from adapting to each other, and these do not adapt.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model, self.base = model, unwrap(model)
        self.blocks = blocks(self.base)[:count]
        self.stores: dict[str, StateStore] = {}
        self._current: StateStore | None = None
        self._given: Tensor | None = None
        self._reaching = False
        self._forms = [0] * count
        """Of each block: the length of the tuple it returns, 0 where it returns a tensor."""
        self._covered: list[tuple[nn.Module, str, Any]] = []
        for k, block in enumerate(self.blocks):
            block.eval()
            self._cover(block, "forward", partial(self._run, k, block.forward))
            self._cover(block, "train", _stay(block))
        for module in self._dropouts():
            module.eval()
            self._cover(module, "train", _stay(module))
        vars(self.base)[FROZEN_CACHE] = self

    def _cover(self, module: nn.Module, name: str, new: Callable[..., Any]) -> None:
        self._covered.append((module, name, vars(module).get(name)))
        vars(module)[name] = new

    def _dropouts(self) -> Iterator[nn.Module]:
        """Those in front of the first block."""
        for module in self.base.modules():
            if module is self.blocks[0]:
                return
            if isinstance(module, nn.modules.dropout._DropoutNd):
                yield module

    def release(self) -> None:
        """The model as it was."""
        for module, name, before in reversed(self._covered):
            if before is None:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = before
        self._covered.clear()
        self.stores.clear()
        vars(self.base).pop(FROZEN_CACHE, None)

    def _run(self, k: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward pass of block k: its own, or the hidden states passed through and at the top the kept ones."""
        top = k == len(self.blocks) - 1
        if self._given is not None:
            hidden = self._given if top else (args[0] if args else kwargs["hidden_states"])
            return (hidden, *[None] * (self._forms[k] - 1)) if self._forms[k] else hidden
        with torch.no_grad():
            out = own(*args, **kwargs)
        if self._reaching:
            self._forms[k] = len(out) if isinstance(out, tuple) else 0
            if top:
                raise _Reached(out[0] if isinstance(out, tuple) else out)
        return out

    @contextlib.contextmanager
    def of(self, side: str) -> Iterator[None]:
        """Inside, rows are made of this side's samples; one that was not kept is computed."""
        before, self._current = self._current, self.stores.get(side)
        try:
            yield
        finally:
            self._current = before

    @contextlib.contextmanager
    def row(self, members: Sequence[int]) -> Iterator[None]:
        """Inside, a forward pass over these samples takes what is kept of them."""
        if self._current is None or not members:
            yield
            return
        self._given = self._current.row(members).to(self.base.device)
        try:
            yield
        finally:
            self._given = None

    @torch.no_grad()
    def _reach(self, samples: Sequences, chosen: Sequence[int]) -> Tensor:
        """The hidden states [length, width] of these samples in front of the lowest trained block, on the CPU."""
        batch = pack([samples[m] for m in chosen]).to(self.base.device)
        self._reaching = True
        try:
            with computing(self.model, self.base.dtype):
                states(self.model, batch.input_ids, batch.position_ids, batch.segments)
        except _Reached as reached:
            return reached.hidden[0].cpu().contiguous()
        finally:
            self._reaching = False
        raise AssertionError("the frozen blocks were not run")

    def keep(self, side: str, items: Examples, folder: Path, budget: int, *, packing: bool = True) -> None:
        """Compute the states of the items' samples into folder/<side>.states, unless they are there and whole."""
        samples = items.samples
        used = np.unique(items.members)
        if not len(used):
            return
        key = self._key(samples, used, budget, packing)
        path, note = folder / f"{side}.states", folder / f"{side}.json"
        if not _is_complete(path, note, key):
            folder.mkdir(parents=True, exist_ok=True)
            self._fill(path, note, key, samples, _rows(samples.lengths, used, budget, packing))
        lengths = samples.lengths
        starts = np.full(len(samples), -1, np.int64)
        starts[used] = np.cumsum(lengths[used]) - lengths[used]
        tokens, width = int(lengths[used].sum()), self.width
        mapped = torch.from_file(str(path), shared=False, size=tokens * width, dtype=self.base.dtype)
        self.stores[side] = StateStore(mapped.view(tokens, width), starts, lengths)

    @property
    def width(self) -> int:
        return int(self.base.config.get_text_config().hidden_size)

    def _key(self, samples: Sequences, used: NDArray[np.int64], budget: int, packing: bool) -> str:
        facts = [FORMAT, len(self.blocks), str(self.base.dtype), self.width, budget, packing]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for m in used.tolist():
            digest.update(samples[m].ids.tobytes() + b"|")
        return digest.hexdigest()

    def _fill(self, path: Path, note: Path, key: str, samples: Sequences, rows: Iterator[list[int]]) -> None:
        note.unlink(missing_ok=True)
        digest, size, was = hashlib.sha256(), 0, self.model.training
        self.model.eval()
        try:
            with draft_of(path, sync=True) as draft, draft.open("wb") as file:
                for chosen in rows:
                    hidden = self._reach(samples, chosen).to(self.base.dtype)
                    content_bytes = hidden.view(torch.uint8).numpy().tobytes()
                    digest.update(content_bytes)
                    size += file.write(content_bytes)
        finally:
            self.model.train(was)
        content = {"format": FORMAT, "key": key, "bytes": size, "sha256": digest.hexdigest()}
        write_atomic(note, json.dumps(content))

    @torch.no_grad()
    def exact(self, side: str, items: Examples, *, packing: bool = True) -> bool:
        """Whether the model's last states of two kept samples are what it computes for them without keeping.

        They are not where a block takes more from those below than hidden states.
        """
        chosen = np.unique(items.members)
        chosen = chosen[np.argsort(items.samples.lengths[chosen], kind="stable")][: 2 if packing else 1].tolist()
        batch, was = pack([items.samples[m] for m in chosen]).to(self.base.device), self.model.training
        ids, positions = batch.input_ids, batch.position_ids
        self.model.eval()
        try:
            with computing(self.model, self.base.dtype):
                own = states(self.model, ids, positions, batch.segments).float()
                with self.of(side):
                    ours = states(self.model, ids, positions, batch.segments, chosen).float()
        finally:
            self.model.train(was)
        # Products of 16 bits, also those of float32 weights that train.matmul allows, round differently in other rows.
        onednn: Any = torch.backends.mkldnn
        fine = self.base.dtype == torch.float32 and onednn.matmul.fp32_precision != "bf16"
        return bool((own - ours).abs().max() <= (1e-4 if fine else 2e-2) * max(1.0, float(own.abs().max())))


def _stay(module: nn.Module) -> Callable[..., nn.Module]:
    def stay(mode: bool = True) -> nn.Module:
        return module

    return stay


def _rows(lengths: NDArray[np.int32], used: NDArray[np.int64], budget: int, packing: bool) -> Iterator[list[int]]:
    """The samples in order, in rows of at most `budget` tokens."""
    held: list[int] = []
    tokens = 0
    for m in used.tolist():
        if held and (not packing or tokens + int(lengths[m]) > budget):
            yield held
            held, tokens = [], 0
        held.append(m)
        tokens += int(lengths[m])
    if held:
        yield held


def _is_complete(path: Path, note: Path, key: str) -> bool:
    """Whether the file is there, complete, undamaged, and of these samples."""
    try:
        recorded = json.loads(note.read_text(encoding="utf-8"))
        return bool(
            recorded["key"] == key
            and recorded["bytes"] == path.stat().st_size
            and recorded["sha256"] == sha256_of(path)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def frozen(model: nn.Module) -> Frozen | None:
    """The blocks that no training reaches, told so; None where it reaches all of them."""
    count = lowest_trained(model)
    if not count:
        return None
    cache = Frozen(model, count)
    if _reached_by_gradient(cache):  # something is trained that its place in the model does not tell of
        cache.release()
        return None
    return cache


def _reached_by_gradient(frozen: Frozen) -> bool:
    """Whether anything that the frozen blocks take in asks for a gradient."""
    requires: list[bool] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        requires.extend(t.requires_grad for t in _tensors([args, kwargs]))

    hooks = [b.register_forward_pre_hook(look, with_kwargs=True) for b in frozen.blocks]
    device, frozen._reaching = frozen.base.device, True
    cards = [device] if device.type == "cuda" else []  # of several, only the one that draws
    try:
        # NEFTune draws here as in training: what training draws later must not depend on it.
        with torch.random.fork_rng(cards), torch.enable_grad(), computing(frozen.model, frozen.base.dtype):
            states(
                frozen.model,
                torch.zeros(1, 2, dtype=torch.int64, device=device),
                torch.arange(2, device=device)[None],
                (2,),
            )
    except _Reached:
        return any(requires)
    finally:
        frozen._reaching = False
        for hook in hooks:
            hook.remove()
    return True


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, list | tuple):
        for part in nested:
            yield from _tensors(part)
