"""The data files of a recipe of another tool: under any of their names, in any of their forms."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuneloop.base.errors import os_words
from tuneloop.base.language import listed, t
from tuneloop.recipe.peers import tables
from tuneloop.recipe.peers.account import Work
from tuneloop.recipe.peers.values import NOTHING, Wrong, integer, off


def files(work: Work) -> None:
    """Data files under any of their names, with the limits that stand beside them."""
    folder, limit = work.pick("data", _path, "dataset_dir"), work.pick("data", integer, "max_samples")
    base = folder[1].rstrip("/\\") if folder else ""
    own = work.out.get("data")
    if isinstance(own, dict | list):
        items = own if isinstance(own, list) else [own]
        work.out["data"] = [e for n, spec in enumerate(items) for e in _file_sections(work, f"data.{n}", spec)]
    for alias, where, setting in work.waiting:
        if alias in {"dataset", "datasets", "train_dataset", "dataset_name"}:
            new_files = _files(work, where, setting, base)
            if new_files and work.put("data", new_files, where):
                work.called(where, "data")
    _texts(work, base)
    _held_out(work, base)
    if folder:
        work.drop(folder[0], t("it is part of each path in data"))
    if limit and "data" not in work.out:  # on the command line, where the files stand elsewhere
        instead = t("write --set {key}", key=f"'data[].rows=[:{limit[1]}]'")
        work.unsupported(limit[0], limit[1], t("a limit apart from the files"), instead)
    elif limit:
        own_files = work.out.get("data")
        items = own_files if isinstance(own_files, list) else [own_files] if isinstance(own_files, str) else []
        work.out["data"] = [_limited(spec, limit[1]) for spec in items]
        work.notes.append(t("{where}: the first {n} rows of each file, data[].rows here", where=limit[0], n=limit[1]))


def _texts(work: Work, base: str) -> None:
    """Axolotl's files of plain text to go on writing."""
    for alias, where, setting in work.waiting:
        if alias != "pretraining_dataset":
            continue
        if off(setting):
            work.silent.append(where)
            continue
        new_files = _files(work, where, setting, base)
        own_files = work.out.setdefault("data", [])
        own_files = [own_files] if isinstance(own_files, str | dict) else own_files
        if new_files and isinstance(own_files, list):
            work.out["data"] = [*own_files, *({"task": "text", **section} for section in new_files)]
            work.notes.append(t("{where}: these files stand in data, with task: text", where=where))


def _held_out(work: Work, base: str) -> None:
    """Files of their own for the held-out loss; nothing more is held out then, unless the recipe says so."""
    for alias, where, setting in work.waiting:
        if alias not in {"eval_dataset", "val_dataset", "test_datasets"}:
            continue
        if off(setting):
            work.silent.append(where)
            continue
        new_files = _files(work, where, setting, base)
        own_files = work.out.setdefault("data", [])
        own_files = [own_files] if isinstance(own_files, str | dict) else own_files
        if not new_files or not isinstance(own_files, list):
            continue
        work.out["data"] = [*own_files, *({**section, "split": "validation"} for section in new_files)]
        prepare = work.out.setdefault("prepare", {})
        if isinstance(prepare, dict) and "validation" not in prepare:
            prepare["validation"] = 0
        work.notes.append(t("{where}: these files stand in data, with split: validation", where=where))


def _limited(file: Any, rows: int) -> Any:
    file = {"path": file} if isinstance(file, str) else file
    if isinstance(file, dict) and type(file.get("sample")) is int and file["sample"] > rows:
        return {**file, "sample": rows}
    return {"rows": f"[:{rows}]", **file} if isinstance(file, dict) else file


def _path(setting: Any) -> str:
    if not isinstance(setting, str):
        raise Wrong(t("the path of a file, or a list of them"))
    return setting.strip()


def _files(work: Work, where: str, setting: Any, folder: str) -> list[Any]:
    """`dataset:` as LLaMA-Factory (names, commas), ms-swift (path#500) and Axolotl (a list of sections) write it."""
    items = setting.split(",") if isinstance(setting, str) else setting if isinstance(setting, list) else [setting]
    sections: list[Any] = []
    for n, spec in enumerate(items):
        at = f"{where}.{n}" if isinstance(setting, list) else where
        if isinstance(spec, dict):
            for section in _file_sections(work, at, spec):
                sections += _file(work, at, section.get("path"), folder, section)
        else:
            sections += _file(work, at, spec, folder, {})
    return sections


def _file(work: Work, where: str, setting: Any, folder: str, section: dict[str, Any]) -> list[dict[str, Any]]:
    path = work.read(where, _path, setting)
    if path is NOTHING:
        return []
    sample = re.fullmatch(r"(.+)#(\d{1,18})", path)
    if sample:
        path, section = sample[1], {"sample": int(sample[2]), **section}
        work.notes.append(t("{where}: #{n} is data[].sample: {n} here", where=where, n=int(sample[2])))
    named = _listed(work, folder)
    if path in named:
        return _as_listed(work, where, path, named[path], section)
    if not re.search(r"\.[A-Za-z]\w{0,7}(\.\w{2,3})?$|[*?]|^\.{0,2}[/\\]|^~|^[A-Za-z]:|^(hub|modelscope):", path):
        near = difflib.get_close_matches(path, named, 3, 0.5)
        work.problem(
            "TL-RECIPE-DATASET", where, name=path, near=t("; near it: {names}", names=listed(near)) if near else ""
        )
        return []
    path = f"{folder}/{path}" if folder and not re.match(r"[/\\~]|[A-Za-z]+:", path) else path
    return [{**section, "path": path}]


