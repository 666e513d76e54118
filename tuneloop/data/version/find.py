"""Finding a dataset version by what a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

from tuneloop.base.errors import DataError, RunError
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.base.refusals import require_readable
from tuneloop.data.version.dataset import Dataset, open_dataset
from tuneloop.runs.run import Run


def locate(workspace: Path, name: str) -> Dataset:
    """The version that is meant: a folder, a dataset's name (its newest version), name/hash, or a hash.

    A hash may be cut short while it still names one version only. Raises TL-DATA-VERSION where none or several are
    meant, and what `open_dataset` raises.
    """
    if (Path(name) / "manifest.json").is_file():
        return open_dataset(Path(name))
    every = every_version(workspace)
    dataset, digits = parted(name)
    meant = [path for path in every if path.parent.name == name]
    if meant:
        return open_dataset(max(meant, key=_created))
    meant = [path for path in every if digits and path.name.startswith(digits) and dataset in ("", path.parent.name)]
    if len(meant) != 1:
        require_readable(workspace / "datasets")
        known = listed(printable(f"{path.parent.name}/{path.name}") for path in (meant or every)[:8])
        raise DataError("TL-DATA-VERSION", where=printable(workspace), got=name, n=len(meant), known=known or "–")
    return open_dataset(meant[0])


def parted(name: str) -> tuple[str, str]:
    """The dataset and the hash in "name/hash", with either slash; ("", name) where there is only one of them.

    >>> parted("chats/1f0c2a"), parted("1f0c2a")
    (('chats', '1f0c2a'), ('', '1f0c2a'))
    """
    dataset, _, digits = name.replace("\\", "/").strip("/").rpartition("/")
    return dataset, digits


def every_version(workspace: Path) -> list[Path]:
    """Every version of a workspace, oldest first."""
    folders = (file.parent for file in (workspace / "datasets").glob("*/*/manifest.json"))
    return sorted((path for path in folders if not path.name.startswith(".")), key=_created)


def _created(path: Path) -> str:
    """When a version was made, "" for a broken one."""
    try:
        return str(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def dataset_of(run: Run) -> Dataset:
    """The dataset that a run was trained on. Raises TL-RUN-DAMAGED, TL-DATA-NO-DATASET, TL-DATA-DAMAGED."""
    location = run.read("dataset.json").get("path")
    if not location:
        raise RunError("TL-RUN-DAMAGED", where=str(run.path / "dataset.json"), error=t("there is no such file"))
    return open_dataset(run.dataset() or Path(location))
