"""Puts keys that people bring from other tools (`peers.py` has the tables) into the recipe's own, and says so.

It does not know which keys the recipe has: what it does not recognise stays in place, and `recipe.py` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from tuneloop import peers
from tuneloop.errors import RecipeError
from tuneloop.language import t
from tuneloop.peers import NOTHING, Cannot, Convert, Dropped, Why, Wrong, number, off, together, whole

ALIASES: dict[str, tuple[str, Convert]] = {
    alias: (key, how) for key, how, names in peers.TABLE for alias in names.split()
}
OWN = {key for key, _, _ in peers.TABLE}
SECTIONS = ("", "model", "prepare", "train", "train.lora", "evaluate")
Said = tuple[str, Any]  # where a value was written, and the value


def shown(value: Any) -> str:
    """A value for a message: its first 80 characters.

    >>> shown([1, "two"])
    "[1, 'two']"
    """
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list within lists within lists
        return type(value).__name__


def translate(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[RecipeError]]:
    """The recipe's own nested keys, notes about what was translated or dropped, all problems. `raw` is not changed.

    >>> translate({"num_train_epochs": 2})
    ({'train': {'epochs': 2}}, ['num_train_epochs is called train.epochs here'], [])
    """
    work = _Work(raw)
    for section in SECTIONS:
        place = work.section(section)
        for key in list(place):
            if isinstance(key, str):
                _one(work, section, place, key)
    for several in (_model, _method, _warmup, _betas, _batch, _strategies, _data, _name):
        several(work)
    return work.out, work.all_notes(), work.problems


class _Work:
    """A recipe while it is translated."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.out = dict(raw)
        self.problems: list[RecipeError] = []
        self.notes: list[str] = []
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
        if "lora" in train:
            train["lora"] = dict(train["lora"]) if isinstance(train["lora"], dict) else train["lora"]
            if train["lora"] is None:
                del train["lora"]

    def section(self, dotted: str) -> dict[str, Any]:
        """The section itself; an empty one that leads nowhere if it is missing or no section."""
        place: Any = self.out
        for name in dotted.split(".") if dotted else ():
            place = place.get(name) if isinstance(place, dict) else None
        return place if isinstance(place, dict) else {}

    def problem(self, code: str, where: str, **facts: Any) -> None:
        self.problems.append(RecipeError(code, where=where, **facts))

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
            self.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(value), instead=str(error))
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

    def called(self, where: str, key: str, remark: Why | None = None) -> None:
        if remark:
            self.notes.append(t("{where} is called {key} here: {remark}", where=where, key=key, remark=remark()))
        else:
            self.notes.append(t("{where} is called {key} here", where=where, key=key))

    def all_notes(self) -> list[str]:
        notes = [*self.notes]
        notes += [t("{keys}: not used, {why}", keys=", ".join(keys), why=why) for why, keys in self.dropped.items()]
        if self.silent:
            notes.append(t("not read, being empty, off or the usual case: {keys}", keys=", ".join(self.silent)))
        return notes


def _fate(key: str) -> tuple[Callable[[Any], bool], Why] | None:
    """For a key of another tool without a place here: which values ask for nothing, and what to say of the others."""
    for names, harmless, why in peers.UNSUPPORTED:
        if any(fnmatchcase(key, name) for name in names.split()):
            return harmless, why
    return None


def _ignored(key: str) -> Why | None:
    return next((why for names, why in peers.IGNORED if any(fnmatchcase(key, name) for name in names.split())), None)


def _one(work: _Work, section: str, place: dict[str, Any], key: str) -> None:
    """Translate, drop or refuse one key, or leave it where it is."""
    where = f"{section}.{key}" if section else key
    target, convert = ALIASES.get(key, ("", together))
    if where in OWN:
        return
    if target and (section in {"", "train"} or target.startswith(f"{section}.")):
        value = place.pop(key)
        if value is None and key != "adapter":  # Axolotl: an empty adapter means all weights
            work.silent.append(where)
        elif convert is together:
            work.waiting.append((key, where, value))
        else:
            result = work.read(where, convert, value)
            if result is not NOTHING and work.put(target, result, where):
                work.called(where, target, peers.REMARKS.get(key) or peers.REMARKS.get(target))
        return
    fate, why = _fate(key), _ignored(key)
    if fate is None and why is None:
        return
    value = place.pop(key)
    try:
        if value is None or (fate and fate[0](value)):
            work.silent.append(where)
        elif fate:
            work.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(value), instead=fate[1]())
        elif why:
            work.drop(where, why())
    except Dropped as reason:
        work.drop(where, str(reason))


