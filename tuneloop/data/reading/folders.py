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

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable
from tuneloop.base.language import t
from tuneloop.data.reading.archives import MEMBERS, is_ignored

FolderSide = Literal["auto", "train", "validation", "test"]
_WORDS: dict[FolderSide, str] = {
    "train": "train(?:ing)?|trn|训练",
    "validation": "validation|validate|valid|val|dev|development|eval|evaluation|验证|开发|评估",
    "test": "test(?:ing)?|tst|测试",
}
_SET = r"(?:[-_. ]?(?:set|data|dataset|split|集|数据集?))?"
_SHARD = r"(?:[-_. ]?(?:part|shard)?[-_. ]?(?:\d+|\(\d+\))(?:[-_. ]?of[-_. ]?\d+)?(?:-[0-9a-f]{8,})?)?"
_SIDES = {side: re.compile(f"(?:{words}){_SET}{_SHARD}") for side, words in _WORDS.items()}
_EXTENSION = re.compile(r"\.(?:jsonl?|ndjson|csv|tsv|txt|text|parquet|arrow|xlsx?|xlsm|gz|zst|bz2|xz|zip)$")
_UNLABELLED = ("unsup", "unlabeled", "unlabelled")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file below a folder: its side and label by its path, and why it is left out, if it is."""

    name: str
    side: FolderSide = "auto"
    label: str = ""
    left_out: str = ""


def side_of(name: str) -> FolderSide:
    """The side (train, validation, test) in a relative path, or "auto": the whole name of a folder or the file.

    >>> side_of("data/train-00000-of-00002.parquet"), side_of("dev.tsv.gz"), side_of("val2.csv"), side_of("test/a")
    ('train', 'validation', 'validation', 'test')
    >>> side_of("测试集.xlsx"), side_of("chats.json"), side_of("crash test.txt"), side_of("my dev setup.txt")
    ('test', 'auto', 'auto', 'auto')
    """
    path = PurePosixPath(name.lower())
    stem = path.name
    while extension := _EXTENSION.search(stem):
        stem = stem[: extension.start()]
    return next((side for part in (*path.parts[:-1], stem) if (side := _side_of(part)) != "auto"), "auto")


def _side_of(part: str) -> FolderSide:
    return next((side for side, pattern in _SIDES.items() if pattern.fullmatch(part)), "auto")


def declared(split: str) -> FolderSide:
    """The side of a split by the name that a data set gives it; one word of the name is enough.

    >>> declared("train_sft"), declared("test"), declared("extra")
    ('train', 'test', 'auto')
    """
    sides = {side for word in re.split(r"[^a-z]+", split.lower()) if (side := _side_of(word)) != "auto"}
    return sides.pop() if len(sides) == 1 else "auto"


def listing(folder: Path) -> list[str]:
    """The files below a folder as sorted relative POSIX paths, without hidden and system files.

    Raises TL-DATA-FOLDER-EMPTY where there is none, TL-DATA-FOLDER-LARGE where there are too many.
    """
    out: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        here = Path(place).relative_to(folder)
        out += [(here / name).as_posix() for name in files if not is_ignored(name) and (Path(place) / name).is_file()]
        if len(out) > MEMBERS:
            raise DataError("TL-DATA-FOLDER-LARGE", where=printable(folder), n=MEMBERS)
    if not out:
        raise DataError("TL-DATA-FOLDER-EMPTY", where=printable(folder))
    return sorted(out)


def leaves(names: Sequence[str]) -> list[Leaf]:
    """Each name as an ordinary file, with the side that its name tells."""
    return [Leaf(name, side_of(name)) for name in names]


def classes(names: Sequence[str]) -> list[Leaf]:
    """The files of a folder with one sub-folder a class (sides may lie above), labelled; [] for any other layout.

    >>> [(leaf.side, leaf.label) for leaf in classes(["train/neg/1.txt", "train/pos/2.txt"])]
    [('train', 'neg'), ('train', 'pos')]
    """
    parents: dict[str, tuple[FolderSide, tuple[str, ...]]] = {}
    for name in names:
        parts = PurePosixPath(name).parts[:-1]
        side = next((part for part in parts if _side_of(part.lower()) != "auto"), "")
        parents[name] = (_side_of(side.lower()), tuple(part for part in parts if part != side))
    deepest = max((len(rest) for _, rest in parents.values()), default=0)
    inside = {name: rest for name, (_, rest) in parents.items() if rest and len(rest) == deepest}
    labels = {rest[-1] for rest in inside.values()} - set(_UNLABELLED)
    if len({rest[:-1] for rest in inside.values()}) != 1 or len(labels) < 2 or len(inside) < 0.9 * len(names):
        return []
    out = []
    for name, (side, rest) in parents.items():
        label = rest[-1] if name in inside else ""
        why = "" if label in labels else t("beside the folders of classes")
        out.append(Leaf(name, side, "" if why else label, why))
    return out


def saved(folder: Path) -> list[tuple[Path, FolderSide]]:
    """The Arrow files of a data set that `datasets` saved (`save_to_disk`), with their sides; [] for another folder.

    Raises TL-DATA-SAVED where the folder's own list names files that are not there, or not in it.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _state(folder / "dataset_dict.json", "splits")
        return [(path, declared(name)) for name in splits for path, _ in saved(_inside(folder, name)) or _none(folder)]
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return []
    files = _state(folder / "state.json", "_data_files")
    names = [file.get("filename") if isinstance(file, dict) else file for file in files]
    return [(_inside(folder, name), "auto") for name in names] or _none(folder)


def _none(folder: Path) -> list[tuple[Path, FolderSide]]:
    raise DataError("TL-DATA-FOLDER-EMPTY", where=printable(folder))


def _state(path: Path, key: str) -> list[Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        members = state[key]
        if not isinstance(members, list):
            raise TypeError(type(members).__name__)
        return members
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("TL-DATA-SAVED", where=printable(path), error=str(error)) from error


def _inside(folder: Path, name: Any) -> Path:
    is_name = isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)
    if not is_name or not (folder / name).exists():
        raise DataError(
            "TL-DATA-SAVED", where=printable(folder), error=t("there is no {name} in it", name=printable(name))
        )
    return folder / str(name)
