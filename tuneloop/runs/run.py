"""The run folder: where a run's files lie, and how its name is found again. Files are the interface between stages."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneloop.base import refusals
from tuneloop.base.errors import RunError
from tuneloop.base.files import write_atomic
from tuneloop.base.language import listed, t
from tuneloop.recipe.overrides import changed
from tuneloop.recipe.recipe import read_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.lock import lock

FREE_ON_RESUME = {
    "workers", "logging_strategy", "logging_steps", "save_strategy", "save_steps", "save_total_limit", "eval_strategy",
    "eval_steps", "sample_answers",
}  # fmt: skip
"""Keys of `train` that change no number of a run, so a resumed run may have them otherwise."""


LIVES = {"started", "resumed", "killed", "remedy", "stopped", "paused", "failed", "finished"}
"""Events that begin or end a life of a run."""
MOMENT = 0.2
"""Seconds for which somebody who only looks may hold a run's lock."""


@dataclass(frozen=True, slots=True)
class Run:
    """A folder runs/<name>-<n>."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def workspace(self) -> Path:
        """The folder that holds runs/<run>; or models/versions/<version>, a registered one laid out like a run."""
        versions, models, *_ = above = self.path.absolute().parents
        return above[2] if (models.name, versions.name) == ("models", "versions") else models

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def note_kill(self) -> None:
        """Write down that the system has ended the run for want of memory: whoever resumes it makes passes smaller."""
        Journal(self.events).event("killed", by="memory")

    def last_life(self) -> dict[str, Any]:
        """The last event that began or ended a life of the run, {} before the first."""
        return ([line for line in Journal(self.events).lines() if line.get("event") in LIVES] or [{}])[-1]

    def is_killed(self) -> bool:
        """Whether the system has ended it for want of memory, and nothing has been done about that yet."""
        return self.last_life().get("event") == "killed"

    def trained_folder(self) -> Path | None:
        """adapter/ or model/, whichever the run has made; None while it is unfinished."""
        return next((p for p in (self.path / "adapter", self.path / "model") if p.is_dir()), None)

    def dataset(self) -> Path | None:
        """The folder of the dataset that the run was made from; None where it is not known or gone.

        A workspace may have moved since, with its datasets: then it lies beside the run as it did.
        """
        text = self.read("dataset.json").get("path")
        if not isinstance(text, str) or not text:
            return None
        recorded = Path(text)
        places = (self.workspace / recorded, self.workspace / "datasets" / recorded.parent.name / recorded.name)
        return next((p for p in places if p.is_dir()), None)

    def located(self, recorded: str | Path) -> Path:
        """A path that the run's files name, or where it lies now if the workspace has moved since with all that is in
        it; the recorded path where it is nowhere."""
        path = Path(recorded)
        if path.exists() or not path.is_absolute():
            return path
        parts = path.parts
        places = (self.workspace.joinpath(*parts[k:]) for k in range(1, len(parts) - 1))
        return next((p for p in places if p.exists()), path)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, {} where it is not there (yet). Raises TL-RUN-DAMAGED for one that is no object."""
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError("TL-RUN-DAMAGED", where=str(path), error=str(error)) from error
        if not isinstance(content, dict):
            wrong = f"{type(content).__name__} instead of an object"
            raise RunError("TL-RUN-DAMAGED", where=str(path), error=wrong)
        return content

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """Write a JSON file of the run, whole or not at all."""
        path = self.path / name
        write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False))
        return path


BASE, BEGUN = "base", "begun"
"""Folders of a run: the model it trained on, where adapters were added into it first; the adapter it went on from."""


