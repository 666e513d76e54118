"""The application for a server program of one's own choice, its settings from the environment:

    TUNELOOP_SERVE=runs/demo-1 uvicorn --factory tuneloop.serving.asgi:create
    TUNELOOP_SERVE_CONFIG=serve.yaml gunicorn -k uvicorn_worker.UvicornWorker 'tuneloop.serving.asgi:create()'

Each worker makes an engine of its own: where there are several, let it be `proxy`, and what they share be in Redis.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.base.environment import environment
from tuneloop.base.errors import ServeError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tuneloop.recipe.serve import ServePart


def create() -> FastAPI:
    """The application that TUNELOOP_SERVE, TUNELOOP_SERVE_CONFIG and TUNELOOP_SERVE_WORKSPACE describe. The log of this
    process becomes lines of JSON, where the settings say so.

    Raises TL-SERVE-NOTHING where they say nothing, and what `application` raises.
    """
    from tuneloop.serving.application import application
    from tuneloop.serving.http.logs import write_json
    from tuneloop.serving.settings import config_settings, serve_settings

    about = environment()
    ref, workspace, config = about.served, about.serve_workspace, about.serve_config

    def settings() -> ServePart:
        return config_settings(Path(config)) if config else serve_settings(ref, workspace)

    first = settings() if config or ref else None
    if first is None or (not ref and first.engine != "proxy"):
        raise ServeError("TL-SERVE-NOTHING")
    if first.log == "json":
        write_json()
    return application(ref, workspace=workspace, settings=first, reread=settings)
