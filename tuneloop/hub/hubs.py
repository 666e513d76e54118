"""Models from a hub: Hugging Face (or its mirror) and ModelScope, through their own libraries and caches.

Only safetensors, JSON, templates and tokenizer files are fetched, never a pickle or code. A hub that does not answer is
noticed in seconds: what the cache has is used, else the error says what to do instead.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.base.environment import environment, quiet_libraries
from tuneloop.base.errors import ModelError, TuneloopError
from tuneloop.base.language import listed, t
from tuneloop.base.network import is_reachable
from tuneloop.base.optional import need
from tuneloop.base.refusals import require_space
from tuneloop.hub.folder_check import PICKLES, check

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt", "LICENSE*"]
"""Files that are fetched, of the top folder."""
UNWANTED = ["*/*", "consolidated*", "training_args*", "adapter_*"]
"""Of those, what is not: other formats in sub-folders and a second copy of the weights under Mistral's name."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REQUEST_SECONDS = 10.0


def from_hub(name: str, revision: str | None = None, *, local_only: bool = False) -> Path:
    """The checked snapshot of the hub model "org/name" at `revision` (branch, tag or commit).

    `local_only`: look in the hub library's cache alone. Raises TL-MODEL-HUB, TL-MODEL-OFFLINE, TL-MODEL-NOT-FOUND,
    TL-MODEL-GATED, TL-MODEL-REVISION, TL-MACHINE-DISK and what `model_folder.check` raises.
    """
    quiet_libraries()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    endpoint = (environment().hub_endpoint or constants.ENDPOINT).rstrip("/")

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                endpoint=endpoint,
                local_files_only=local,
                etag_timeout=_REQUEST_SECONDS,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        )

    offline = environment().offline or local_only
    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    away = not offline and not pinned and not is_reachable(endpoint)
    if offline or pinned or away:
        # A commit never changes, and a hub that is away cannot tell of changes: what is here is right.
        with contextlib.suppress(LocalEntryNotFoundError):
            return _checked(snapshot(local=True))
        if offline:
            raise ModelError("TL-MODEL-OFFLINE", where=name, name=name)
        if away or not is_reachable(endpoint):
            raise ModelError("TL-MODEL-HUB", where=name, hub=endpoint, name=name, error=t("no answer"))
    with _hub_errors(name, revision, endpoint):
        _look_before(name, revision, endpoint, Path(constants.HF_HUB_CACHE))
        return _checked(snapshot(local=False))


def _look_before(name: str, revision: str | None, endpoint: str, cache: Path) -> None:
    """Refuse before the download: pickles only, or no room."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True, timeout=_REQUEST_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    require_no_pickles(name, list(sizes))
    blobs = {blob.name for blob in (cache / f"models--{name.replace('/', '--')}" / "blobs").glob("*")}
    there = {f.rfilename for f in info.siblings or () if {f.blob_id, getattr(f.lfs, "sha256", None)} & blobs}
    require_space(cache, sum(size for file, size in sizes.items() if is_wanted(file) and file not in there))


def require_no_pickles(name: str, files: list[str]) -> None:
    """Raise TL-MODEL-PICKLE when `files` has pickled weights and no safetensors."""
    pickles = [file for file in files if file.endswith(PICKLES) and not file.startswith("training_args")]
    if pickles and not any(is_wanted(file) and file.endswith(".safetensors") for file in files):
        raise ModelError("TL-MODEL-PICKLE", where=name, files=listed(pickles[:3]))


def is_wanted(file: str) -> bool:
    """Whether a repository's file is one that is fetched.

    >>> [is_wanted(f) for f in ("model.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "modeling_x.py")]
    [True, False, False, False]
    """
    return any(fnmatch.fnmatch(file, p) for p in WANTED) and not any(fnmatch.fnmatch(file, p) for p in UNWANTED)


def _checked(folder: Path) -> Path:
    check(folder)
    return folder


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None, endpoint: str) -> Any:
    from huggingface_hub import errors

    try:
        yield
    except TuneloopError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError("TL-MODEL-GATED", where=name, name=name, hub=endpoint) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError("TL-MODEL-REVISION", where=name, name=name, revision=revision) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError("TL-MODEL-NOT-FOUND", where=name, name=name, hub=endpoint) from error
    except Exception as error:  # the library passes on whatever its HTTP client raises
        words = " ".join(str(error).split())[:300]
        raise ModelError("TL-MODEL-HUB", where=name, hub=endpoint, name=name, error=words) from error


def from_modelscope(name: str, revision: str | None = None, *, local_only: bool = False) -> Path:
    """The checked snapshot of ModelScope's "org/name". Raises as `from_hub`; TL-MACHINE-EXTRA without its library."""
    snapshot_download: Callable[..., str]
    snapshot_download = need("modelscope.hub.snapshot_download", extra="modelscope").snapshot_download
    endpoint = str(need("modelscope.hub.api", extra="modelscope").HubApi().endpoint)
    label = f"modelscope:{name}"
    offline = environment().offline or local_only
    away = not offline and not is_reachable(endpoint)
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=offline or away,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        )
    except Exception as error:  # its errors come from three libraries
        if offline:
            raise ModelError("TL-MODEL-OFFLINE", where=label, name=label) from error
        words = t("no answer") if away else " ".join(str(error).split())[:300]
        status = getattr(getattr(error, "response", None), "status_code", None)
        code = "TL-MODEL-NOT-FOUND" if status == 404 else "TL-MODEL-HUB"
        raise ModelError(code, where=label, hub=endpoint, name=label, error=words) from error
    return _checked(folder)