def _file_sections(work: Work, where: str, spec: Any) -> list[Any]:
    """One file's section; Axolotl's `data_files` make several of one."""
    if not isinstance(spec, dict):
        return [spec]
    section = dict(spec)
    if isinstance(section.get("type"), dict):
        section = {**{k: v for k, v in section.pop("type").items() if not off(v)}, **section}
    files = section.pop("data_files", None)
    columns = {tables.COLUMNS[k]: section.pop(k) for k in list(section) if k in tables.COLUMNS}
    if columns:
        section.setdefault("columns", {role: name for role, name in columns.items() if name is not None})
        work.notes.append(t("{where}: field_… is called columns here", where=where))
    _turns(work, where, section)
    if columns and section.get("columns") in ({"messages": "messages"}, {"messages": "conversations"}):
        del section["columns"]  # found without being named, and tools and system prompts beside them
    for key in [k for k in section if k in tables.LOOKED_AT]:
        if key == "split" and where.startswith("data.") and not str(section[key]).startswith("train["):
            continue  # there it is a key of the recipe
        _look(work, f"{where}.{key}", key, section.pop(key), section)
    if files is None:
        return [section]
    return [{**section, "path": file} for file in (files if isinstance(files, list) else [files])]


def _turns(work: Work, where: str, section: dict[str, Any]) -> None:
    """Axolotl's names for what is in a turn, as columns and speakers; which of it is trained has one answer here."""
    requests: dict[str, tuple[str, Any]] = {}
    mappings = section.pop("message_property_mappings", None)
    for role, name in (mappings or {}).items() if isinstance(mappings, dict | None) else [("", mappings)]:
        requests[f"{where}.message_property_mappings.{role}".rstrip(".")] = (role, name)
    for key in [k for k in section if k in tables.TURN_KEYS]:
        requests[f"{where}.{key}"] = (tables.TURN_KEYS[key], section.pop(key))
    for at, (role, name) in requests.items():
        if name is None or (isinstance(name, str) and name in tables.READ.get(role, ())):
            work.silent.append(at)
        elif role in ("role", "content", "reasoning") and isinstance(name, str):
            section["columns"] = {"messages": "messages", **section.get("columns", {}), role: name}
            work.becomes(at, name, f"data[].columns.{role}", name)
        else:
            work.unsupported(at, name, t("other names for the keys of a turn"), t("rename the key in the rows"))
    _speakers(work, f"{where}.roles", section)
    one = t("take it out: every answer of the assistant is trained, and nothing else")
    usual: dict[str, Callable[[Any], bool]] = {
        "roles_to_train": lambda v: (
            isinstance(v, list) and bool(v) and set(map(str, v)) <= tables.SPEAKERS["assistant"]
        ),
        "train_on_eos": lambda v: v == "turn",
        "message_field_training": lambda v: str(v) in tables.MARKS,
        "message_field_training_detail": off,
    }
    for key in [k for k in section if k in usual]:
        setting = section.pop(key)
        if setting is None or usual[key](setting):
            work.silent.append(f"{where}.{key}")
        else:
            work.unsupported(f"{where}.{key}", setting, t("another choice of trained tokens"), one)


def _speakers(work: Work, where: str, section: dict[str, Any]) -> None:
    """Axolotl's `roles`, each with the names that the rows have for it."""
    roles = section.pop("roles", None)
    if off(roles):
        return
    if not isinstance(roles, dict) or not set(roles) <= set(tables.SPEAKERS):
        instead = t("data[].speakers: {name in the rows: user, assistant, system or tool}")
        work.unsupported(where, roles, t("roles of other names"), instead)
        return
    named = {role: names if isinstance(names, list) else [names] for role, names in roles.items()}
    own = {str(name): role for role, names in named.items() for name in names if name not in tables.SPEAKERS[role]}
    if own:
        section["speakers"] = {**own, **section.get("speakers", {})}
        work.becomes(where, roles, "data[].speakers", own)
    else:
        work.silent.append(where)


def _look(work: Work, where: str, key: str, setting: Any, section: dict[str, Any]) -> None:
    if setting is None or (key, setting) == ("split", "train"):
        work.silent.append(where)
    elif key == "split":
        part = re.fullmatch(r"train(\[-?\d*:-?\d*\])", setting) if isinstance(setting, str) else None
        if part:
            section.setdefault("rows", part[1])
            work.called(where, "data[].rows")
        else:
            instead = t("name the file, and rows: '[from:to]' for a slice of it")
            work.unsupported(where, setting, t("this choice of rows"), instead)
    elif key == "type" and str(setting).startswith(("completion", "pretrain")):
        section.setdefault("task", "text")
        work.becomes(where, setting, "data[].task", "text")
    else:
        work.drop(where, t("the shape of the rows is recognised by looking at them"))


