"""Reading a GGUF file: its facts, its tokens, its tensors as float32.

The layout is that of the GGUF specification (versions 2 and 3, little endian). Only the header is parsed here, in plain
Python, because the reader of the `gguf` package makes a numpy view of every string and takes ten times as long; the
numbers come from `gguf.quants.dequantize`. Writing GGUF files is the export's business.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: `shape` in the order of torch (rows first), `kind` the number of its ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """An opened GGUF file. Use it in a `with`.

    `facts` are its metadata ("general.architecture", "tokenizer.ggml.tokens", …) as Python values; `tensors` its
    tensors by name. Raises TL-MODEL-GGUF on a file that is not whole or not GGUF.

    It knows nothing of any model: names and numbers are as the file has them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as error:
            self._file.close()
            raise ModelError("TL-MODEL-GGUF", where=str(path), error=str(error)) from error
        try:
            self.facts, self.tensors, self._start = self._header()
        except (struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
            self.close()
            raise ModelError("TL-MODEL-GGUF", where=str(path), error=str(error)) from error

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        # After Ctrl-C inside numbers() its view still hangs on the traceback: the map then closes with the last view.
        with contextlib.suppress(BufferError):
            self._map.close()
        self._file.close()

    def numbers(self, name: str) -> NDArray[np.float32]:
        """The values of tensor `name` as a fresh float32 array of its shape, dequantised exactly as ggml defines it."""
        import numpy as np
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            kind = GGMLQuantizationType(tensor.kind)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            *rows, columns = tensor.shape
            width = columns // block * block_bytes
            begin = self._start + tensor.offset
            count = width
            for size in rows:
                count *= size
            if begin + count > len(self._map):
                raise ValueError(t("tensor {name} ends behind the end of the file", name=name))
            packed = np.frombuffer(self._map, dtype=np.uint8, count=count, offset=begin).reshape(*rows, width)
            out: NDArray[np.float32] = np.array(dequantize(packed, kind), dtype=np.float32).reshape(tensor.shape)
        except (ValueError, NotImplementedError) as error:
            raise ModelError("TL-MODEL-GGUF", where=str(self.path), error=str(error)) from error
        del packed  # a view that outlives the map would make closing it fail
        return out

    def _header(self) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        if self._map[:4] != b"GGUF":
            raise ValueError(t("it does not begin with GGUF"))
        version, tensors, pairs = struct.unpack_from("<IQQ", self._map, 4)
        if version not in (2, 3):
            raise ValueError(t("it is of version {version}; 2 and 3 can be read", version=version))
        at = 24
        facts: dict[str, Any] = {}
        for _ in range(pairs):
            key, at = self._string(at)
            (kind,) = struct.unpack_from("<I", self._map, at)
            facts[key], at = self._field(at + 4, kind)
        table = {}
        for _ in range(tensors):
            tensor, at = self._tensor(at)
            table[tensor.name] = tensor
        alignment = int(facts.get("general.alignment", 32))
        return facts, table, (at + alignment - 1) // alignment * alignment

    def _tensor(self, at: int) -> tuple[Tensor, int]:
        name, at = self._string(at)
        (count,) = struct.unpack_from("<I", self._map, at)
        if not 0 < count <= _MOST_DIMENSIONS:
            raise ValueError(t("tensor {name} has {count} dimensions", name=name, count=count))
        shape = struct.unpack_from(f"<{count}Q", self._map, at + 4)
        kind, offset = struct.unpack_from("<IQ", self._map, at + 4 + 8 * count)
        return Tensor(name, tuple(reversed(shape)), kind, offset), at + 16 + 8 * count

    def _string(self, at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", self._map, at)
        end = at + 8 + length
        if end > len(self._map):
            raise ValueError(t("a text at byte {at} ends behind the end of the file", at=at))
        return self._map[at + 8 : end].decode("utf-8"), end

    def _field(self, at: int, kind: int) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(at)
        if kind != _ARRAY:
            layout = "<" + _FIXED[kind]
            return struct.unpack_from(layout, self._map, at)[0], at + struct.calcsize(layout)
        inner, count = struct.unpack_from("<IQ", self._map, at)
        at += 12
        if count > len(self._map):
            raise ValueError(t("a list at byte {at} is longer than the file", at=at))
        if inner in _FIXED:
            layout = f"<{count}{_FIXED[inner]}"
            return list(struct.unpack_from(layout, self._map, at)), at + struct.calcsize(layout)
        values = []
        for _ in range(count):
            element, at = self._field(at, inner)
            values.append(element)
        return values, at
