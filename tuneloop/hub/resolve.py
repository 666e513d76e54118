"""Where a model comes from: a folder, a known name, ModelScope, the hub. One name in, one checked folder out.

resolve(name)   the folder, fetched if need be     where(name)   the folder, only if it is here
pull(name)      a known model into the cache       listing()     the known models

"./my-model"               a folder of yours, used where it is
"smollm2"                  a model that needs no hub, see `tuneloop model list`
"modelscope:org/name"      ModelScope
"org/name"                 the Hugging Face hub, or the mirror that HF_ENDPOINT names
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base.errors import ModelError, nearby
from tuneloop.base.language import t
from tuneloop.hub.folder_check import check, is_tokenizer
from tuneloop.hub.hubs import from_hub, from_modelscope
from tuneloop.hub.known import KNOWN, Kind, find, unknown
from tuneloop.hub.pull import PROVENANCE, cache_folder, check_known, is_cached, pull, to_stderr
from tuneloop.hub.pypi import Say
from tuneloop.recipe.schema import ModelPart

__all__ = ["ModelRow", "check", "listing", "model_folder", "on_hub", "pull", "resolve", "where"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DRIVE = re.compile(r"[A-Za-z]:")
_MODELSCOPE = "modelscope:"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A known model as `tuneloop model list` shows it. `size`: bytes once pulled; `path`: where it is or will be."""

    name: str
    aliases: tuple[str, ...]
    kind: Kind
    licence: str
    size: int
    download: int
    cached: bool
    path: Path


def listing() -> list[ModelRow]:
    """The known models, in the order of `KNOWN`."""
    return [
        ModelRow(k.name, k.aliases, k.kind, k.licence, k.size, k.download, is_cached(k), cache_folder(k))
        for k in KNOWN.values()
    ]


def resolve(
    name: str,
    revision: str | None = None,
    *,
    accept_terms: bool = False,
    weights: bool = True,
    progress: Say = to_stderr,
) -> Path:
    """The checked folder of the model `name`, fetched into a cache if it is not there.

    `revision` pins a hub model to a branch, tag or commit. `weights=False` also takes what is a tokenizer alone.
    Raises ModelError: TL-MODEL-NAME an unknown short name, TL-MODEL-PATH a path that is no folder,
    TL-MODEL-NO-REVISIONS a revision of what has none, and what `pull`, `from_hub` and `check` raise.
    """
    folder = _local(name)
    known = find(name)
    if folder is None and known is None:
        return _remote(name, revision, local_only=False)
    if revision is not None:
        raise ModelError("TL-MODEL-NO-REVISIONS", where=name, revision=revision)
    if folder is not None:
        if weights or not is_tokenizer(folder):
            check(folder)
        return folder
    assert known is not None
    if weights and known.kind == "tokenizer":
        raise ModelError("TL-MODEL-WEIGHTS", where=known.name, error=t("it is a tokenizer alone"))
    return pull(known.name, accept_terms=accept_terms, progress=progress)


def where(name: str) -> Path:
    """The checked folder of `name` if it is on this machine, else TL-MODEL-ABSENT; nothing is fetched."""
    if folder := _local(name):
        check(folder)
        return folder
    if known := find(name):
        cached = cache_folder(known)
        if not (cached / PROVENANCE).is_file():
            raise ModelError("TL-MODEL-ABSENT", where=name, name=known.name)
        check_known(known, cached)
        return cached
    try:
        return _remote(name, None, local_only=True)
    except ModelError as error:
        if error.code == "TL-MODEL-OFFLINE":
            raise ModelError("TL-MODEL-ABSENT", where=name, name=name) from error
        raise


def _local(name: str) -> Path | None:
    """The existing folder that `name` is the path of, absolute."""
    # os.path, because pathlib raises on names that cannot be paths: too long, the home of nobody.
    full = os.path.expanduser(name)
    return Path(full).absolute() if name.strip() and os.path.isdir(full) else None


def _remote(name: str, revision: str | None, *, local_only: bool) -> Path:
    if name.startswith(_MODELSCOPE):
        return from_modelscope(name.removeprefix(_MODELSCOPE), revision, local_only=local_only)
    if is_path(name) or os.path.isfile(name):
        raise ModelError("TL-MODEL-PATH", where=name, name=name, near=nearby(name))
    if _HUB_NAME.fullmatch(name):
        return from_hub(name, revision, local_only=local_only)
    raise unknown(name)


def is_path(name: str) -> bool:
    """Whether `name` can only mean a path: it begins like one or has more than one slash.

    >>> [is_path(n) for n in ("./m", "~/m", "a/b/c", "C:\\\\m", "org/name", "smollm2")]
    [True, True, True, True, False, False]
    """
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or bool(_DRIVE.match(name))


def model_folder(part: ModelPart, *, weights: bool = True) -> Path:
    """The local folder of a recipe's model, pulled if need be; without `weights` a tokenizer alone will do."""
    return resolve(part.name, part.revision, accept_terms=part.accept_terms, weights=weights)


def on_hub(name: str) -> bool:
    """Whether a recipe's model name is one of the hub that other tools ask as well.

    >>> on_hub("Qwen/Qwen3-0.6B"), on_hub("smollm2"), on_hub("modelscope:Qwen/Qwen3-0.6B"), on_hub("./models/x")
    (True, False, False, False)
    """
    return "/" in name and not is_path(name) and not name.startswith("modelscope:")
