"""The adapters that an engine has in memory: loaded when they are first asked for, unloaded when others need the place
and nobody uses them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.inference.open import trained_system
from tuneloop.inference.row_adapters import LoraTensors, RowAdapters
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import answer_prefix
from tuneloop.methods.adapters import require_same_base
from tuneloop.runs.run import run_recipe
from tuneloop.serving.worker.chat_format import ChatFormat, TokenizerStore


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter in memory, and how its model is spoken with."""

    key: str
    tensors: LoraTensors
    format: ChatFormat


class AdapterStore:
    """Adapters beside one base, at most `budget` bytes of them unless requests use more.

    `load` is for a thread of its own; `hold` and `release` are for the one that computes.
    """

    def __init__(self, rows: RowAdapters, base: Path, budget: float) -> None:
        self.rows, self._base, self._budget = rows, base, budget
        self._tokenizers = TokenizerStore()
        self._base_format: ChatFormat | None = None
        self._pinned = ""
        self._lock = threading.Lock()
        self._known: dict[str, LoadedAdapter] = {}
        """In the order of their last use, the longest ago first."""
        self._users: Counter[str] = Counter()

    @property
    def keys(self) -> tuple[str, ...]:
        """What is loaded."""
        return self.rows.names

    @property
    def bytes(self) -> int:
        """Of all that are in memory."""
        with self._lock:
            return sum(one.tensors.bytes for one in self._known.values())

    def ready(self, key: str) -> LoadedAdapter | None:
        """An adapter that is at hand; None for one that must be loaded."""
        return self._known.get(key)

    def load(self, key: str, run: Path) -> LoadedAdapter:
        """Read an adapter from the folder of a run, or of a version laid out like one. Raises TL-SERVE-ADAPTER."""
        if (known := self._known.get(key)) is not None:
            return known
        folder = run / "adapter"
        try:
            require_same_base(folder, self._base)
            tensors = self.rows.prepare(folder)
            recipe = run_recipe(run)
            tokens = self._tokenizers.load(folder)
        except TuneloopError as error:
            if error.code == "TL-SERVE-ADAPTER":
                error.facts |= {"status": 400, "param": "model"}
                raise
            raise ServeError("TL-SERVE-ADAPTER", where="model", param="model", status=400, error=error.what) from error
        with tokens.lock:
            prefix = answer_prefix(run, recipe, tokens.prompts)
            chat_format = ChatFormat(self.rows.base, tokens, recipe.prepare.system, prefix)
        loaded = LoadedAdapter(key, tensors, chat_format)
        with self._lock:
            loaded = self._known.setdefault(key, loaded)
        self.rows.foresee(key, loaded.tensors)
        return loaded

    def format_of(self, folder: Path, tokenizer: Any, system: str | None, answer_prefix: str) -> ChatFormat:
        """How the base itself is spoken with, where its tokenizer is loaded already."""
        tokens = self._tokenizers.add(folder, tokenizer)
        self._base_format = ChatFormat(self.rows.base, tokens, system, answer_prefix)
        return self._base_format

    def base_format(self) -> ChatFormat:
        """How the base itself is spoken with. Read before anything is answered."""
        if self._base_format is None:
            return self.format_of(self._base, load_tokenizer(self._base), trained_system(self._base), "")
        return self._base_format

    def fits(self, adapter: LoadedAdapter) -> bool:
        """Whether there is place for it now, once what nobody uses has gone; beside the pinned one there always is."""
        with self._lock:
            used = {key: one.tensors.bytes for key, one in self._known.items() if self._users[key]}
        if self._users[adapter.key] or not used.keys() - {self._pinned}:
            return True
        return sum(used.values()) + adapter.tensors.bytes <= self._budget

    def pin(self, adapter: LoadedAdapter) -> None:
        """Hold an adapter for good."""
        self._pinned = adapter.key
        self.hold(adapter)

    def hold(self, adapter: LoadedAdapter) -> None:
        """Use an adapter until it is released as often; it is put beside the base, and others may have to go."""
        with self._lock:
            self._known.pop(adapter.key, None)
            self._known[adapter.key] = adapter
        self._users[adapter.key] += 1
        self._make_room()
        if adapter.key not in self.rows.names:
            self.rows.add(adapter.key, adapter.tensors)

    def release(self, adapter: LoadedAdapter) -> None:
        """One use less."""
        self._users[adapter.key] -= 1

    def _make_room(self) -> None:
        """Unload what nobody uses while there is too much in memory."""
        for key in [*self._known]:
            if self.bytes <= self._budget:
                return
            if not self._users[key]:
                if key in self.rows.names:
                    self.rows.unload(key)
                with self._lock:
                    del self._known[key]
