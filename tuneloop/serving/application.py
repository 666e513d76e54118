"""A run, version or model -> an application that answers over HTTP. This process imports no torch for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.recipe.schema import ServePart
from tuneloop.serving import settings as section
from tuneloop.serving.admission import admission_steps
from tuneloop.serving.table import ENGINES

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("tuneloop.serving")


def application(
    ref: str | Path,
    *,
    workspace: Path = Path(),
    api_key: str | None = None,
    settings: ServePart | None = None,
    say: Callable[[str], None] = log.warning,
) -> FastAPI:
    """The application of what `ref` means, once its engine has loaded.

    `settings` stand in place of the section `serve` of the run's recipe, `api_key` in place of the key in its key file.
    `say` hears what happens to the engine later. Raises what the engine raises that cannot be started.
    """
    from tuneloop.serving.api import create_app

    settings = settings or section.serve_settings(ref, workspace)
    if api_key is None and settings.key_file:
        api_key = section.read_key(Path(settings.key_file))
    engine = ENGINES[settings.engine](ref, settings, workspace, say)
    try:
        steps = admission_steps(settings, engine, api_key)
        name = str(getattr(engine, "name", "")) or section.served_name(ref)  # an export is called as its file is
        return create_app(engine, model_name=name, admission=steps)
    except BaseException:
        engine.close()
        raise
