"""The server of a run, version, model, export or of other servers: settings, engine and steps put together. It imports
no torch: what computes with it is another process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.recipe.serve import ServePart

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tuneloop.serving.access.key_ring import KeyRing
    from tuneloop.serving.admission import Admission
    from tuneloop.serving.engine import Engine
    from tuneloop.serving.record_keeper import RecordKeeper

log = logging.getLogger("tuneloop.serving")


def application(
    ref: str | Path,
    *,
    workspace: Path = Path(),
    settings: ServePart | None = None,
    api_key: str | None = None,
    say: Callable[[str], None] = log.warning,
    reread: Callable[[], ServePart] | None = None,
) -> FastAPI:
    """An application that speaks OpenAI's API, its engine ready; `ref` may be "" where the engine is `proxy`.

    `settings` stand in place of the section `serve` of the run's recipe, and `api_key` in place of the key in its key
    file. `reread` gives the settings anew at SIGHUP; without it the key file alone is read anew. Raises what the
    engine's maker raises.
    """
    from tuneloop.improvement.archive import store_place
    from tuneloop.serving.access.key_ring import KeyRing
    from tuneloop.serving.access.limits import limits_step
    from tuneloop.serving.guard import policy_version
    from tuneloop.serving.http.api import create_app
    from tuneloop.serving.record_keeper import RecordKeeper
    from tuneloop.serving.settings import fixed_changes, read_key, serve_settings, served_name
    from tuneloop.serving.table import ENGINES

    first = serve_settings(ref, workspace) if settings is None else settings
    policy_version(first.safety), limits_step(first)  # raise what cannot be used before a model is loaded
    ring = KeyRing(store_place(workspace))  # before a model is loaded: a store that cannot be read costs no minutes
    engine = ENGINES[first.engine](ref, first, workspace, say)
    name = str(getattr(engine, "name", "")) or served_name(ref)
    keeper = RecordKeeper.of(workspace, first, name)

    def steps(now: ServePart) -> list[Admission]:
        key = read_key(Path(now.key_file)) if api_key is None and now.key_file else api_key
        return admission_steps(now, engine, key, workspace, ring=ring, keeper=keeper)

    def steps_anew() -> list[Admission]:
        now = first if reread is None else reread()
        for name in fixed_changes(first, now):
            log.warning("needs a restart", extra={"fields": {"setting": f"serve.{name}"}})
        return steps(now)

    try:
        admission = steps(first)
    except BaseException:
        engine.close()
        raise
    return create_app(
        engine,
        admission=admission,
        model_name=name,
        settings=first,
        reread=steps_anew,
        keeper=keeper,
        close=[ring.close],
    )


def admission_steps(
    settings: ServePart,
    engine: Engine,
    api_key: str | None,
    workspace: Path = Path(),
    *,
    ring: KeyRing | None = None,
    keeper: RecordKeeper | None = None,
) -> list[Admission]:
    """The steps of a server, in the order in which a request passes them. `ring` are the keys of the store, `keeper`
    keeps replies in it.

    Raises what the steps raise when made.
    """
    from tuneloop.serving.access.access import Access
    from tuneloop.serving.access.fair_queue import Queue
    from tuneloop.serving.access.limits import limits_step
    from tuneloop.serving.cache.cache import cache_steps
    from tuneloop.serving.guard import guard_step

    # First what holds nothing yet: where it raises at a reload, nothing is left behind.
    access, limits = Access(api_key, ring, settings.cors), limits_step(settings)
    secret = b"" if keeper is None or settings.cache.backend == "off" else keeper.archive.users.key("cache")
    guard = guard_step(settings.safety, workspace, engine)
    policy = "" if guard is None else guard.version
    try:
        cache = cache_steps(settings, engine, workspace, policy=policy, secret=secret)
    except BaseException:
        if guard is not None:
            guard.shut()  # it may have begun a process
        raise
    return [
        access,
        limits,
        *([] if keeper is None else keeper.steps(settings.records)),  # which changes the keeper: nothing raises behind
        *([] if guard is None else [guard]),
        *cache,
        Queue(engine, settings.queue),
    ]
