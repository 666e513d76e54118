"""The engine of a child process, as its server has it: it computes with torch, and this side imports none of it.

Queries go out and pieces come in as frames. A thread reads them and hands the pieces of one step to each event loop at
once; a supervisor starts the child again when it ends or stands still.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import current
from tuneloop.recipe.serve import ServePart
from tuneloop.registry import versions
from tuneloop.serving.catalogue import Catalogue, SharedBase, served_key
from tuneloop.serving.engine import ModelEntry, Query
from tuneloop.serving.identity import base_digest, identity_of, run_digest, served_digest
from tuneloop.serving.settings import served_name
from tuneloop.serving.supervisor import Supervisor, log
from tuneloop.serving.wire import query_frame, read_error, read_piece
from tuneloop.serving.worker.child_process import ChildProcess, Frame, still_words
from tuneloop.serving.worker.under_way import AnswersUnderWay, Happening, QueryUnderWay, hand_out

CHILD = "tuneloop.serving.worker.torch_child"
READY_SECONDS = 60.0
"""How long a request waits for a child that is being started again."""


class TorchEngine:
    """An Engine over the model that `ref` means: a run, a version or a model. `close` it when done.

    Made, it has loaded: raises what loading raises. May be used from several threads and event loops. `say` hears when
    the child is started again, and when it is not any more.
    """

    def __init__(
        self,
        ref: str | Path,
        settings: ServePart | None = None,
        workspace: Path = Path(),
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self._settings = settings or ServePart()
        versions.require(workspace, str(ref))  # a misspelt name need not wait for a process to start
        load_frame = {
            "do": "open",
            "ref": str(ref),
            "workspace": str(workspace),
            "settings": self._settings.model_dump(),
            "language": current(),
            "key": served_key(str(ref), workspace),
        }
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()
        """Guards what follows; notified whenever any of it changes."""
        self._requests: dict[int, QueryUnderWay] = {}
        self._about: dict[str, Any] = {}
        self._catalogue: Catalogue | None = None
        self._workspace, self._ref = workspace, ref
        self._identities: dict[str | None, str] = {}
        """By the key of an adapter; None is what was served when the server began."""
        self._gauges: dict[str, float] = {}
        self._adapters: frozenset[str] = frozenset()
        """Keys of the adapters that the child has in memory."""
        self._heard = {"main": 0.0, "door": 0.0}
        """When each of the child's two threads was heard of last."""
        self._seconds = 1.0
        self._cut = False
        self.open = True
        self._name = served_name(ref)
        self._supervisor = Supervisor(
            lambda: ChildProcess(CHILD, load_frame, self._hear, self._stands_still), say, self._lost
        )
        self._supervisor.start()

    @property
    def ready(self) -> bool:
        return self.open and self._supervisor.ready

    @property
    def pending(self) -> int:
        with self._lock:
            return len(self._requests)

    @property
    def capacity(self) -> int:
        return int(self._about.get("capacity", 1))

    @property
    def retry_after(self) -> int:
        return max(1, round(self._seconds))

    async def models(self) -> list[ModelEntry]:
        about, catalogue = self._about, self._catalogue
        assert catalogue is not None
        names = await asyncio.to_thread(catalogue.names, fresh=False)
        base = catalogue.base
        return [
            ModelEntry(
                one.name,
                about["context"],
                base.name if base is not None and base.name != one.name else None,
                tuple(about["labels"]),
                tuple(about["tasks"]),
                one.source is None or one.source.key in self._adapters,
            )
            for one in names.values()
        ]

    async def identity(self, model: str) -> str | None:
        source = await self._source(model)
        key = None if source is None else source["key"]
        if key not in self._identities:
            digest = await asyncio.to_thread(self._digest, source)
            if digest is None:
                return None
            self._identities[key] = self._identity(digest)
        return self._identities[key]

    def _identity(self, digest: str) -> str:
        return identity_of("torch", digest, self._settings.max_new_tokens, self._about.get("context"))

    def _digest(self, source: dict[str, str] | None) -> str | None:
        """Of the files of a model's name; None where they cannot be read."""
        try:
            if source is None:
                return served_digest(str(self._ref), self._workspace)
            if source["key"]:
                return run_digest(Path(source["run"]))
            run = versions.locate(self._workspace, str(self._ref))
            return served_digest(str(self._ref), self._workspace) if run is None else base_digest(run)
        except (OSError, TuneloopError) as error:
            log.warning("no answer of this model is cached: %s", error)
            return None

    async def submit(self, query: Query) -> AnswersUnderWay:
        if not self.open:
            raise ServeError("TL-SERVE-CLOSING", status=503)
        source = await self._source(query.model)
        child = await self._supervisor.running(READY_SECONDS)
        request = QueryUnderWay(next(self._numbers), query, asyncio.get_running_loop())
        with self._lock:
            if not self.open:
                raise ServeError("TL-SERVE-CLOSING", status=503)
            if child is not self._supervisor.child:
                raise self._supervisor.down()
            self._requests[request.number] = request
        try:
            child.send({"do": "query", "id": request.number, "query": query_frame(query), "source": source})
            event = await request.events.get()
        except BaseException:
            self.cancel(request)
            raise
        if isinstance(event, BaseException):
            raise event
        assert isinstance(event, int)
        return AnswersUnderWay(request, event, self.cancel)

    async def _source(self, name: str) -> dict[str, str] | None:
        """Where the adapter of a name is, as the child is told: None for what is served. Raises TL-SERVE-MODEL."""
        catalogue = self._catalogue
        assert catalogue is not None
        if name == catalogue.served:
            return None
        listing = await asyncio.to_thread(catalogue.find, name)
        if listing.source is None:
            return {"key": "", "run": ""} if listing.is_base else None
        run = await asyncio.to_thread(listing.source.run)
        return {"key": listing.source.key, "run": str(run)}

    def gauges(self) -> Mapping[str, float]:
        with self._lock:
            return {**self._gauges, "engine_restarts_total": float(self._supervisor.restarts)}

    def cancel(self, request: QueryUnderWay) -> None:
        """Nobody listens any more: the request's answers end before their next token."""
        with self._lock:
            there = self._requests.pop(request.number, None) is not None
            child = self._supervisor.child
            self._lock.notify_all()
        if there and child is not None:
            child.send({"do": "cancel", "id": request.number})

    def close(self, grace: float = 0.0) -> None:
        with self._lock:
            child, self.open = self._supervisor.child, False
            self._cut = self._cut or not grace
            self._lock.notify_all()
            if child is not None and not self._cut:
                child.send({"do": "drain"})
                self._lock.wait_for(lambda: not self._requests or self._cut, grace)
                self._cut = True
                self._lock.notify_all()
        self._fail_all(lambda: ServeError("TL-SERVE-CLOSING", status=503))
        self._supervisor.close()

    # What follows runs in the thread that watches the child, and in the one that reads its frames.

    def _lost(self, how: str) -> None:
        self._fail_all(lambda: self._supervisor.down(how))

    def _stands_still(self) -> str | None:
        """That the child has not been heard of for too long; None where it has."""
        now, seconds = time.monotonic(), self._settings.watchdog
        with self._lock:
            waiting = [one.began for one in self._requests.values() if not one.accepted]
        door = now - max(min(waiting), self._heard["door"]) if waiting else 0.0
        return still_words(seconds) if max(door, now - self._heard["main"]) > seconds else None

    def _fail_all(self, error: Callable[[], BaseException]) -> None:
        with self._lock:
            requests = list(self._requests.values())
            self._requests.clear()
            self._lock.notify_all()
        self._hand_out([(request, error()) for request in requests])

    def _hear(self, frame: Frame) -> None:
        """Take a frame of the child."""
        what, now = frame["do"], time.monotonic()
        if what == "step":
            self._heard["main"] = now
            self._gauges, self._adapters = frame["gauges"], frozenset(frame["loaded"])
            self._hear_events(frame["events"])
        elif what in {"accepted", "refused"}:
            self._heard["door"] = now
            self._hear_verdict(frame)
        elif what == "loaded":
            self._heard["main"] = now
            self._about, self._adapters = frame["about"], frozenset()
            # Now, and not at the first request: an alias may mean another version by then.
            served = self._digest(None) if self._settings.cache.backend != "off" else None
            self._identities = {} if served is None else {None: self._identity(served)}
            if self._catalogue is None:
                self._catalogue = Catalogue(self._name, self._workspace, _shared_base(self._about, self._name))

    def _hear_verdict(self, frame: Frame) -> None:
        """A query was accepted, or refused."""
        with self._lock:
            request = self._requests.get(frame["id"])
            if request is None:
                return
            request.accepted = True
            if "error" in frame:
                del self._requests[request.number]
                self._lock.notify_all()
        event: Happening = read_error(frame["error"]) if "error" in frame else int(frame["prompt_tokens"])
        self._hand_out([(request, event)])

    def _hear_events(self, events: list[list[Any]]) -> None:
        handed: list[tuple[QueryUnderWay, Happening]] = []
        with self._lock:
            for number, frame in events:
                request = self._requests.get(number)
                if request is None:  # cancelled in the meantime
                    continue
                if "error" in frame:
                    handed.append((request, read_error(frame["error"])))
                    request.unfinished = 0
                else:
                    request.cached_tokens = frame.pop("cached", request.cached_tokens)
                    piece = read_piece(frame)
                    handed.append((request, piece))
                    request.unfinished -= piece.finish is not None
                if request.unfinished <= 0:
                    del self._requests[number]
                    self._seconds += 0.2 * (time.monotonic() - request.began - self._seconds)
                    self._lock.notify_all()
        self._hand_out(handed)

    def _hand_out(self, events: list[tuple[QueryUnderWay, Happening]]) -> None:
        for one in hand_out(events):
            self.cancel(one)


def _shared_base(about: dict[str, Any], served: str) -> SharedBase | None:
    shared = about["shared"]
    return None if shared is None else SharedBase(**{**shared, "name": shared["name"] or served})