Listed = dict[str, tuple[Path, dict[str, Any]]]
"""Name of a data set -> the folder of the list it stands in, and what the list says of it."""
LIST = "dataset_info.json"
PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name", "om_hub_url")


def _listed(work: Work, folder: str) -> Listed:
    """LLaMA-Factory's data sets: what dataset_info.json says, of `folder` (its dataset_dir), or beside the recipe.

    Looked for from the recipe's folder, then from the current one: their tool is called from its own.
    """
    if folder in work.listed:
        return work.listed[folder]
    datasets: Listed = {}
    places = [base / (folder or name) for base in (work.folder or Path(), Path()) for name in ("", "data")]
    file = next((place / LIST for place in places if (place / LIST).is_file()), None)
    if file is not None:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            entries = content.items() if isinstance(content, dict) else ()
            datasets = {
                name: (file.parent.resolve(), info)
                for name, info in entries
                if isinstance(info, dict) and any(info.get(key) for key in PLACES)
            }
        except (OSError, ValueError, RecursionError) as error:
            work.problem("TL-RECIPE-DATASET-INFO", str(file), error=os_words(error))
    work.listed[folder] = datasets
    return datasets


def _as_listed(
    work: Work, where: str, name: str, place_and_info: tuple[Path, dict[str, Any]], section: dict[str, Any]
) -> list[dict[str, Any]]:
    """The file of a data set of dataset_info.json, its columns and tags in our words."""
    folder, info = place_and_info
    path = _place(folder, info)
    if not path:
        work.unsupported(
            where,
            name,
            t("a data set that a script or a cloud brings"),
            t("write its rows into a file, and name that under file_name"),
        )
        return []
    if (style := info.get("formatting", "alpaca")) not in ("alpaca", "sharegpt", "openai"):
        work.unsupported(where, style, t("this formatting of {file}", file=LIST), t("alpaca, sharegpt or openai"))
        return []
    columns, tags = _section(info, "columns"), _section(info, "tags")
    for key, feature, instead in _beyond(columns, tags):
        work.unsupported(where, key, feature, instead)
        return []
    roles = {tables.LISTED_COLUMNS[key]: col for key, col in columns.items() if key in tables.LISTED_COLUMNS}
    if set(roles) == {"user"}:  # texts to go on writing have a prompt alone
        roles = {"text": roles["user"]}
    odd = {key: tag for key, tag in tags.items() if tag not in tables.LISTED_TAGS[key][0]}  # not known by themselves
    inside = {key.removesuffix("_tag"): odd.pop(key) for key in ("role_tag", "content_tag") if key in odd}
    if inside:
        roles = {"messages": "conversations", **roles, **inside}
    speakers = {tag: tables.LISTED_TAGS[key][1] for key, tag in odd.items()}
    kind = "preference" if info.get("ranking") else "judged" if "label" in roles else "text" if "text" in roles else ""
    number = info.get("num_samples")
    fields = {"path": path, "columns": roles, "speakers": speakers, "task": kind, "sample": number}
    fields = {key: setting for key, setting in fields.items() if setting}
    work.notes.append(
        t("{where}: {name} is read as {file} says: {path}", where=where, name=name, file=folder / LIST, path=path)
    )
    return [{**fields, **section}]


def _beyond(columns: dict[str, str], tags: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """What a data set's columns and tags ask for that cannot be done: the name, what it is, what to do instead."""
    for key in ("images", "videos", "audios"):
        if columns.get(key, key) != key:  # under their own names they are looked at in the rows
            yield columns[key], t("pictures, films and sounds"), t("take the data set out")
    tag = tags.get("function_tag", "function_call")
    if tag not in tables.LISTED_TAGS["function_tag"][0]:
        yield tag, t("another name for turns that call a tool"), "function_call"


def _section(info: dict[str, Any], key: str) -> dict[str, str]:
    section = info.get(key)
    known = tables.LISTED_TAGS if key == "tags" else {}
    pairs = section.items() if isinstance(section, dict) else ()
    return {k: v for k, v in pairs if isinstance(v, str) and v and (not known or k in known)}


def _place(folder: Path, info: dict[str, Any]) -> str:
    """Where the rows are: the file of that name if it is there, else the hub's data set; "" for neither."""
    name, hub, scope = (info.get(key) for key in ("file_name", "hf_hub_url", "ms_hub_url"))
    if isinstance(name, str) and name and ((folder / name).exists() or not (hub or scope)):
        return str(folder / name)
    remote = f"hub:{hub}" if hub else f"modelscope:{scope}" if scope else ""
    remote += f":{info['subset']}" if remote and info.get("subset") else ""
    return f"{remote}/{info['split']}" if remote and info.get("split") in ("validation", "test") else remote
