"""What may be asked for as `model`: the served model, its base, and every version, alias and run whose adapter fits it.

Names are looked up here and are never used as paths. A version that was just registered is there without a restart;
an alias means what it means now, but the name that the server was started with means what it was then.
"""

from __future__ import annotations

import difflib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import listed
from tuneloop.recipe.choices import task_choice
from tuneloop.recipe.recipe import read_recipe
from tuneloop.registry import versions
from tuneloop.registry.versions import Version

FRESH_SECONDS = 1.0
"""How old the list of names may be where a name is in it; for one that is not, it is read anew."""
NEAREST = 5


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where an adapter lies: `key` tells it from every other one, `run` is a folder shaped like a run."""

    key: str
    run: Callable[[], Path]


@dataclass(frozen=True, slots=True)
class SharedBase:
    """The weights that adapters must have been trained on to share a batch: `note` is the mark in base.json, `bits` is
    what `held_words` says."""

    name: str
    model: str
    """As a recipe names it."""
    note: str
    bits: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A name that may be asked for, and what stands behind it: None is the served model as it was loaded."""

    name: str
    source: AdapterSource | None
    is_base: bool = False


class Catalogue:
    """The names of one server. `base` is None where what is served shares its passes with no adapter."""

    def __init__(self, served: str, workspace: Path, base: SharedBase | None) -> None:
        self.served, self._workspace, self.base = served, workspace, base
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._names: dict[str, Listing] = {}
        self._facts: dict[str, dict[str, Any] | None] = {}
        self._folders: dict[str, Path] = {}

    def find(self, name: str) -> Listing:
        """What a name means. Raises TL-SERVE-MODEL with the nearest names."""
        if name == self.served:
            return Listing(name, None)
        names = self.names(fresh=False)
        listing = names.get(name) or self.names(fresh=True).get(name)
        if listing is None:
            known = list(self._names)
            near = difflib.get_close_matches(name[:200], known, NEAREST, 0.4) or known[:NEAREST]
            raise ServeError("TL-SERVE-MODEL", where="model", param="model", got=name[:200], known=listed(near))
        return listing

    def names(self, *, fresh: bool = True) -> dict[str, Listing]:
        """All names, the served one first."""
        with self._lock:
            if fresh or time.monotonic() - self._read_at > FRESH_SECONDS:
                names: dict[str, Listing] = {}
                for one in self._listings():
                    names.setdefault(one.name, one)
                self._names = names
                self._read_at = time.monotonic()
            return self._names

    def _listings(self) -> Iterator[Listing]:
        """Of two with one name the first counts."""
        yield Listing(self.served, None)
        if self.base is None:
            return
        yield Listing(self.base.name, None, is_base=True)
        for version in versions.versions(self._workspace):
            if self._fits(_version_key(version), partial(versions.stored, version)):
                source = AdapterSource(_version_key(version), partial(self._laid_out, version))
                for name in (version.ref, *(f"{version.name}:{alias}" for alias in version.aliases)):
                    yield Listing(name, source)
        for recipe in sorted((self._workspace / "runs").glob("*/recipe.yaml")):
            run = recipe.parent
            key = _run_key(run)
            if key and self._fits(key, run.joinpath):
                yield Listing(run.name, AdapterSource(key, partial(Path, run)))

    def _laid_out(self, version: Version) -> Path:
        """The folder of a version, laid out and checked once."""
        if version.id not in self._folders:
            folder = versions.locate(self._workspace, version.ref)
            assert folder is not None
            self._folders[version.id] = folder
        return self._folders[version.id]

    def _fits(self, key: str, file: Callable[[str], Path | None]) -> bool:
        """Whether the result whose files are found by name is a LoRA of the served base, for a model that writes."""
        if key not in self._facts:
            self._facts[key] = _facts(file)
        facts, base = self._facts[key], self.base
        if facts is None or base is None:
            return False
        if facts["note"] is not None:
            return bool(facts["note"] == base.note and facts["bits"] in (None, base.bits))
        return bool(facts["model"] == base.model)


def _facts(file: Callable[[str], Path | None]) -> dict[str, Any] | None:
    """What decides whether an adapter fits; None where it is none that could share a pass."""
    paths = {name: file(name) for name in ("recipe.yaml", "adapter/adapter_config.json", "adapter/base.json")}
    recipe_file, config_file, base_file = paths.values()
    try:
        if recipe_file is None or config_file is None:
            return None
        recipe = read_recipe(recipe_file)[0]
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TuneloopError):  # half written, damaged, of another tool
        return None
    task = task_choice(recipe.train.task)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or task.head or task.reads is not None:
        return None
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(base_file.read_text(encoding="utf-8")) if base_file is not None else {}
    return {"model": recipe.model.name, "note": known.get("mark"), "bits": held_words(known)}


def held_words(known: dict[str, Any]) -> str | None:
    """How base.json says that weights were held in training; None where it does not.

    >>> held_words({"bits": "nf4", "double": True}), held_words({"bits": "none"}), held_words({})
    ('nf4, double', 'none', None)
    """
    bits = known.get("bits")
    return f"{bits}, double" if bits and known.get("double") else bits


def _version_key(version: Version) -> str:
    return f"version {version.id}"


def _run_key(run: Path) -> str:
    """A run's adapter by its folder and when it was written; "" where there is none."""
    try:
        written = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    except OSError:
        return ""
    return f"run {run.resolve()} {written}"


def served_key(ref: str, workspace: Path) -> str:
    """The key of the adapter that a server is started with; "" where it is none.

    Raises what `versions.locate` raises.
    """
    run = versions.locate(workspace, ref)
    if run is None:
        return ""
    above = Path(os.path.abspath(run)).parent
    if above.name == "versions":  # a version that was laid out
        known = versions.versions(workspace)
        return next((_version_key(one) for one in known if run.name.endswith(f"-v{one.number}-{one.id[:8]}")), "")
    return _run_key(run)
