"""Where a run's figures go beside metrics.jsonl: Trackio, SwanLab, TensorBoard, W&B and MLflow, through accelerate.

All of them write below <run>/trackers and ask no network, unless their own variables of the environment say otherwise.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from tuneloop.base.environment import environment, quiet_trackers
from tuneloop.base.files import write_atomic
from tuneloop.base.optional import need
from tuneloop.monitor.alerts import LEVELS, Alert, words
from tuneloop.recipe.schema import Recipe
from tuneloop.recipe.watch import TrackerName

PROJECT = "tuneloop"
"""The project or experiment that runs belong to: one that every tracker takes, which a recipe's name need not be."""
SUMMARISED = ("step", "time")
"""Numbers of a line that are no figures: the trackers have their own."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where one tracker's run lies, and what it is called. `id` stays the same when the run is resumed, "" where the
    tracker has none yet; `first` is the optimizer step before the first line that comes."""

    folder: Path
    run: str
    id: str
    first: int


@dataclass(frozen=True, slots=True)
class TrackerKind:
    """What is particular to one tracker.

    `arguments` are those of accelerate's class, once `prepared` was called with the imported module; `noted` writes an
    alert's title and text where the tracker can hold words; `renews` says whether settings may be written again.
    """

    module: str
    arguments: Callable[[Any, Location], dict[str, Any]]
    noted: Callable[[GeneralTracker, Alert, str, str], None]
    renews: bool = True


