"""Data sets of a hub, Hugging Face's (or a mirror) and ModelScope's, fetched into the caches of their own libraries.

Only files that can hold rows are fetched, never code or a pickle. A hub that does not answer is noticed in seconds:
what the cache has is used, else the error says what to do instead.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneloop.base.environment import environment, quiet_libraries
from tuneloop.base.errors import DataError, TuneloopError
from tuneloop.base.language import listed, t
from tuneloop.base.network import is_reachable
from tuneloop.base.optional import need
from tuneloop.base.refusals import require_space
from tuneloop.data.reading.folders import FolderSide, declared, side_of

_KINDS = ("json", "jsonl", "csv", "tsv", "txt", "parquet", "arrow", "xlsx")
WANTED = [f"*.{kind}{packed}" for kind in _KINDS for packed in ("", ".gz", ".zst", ".bz2", ".xz")] + ["*.zip"]
"""Patterns of the files to download; their format is then detected by content."""
UNWANTED = ["*/.*", ".*", "dataset_infos.json", "dataset_info.json", "state.json", "requirements*.txt"]
_SECONDS = 10.0
_NAME = r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?::(?P<config>[\w.+-]+))?"


@dataclass(frozen=True, slots=True)
class Address:
    """hub:org/name[:config] or modelscope:org/name[:config]."""

    hub: str
    name: str
    config: str

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}" + (f":{self.config}" if self.config else "")


def is_remote(path: str) -> bool:
    """Whether a path names a data set of a hub.

    >>> is_remote("hub:org/name"), is_remote("hub.json")
    (True, False)
    """
    return path.startswith(("hub:", "modelscope:"))


def address(path: str) -> Address:
    """The parts of an address; raises TL-DATA-ADDRESS."""
    hub, _, rest = path.partition(":")
    match = re.fullmatch(_NAME, rest)
    if match is None:
        raise DataError("TL-DATA-ADDRESS", where=path, got=path)
    return Address(hub, match["name"], match["config"] or "")


def fetch(path: str) -> list[tuple[Path, FolderSide]]:
    """The files of a data set on this machine, with the side that each is of.

    Raises TL-DATA-HUB, -HUB-OFFLINE, -HUB-MISSING, -HUB-GATED, -HUB-CONFIG, -HUB-EMPTY, and TL-MACHINE-DISK.
    """
    where = address(path)
    folder = _from_modelscope(where) if where.hub == "modelscope" else _from_hub(where)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    files = _chosen(where, _card(folder), [name for name in names if is_wanted(name)])
    if not files:
        raise DataError("TL-DATA-HUB-EMPTY", where=path)
    return [(folder / name, side) for name, side in sorted(files.items())]


def is_wanted(name: str) -> bool:
    """Whether a repository's file may hold rows.

    >>> [is_wanted(n) for n in ("data/train.jsonl.gz", "README.md", "load.py", "dataset_infos.json", "rows.pkl")]
    [True, False, False, False, False]
    """
    return any(fnmatch.fnmatch(name, p) for p in WANTED) and not any(fnmatch.fnmatch(name, p) for p in UNWANTED)


def _card(folder: Path) -> list[Mapping[str, Any]]:
    """The configurations in the README's YAML front matter."""
    with contextlib.suppress(OSError, yaml.YAMLError, UnicodeError):
        text = (folder / "README.md").read_text(encoding="utf-8")
        match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        head = yaml.safe_load(match[1]) if match else None
        configs = head.get("configs") if isinstance(head, dict) else None
        return [c for c in configs or [] if isinstance(c, dict) and isinstance(c.get("config_name"), str)]
    return []


