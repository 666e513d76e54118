"""The bytes of a source: a file or a member of a zip, decompressed as a stream.

Decompressed bytes are counted against zip bombs; nothing is ever unpacked to the disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile

from tuneloop.base.errors import DataError, nearby
from tuneloop.base.files import printable
from tuneloop.base.language import t
from tuneloop.data.reading import archives

ROW = 64 << 20
"""Longest row, in characters or bytes; a longer one is a mistake."""
WHOLE = 256 << 20
"""Largest size, in bytes, of what must be in memory as a whole: a JSON object, a compressed Parquet or Excel file."""
_PACKED = ((b"\x1f\x8b\x08", "gz"), (b"\x28\xb5\x2f\xfd", "zst"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"))
_REFUSED = ((b"7z\xbc\xaf", "7z"), (b"Rar!", "rar"), (b"%PDF", "PDF"), (b"\xd0\xcf\x11\xe0", "xls / doc"),
            (b"SQLite format 3\0", "SQLite"), (b"FEA1", "Feather v1"), (b"\x80\x02", "pickle"), (b"\x80\x03", "pickle"),
            (b"\x80\x04\x95", "pickle"), (b"\x80\x05\x95", "pickle"), (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"),
            (b"GIF8", "GIF"), (b"\x93NUMPY", "NumPy"), (b"\x89HDF", "HDF5"), (b"\x7fELF", "ELF"), (b"Obj\x01", "Avro"),
            (b"ORC", "ORC"), (b"GGUF", "GGUF"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that can be read again and again. `member` is of a zip, `sheet` of an Excel file."""

    path: Path
    member: str = ""
    compression: str = ""
    sheet: str = ""

    @property
    def where(self) -> str:
        """The name that errors give: a.zip!/member.csv."""
        return "!/".join(printable(part) for part in (self.path, self.member, self.sheet) if part)

    @property
    def is_plain_file(self) -> bool:
        """Whether the bytes are the file itself, neither compressed nor in an archive."""
        return not (self.member or self.compression)

    def open(self) -> BinaryIO:
        """The unpacked bytes; raises OSError, TL-DATA-ARCHIVE, TL-DATA-BOMB, the last two while reading too."""
        if self.is_plain_file:
            return self.path.open("rb")
        size = self.path.stat().st_size
        try:
            raw = archives.member(self.path, self.member) if self.member else self.path.open("rb")
            inner = _unpacking(raw, self.compression) if self.compression else raw
        except _BROKEN as error:
            raise DataError("TL-DATA-ARCHIVE", where=self.where, error=str(error) or type(error).__name__) from error
        return io.BufferedReader(_Counted(inner, self.where, size), 1 << 16)

    def read_bytes(self) -> bytes:
        """All of the bytes; raises TL-DATA-WHOLE where they are more than WHOLE."""
        if not self.is_plain_file or self.path.stat().st_size <= WHOLE:
            with closing(self.open()) as handle:
                content = handle.read(WHOLE + 1)
            if len(content) <= WHOLE:
                return content
        raise DataError("TL-DATA-WHOLE", where=self.where, limit=WHOLE >> 20)


_BROKEN = (EOFError, zlib.error, lzma.LZMAError, BadZipFile, NotImplementedError, RuntimeError, ValueError)


class _Counted(io.RawIOBase):
    """A raw stream that counts decompressed bytes and raises TL-DATA-BOMB above the ratio or total of `archives`."""

    def __init__(self, inner: Any, where: str, packed: int) -> None:
        self.inner, self.where, self.packed, self.count = inner, where, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self.inner.read(len(buffer))
        except (OSError, *_BROKEN) as error:
            raise DataError("TL-DATA-ARCHIVE", where=self.where, error=str(error) or type(error).__name__) from error
        self.count += len(chunk)
        archives.require_sane(self.where, self.count, self.packed)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self.inner.close()
        super().close()


def _unpacking(raw: BinaryIO, compression: str) -> Any:
    if compression == "gz":
        return gzip.GzipFile(fileobj=raw)
    if compression == "bz2":
        return bz2.BZ2File(raw)
    if compression == "xz":
        return lzma.LZMAFile(raw)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")


def open_bytes(path: Path, member: str = "") -> BinaryIO:
    """The unpacked bytes of a file or of a zip's member, whatever it is compressed with."""
    return resolved(Blob(path, member))[0].open()


def resolved(blob: Blob) -> tuple[Blob, bytes]:
    """The blob with its compression detected, and its first 4096 bytes.

    Raises TL-DATA-MISSING, -FOLDER, -UNREADABLE, -BINARY, and -NESTED where what was unpacked is packed again.
    """
    path = blob.path
    if path.is_dir():
        raise DataError("TL-DATA-FOLDER", where=printable(path))
    if not path.exists() or "\0" in str(path):
        raise DataError("TL-DATA-MISSING", where=printable(path), near=nearby(path) if "\0" not in str(path) else "")
    if not path.is_file():
        raise DataError("TL-DATA-UNREADABLE", where=printable(path), error=t("not a regular file"))
    head = _head(blob)
    packed = next((name for magic, name in _PACKED if head.startswith(magic)), "")
    if packed and not blob.compression:
        blob = replace(blob, compression=packed)
        head = _head(blob)
        packed = next((name for magic, name in _PACKED if head.startswith(magic)), "")
    if packed or (archives.is_zip(head) and not blob.is_plain_file and not is_workbook(blob, head)):
        raise DataError("TL-DATA-NESTED", where=blob.where, kind=packed or "zip")
    refused = next((name for magic, name in _REFUSED if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        refused = "tar"
    if len(head) >= 512 and not head.strip(b"\0"):
        refused = t("nothing but zero bytes")
    if refused:
        raise DataError("TL-DATA-BINARY", where=blob.where, kind=refused)
    return blob, head


def _head(blob: Blob) -> bytes:
    with closing(blob.open()) as handle:
        return handle.read(4096)


def is_workbook(blob: Blob, head: bytes) -> bool:
    """Whether this is an Excel file: a zip with a workbook in it."""
    if not archives.is_zip(head):
        return False
    if blob.is_plain_file:
        return archives.is_workbook(blob.path)
    return archives.is_workbook(cast(Any, io.BytesIO(blob.read_bytes())))


def blobs(path: Path) -> list[Blob]:
    """The sources in a file: its members if it is a zip, else itself. Raises as `resolved` and `archives.members`."""
    blob, head = resolved(Blob(path))
    if not blob.is_plain_file or not archives.is_zip(head) or archives.is_workbook(path):
        return [blob]
    return [Blob(path, member) for member in archives.members(path)]


def members(path: Path) -> tuple[str, ...]:
    """Names of a zip's members that are read; () for any other file."""
    return tuple(blob.member for blob in blobs(path) if blob.member)