def _model(work: _Work) -> None:
    """`model_name` is Unsloth's word for the model, and ms-swift's for what the assistant calls itself."""
    said = work.pick("model.name", lambda v: v, "model_name")
    if said and "name" in work.section("model"):
        work.drop(said[0], t("the data says what the assistant is called"))
    elif said and work.put("model.name", said[1], said[0]):
        work.called(said[0], "model.name")


def _method(work: _Work) -> None:
    """An Axolotl file without `adapter` trains all weights; our default is LoRA."""
    named = any(ALIASES.get(key, ("",))[0] == "train.method" for key in work.raw if isinstance(key, str))
    if {"base_model", "datasets"} <= work.raw.keys() and not named and "method" not in work.section("train"):
        work.put("train.method", "full", "base_model")
        work.notes.append(t("no adapter: as in Axolotl all weights are trained, train.method is full"))


def _warmup(work: _Work) -> None:
    """`warmup_steps` below 1 is a share (transformers 5); 0 beside a share says nothing (transformers 4)."""
    said = work.pick("train.warmup_steps", number, "warmup_steps")
    if not said:
        return
    where, steps = said
    if steps == 0 and "warmup_ratio" in work.section("train"):
        work.silent.append(where)
        return
    key = "train.warmup_ratio" if 0 < steps < 1 else "train.warmup_steps"
    if work.put(key, steps, where):
        work.called(where, key)


def _betas(work: _Work) -> None:
    first = work.pick("train.betas", number, "adam_beta1")
    second = work.pick("train.betas", number, "adam_beta2")
    for said in (first, second):
        betas = [first[1] if first else 0.9, second[1] if second else 0.999]
        if said and work.put("train.betas", betas, said[0]):
            work.called(said[0], "train.betas")


def _batch(work: _Work) -> None:
    """Per-device size x accumulation steps is the global batch on one device; here the global size is the one said."""
    names = ("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size")
    micro = work.pick("train.micro_batch_size", whole, *names)
    steps = work.pick("train.batch_size", whole, "gradient_accumulation_steps")
    if micro is None and steps is None:
        return
    train = work.section("train")
    own = train.get("micro_batch_size")
    each = micro[1] if micro else own if isinstance(own, int) and own > 0 else 1
    where = micro[0] if micro else steps[0] if steps else ""
    if steps is not None or "batch_size" not in train:
        total = each * (steps[1] if steps else 1)
        keys = ", ".join(said[0] for said in (micro, steps) if said)
        if not work.put("train.batch_size", total, keys):
            return
        work.notes.append(t("{keys}: train.batch_size is {n}, the dialogues of one optimizer step over all devices",
                            keys=keys, n=total))  # fmt: skip
    _micro(work, each, where)


def _micro(work: _Work, each: int, where: str) -> None:
    train, length = work.section("train"), work.section("prepare").get("max_length")
    if train.get("packing") is False and each > 1:
        work.notes.append(t("train.micro_batch_size is left out: unpacked dialogues run singly, to the same result"))
    elif train.get("packing") is True and "train.packing" in work.said and type(length) is int:
        if "token_budget" not in train:  # elsewhere a micro-batch is so many packed rows, here so many dialogues
            work.put("train.token_budget", each * length, where)
            work.notes.append(t("{n} packed rows of {length} tokens: train.token_budget is {budget}",
                                n=each, length=length, budget=each * length))  # fmt: skip
    elif work.put("train.micro_batch_size", each, where):
        work.notes.append(t("{where}: train.micro_batch_size is {n}; without it train.token_budget alone limits a pass",
                            where=where, n=each))  # fmt: skip


def _strategies(work: _Work) -> None:
    """Who says every how many steps wants it done by steps."""
    train = work.section("train")
    for what in ("save", "eval"):
        if train.get(f"{what}_steps") is not None and f"{what}_strategy" not in train:
            train[f"{what}_strategy"] = "steps"
            work.notes.append(t("train.{what}_steps is given, so train.{what}_strategy is steps", what=what))


def _leaf(value: Any) -> str:
    parts = [p for p in re.split(r"[/\\]+", value) if p not in {"", ".", ".."}] if isinstance(value, str) else []
    name = re.sub(r"[^\w.-]+", "-", parts[-1])[:64].strip("-.") if parts else ""
    if not name:
        raise Wrong(t("a name of letters and digits"))
    return name


def _name(work: _Work) -> None:
    """The run's name, else the last part of the output folder, names the run."""
    run, folder = work.pick("name", _leaf, "run_name"), work.pick("name", _leaf, "output_dir")
    if run and work.put("name", run[1], run[0]):
        work.called(run[0], "name")
    if folder and "name" in work.out:
        work.drop(folder[0], t("runs lie in runs/<name>-<number>"))
    elif folder and work.put("name", folder[1], folder[0]):
        work.called(folder[0], "name", lambda: t("runs lie in runs/<name>-<number>"))


