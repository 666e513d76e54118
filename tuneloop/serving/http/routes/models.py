"""GET /v1/models: what may be asked for, each adapter with its base."""

from __future__ import annotations

import difflib

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tuneloop.base.errors import ServeError
from tuneloop.base.language import listed
from tuneloop.serving.engine import ModelEntry
from tuneloop.serving.http.routes.context import ServerContext
from tuneloop.serving.http.shapes import ModelCard, ModelList

MOST_NAMES = 5
"""Names in an error."""


def add_routes(app: FastAPI, context: ServerContext) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        cards = [card(one, context.created) for one in await context.engine.models()]
        answer: ModelList = {"object": "list", "data": cards}
        return JSONResponse(answer)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        entries = await context.engine.models()
        known = next((one for one in entries if one.name == name), None)
        if known is None:
            raise unknown(name, [one.name for one in entries])
        return JSONResponse(card(known, context.created))


def card(model: ModelEntry, created: int) -> ModelCard:
    """A model as vLLM lists it: `max_model_len` is its context, `root` and `parent` the base of an adapter."""
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "tuneloop",
        "root": model.base or model.name,
        "parent": model.base,
        "max_model_len": model.context,
    }


def unknown(name: str, names: list[str]) -> ServeError:
    """The refusal of a name that is not served, with the nearest ones.

    >>> unknown("tyni:v1", ["tiny:v1", "other"]).facts["known"]
    'tiny:v1'
    """
    near = difflib.get_close_matches(name[:200], names, MOST_NAMES, 0.4) or names[:MOST_NAMES]
    return ServeError("TL-SERVE-MODEL", where="model", param="model", got=name[:200], known=listed(near))