def run_recipe(path: Path) -> Recipe:
    """The recipe of a run folder, with its own parts found in it, and all others where they lie now.

    A workspace may have moved since; recipes of earlier versions name the run's own parts by absolute paths.
    """
    run = Run(path)
    recipe, _ = read_recipe(run.recipe)

    def moved(text: str | None) -> str | None:
        return text if text is None or not Path(text).is_absolute() else str(run.located(text))

    model, train, part = recipe.model, recipe.train, recipe.evaluate
    name = moved(model.name) or model.name
    if run.read("merged.json") and (path / BASE).is_dir():
        name = str((path / BASE).resolve())
    adapter = moved(train.adapter)
    if train.adapter and (path / BEGUN).is_dir():
        adapter = str((path / BEGUN).resolve())
    show = moved(part.show) if isinstance(part.show, str) else part.show
    probes = [
        p.model_copy(update={"prompts": moved(p.prompts)}) if isinstance(p.prompts, str) else p for p in part.probes
    ]
    files = [d.model_copy(update={"path": moved(d.path)}) for d in recipe.data]
    measured = [f.model_copy(update={"path": moved(f.path)}) for f in part.files]
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"name": name, "template": moved(model.template)}),
            "train": train.model_copy(update={"adapter": adapter}),
            "evaluate": part.model_copy(update={"show": show, "probes": probes, "files": measured}),
            "data": files,
            "serve": recipe.serve.model_copy(update={"key_file": moved(recipe.serve.key_file)}),
        }
    )


def new_run(workspace: Path, name: str, number: int | None = None) -> Run:
    """Make runs/<name>-<n> with the next free n, or exactly `number`. Raises TL-RUN-EXISTS when that one is taken."""
    parent = workspace / "runs"
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for p in parent.iterdir() if (m := re.fullmatch(re.escape(name) + r"-(\d+)", p.name))]
    wanted = number if number is not None else max(taken, default=0) + 1
    while True:
        path = parent / f"{name}-{wanted}"
        try:
            path.mkdir()
            return Run(path)
        except FileExistsError:
            if number is not None:
                raise RunError("TL-RUN-EXISTS", where=str(path), path=path) from None
            wanted += 1


def open_run(ref: str | Path, workspace: Path = Path()) -> Run:
    """The run of a folder path or of a name below runs/; "latest" is the newest. Raises TL-RUN-MISSING, TL-RUN-NONE."""
    parent = workspace / "runs"
    if str(ref) == "latest":
        recipes = sorted((p for p in parent.glob("*/recipe.yaml")), key=lambda p: p.stat().st_mtime)
        if not recipes:
            refusals.require_readable(parent)
            raise RunError("TL-RUN-NONE", where=str(parent))
        return Run(recipes[-1].parent)
    for path in (Path(ref), parent / str(ref)):
        if (path / "recipe.yaml").is_file():
            # "." and a bare name have no parents to look for the datasets in.
            return Run(path.resolve() if len(path.parts) < 2 or ".." in path.parts else path)
    raise RunError("TL-RUN-MISSING", where=str(ref), path=f"{ref}{near_run(str(ref), workspace)}")


def near_run(ref: str, workspace: Path = Path()) -> str:
    """Words for an error: a run that lies above this folder, or is called much like `ref`; "" where none is."""
    name = re.split(r"[/\\]", ref.rstrip("/\\"))[-1]
    above = (os.path.join(*[os.pardir] * n, "runs", name) for n in (1, 2, 3))
    names = [p.parent.name for p in (workspace / "runs").glob("*/recipe.yaml")]
    near = next((p for p in above if os.path.isfile(os.path.join(p, "recipe.yaml"))), "")
    near = near or listed(difflib.get_close_matches(name, names, 3, 0.6))
    return t("; near it: {names}", names=near) if near else ""


def resumable(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe of a run with `--set` assignments that change no number. Raises TL-RUN-RESUME for any other."""
    if not settings:
        return recipe
    wanted = changed(recipe, settings)
    free = {name: getattr(wanted.train, name) for name in FREE_ON_RESUME}
    allowed = recipe.model_copy(update={"train": recipe.train.model_copy(update=free), "watch": wanted.watch})
    if wanted != allowed:
        raise RunError("TL-RUN-RESUME", where=listed(settings), free=listed(sorted(FREE_ON_RESUME)))
    return allowed


@contextmanager
def held_alone(run: Run) -> Iterator[None]:
    """Nobody else trains into this run meanwhile: two would write one metrics file. Raises TL-RUN-BUSY.

    The lock lies in the run's folder, so it also counts for other users of a shared workspace.
    """
    try:
        with lock(run.path / ".lock", wait=MOMENT):
            yield
    except Timeout as error:
        raise RunError("TL-RUN-BUSY", where=str(run.path)) from error