def _data(work: _Work) -> None:
    """Data files under any of their names, with the limits that stand beside them."""
    folder, limit = work.pick("data", _path, "dataset_dir"), work.pick("data", whole, "max_samples")
    base = folder[1].rstrip("/\\") if folder else ""
    own = work.out.get("data")
    if isinstance(own, dict | list):
        items = own if isinstance(own, list) else [own]
        work.out["data"] = [e for n, item in enumerate(items) for e in _entry(work, f"data.{n}", item)]
    for alias, where, value in work.waiting:
        if alias in {"dataset", "datasets", "train_dataset"}:
            files = _files(work, where, value, base)
            if files and work.put("data", files, where):
                work.called(where, "data")
    if folder:
        work.drop(folder[0], t("it is part of each path in data"))
    if limit:
        data = work.out.get("data")
        items = data if isinstance(data, list) else [data] if isinstance(data, str) else []
        work.out["data"] = [_limited(item, limit[1]) for item in items]
        work.notes.append(t("{where}: the first {n} rows of each file, data[].rows here", where=limit[0], n=limit[1]))


def _limited(item: Any, rows: int) -> Any:
    item = {"path": item} if isinstance(item, str) else item
    return {"rows": f"[:{rows}]", **item} if isinstance(item, dict) else item


def _path(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(t("the path of a file, or a list of them"))
    return value.strip()


def _files(work: _Work, where: str, value: Any, folder: str) -> list[Any]:
    """`dataset:` as LLaMA-Factory (names, commas), ms-swift (path#500) and Axolotl (a list of sections) write it."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    found: list[Any] = []
    for n, item in enumerate(items):
        at = f"{where}.{n}" if isinstance(value, list) else where
        if isinstance(item, dict):
            for entry in _entry(work, at, item):
                found += _file(work, at, entry.get("path"), folder, entry)
        else:
            found += _file(work, at, item, folder, {})
    return found


def _file(work: _Work, where: str, value: Any, folder: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    path = work.read(where, _path, value)
    if path is NOTHING:
        return []
    sample = re.fullmatch(r"(.+)#(\d{1,18})", path)
    if sample:
        path, entry = sample[1], {"rows": f"[:{sample[2]}]", **entry}
        work.notes.append(t("{where}: #{n} takes the first {n} rows here", where=where, n=sample[2]))
    if not re.search(r"\.[A-Za-z]\w{0,7}(\.\w{2,3})?$|[*?]|^\.{0,2}[/\\]|^~|^[A-Za-z]:", path):
        work.problem("TL-RECIPE-DATASET", where, name=path)
        return []
    path = f"{folder}/{path}" if folder and not re.match(r"[/\\~]|[A-Za-z]:", path) else path
    return [{**entry, "path": path}]


def _entry(work: _Work, where: str, item: Any) -> list[Any]:
    """One file's section; Axolotl's `data_files` make several of one."""
    if not isinstance(item, dict):
        return [item]
    entry = dict(item)
    if isinstance(entry.get("type"), dict):
        entry = {**{k: v for k, v in entry.pop("type").items() if not off(v)}, **entry}
    files = entry.pop("data_files", None)
    columns = {peers.COLUMNS[k]: entry.pop(k) for k in list(entry) if k in peers.COLUMNS}
    if columns:
        entry.setdefault("columns", {role: name for role, name in columns.items() if name is not None})
        work.notes.append(t("{where}: field_… is called columns here", where=where))
    for key in [k for k in entry if k in peers.LOOKED_AT]:
        _look(work, f"{where}.{key}", key, entry.pop(key), entry)
    if files is None:
        return [entry]
    return [{**entry, "path": file} for file in (files if isinstance(files, list) else [files])]


def _look(work: _Work, where: str, key: str, value: Any, entry: dict[str, Any]) -> None:
    if key == "split" and value is not None and value != "train":
        part = re.fullmatch(r"train(\[-?\d*:-?\d*\])", value) if isinstance(value, str) else None
        if part:
            entry.setdefault("rows", part[1])
            work.called(where, "data[].rows")
        else:
            instead = t("name the file, and rows: '[from:to]' for a slice of it")
            work.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(value), instead=instead)
    elif key == "type" and str(value).startswith(("completion", "pretrain")):
        instead = t("only supervised fine-tuning is done here: take it out")
        work.problem("TL-RECIPE-UNSUPPORTED", where, got=shown(value), instead=instead)
    elif value is not None:
        work.drop(where, t("the shape of the rows is recognised by looking at them"))
