"""Folders and archives: which of the files in them are read, for which side, and with which label.

Only names are judged here, the same way for a folder and for the members of a zip; what is in the files is not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tuneloop.data.reading.archives import MEMBERS, is_ignored, shown
from tuneloop.errors import DataError
from tuneloop.language import t

Side = Literal["auto", "train", "validation", "test"]
_SIDES: dict[str, Side] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_UNLABELLED = ("unsup", "unlabeled", "unlabelled")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file below a folder: the side that its name tells, the class that its folder does, why it is left out."""

    name: str
    side: Side = "auto"
    label: str = ""
    left_out: str = ""


def side_of(name: str) -> Side:
    """The side that a relative name tells, or "auto".

    >>> side_of("data/train-00000-of-00002.parquet"), side_of("dev.tsv"), side_of("chats.json"), side_of("test/a.json")
    ('train', 'validation', 'auto', 'test')
    """
    for part in PurePosixPath(name.lower()).parts:
        found = {_SIDES[word] for word in re.split(r"[^a-z]+", part) if word in _SIDES}
        if len(found) == 1:
            return found.pop()
    return "auto"


def listing(folder: Path) -> list[str]:
    """The files below a folder by relative name with slashes, sorted; what the system put there is left out.

    Raises TL-DATA-FOLDER-EMPTY where there is none, TL-DATA-FOLDER-LARGE where there are too many.
    """
    out: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        here = Path(place).relative_to(folder)
        out += [(here / name).as_posix() for name in files if not is_ignored(name) and (Path(place) / name).is_file()]
        if len(out) > MEMBERS:
            raise DataError("TL-DATA-FOLDER-LARGE", where=shown(folder), n=MEMBERS)
    if not out:
        raise DataError("TL-DATA-FOLDER-EMPTY", where=shown(folder))
    return sorted(out)


def leaves(names: Sequence[str]) -> list[Leaf]:
    """Each name as an ordinary file, with the side that its name tells."""
    return [Leaf(name, side_of(name)) for name in names]


def classes(names: Sequence[str]) -> list[Leaf]:
    """The same for a folder whose sub-folders are classes, at most one folder of sides above them; else nothing.

    >>> [(leaf.side, leaf.label) for leaf in classes(["train/neg/1.txt", "train/pos/2.txt"])]
    [('train', 'neg'), ('train', 'pos')]
    """
    found: dict[str, tuple[Side, tuple[str, ...]]] = {}
    for name in names:
        parts = PurePosixPath(name).parts[:-1]
        side = next((part for part in parts if part.lower() in _SIDES), "")
        found[name] = (_SIDES.get(side.lower(), "auto"), tuple(part for part in parts if part != side))
    deepest = max((len(rest) for _, rest in found.values()), default=0)
    inside = {name: rest for name, (_, rest) in found.items() if rest and len(rest) == deepest}
    labels = {rest[-1] for rest in inside.values()} - set(_UNLABELLED)
    if len({rest[:-1] for rest in inside.values()}) != 1 or len(labels) < 2 or len(inside) < 0.9 * len(names):
        return []
    out = []
    for name, (side, rest) in found.items():
        label = rest[-1] if name in inside else ""
        why = "" if label in labels else t("beside the folders of classes")
        out.append(Leaf(name, side, "" if why else label, why))
    return out


def saved(folder: Path) -> list[tuple[Path, Side]]:
    """The Arrow files of a data set that `datasets` saved, with their sides; nothing for another folder.

    Raises TL-DATA-SAVED where the folder's own list names files that are not there, or not in it.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _state(folder / "dataset_dict.json", "splits")
        return [(path, side_of(name)) for name in splits for path, _ in saved(_inside(folder, name)) or _none(folder)]
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return []
    files = _state(folder / "state.json", "_data_files")
    names = [item.get("filename") if isinstance(item, dict) else item for item in files]
    return [(_inside(folder, name), "auto") for name in names] or _none(folder)


def _none(folder: Path) -> list[tuple[Path, Side]]:
    raise DataError("TL-DATA-FOLDER-EMPTY", where=shown(folder))


def _state(path: Path, key: str) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = value[key]
        if not isinstance(found, list):
            raise TypeError(type(found).__name__)
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("TL-DATA-SAVED", where=shown(path), error=str(error)) from error


def _inside(folder: Path, name: Any) -> Path:
    plain = isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)
    if not plain or not (folder / name).exists():
        raise DataError("TL-DATA-SAVED", where=shown(folder), error=t("there is no {name} in it", name=shown(name)))
    return folder / str(name)
