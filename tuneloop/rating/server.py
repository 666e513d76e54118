"""The rating page's server. Only who has the address, with its random token, sees it; only the page itself writes.

Every answer to a request that lacks the token, names another host (DNS rebinding) or comes from another page (CSRF) is
the same 404, which says nothing of what is here.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import current
from tuneloop.base.optional import need
from tuneloop.rating.rating import Rating
from tuneloop.rating.study import COLUMNS, Study, rated, rater_name
from tuneloop.rating.words import page_words

for _module in ("fastapi", "uvicorn"):
    need(_module, extra="rate")

import uvicorn  # noqa: E402
from fastapi import Depends, FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402

MOST_BYTES = 1 << 16
"""Longest request body."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {"rate.css": "text/css", "rate.js": "text/javascript"}


def new_token() -> str:
    """192 random bits for an address."""
    return secrets.token_urlsafe(24)


class Desk:
    """A study that raters write to, one change after the other; `after` hears of each rating that became complete."""

    def __init__(self, study: Study, after: Callable[[], None] = lambda: None) -> None:
        self.study, self.after = study, after
        self._lock = threading.Lock()
        self._last = {rating.key: rating for rating in study.ratings()}

    def join(self, text: str) -> dict[str, Any] | None:
        """A rater's name, how many slots there are, and the first that is not rated; None for what is no name."""
        if not (name := rater_name(text)):
            return None
        with self._lock:
            slots = self.study.join(name)
            places = [n for n in range(len(slots)) if not self._rating(name, n).complete]
            return {
                "rater": name,
                "total": len(slots),
                "place": places[0] if places else len(slots),
                "left": len(places),
            }

    def shown(self, rater: str, n: int) -> dict[str, Any] | None:
        """What the page shows at a place: no model's name, no id, and not why the pair is there."""
        with self._lock:
            if (rating := self._at(rater, n)) is None:
                return None
            slot = self.study.plans[rater][n]
            pair = self.study.pairs[slot.pair]
            a, b = self.study.shown(slot)
            cut_a, cut_b = self.study.cut(slot)
            columns = rating.as_dict()
            return {
                "context": [{"role": turn.role, "content": turn.content} for turn in pair.context],
                "prompt": pair.prompt,
                "answer_a": a,
                "answer_b": b,
                "cut_a": cut_a,
                "cut_b": cut_b,
                "rating": {name: columns[name] for name in (*sorted(COLUMNS), "seconds")},
            }

    def rate(self, rater: str, n: int, content: dict[str, Any]) -> dict[str, Any] | None:
        """Write a rating down; how many are left when it is on the disk. Raises ValueError for what it cannot be."""
        with self._lock:
            if (before := self._at(rater, n)) is None:
                return None
            blank = self.study.blank(rater, self.study.plans[rater][n])
            rating = rated(blank, content, content.get("seconds"))
            self.study.add([rating])
            self._last[rating.key] = rating
            if rating.complete or before.complete:
                with suppress(TuneloopError):  # it is in the journal; the store gets it with the next, or at the end
                    self.after()
            slots = self.study.plans[rater]
            return {"left": sum(not self._rating(rater, place).complete for place in range(len(slots)))}

    def _at(self, rater: str, n: int) -> Rating | None:
        return self._rating(rater, n) if 0 <= n < len(self.study.plans.get(rater, ())) else None

    def _rating(self, rater: str, n: int) -> Rating:
        blank = self.study.blank(rater, self.study.plans[rater][n])
        return self._last.get(blank.key, blank)


def create_page(desk: Desk, token: str, *, host: str, rater: str = "") -> FastAPI:
    """The application below /<token>/. `rater` is the name that the page takes without asking."""

    async def enter(request: Request) -> None:
        if not _permitted(request, token, host):
            raise HTTPException(404)

    app = FastAPI(
        title="tuneloop",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(enter)],
        redirect_slashes=False,  # a redirect would answer those who have no token
    )
    words = json.dumps({**page_words(), "chosen": current(), "rater": rater}, ensure_ascii=False)
    page = _file("index.html").replace("__WORDS__", words.replace("<", "\\u003c"))

    @app.get("/{given}/")
    async def index(given: str) -> Response:
        return Response(page, media_type="text/html", headers=HEADERS)

    @app.get("/{given}/slot")
    async def shown(given: str, rater: str, n: int) -> Response:
        return _sent(await asyncio.to_thread(desk.shown, rater, n))

    @app.post("/{given}/join")
    async def join(given: str, request: Request) -> Response:
        body = await _body(request)
        joined = await asyncio.to_thread(desk.join, str(body.get("rater") or ""))
        return _sent(joined, missing=400)

    @app.post("/{given}/slot")
    async def rate(given: str, request: Request) -> Response:
        body = await _body(request)
        rater, n, rating = body.get("rater"), body.get("n"), body.get("rating")
        if not isinstance(rater, str) or not isinstance(n, int) or not isinstance(rating, dict):
            raise HTTPException(400)
        try:
            return _sent(await asyncio.to_thread(desk.rate, rater, n, rating))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)

    @app.get("/{given}/{name}")
    async def asset(given: str, name: str) -> Response:
        if name not in _TYPES:
            raise HTTPException(404)
        return Response(_file(name), media_type=_TYPES[name], headers=HEADERS)

    return app


def _file(name: str) -> str:
    return files("tuneloop").joinpath("rating", "page", name).read_text(encoding="utf-8")


def _sent(content: dict[str, Any] | None, missing: int = 404) -> Response:
    if content is None:
        raise HTTPException(missing)
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(text, media_type="application/json", headers=HEADERS)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. It must say that it is JSON, which no form of another page can."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413)
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400) from error
    if not isinstance(content, dict):
        raise HTTPException(400)
    return content


def _permitted(request: Request, token: str, host: str) -> bool:
    """Whether a request has the token, was sent to this machine by a name of ours, and by no other page."""
    given = request.path_params.get("given", "")
    named = request.headers.get("host", "")
    page = request.headers.get("origin")
    return (
        hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
        and _is_ours(named, host)
        and (page is None or page == f"http://{named}")
        and request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    )


def _is_ours(named: str, host: str) -> bool:
    """Whether a Host header names this machine: the address that is listened on, or, where that is not the loopback
    alone, any address written as numbers or this machine's name; a name from elsewhere could be pointed anywhere.

    >>> _is_ours("127.0.0.1:80", "127.0.0.1"), _is_ours("evil.example:80", "127.0.0.1")
    (True, False)
    >>> _is_ours("192.168.1.5:80", "127.0.0.1"), _is_ours("192.168.1.5:80", "0.0.0.0")
    (False, True)
    """
    name = named[1:].partition("]")[0] if named.startswith("[") else named.partition(":")[0]
    if name.lower() in {"localhost", host.lower()}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return not is_local(host) and name.lower() == socket.gethostname().lower()
    return address.is_loopback or not is_local(host)


def is_local(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone.

    >>> is_local("127.0.0.1"), is_local("::1"), is_local("localhost"), is_local("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down in order, and raises the signal again for whoever else listens
    finally:
        bound.close()
