"""Writing a GGUF file: facts, then tensors one piece after the other; the file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.files import draft_of, flush
from tuneloop.base.refusals import require_space, writing
from tuneloop.gguf.quantize import row_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADER = 64 << 20
"""Bytes at most of facts and the table of tensors: a vocabulary of 260,000 tokens takes 15 MB."""


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor to be written: its shape (rows first), its ggml type, and its bytes piece by piece."""

    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterable[NDArray[np.uint8]]]

    @property
    def bytes(self) -> int:
        """Its size in the file, without the padding behind it."""
        *rows, columns = self.shape
        size = row_bytes(self.kind, columns)
        for count in rows:
            size *= count
        return size


def write_file(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, PackedTensor]) -> None:
    """Write `path`, over what was there. Of numbers among the facts a single one is unsigned, those of a list signed.

    Raises TL-MACHINE-DISK before anything is written where there is too little space, TL-MACHINE-FOLDER, and what the
    pieces raise; then `path` is as it was.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    require_space(path.parent, sum(one.bytes for one in tensors.values()) + _HEADER)
    with writing(path.parent), draft_of(path, sync=True) as draft:
        writer = GGUFWriter(draft, facts["general.architecture"])
        try:
            for key, fact in facts.items():
                if key != "general.architecture":
                    single = isinstance(fact, int) and not isinstance(fact, bool)
                    writer.add_key_value(key, fact, GGUFValueType.UINT32 if single else GGUFValueType.get_type(fact))
            for name, one in tensors.items():
                kind = GGMLQuantizationType[one.kind]
                writer.add_tensor_info(name, one.shape, np.dtype(np.float32), one.bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            assert writer.fout is not None
            out = writer.fout[0]
            writer.write_padding(out, out.tell())
            for name, one in tensors.items():
                size = 0
                for piece in one.pieces():
                    out.write(piece.data)
                    size += piece.nbytes
                assert size == one.bytes, name
                writer.write_padding(out, size)
        finally:
            writer.close()
    flush(path.parent)
