"""The data files of a recipe of another tool: under any of their names, in any of their forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tuneloop import peers
from tuneloop.conversions import NOTHING, Wrong, off, whole
from tuneloop.language import t
from tuneloop.translation import Work


def files(work: Work) -> None:
    """Data files under any of their names, with the limits that stand beside them."""
    folder, limit = work.pick("data", _path, "dataset_dir"), work.pick("data", whole, "max_samples")
    base = folder[1].rstrip("/\\") if folder else ""
    own = work.out.get("data")
    if isinstance(own, dict | list):
        items = own if isinstance(own, list) else [own]
        work.out["data"] = [e for n, item in enumerate(items) for e in _entry(work, f"data.{n}", item)]
    for alias, where, value in work.waiting:
        if alias in {"dataset", "datasets", "train_dataset", "dataset_name"}:
            found = _files(work, where, value, base)
            if found and work.put("data", found, where):
                work.called(where, "data")
    _texts(work, base)
    _held_out(work, base)
    if folder:
        work.drop(folder[0], t("it is part of each path in data"))
    if limit:
        data = work.out.get("data")
        items = data if isinstance(data, list) else [data] if isinstance(data, str) else []
        work.out["data"] = [_limited(item, limit[1]) for item in items]
        work.notes.append(t("{where}: the first {n} rows of each file, data[].rows here", where=limit[0], n=limit[1]))


def _texts(work: Work, base: str) -> None:
    """Axolotl's files of plain text to go on writing."""
    for alias, where, value in work.waiting:
        if alias != "pretraining_dataset":
            continue
        if off(value):
            work.silent.append(where)
            continue
        found = _files(work, where, value, base)
        data = work.out.setdefault("data", [])
        data = [data] if isinstance(data, str | dict) else data
        if found and isinstance(data, list):
            work.out["data"] = [*data, *({"task": "text", **entry} for entry in found)]
            work.notes.append(t("{where}: these files stand in data, with task: text", where=where))


def _held_out(work: Work, base: str) -> None:
    """Files of their own for the held-out loss; nothing more is held out then, unless the recipe says so."""
    for alias, where, value in work.waiting:
        if alias not in {"eval_dataset", "val_dataset", "test_datasets"}:
            continue
        if off(value):
            work.silent.append(where)
            continue
        found = _files(work, where, value, base)
        data = work.out.setdefault("data", [])
        data = [data] if isinstance(data, str | dict) else data
        if not found or not isinstance(data, list):
            continue
        work.out["data"] = [*data, *({**entry, "split": "validation"} for entry in found)]
        prepare = work.out.setdefault("prepare", {})
        if isinstance(prepare, dict) and "validation" not in prepare:
            prepare["validation"] = 0
        work.notes.append(t("{where}: these files stand in data, with split: validation", where=where))


def _limited(item: Any, rows: int) -> Any:
    item = {"path": item} if isinstance(item, str) else item
    return {"rows": f"[:{rows}]", **item} if isinstance(item, dict) else item


