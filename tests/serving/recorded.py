"""A server with a workspace, and so with a store: for tests of what is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tests.serving.scripted import Served
from tuneloop.improvement.archive import Archive
from tuneloop.recipe.schema import ServePart
from tuneloop.serving.admission import Admission, Caller, admission_steps
from tuneloop.serving.http import api
from tuneloop.serving.record_keeper import RecordKeeper


class ByHeader(Admission):
    """Stands for the keys: who a caller is says a header."""

    of_keys = True

    async def enter(self, request: Any) -> None:
        name = request.headers.get("x-caller", "")
        request.state.caller = Caller(f"key-{name}", name, frozenset({"*"}), name)


@contextmanager
def serving(
    engine: Any, workspace: Path, settings: ServePart | None = None, *, place: str | Path | None = None
) -> Iterator[Served]:
    """The store is at `place`, else in the workspace."""
    settings = settings or ServePart()
    keeper = RecordKeeper(Archive(workspace, place), settings.records, settings.batches, "tiny:v1")
    steps = [ByHeader(), *admission_steps(settings, engine, None, keeper.steps())]
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
