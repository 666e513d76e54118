"""Reads an uploaded file of a form (multipart/form-data), never more of it than is allowed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.formparsers import MultiPartException, MultiPartParser

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.base.optional import need

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile
    from starlette.requests import Request

MOST_FORM = 64 << 10
"""Bytes of a form beside its file: names and small fields."""
MOST_NAME = 255


@dataclass(frozen=True, slots=True)
class Upload:
    """A file, and the other fields of the form. The file lies on the disk where it is large, without a name there."""

    file: UploadFile
    filename: str
    size: int
    fields: dict[str, str]


async def read_upload(request: Request, most: int) -> Upload:
    """The form of a request with the file in its field `file`.

    Raises TL-SERVE-CONTENT-TYPE, TL-SERVE-UPLOAD for a file of more than `most` bytes, TL-SERVE-REQUEST.
    """
    need("python_multipart", extra="serve")
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ServeError("TL-SERVE-FORM", status=415, got=kind[:200])
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most + MOST_FORM:
        raise ServeError("TL-SERVE-UPLOAD", status=413, most=most, param="file")
    parser = MultiPartParser(request.headers, _limited(request, most), max_files=1, max_fields=16)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, ValueError) as error:
        raise _refusal("body", t("it is no form with a file")) from error
    file = form.get("file")
    if file is None or isinstance(file, str):
        raise _refusal("file", t("a file is wanted"))
    size = file.size or 0
    if size > most:
        raise ServeError("TL-SERVE-UPLOAD", status=413, most=most, param="file")
    fields = {name: text for name, text in form.multi_items() if isinstance(text, str)}
    return Upload(file, _name(file.filename), size, fields)


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    read = 0
    async for part in request.stream():
        read += len(part)
        if read > most + MOST_FORM:
            raise ServeError("TL-SERVE-UPLOAD", status=413, most=most, param="file")
        yield part


def _name(name: str | None) -> str:
    """The last part of a name, without what no file's name may have in it.

    >>> _name("../../etc/pass\\0wd"), _name("C:\\\\x\\\\a.jsonl"), _name(None)
    ('passwd', 'a.jsonl', 'upload')
    """
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    last = last.encode("utf-8", "replace").decode()
    return "".join(letter for letter in last if letter.isprintable())[:MOST_NAME] or "upload"


def _refusal(param: str, words: str) -> ServeError:
    return ServeError("TL-SERVE-REQUEST", where=param, param=None if param == "body" else param, error=words)
