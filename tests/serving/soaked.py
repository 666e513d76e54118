"""A server for the soak test, a process of its own: a scripted engine behind the steps of a recipe.

python -m tests.serving.soaked SETTINGS WORKSPACE     prints its port
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.serving.scripted import NAME, ScriptedEngine
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.application import admission_steps
from tuneloop.serving.engine import Query
from tuneloop.serving.http import api


class Forgetful(ScriptedEngine):
    """Remembers neither queries nor streams: that would grow."""

    async def submit(self, query: Query):  # type: ignore[no-untyped-def]
        stream = await super().submit(query)
        self.queries.clear()
        self.streams.clear()
        return stream


if __name__ == "__main__":
    settings, workspace = ServePart(**json.loads(sys.argv[1])), Path(sys.argv[2])
    engine = Forgetful(capacity=64)
    bound = api.listen("127.0.0.1", 0)
    print(bound.getsockname()[1], flush=True)
    app = api.create_app(engine, admission=admission_steps(settings, engine, None, workspace), model_name=NAME)
    api.run(app, bound)
