"""The weights of a model folder, read a few rows at a time: one piece of one tensor in memory, whatever the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tuneloop.base.errors import os_words
from tuneloop.base.language import t

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE = 1 << 24
"""Numbers of a piece: 64 MB in float32."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class ShardedWeights:
    """The tensors of a folder's safetensors files, one file or many (with an index), of any float type.

    `shapes` are those of its tensors by name, rows first. Raises ValueError for files that are missing, damaged or hold
    numbers of another kind.
    """

    def __init__(self, folder: Path, name: str = "model.safetensors") -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for file in _files(folder, name):
            try:
                with safe_open(file, framework="pt") as weights:
                    for tensor in weights.keys():  # noqa: SIM118 - not a dict
                        part = weights.get_slice(tensor)
                        if (kind := part.get_dtype()) not in _FLOATS:
                            raise ValueError(t("its tensor {name} is of type {kind}", name=tensor, kind=kind))
                        self.shapes[tensor], self._files[tensor] = tuple(part.get_shape()), file
            except (SafetensorError, OSError) as error:
                raise ValueError(os_words(error)) from error

    def pieces(self, name: str, step: int = 1) -> Iterator[NDArray[np.float32]]:
        """The numbers of tensor `name`, float32, first rows first; a piece has a multiple of `step` rows, but the last.

        The file is open no longer than for one tensor, so that what was read of it does not stay in memory.
        """
        rows, *columns = self.shapes[name]
        width = columns[0] if columns else 1
        count = max(PIECE // (width * step), 1) * step
        with safe_open(self._files[name], framework="pt") as weights:
            part = weights.get_slice(name)
            for first in range(0, rows, count):
                yield part[first : first + count].float().numpy()

    def first_rows(self, name: str, count: int) -> NDArray[np.float32]:
        """The first `count` rows of tensor `name` at most, float32."""
        with safe_open(self._files[name], framework="pt") as weights:
            rows: NDArray[np.float32] = weights.get_slice(name)[:count].float().numpy()
        return rows

    def tensor(self, name: str) -> NDArray[np.float32]:
        """All numbers of tensor `name`, float32."""
        import numpy as np

        return np.concatenate(list(self.pieces(name)))


def _files(folder: Path, name: str) -> list[Path]:
    index = folder / f"{name}.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(t("{file} is damaged", file=index.name)) from error
        return [folder / name for name in names]
    return [folder / name]
