"""LoRA adapters beside each other on one base: each row of a batch goes through its own, or through none.

At each layer that one of them changes, the narrow matrices of all adapters in this pass stand side by side: x A^T is
computed for all, what is not the row's own is set to 0, and B^T adds the rest up. Two products, however many adapters
there are (compare Punica, arXiv:2310.18547, and S-LoRA, arXiv:2311.03285).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tuneloop.base.errors import ServeError
from tuneloop.model.backbone import unwrap

SITE = "row_site"
"""Attribute of a linear layer: the adapters at it, for fused parts that do not call the layer itself."""
SETS = 8
"""Combinations of adapters whose matrices stand side by side in memory; one pass needs one."""
PREFIX = "base_model.model."
Beside = dict[str, tuple[Tensor, Tensor, list[int]]]
"""Matrices of some adapters side by side: path of a layer -> A^T [in, widths], B^T [widths, out], the rank of each."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraTensors:
    """An adapter, ready for a base: path of a layer -> its A [rank, in] and B [out, rank], the scale in B."""

    layers: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.layers.values() for t in pair)


class _Site:
    """The adapters at one layer, and those of the pass under way."""

    def __init__(self) -> None:
        self.down: Tensor | None = None
        """A^T [in, widths] of the adapters in this pass, side by side; None where it has none here."""
        self.up: Tensor | None = None
        """B^T [widths, out]."""
        self.others: Tensor | None = None
        """bool [rows, 1, widths]: where an adapter is not the row's own; None where all rows go through all."""

    def update(self, x: Tensor) -> Tensor | None:
        """x [rows, new tokens, in], or flat, -> what the rows' adapters add [rows, new tokens, out]; None: nothing."""
        if self.down is None or self.up is None:
            return None
        narrow = x @ self.down
        if self.others is not None:
            others = self.others
            if x.ndim == 2 and len(x) != len(others):
                others = others.repeat_interleave(len(x) // len(others), 0)
            # Filled, not multiplied: another row's adapter may give what is no number, and 0 times that is none.
            narrow = narrow.masked_fill_(others.squeeze(1) if x.ndim == 2 else others, 0)
        return narrow @ self.up


class RowAdapters:
    """The adapters loaded on one base. Changed between two passes only; `prepare` and `foresee` may run meanwhile, in
    other threads."""

    def __init__(self, model: nn.Module) -> None:
        self.base = unwrap(model)
        self._loaded: dict[str, LoraTensors] = {}
        self._serials: dict[str, int] = {}
        self._counter = count(1)
        self._sites: dict[str, _Site] = {}
        self._hooks: dict[str, Any] = {}
        self._sets: dict[tuple[str, ...], tuple[list[LoraTensors], Beside]] = {}
        """What stands side by side already, and the adapters it was made of."""
        self._last: tuple[str, ...] = ()
        """The adapters of the last pass that had several."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def serial(self, name: str | None) -> int:
        """A number for what is loaded under a name now, another one when it is loaded again; 0 without an adapter."""
        return 0 if name is None else self._serials[name]

    def load(self, name: str, folder: str | Path) -> None:
        """Load the adapter of a folder under a name. Raises TL-SERVE-ADAPTER, and nothing is changed."""
        self.add(name, self.prepare(folder))

    def prepare(self, folder: str | Path) -> LoraTensors:
        """The tensors of an adapter's folder, as this base takes them. Raises TL-SERVE-ADAPTER."""
        folder = Path(folder)
        config = _config(folder)
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        for path, (down, up) in _pairs(folder).items():
            weight = self._weight(folder, path, down, up)
            scale = _scale(config, path, down.shape[0])
            # Transposed and contiguous, as the products take them.
            layers[path] = (
                down.to(weight.device, weight.dtype).t().contiguous(),
                (up.to(weight.device, torch.float32) * scale).to(weight.dtype).t().contiguous(),
            )
        return LoraTensors(layers)

    def foresee(self, name: str, tensors: LoraTensors) -> None:
        """Lay prepared tensors beside those of the last pass, so that the first pass with them does not wait for it."""
        known = self._loaded
        here = {one: known[one] for one in self._last if one in known} | {name: tensors}
        active = tuple(sorted(here))
        self._put(active, [here[one] for one in active])

    def add(self, name: str, tensors: LoraTensors) -> None:
        """Put prepared tensors beside the others: no copy, no file."""
        if name in self._loaded:
            self.unload(name)
        self._loaded[name], self._serials[name] = tensors, next(self._counter)
        for path in tensors.layers:
            if path not in self._sites:
                module, site = self.base.get_submodule(path), _Site()
                self._sites[path] = site
                setattr(module, SITE, site)
                self._hooks[path] = module.register_forward_hook(_adding(site))

    def unload(self, name: str) -> None:
        """Forget an adapter; what it changed alone is as it was."""
        tensors = self._loaded.pop(name)
        self._serials.pop(name)
        self._sets = {names: each for names, each in [*self._sets.items()] if name not in names}
        for path in tensors.layers:
            if not any(path in other.layers for other in self._loaded.values()):
                delattr(self.base.get_submodule(path), SITE)
                self._hooks.pop(path).remove()
                del self._sites[path]

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row n of a pass goes through the adapter names[n]."""
        active = tuple(sorted({name for name in names if name is not None}))
        if not active:
            yield
            return
        beside = self._beside(active)
        every = len(active) == 1 and None not in names
        masks: dict[tuple[int, ...], Tensor] = {}
        for path, (down, up, widths) in beside.items():
            site = self._sites[path]
            site.down, site.up = down, up
            if not every:
                key = tuple(widths)
                if key not in masks:
                    masks[key] = _mask(names, active, widths).to(down.device)
                site.others = masks[key]
        try:
            yield
        finally:
            for path in beside:
                site = self._sites[path]
                site.down = site.up = site.others = None

    def _beside(self, active: tuple[str, ...]) -> Beside:
        loaded = [self._loaded[name] for name in active]
        if len(active) > 1:
            self._last = active
        made_of, each = self._sets.get(active, ([], {}))
        if any(one is not other for one, other in zip_longest(made_of, loaded)):
            each = self._put(active, loaded)
        return each

    def _put(self, active: tuple[str, ...], loaded: list[LoraTensors]) -> Beside:
        """Lay adapters side by side, and keep what was laid."""
        each = _side_by_side(loaded)
        sets = {**self._sets, active: (loaded, each)}
        self._sets = {names: sets[names] for names in [*sets][-SETS:]}
        return each

    def _weight(self, folder: Path, path: str, down: Tensor, up: Tensor) -> Tensor:
        """The weight that an adapter's pair changes."""
        try:
            module: Any = self.base.get_submodule(path)
        except AttributeError as error:
            raise _refused(folder, f"the base has no layer {path}") from error
        if not isinstance(module, nn.Linear):
            raise _refused(folder, f"{path} is no linear layer of the base")
        if "experts" in path.split("."):
            raise _refused(folder, f"{path} is an expert, which reads the rows of all answers mixed")
        shape, wanted = (up.shape[0], down.shape[1]), (module.out_features, module.in_features)
        if not (bool(down.isfinite().all()) and bool(up.isfinite().all())):
            raise _refused(folder, f"{path} has what is not a number")
        if shape != wanted or up.shape[1] != down.shape[0]:
            raise _refused(folder, f"{path} is {wanted[0]} x {wanted[1]} in the base and {shape[0]} x {shape[1]} in it")
        weight: Tensor = module.weight
        floating = weight.dtype.is_floating_point
        return weight if floating else torch.empty(0, device=weight.device, dtype=self.base.dtype)


def _side_by_side(loaded: Sequence[LoraTensors]) -> Beside:
    each: Beside = {}
    for path in dict.fromkeys(path for one in loaded for path in one.layers):
        pairs = [one.layers.get(path) for one in loaded]
        here = [pair for pair in pairs if pair is not None]
        down, up = (torch.cat([p[k] for p in here], 1 - k) if len(here) > 1 else here[0][k] for k in (0, 1))
        each[path] = (down, up, [0 if pair is None else pair[0].shape[1] for pair in pairs])
    return each


def _adding(site: _Site) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        update = site.update(args[0])
        return None if update is None else output + update

    return hook


def _mask(names: Sequence[str | None], active: Sequence[str], widths: Sequence[int]) -> Tensor:
    """bool [rows, 1, widths]: where an adapter is not the row's own.

    >>> _mask(["b", None], ["a", "b"], [1, 2]).tolist()
    [[[True, False, False]], [[True, True, True]]]
    """
    each = torch.tensor([[name != one for one in active] for name in names])
    return each.repeat_interleave(torch.tensor(list(widths)), 1).unsqueeze(1)


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of a kind of adapter that can share a batch."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(folder, f"adapter_config.json: {error}") from error
    init = str(config.get("init_lora_weights", True)).lower()
    cannot = {
        f"it is {config.get('peft_type')}, not LORA": config.get("peft_type") != "LORA",
        "it is DoRA, which changes the length of the base's weights": config.get("use_dora"),
        "it trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "it brings whole layers of its own (modules_to_save)": config.get("modules_to_save"),
        "it changes tokens of its own (trainable_token_indices)": config.get("trainable_token_indices"),
        "it changes parameters that are no layers (target_parameters)": config.get("target_parameters"),
        "it acts behind words of its own (aLoRA)": config.get("alora_invocation_tokens"),
        f"it changed the base's own weights at its start ({init})": init.startswith(
            ("pissa", "olora", "corda", "loft")
        ),
    }
    reason = next((why for why, applies in cannot.items() if applies), None)
    if reason is not None:
        raise _refused(folder, reason)
    return config


def _pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of a layer -> A and B as they lie in the folder."""
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _refused(folder, f"adapter_model.safetensors: {error}") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, dot, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B") or not dot or tensor.ndim != 2:
            raise _refused(folder, f"it has {key}, which is no matrix of LoRA")
        halves.setdefault(path, {})[half] = tensor
    lone = next((path for path, pair in halves.items() if len(pair) != 2), None)
    if lone is not None or not halves:
        raise _refused(folder, f"{lone} has only one of its two matrices" if lone else "it has no matrices")
    return {path: (pair["lora_A"], pair["lora_B"]) for path, pair in halves.items()}


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """What a layer's update is multiplied by, as PEFT does: alpha / rank, or by the root of the rank.

    >>> _scale({"lora_alpha": 16, "alpha_pattern": {"v_proj": 4}}, "layers.0.v_proj", 8)
    0.5
    """
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), path), config["lora_alpha"]))
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _refused(folder: Path, reason: str) -> ServeError:
    return ServeError("TL-SERVE-ADAPTER", where=str(folder), error=reason)
