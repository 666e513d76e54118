"""GET /: the chat page, with its style and its script. They hold no data and no model's name, and need no key; what the
page then asks for does."""

from __future__ import annotations

import json
from importlib.resources import files

from fastapi import FastAPI, Response

from tuneloop.serving.http.page_words import page_words
from tuneloop.serving.http.routes.context import ServerContext

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_routes(app: FastAPI, context: ServerContext) -> None:
    words = json.dumps(page_words(), ensure_ascii=False).replace("<", "\\u003c")
    index, style, script = (_file(name) for name in ("index.html", "chat.css", "chat.js"))
    index = index.replace("__WORDS__", words)

    @app.get("/")
    async def page() -> Response:
        return Response(index, media_type="text/html", headers=HEADERS)

    @app.get("/page/chat.css")
    async def page_style() -> Response:
        return Response(style, media_type="text/css", headers=HEADERS)

    @app.get("/page/chat.js")
    async def page_script() -> Response:
        return Response(script, media_type="text/javascript", headers=HEADERS)


def _file(name: str) -> str:
    return files("tuneloop").joinpath("serving", "page", name).read_text(encoding="utf-8")
