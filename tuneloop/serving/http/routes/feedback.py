"""POST /v1/feedback: what a user thought of an answer. It is in the store before it is said to be."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from tuneloop.improvement.feedback import Feedback, asker_of, put_feedback
from tuneloop.improvement.replies import mask_all
from tuneloop.serving.admission import Caller, caller_of
from tuneloop.serving.http.body import read_body
from tuneloop.serving.http.record_shapes import FeedbackReply, FeedbackRequest
from tuneloop.serving.http.routes.context import ServerContext, in_store
from tuneloop.serving.record_keeper import RecordKeeper


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        keeper = context.keeper_of("feedback")
        body = await read_body(request, FeedbackRequest)
        stored = await in_store(_put, keeper, body, caller_of(request))
        answer: FeedbackReply = {"object": "feedback", "id": body.id, "choice": body.choice, "stored": stored}
        return JSONResponse(answer)


def _put(keeper: RecordKeeper, body: FeedbackRequest, caller: Caller) -> bool:
    """Write it down; whether the reply that it is about was kept. Who is not named is the one who had asked."""
    keeper.writer.flush()
    correction = (body.correction or "").replace("\0", "\ufffd")
    correction = mask_all(correction) if keeper.records.mask else correction
    users = keeper.archive.users

    def work(connection: Connection) -> bool:
        asker = asker_of(connection, body.id, caller.tenant)
        user = users.of(body.named) or asker or users.of(caller.name)
        word = Feedback(
            tenant=caller.tenant,
            reply=body.id,
            choice=body.choice,
            user_hash=user,
            created=int(time.time()),
            key_id=caller.id,
            thumb=body.thumb or "",
            score=body.score,
            correction=correction,
        )
        put_feedback(connection, word)
        return asker is not None

    return keeper.archive.store.retried(work)