def _path(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(t("the path of a file, or a list of them"))
    return value.strip()


def _files(work: Work, where: str, value: Any, folder: str) -> list[Any]:
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


def _file(work: Work, where: str, value: Any, folder: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    path = work.read(where, _path, value)
    if path is NOTHING:
        return []
    sample = re.fullmatch(r"(.+)#(\d{1,18})", path)
    if sample:
        path, entry = sample[1], {"sample": int(sample[2]), **entry}
        work.notes.append(t("{where}: #{n} is data[].sample: {n} here", where=where, n=int(sample[2])))
    if not re.search(r"\.[A-Za-z]\w{0,7}(\.\w{2,3})?$|[*?]|^\.{0,2}[/\\]|^~|^[A-Za-z]:|^(hub|modelscope):", path):
        work.problem("TL-RECIPE-DATASET", where, name=path)
        return []
    path = f"{folder}/{path}" if folder and not re.match(r"[/\\~]|[A-Za-z]+:", path) else path
    return [{**entry, "path": path}]


def _entry(work: Work, where: str, item: Any) -> list[Any]:
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
    _turns(work, where, entry)
    if columns and entry.get("columns") in ({"messages": "messages"}, {"messages": "conversations"}):
        del entry["columns"]  # found without being named, and tools and system prompts beside them
    for key in [k for k in entry if k in peers.LOOKED_AT]:
        if key == "split" and where.startswith("data.") and not str(entry[key]).startswith("train["):
            continue  # there it is a key of the recipe
        _look(work, f"{where}.{key}", key, entry.pop(key), entry)
    if files is None:
        return [entry]
    return [{**entry, "path": file} for file in (files if isinstance(files, list) else [files])]


def _turns(work: Work, where: str, entry: dict[str, Any]) -> None:
    """Axolotl's names for what is in a turn, as columns and speakers; which of it is trained has one answer here."""
    asked: dict[str, tuple[str, Any]] = {}
    mappings = entry.pop("message_property_mappings", None)
    for role, name in (mappings or {}).items() if isinstance(mappings, dict | None) else [("", mappings)]:
        asked[f"{where}.message_property_mappings.{role}".rstrip(".")] = (role, name)
    for key in [k for k in entry if k in peers.TURN_KEYS]:
        asked[f"{where}.{key}"] = (peers.TURN_KEYS[key], entry.pop(key))
    for at, (role, name) in asked.items():
        if name is None or (isinstance(name, str) and name in peers.READ.get(role, ())):
            work.silent.append(at)
        elif role in ("role", "content", "reasoning") and isinstance(name, str):
            entry["columns"] = {"messages": "messages", **entry.get("columns", {}), role: name}
            work.becomes(at, name, f"data[].columns.{role}", name)
        else:
            work.unsupported(at, name, t("other names for the keys of a turn"), t("rename the key in the rows"))
    _speakers(work, f"{where}.roles", entry)
    one = t("take it out: every answer of the assistant is trained, and nothing else")
    usual: dict[str, Callable[[Any], bool]] = {
        "roles_to_train": lambda v: isinstance(v, list) and bool(v) and set(map(str, v)) <= peers.SPEAKERS["assistant"],
        "train_on_eos": lambda v: v == "turn",
        "message_field_training": lambda v: str(v) in peers.MARKS,
        "message_field_training_detail": off,
    }
    for key in [k for k in entry if k in usual]:
        value = entry.pop(key)
        if value is None or usual[key](value):
            work.silent.append(f"{where}.{key}")
        else:
            work.unsupported(f"{where}.{key}", value, t("another choice of trained tokens"), one)


def _speakers(work: Work, where: str, entry: dict[str, Any]) -> None:
    """Axolotl's `roles`, each with the names that the rows have for it."""
    roles = entry.pop("roles", None)
    if off(roles):
        return
    if not isinstance(roles, dict) or not set(roles) <= set(peers.SPEAKERS):
        instead = t("data[].speakers: {name in the rows: user, assistant, system or tool}")
        work.unsupported(where, roles, t("roles of other names"), instead)
        return
    named = {role: names if isinstance(names, list) else [names] for role, names in roles.items()}
    own = {str(name): role for role, names in named.items() for name in names if name not in peers.SPEAKERS[role]}
    if own:
        entry["speakers"] = {**own, **entry.get("speakers", {})}
        work.becomes(where, roles, "data[].speakers", own)
    else:
        work.silent.append(where)


def _look(work: Work, where: str, key: str, value: Any, entry: dict[str, Any]) -> None:
    if value is None or (key, value) == ("split", "train"):
        work.silent.append(where)
    elif key == "split":
        part = re.fullmatch(r"train(\[-?\d*:-?\d*\])", value) if isinstance(value, str) else None
        if part:
            entry.setdefault("rows", part[1])
            work.called(where, "data[].rows")
        else:
            instead = t("name the file, and rows: '[from:to]' for a slice of it")
            work.unsupported(where, value, t("this choice of rows"), instead)
    elif key == "type" and str(value).startswith(("completion", "pretrain")):
        entry.setdefault("task", "text")
        work.becomes(where, value, "data[].task", "text")
    else:
        work.drop(where, t("the shape of the rows is recognised by looking at them"))
