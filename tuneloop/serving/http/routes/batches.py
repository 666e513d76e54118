"""/v1/batches: a file of requests in, a file of answers out, whenever there is time."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.serving.access.scopes import allows, scope_of
from tuneloop.serving.admission import caller_of
from tuneloop.serving.batches.batch_table import StoredBatch
from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.record_shapes import BatchFault, BatchList, BatchObject, BatchRequest, BatchStatus
from tuneloop.serving.http.routes.context import ServerContext, in_store
from tuneloop.serving.http.routes.files import ends_of, page_of

ENDED = frozenset({"completed", "expired", "cancelled"})
"""States in which a batch's files are there."""


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/batches")
    async def create_batch(request: Request) -> Response:
        table = context.keeper_of("batches").table
        body = await read_body(request, BatchRequest)
        create, caller = table.create, caller_of(request)
        if not allows(caller.scopes, body.endpoint):
            raise ServeError(
                "TL-SERVE-BATCH-SCOPE", status=403, param="endpoint", got=body.endpoint, scope=scope_of(body.endpoint)
            )
        batch = await in_store(create, body.input_file_id, body.endpoint, body.metadata, caller)
        if context.runner is not None:
            context.runner.wake()
        return JSONResponse(batch_object(batch))

    @app.get("/v1/batches")
    async def list_batches(request: Request) -> Response:
        table = context.keeper_of("batches").table
        after, limit = page_of(request, 20, 100)
        listed = await in_store(table.all_of, caller_of(request), after=after, limit=limit + 1)
        entries = [batch_object(one) for one in listed[:limit]]
        first, last = ends_of(entries)
        answer: BatchList = {
            "object": "list",
            "data": entries,
            "first_id": first,
            "last_id": last,
            "has_more": len(listed) > limit,
        }
        return JSONResponse(answer)

    @app.get("/v1/batches/{batch_id}")
    async def batch(request: Request, batch_id: str) -> Response:
        table = context.keeper_of("batches").table
        return JSONResponse(batch_object(await in_store(table.find, batch_id, caller_of(request))))

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        table = context.keeper_of("batches").table
        cancelled = await in_store(table.cancel, batch_id, caller_of(request))
        if context.runner is not None:
            context.runner.wake()
        return JSONResponse(batch_object(cancelled))


def batch_object(batch: StoredBatch) -> BatchObject:
    """A batch in OpenAI's shape."""
    at = batch.times.get
    ended = batch.status in ENDED
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": [cast(BatchFault, one) for one in batch.errors]} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": cast(BatchStatus, batch.status),
        "output_file_id": batch.output_file if ended and batch.completed else None,
        "error_file_id": batch.error_file if ended and batch.failed else None,
        "created_at": batch.created,
        "in_progress_at": at("in_progress_at"),
        "expires_at": batch.expires,
        "finalizing_at": at("finalizing_at"),
        "completed_at": at("completed_at"),
        "failed_at": at("failed_at"),
        "expired_at": at("expired_at"),
        "cancelling_at": at("cancelling_at"),
        "cancelled_at": at("cancelled_at"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": dict(batch.notes) if batch.notes is not None else None,
    }
