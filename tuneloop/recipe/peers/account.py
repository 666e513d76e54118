"""A recipe while the keys of other tools in it become its own: what was written where, what was said about it.

`recipe/peers/translate.py` and `recipe/peers/data_files.py` do the translating; this keeps the account.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import listed, t
from tuneloop.recipe.choices import TRAIN_SECTIONS
from tuneloop.recipe.peers import tables
from tuneloop.recipe.peers.values import NOTHING, Cannot, Convert, Dropped, Wrong

Written = tuple[str, Any]  # where a setting was written, and the setting


def shown(setting: Any) -> str:
    """A value for a message: its first 80 characters.

    >>> shown([1, "two"])
    "[1, 'two']"
    """
    if setting is None or isinstance(setting, bool):
        return {True: "true", False: "false", None: "null"}[setting]  # as YAML writes them
    try:
        return repr(setting)[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list within lists within lists
        return type(setting).__name__


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
        self.places: dict[str, str] = {}  # key of the recipe -> where a person wrote it
        self.waiting: list[tuple[str, str, Any]] = []  # alias, where, value of what is read together
        self.dropped: dict[str, list[str]] = {}  # why -> where
        self.silent: list[str] = []  # written, but asking for nothing
        for name in ("model", "data", "prepare", "train", "evaluate", "watch", "serve"):
            if name in self.out and self.out[name] is None:  # a section whose lines are all commented out
                del self.out[name]
            elif isinstance(self.out.get(name), dict):
                self.out[name] = dict(self.out[name])
        if isinstance(self.out.get("model"), str):
            self.out["model"] = {"name": self.out["model"]}
        train = self.section("train")
        for name in TRAIN_SECTIONS:
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

    def unsupported(self, where: str, setting: Any, feature: str, instead: str) -> None:
        self.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(setting), feature=feature, instead=instead)

    def twice(self, where: str, key: str, setting: Any, other: str, before: Any) -> None:
        self.problem("TL-RECIPE-TWICE", where, key=key, got=shown(setting), other=other, before=shown(before))

    def put(self, key: str, setting: Any, where: str) -> bool:
        """Set a key of the recipe; False where something else is there already."""
        *parents, leaf = key.split(".")
        place: Any = self.out
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):  # `train: 5`: the recipe reports it
                return False
        if leaf in place and place[leaf] != setting:
            self.twice(where, key, setting, self.places.get(key, key), place[leaf])
            return False
        place[leaf] = setting
        self.places.setdefault(key, where)
        return True

    def read(self, where: str, convert: Convert, setting: Any) -> Any:
        """The converted value, or NOTHING after a note or a problem."""
        try:
            converted = convert(setting)
        except Wrong as error:
            self.problem("TL-RECIPE-VALUE", where, got=shown(setting), need=str(error))
        except Cannot as error:
            self.unsupported(where, setting, error.feature, str(error))
        except Dropped as error:
            self.drop(where, str(error))
        else:
            if converted is NOTHING:
                self.silent.append(where)
            return converted
        return NOTHING

    def pick(self, key: str, convert: Convert, *aliases: str) -> Written | None:
        """Where, and what was said under one of these names; two different values are a problem."""
        first: Written | None = None
        for alias, where, setting in self.waiting:
            converted = self.read(where, convert, setting) if alias in aliases else NOTHING
            if converted is NOTHING:
                continue
            if first and first[1] != converted:
                self.twice(where, key, converted, first[0], first[1])
            first = first or (where, converted)
        return first

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
        self.notes.append(
            t(
                "{where}: {before} is {key}: {after} here",
                where=where,
                before=shown(before),
                key=key,
                after=shown(after),
            )
        )

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
        lines = []
        if len(self.dropped) == 1:
            lines = [t("{keys}: not used, {why}", keys=listed(keys), why=why) for why, keys in self.dropped.items()]
        elif self.dropped:
            groups = [t("{keys} ({why})", keys=listed(keys), why=why) for why, keys in self.dropped.items()]
            lines = [t("not used here: {groups}", groups=t("; ").join(groups))]
        if self.silent:
            lines.append(t("not read, being empty, off or the usual case: {keys}", keys=listed(self.silent)))
        return lines