def _trackio(module: Any, place: Location) -> dict[str, Any]:
    """Trackio asks for its folder once, when it is imported; each run here has its own. Its alerts go to its database
    and not to standard output, which is the command line's."""
    vars(sys.modules["trackio.run"])["print"] = lambda *_, **__: None
    if "TRACKIO_DIR" not in environment().trackers_elsewhere:
        folders = {"TRACKIO_DIR": place.folder, "MEDIA_DIR": place.folder / "media"}
        folders["ARTIFACTS_DIR"] = place.folder / "artifacts"
        parts = [part for name, part in sys.modules.items() if name.split(".")[0] == module.__name__]
        for part in parts:
            for name in folders.keys() & vars(part).keys():
                setattr(part, name, folders[name])
    return {"name": place.run, "resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}


def _swanlab(module: Any, place: Location) -> dict[str, Any]:
    quiet = module.Settings(
        interactive=False,
        terminal=module.Settings.Terminal(proxy_type="none"),
        probe=module.Settings.Probe(monitor=False, git=False),
    )
    given = {"name": place.run, "id": place.id, "resume": "allow", "mode": environment().swanlab_mode}
    elsewhere = "SWANLAB_LOG_DIR" in environment().trackers_elsewhere
    return {**given, "settings": quiet, **({} if elsewhere else {"log_dir": str(place.folder)})}


def _tensorboard(module: Any, place: Location) -> dict[str, Any]:
    """What an earlier process wrote of steps that come again is passed over by TensorBoard."""
    return {"logging_dir": str(place.folder), **({"purge_step": place.first + 1} if place.first else {})}


def _wandb(module: Any, place: Location) -> dict[str, Any]:
    given = {"name": place.run, "id": place.id, "resume": "allow", "mode": environment().wandb_mode}
    elsewhere = "WANDB_DIR" in environment().trackers_elsewhere
    settings = module.Settings(console="off", silent=True)
    return {**given, "settings": settings, **({} if elsewhere else {"dir": str(place.folder)})}


def _mlflow(module: Any, place: Location) -> dict[str, Any]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    given: dict[str, Any] = {"run_name": place.run, "run_id": place.id or None}
    if "MLFLOW_TRACKING_URI" in environment().trackers_elsewhere:
        return given
    module.set_tracking_uri(f"sqlite:///{(place.folder / 'mlflow.db').as_posix()}")
    return {**given, "logging_dir": (place.folder / "artifacts").as_uri()}


def _trackio_note(tracker: GeneralTracker, alert: Alert, title: str, text: str) -> None:
    levels = need("trackio", extra="trackio").AlertLevel
    level = {"bad": levels.ERROR, "watch": levels.WARN}.get(alert.level, levels.INFO)
    tracker.tracker.alert(title, text, level=level, step=alert.step)


def _swanlab_note(tracker: GeneralTracker, alert: Alert, title: str, text: str) -> None:
    note = need("swanlab", extra="swanlab").Text(f"{title}\n{text}")
    tracker.log({f"notes/{alert.rule}": note}, step=alert.step)


def _text_note(tracker: GeneralTracker, alert: Alert, title: str, text: str) -> None:
    tracker.log({f"notes/{alert.rule}": f"{title}\n{text}"}, step=alert.step)


def _mlflow_note(tracker: GeneralTracker, alert: Alert, title: str, text: str) -> None:
    need("mlflow", extra="mlflow").set_tag(f"notes/{alert.rule}", f"{title}\n{text}")


TRACKERS: dict[TrackerName, TrackerKind] = {
    "trackio": TrackerKind("trackio", _trackio, _trackio_note),
    "swanlab": TrackerKind("swanlab", _swanlab, _swanlab_note),
    "tensorboard": TrackerKind("tensorboard", _tensorboard, _text_note, renews=False),
    "wandb": TrackerKind("wandb", _wandb, _text_note),
    "mlflow": TrackerKind("mlflow", _mlflow, _mlflow_note, renews=False),
}
"""One setting a tracker; each has an extra of its name."""


def require(name: TrackerName) -> Any:
    """The tracker's package, imported. Raises TL-MACHINE-EXTRA."""
    quiet_trackers()
    return need(TRACKERS[name].module, extra=name)


@dataclass(slots=True)
class Tracker:
    """A run in one tracker. All calls must come from one thread; they raise whatever the tracker raises."""

    name: TrackerName
    folder: Path
    """<run>/trackers/<name>"""
    run: str
    inner: GeneralTracker | None = field(default=None, init=False)

    def start(self, recipe: Recipe, first: int) -> None:
        """Begin its run, or go on with it; `first` is the optimizer step before the first line that comes."""
        kind, module = TRACKERS[self.name], require(self.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = self.folder / "id"
        known = noted.read_text(encoding="utf-8") if noted.exists() else ""
        place = Location(self.folder.absolute(), self.run, known or ("" if self.name == "mlflow" else _new_id()), first)
        given = kind.arguments(module, place)
        self.inner = LOGGER_TYPE_TO_CLASS[self.name](self.run if self.name == "tensorboard" else PROJECT, **given)
        self.inner.start()
        if not known:
            own = self.inner.tracker.info.run_id if self.name == "mlflow" else place.id
            write_atomic(noted, own.encode())
        if kind.renews or not known:
            self.inner.store_init_configuration(dict(settings(recipe)))

    def send(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.inner is not None:
            self.inner.log(figures(line), step=int(line["step"]))

    def note(self, alert: Alert, title: str, text: str) -> None:
        """An alert: its level as a number from 0 (over) to 3 (bad), and its words."""
        if self.inner is not None:
            self.inner.log({f"alerts/{alert.rule}": LEVELS.index(alert.level)}, step=alert.step)
            TRACKERS[self.name].noted(self.inner, alert, title, text)

    def finish(self) -> None:
        """End the tracker's run; a later `start` goes on with it."""
        if self.inner is not None:
            inner, self.inner = self.inner, None
            inner.finish()


def _new_id() -> str:
    return secrets.token_hex(6)


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl under the names that trackers show them by. What is no number is left out.

    >>> figures({"step": 3, "loss": 1.5, "grad_groups": {"head": 0.5}, "clock": {"seconds": 2.0}})
    {'train/loss': 1.5, 'groups/head': 0.5, 'clock/seconds': 2.0}
    >>> figures({"step": 3, "eval_loss": 1.25, "eval_rows": 8, "clock": {"seconds": 2.0}})
    {'eval/loss': 1.25, 'eval/rows': 8, 'eval/seconds': 2.0}
    """
    held = "eval_loss" in line
    numbers = {}
    for names, number in _numbers(line):
        head, *rest = names
        if head == "clock":
            path = ["eval" if held else "clock", *rest]
        elif head == "grad_groups":
            path = ["groups", *rest]
        elif rest:
            path = names
        else:
            path = ["eval" if held else "train", head.removeprefix("eval_")]
        if names[-1] not in SUMMARISED:
            numbers["/".join(_key(part) for part in path)] = number
    return numbers


def _numbers(fields: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], float]]:
    for name, one in fields.items():
        if isinstance(one, Mapping):
            yield from _numbers(one, (*above, str(name)))
        elif isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one):
            yield [*above, str(name)], one


def _key(name: str) -> str:
    """A name in letters that every tracker takes.

    >>> _key("闲聊 (1).jsonl")
    '闲聊 _1_.jsonl'
    """
    return re.sub(r"[^\w. -]", "_", name).strip(". ") or "_"


def settings(recipe: Recipe) -> Iterator[tuple[str, str | int | float | bool]]:
    """The recipe as pairs of a key and a plain value: without what is not set, and without the sections that say how
    a model is served and who is told."""

    def flat(part: Mapping[str, Any], above: str) -> Iterator[tuple[str, str | int | float | bool]]:
        for name, setting in part.items():
            key = f"{above}{name}"
            if isinstance(setting, Mapping):
                yield from flat(setting, f"{key}.")
            elif isinstance(setting, str | int | float | bool):
                yield key, setting
            elif setting is not None:
                yield key, json.dumps(setting, ensure_ascii=False)

    dumped = recipe.model_dump(mode="json", exclude={"serve": True, "watch": {"notify"}})
    yield from flat(dumped, "")


def title_and_text(alert: Alert) -> tuple[str, str]:
    """An alert's words for a tracker, in the language of the thread that asks."""
    text = words(alert)
    return text.what, " ".join(part for part in (text.why, text.do) if part)