def _chosen(where: Address, configs: list[Mapping[str, Any]], names: list[str]) -> dict[str, FolderSide]:
    """The files of the wanted configuration, or of the only or the default one."""
    if not configs:
        inside = [n for n in names if where.config in (n.split("/")[:-1] or [re.split(r"[.-]", n)[0]])]
        if where.config and not inside:
            folders = sorted({n.split("/")[0] for n in names if "/" in n})
            raise DataError("TL-DATA-HUB-CONFIG", where=str(where), configs=listed(folders) or t("none"))
        return {n: side_of(n) for n in (inside if where.config else names)}
    known = {str(c["config_name"]): c for c in configs}
    default = next((n for n, c in known.items() if c.get("default") is True or n == "default"), "")
    wanted = where.config or default or (next(iter(known)) if len(known) == 1 else "")
    if wanted not in known:
        raise DataError("TL-DATA-HUB-CONFIG", where=str(where), configs=listed(known))
    out: dict[str, FolderSide] = {}
    for side, pattern in _patterns(known[wanted]):
        out |= {n: declared(side) if side else side_of(n) for n in names if fnmatch.fnmatch(n, pattern)}
    return out


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(split, pattern) of `data_files`: a pattern, a list of them, or a list of {split, path}."""
    files = config.get("data_files", "**")
    for file in files if isinstance(files, list) else [files]:
        split, paths = (str(file.get("split", "")), file.get("path")) if isinstance(file, dict) else ("", file)
        for pattern in paths if isinstance(paths, list) else [paths]:
            if isinstance(pattern, str):
                yield split, pattern.removeprefix("./").replace("**/", "*")


def _from_hub(where: Address) -> Path:
    quiet_libraries()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    endpoint = (environment().hub_endpoint or constants.ENDPOINT).rstrip("/")

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                where.name,
                repo_type="dataset",
                endpoint=endpoint,
                local_files_only=local,
                etag_timeout=_SECONDS,
                allow_patterns=[*WANTED, "README.md"],
                ignore_patterns=UNWANTED,
            )
        )

    offline = environment().offline
    if offline or not is_reachable(endpoint):
        with contextlib.suppress(LocalEntryNotFoundError):
            return snapshot(True)
        if offline:
            raise DataError("TL-DATA-HUB-OFFLINE", where=str(where))
        raise DataError("TL-DATA-HUB", where=str(where), hub=endpoint, error=t("no answer"))
    with _hub_errors(where, endpoint):
        _look_before(where, endpoint, Path(constants.HF_HUB_CACHE))
        return snapshot(False)


def _look_before(where: Address, endpoint: str, cache: Path) -> None:
    """Raise before the download where no file can be read or the disk is too small."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).dataset_info(where.name, files_metadata=True, timeout=_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if not any(map(is_wanted, sizes)):
        raise DataError("TL-DATA-HUB-EMPTY", where=str(where))
    blobs = {blob.name for blob in (cache / f"datasets--{where.name.replace('/', '--')}" / "blobs").glob("*")}
    there = {f.rfilename for f in info.siblings or () if {f.blob_id, getattr(f.lfs, "sha256", None)} & blobs}
    require_space(cache, sum(size for name, size in sizes.items() if is_wanted(name) and name not in there))


@contextlib.contextmanager
def _hub_errors(where: Address, hub: str) -> Iterator[None]:
    """Raise the hub library's errors as TL-DATA-HUB, -HUB-GATED or -HUB-MISSING."""
    from huggingface_hub import errors

    try:
        yield
    except TuneloopError:
        raise
    except errors.GatedRepoError as error:
        raise DataError("TL-DATA-HUB-GATED", where=str(where), hub=hub) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise DataError("TL-DATA-HUB-MISSING", where=str(where), hub=hub) from error
    except Exception as error:  # the library passes on whatever its HTTP client raises
        words = " ".join(str(error).split())[:300]
        raise DataError("TL-DATA-HUB", where=str(where), hub=hub, error=words) from error


def _from_modelscope(where: Address) -> Path:
    if environment().offline:
        raise DataError("TL-DATA-HUB-OFFLINE", where=str(where))
    download = need("modelscope.hub.snapshot_download", extra="modelscope").dataset_snapshot_download
    endpoint = str(need("modelscope.hub.api", extra="modelscope").HubApi().endpoint)
    if not is_reachable(endpoint):
        raise DataError("TL-DATA-HUB", where=str(where), hub=endpoint, error=t("no answer"))
    try:
        return Path(download(where.name, allow_patterns=[*WANTED, "README.md"], ignore_patterns=UNWANTED))
    except Exception as error:  # its errors come from three libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        code = "TL-DATA-HUB-MISSING" if status == 404 else "TL-DATA-HUB"
        words = " ".join(str(error).split())[:300]
        raise DataError(code, where=str(where), hub=endpoint, error=words) from error
