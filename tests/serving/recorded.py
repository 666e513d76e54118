"""A server with a workspace, and so with a store: for tests of what is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.serving.scripted import NAME, Served
from tuneloop.base.errors import ServeError
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.replies import KeptReply, kept_replies
from tuneloop.recipe.serve import RecordsPart, ServePart
from tuneloop.serving.admission import Admission, Caller
from tuneloop.serving.application import admission_steps
from tuneloop.serving.http import api
from tuneloop.serving.record_keeper import RecordKeeper

FULL = ServePart(records=RecordsPart(replies="full"))
"""Everything is kept."""
PLANTED = "marmalade-zeppelin-7731"
USER = "li-wei-19840423"


class ByHeader(Admission):
    """Stands for the keys: who a caller is says a header."""

    of_keys = True

    def __init__(self, scopes: frozenset[str] = frozenset({"*"})) -> None:
        self.scopes, self.ended = scopes, False

    async def enter(self, request: Any) -> None:
        name = request.headers.get("x-caller", "")
        request.state.caller = Caller(f"key-{name}", name, self.scopes, name)

    async def readmit(self, request: Any) -> None:
        if self.ended:
            raise ServeError("TL-SERVE-KEY", status=401)


@contextmanager
def serving(
    engine: Any,
    workspace: Path,
    settings: ServePart | None = None,
    *,
    place: str | Path | None = None,
    caller: Admission | None = None,
    more: Sequence[Admission] = (),
) -> Iterator[Served]:
    """The store is at `place`, else in the workspace; `more` are steps behind that of the keys."""
    settings = settings or ServePart()
    keeper = RecordKeeper(Archive(workspace, place), settings.records, settings.batches, "tiny:v1")
    steps = [caller or ByHeader(), *more, *admission_steps(settings, engine, None, keeper=keeper)[1:]]
    bound = api.listen("127.0.0.1", 0)
    app = api.create_app(engine, admission=steps, keeper=keeper)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", engine)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(server: Served, content: str = "Who are you?", caller: str = "shop", **body: Any) -> Any:
    body = {"model": NAME, "messages": [{"role": "user", "content": content}]} | body
    headers = {"x-caller": caller}
    if body.get("stream"):
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
        return json.loads(reply.text.split("\n")[0].removeprefix("data: "))
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30).json()


def vote(server: Served, body: dict[str, Any], caller: str = "shop") -> httpx.Response:
    headers = {"x-caller": caller, "content-type": "application/json"}
    return httpx.post(f"{server.url}/v1/feedback", content=json.dumps(body), headers=headers, timeout=30)


def kept(tmp_path: Path, place: str | Path, **equal: str) -> list[KeptReply]:
    archive = Archive(tmp_path, place)
    try:
        return list(kept_replies(archive.store, **equal))
    finally:
        archive.close()
