"""/v1/files: what batches read and write. As much of OpenAI's routes as batches need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.serving.admission import caller_of
from tuneloop.serving.batches.file_shelf import StoredFile
from tuneloop.serving.http.record_shapes import FileDeleted, FileList, FileObject
from tuneloop.serving.http.routes.context import ServerContext, in_store
from tuneloop.serving.http.upload import read_upload
from tuneloop.serving.record_keeper import MB

MOST_LISTED = 10_000
PURPOSE = "batch"
"""The one purpose of an upload."""


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/files")
    async def upload_file(request: Request) -> Response:
        keeper = context.keeper_of("batches")
        upload = await read_upload(request, keeper.batches.file_mb * MB)
        try:
            if upload.fields.get("purpose") != PURPOSE:
                words = t("one of {names} is wanted", names=PURPOSE)
                raise ServeError("TL-SERVE-REQUEST", where="purpose", param="purpose", error=words)
            put = keeper.shelf.put
            stored = await in_store(put, upload.file.file, upload.size, upload.filename, PURPOSE, caller_of(request))
        finally:
            await upload.file.close()
        return JSONResponse(file_object(stored))

    @app.get("/v1/files")
    async def list_files(request: Request) -> Response:
        shelf = context.keeper_of("batches").shelf
        after, limit = page_of(request, MOST_LISTED, MOST_LISTED)
        purpose = request.query_params.get("purpose", "")
        listed = await in_store(shelf.all_of, caller_of(request), purpose=purpose, after=after, limit=limit + 1)
        entries = [file_object(one) for one in listed[:limit]]
        first, last = ends_of(entries)
        answer: FileList = {
            "object": "list",
            "data": entries,
            "first_id": first,
            "last_id": last,
            "has_more": len(listed) > limit,
        }
        return JSONResponse(answer)

    @app.get("/v1/files/{file_id}")
    async def file(request: Request, file_id: str) -> Response:
        shelf = context.keeper_of("batches").shelf
        return JSONResponse(file_object(await in_store(shelf.find, file_id, caller_of(request))))

    @app.get("/v1/files/{file_id}/content")
    async def file_content(request: Request, file_id: str) -> Response:
        shelf = context.keeper_of("batches").shelf
        parts = await in_store(shelf.content, file_id, caller_of(request))
        return StreamingResponse(parts, media_type="application/jsonl")

    @app.delete("/v1/files/{file_id}")
    async def delete_file(request: Request, file_id: str) -> Response:
        shelf = context.keeper_of("batches").shelf
        await in_store(shelf.delete, file_id, caller_of(request))
        answer: FileDeleted = {"id": file_id, "object": "file", "deleted": True}
        return JSONResponse(answer)


def file_object(stored: StoredFile) -> FileObject:
    """A file in OpenAI's shape."""
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.size,
        "created_at": stored.created,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
        "expires_at": None,
    }


def page_of(request: Request, usual: int, most: int) -> tuple[str, int]:
    """`after` and `limit` of a list's request. Raises TL-SERVE-REQUEST."""
    given = request.query_params.get("limit", str(usual))
    if not (given.isascii() and given.isdecimal() and len(given) < 9 and 1 <= int(given) <= most):
        words = t("a whole number from 1 to {most}", most=most)
        raise ServeError("TL-SERVE-REQUEST", where="limit", param="limit", error=words)
    return request.query_params.get("after", ""), int(given)


def ends_of(entries: Sequence[Any]) -> tuple[str | None, str | None]:
    """The ids of the first and the last entry of a list's answer.

    >>> ends_of([{"id": "a"}, {"id": "b"}]), ends_of([])
    (('a', 'b'), (None, None))
    """
    return (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
