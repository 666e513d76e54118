"""A recipe while the keys of other tools in it become its own: what was written where, what was said about it.

`recipe/peers/translate.py` and `recipe/peers/data_files.py` do the translating; this keeps the account.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import listed, t
from tuneloop.recipe.peers import tables
from tuneloop.recipe.peers.values import NOTHING, Cannot, Convert, Dropped, Wrong

Said = tuple[str, Any]  # where a value was written, and the value


def shown(value: Any) -> str:
    """A value for a message: its first 80 characters.

    >>> shown([1, "two"])
    "[1, 'two']"
    """
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]  # as YAML writes them
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list within lists within lists
        return type(value).__name__


class Work:
    """The recipe, and what is to be said about it."""

    def __init__(self, raw: dict[str, Any], folder: Path | None = None) -> None:
        self.raw = raw
        self.folder = folder
        self.listed: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}  # data sets by name, by dataset_dir
        self.out = dict(raw)
        self.problems: list[RecipeError] = []
        self.notes: list[str] = []
        self.renamed: list[tuple[str, str]] = []  # where -> key, its value as it was
        self.said: dict[str, str] = {}  # key of the recipe -> where a person wrote it
        self.waiting: list[tuple[str, str, Any]] = []  # alias, where, value of what is read together
        self.dropped: dict[str, list[str]] = {}  # why -> where
        self.silent: list[str] = []  # written, but asking for nothing
        for name in ("model", "data", "prepare", "train", "evaluate"):
            if name in self.out and self.out[name] is None:  # a section whose lines are all commented out
                del self.out[name]
            elif isinstance(self.out.get(name), dict):
                self.out[name] = dict(self.out[name])
        if isinstance(self.out.get("model"), str):
            self.out["model"] = {"name": self.out["model"]}
        train = self.section("train")
        for name in ("lora", "qlora", "freeze", "virtual", "classify", "prefer"):
            if isinstance(train.get(name), dict):
                train[name] = dict(train[name])
            elif name in train and train[name] is None:
                del train[name]

    def section(self, dotted: str) -> dict[str, Any]:
        """The section itself; an empty one that leads nowhere if it is missing or no section."""
        place: Any = self.out
        for name in dotted.split(".") if dotted else ():
            place = place.get(name) if isinstance(place, dict) else None
        return place if isinstance(place, dict) else {}

    def raw_at(self, where: str) -> Any:
        """What was written there, before anything was translated."""
        place: Any = self.raw
        for name in where.split("."):
            place = place.get(name) if isinstance(place, dict) else None
        return place

    def problem(self, code: str, where: str, **facts: Any) -> None:
        self.problems.append(RecipeError(code, where=where, **facts))

    def unsupported(self, where: str, value: Any, feature: str, instead: str) -> None:
        self.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(value), feature=feature, instead=instead)

    def twice(self, where: str, key: str, value: Any, other: str, before: Any) -> None:
        self.problem("TL-RECIPE-TWICE", where, key=key, got=shown(value), other=other, before=shown(before))

    def put(self, key: str, value: Any, where: str) -> bool:
        """Set a key of the recipe; False where something else is there already."""
        *parents, leaf = key.split(".")
        place: Any = self.out
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):  # `train: 5`: the recipe reports it
                return False
        if leaf in place and place[leaf] != value:
            self.twice(where, key, value, self.said.get(key, key), place[leaf])
            return False
        place[leaf] = value
        self.said.setdefault(key, where)
        return True

    def read(self, where: str, convert: Convert, value: Any) -> Any:
        """The converted value, or NOTHING after a note or a problem."""
        try:
            result = convert(value)
        except Wrong as error:
            self.problem("TL-RECIPE-VALUE", where, got=shown(value), need=str(error))
        except Cannot as error:
            self.unsupported(where, value, error.feature, str(error))
        except Dropped as error:
            self.drop(where, str(error))
        else:
            if result is NOTHING:
                self.silent.append(where)
            return result
        return NOTHING

    def pick(self, key: str, convert: Convert, *aliases: str) -> Said | None:
        """Where, and what was said under one of these names; two different values are a problem."""
        found: Said | None = None
        for alias, where, value in self.waiting:
            result = self.read(where, convert, value) if alias in aliases else NOTHING
            if result is NOTHING:
                continue
            if found and found[1] != result:
                self.twice(where, key, result, found[0], found[1])
            found = found or (where, result)
        return found

    def drop(self, where: str, why: str) -> None:
        self.dropped.setdefault(why, []).append(where)

    def called(self, where: str, key: str, remark: Callable[[], str] | None = None) -> None:
        """Another name for the same; with a remark where it is not quite the same."""
        if remark:
            self.notes.append(t("{where} is called {key} here: {remark}", where=where, key=key, remark=remark()))
        else:
            self.renamed.append((where, key))

    def becomes(self, where: str, before: Any, key: str, after: Any) -> None:
        """Another name, and another way to write the value."""
        self.notes.append(t("{where}: {before} is {key}: {after} here", where=where, before=shown(before), key=key,
                            after=shown(after)))  # fmt: skip

    def all_notes(self) -> list[str]:
        """What is only called otherwise in one line; then each value that changed; then what is not used, and why."""
        return [*self._names(), *self.notes, *self._unused()]

    def _names(self) -> list[str]:
        if len(self.renamed) < 2:
            return [t("{where} is called {key} here", where=where, key=key) for where, key in self.renamed]
        pairs = listed(f"{where} → {key}" for where, key in self.renamed)
        tool = tables.tool(self.raw) or t("other tools")
        return [t("{n} keys of {tool} were translated: {pairs}", n=len(self.renamed), tool=tool, pairs=pairs)]

    def _unused(self) -> list[str]:
        told = []
        if len(self.dropped) == 1:
            told = [t("{keys}: not used, {why}", keys=listed(keys), why=why) for why, keys in self.dropped.items()]
        elif self.dropped:
            groups = [t("{keys} ({why})", keys=listed(keys), why=why) for why, keys in self.dropped.items()]
            told = [t("not used here: {groups}", groups=t("; ").join(groups))]
        if self.silent:
            told.append(t("not read, being empty, off or the usual case: {keys}", keys=listed(self.silent)))
        return told
