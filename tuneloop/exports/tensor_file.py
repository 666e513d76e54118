"""A safetensors file that is written tensor by tensor: its library wants all of them in memory at once.

Layout (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header, the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""The format's word for a type -> the type."""
_WORDS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's line of the header."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file and what it holds, in the order of its bytes: wide types first, then by name, as the library has it."""

    path: Path
    shapes: tuple[TensorShape, ...]

    @classmethod
    def of(cls, path: Path, shapes: Iterable[TensorShape]) -> TensorFile:
        """A file to be written."""
        return cls(path, tuple(sorted(shapes, key=lambda one: (-one.dtype.itemsize, one.name))))

    @classmethod
    def read(cls, path: Path) -> TensorFile:
        """The header of a checked file (`hub/folder_check`); its tensors are not looked at.

        Raises TL-MODEL-WEIGHTS for a type of numbers that torch has not.
        """
        with path.open("rb") as stream:
            table = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        table.pop("__metadata__", None)
        lines = sorted(table.items(), key=lambda line: line[1]["data_offsets"])
        if foreign := [x["dtype"] for _, x in lines if x["dtype"] not in DTYPES]:
            raise ModelError(
                "TL-MODEL-WEIGHTS", where=str(path), error=t("its type {kind} is not known", kind=foreign[0])
            )
        return cls(path, tuple(TensorShape(n, DTYPES[x["dtype"]], tuple(x["shape"])) for n, x in lines))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shape.bytes for shape in self.shapes)

    def write(self, tensors: Iterable[Tensor]) -> None:
        """Write the file. `tensors` come one by one, in the order of `shapes`."""
        with self.path.open("wb") as stream:
            stream.write(header(self.shapes))
            for shape, tensor in zip(self.shapes, tensors, strict=True):
                assert tuple(tensor.shape) == shape.sizes, shape.name
                stream.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def header(shapes: Sequence[TensorShape]) -> bytes:
    """Length and JSON, filled up with blanks so that the tensors begin at a multiple of eight bytes."""
    lines, begin = dict[str, object](), 0
    for shape in shapes:
        offsets = [begin, begin + shape.bytes]
        lines[shape.name] = {"dtype": _WORDS[shape.dtype], "shape": list(shape.sizes), "data_offsets": offsets}
        begin = offsets[1]
    text = json.dumps({"__metadata__": {"format": "pt"}, **lines}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
