"""The server of a run, version, model, export or of other servers: settings, engine and steps put together. It imports
no torch: what computes with it is another process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.recipe.schema import ServePart

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("tuneloop.serving")


def application(
    ref: str | Path,
    *,
    workspace: Path = Path(),
    settings: ServePart | None = None,
    api_key: str | None = None,
    say: Callable[[str], None] = log.warning,
) -> FastAPI:
    """An application that speaks OpenAI's API, its engine ready; `ref` may be "" where the engine is `proxy`.

    `settings` stand in place of the section `serve` of the run's recipe, and `api_key` in place of the key in its key
    file. Raises what the engine's maker raises.
    """
    from tuneloop.serving.admission import admission_steps
    from tuneloop.serving.http.api import create_app
    from tuneloop.serving.record_keeper import RecordKeeper
    from tuneloop.serving.settings import read_key, serve_settings
    from tuneloop.serving.table import ENGINES

    if settings is None:
        settings = serve_settings(ref, workspace)
    if api_key is None and settings.key_file:
        api_key = read_key(Path(settings.key_file))
    engine = ENGINES[settings.engine](ref, settings, workspace, say)
    own = str(getattr(engine, "name", ""))
    name = own or (Path(ref).name if Path(ref).exists() else str(ref))
    keeper = RecordKeeper.of(workspace, settings, name)
    steps = admission_steps(settings, engine, api_key, keeper.steps())
    return create_app(engine, model_name=name, admission=steps, keeper=keeper)
