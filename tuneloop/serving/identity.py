"""By what a served model is known: a digest of the files that its answers come from, and of what else changes them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from tuneloop.base.files import sha256_of
from tuneloop.hub.resolve import model_folder, resolve
from tuneloop.registry import versions
from tuneloop.runs.run import run_recipe

LARGE = 64 << 20
"""Bytes of a file from which on its size and samples of it stand for it: a large model would take minutes to read."""
SAMPLES, SAMPLE_BYTES = 65, 1 << 16
_ENDINGS = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".yaml", ".gguf"})


def identity_of(*facts: object) -> str:
    """32 hex digits of what answers depend on, and of this tuneloop, which takes them apart.

    >>> identity_of("torch", 1) == identity_of("torch", 1) != identity_of("torch", 2)
    True
    """
    text = json.dumps([_release(), *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@functools.cache
def _release() -> str:
    """The version of tuneloop that is installed; "" in a source tree that is not."""
    try:
        return importlib.metadata.version("tuneloop")
    except importlib.metadata.PackageNotFoundError:
        return ""


def run_digest(run: Path) -> str:
    """Of a run's recipe, of what it trained, and of its base model. Raises OSError, and what `model_folder` raises."""
    trained = [run / "adapter", run / "model"]
    own = [run / "recipe.yaml", *(file for folder in trained for file in model_files(folder))]
    return identity_of(files_digest(own, run), folder_digest(model_folder(run_recipe(run).model)))


def base_digest(run: Path) -> str:
    """Of the model that a run was trained on."""
    return folder_digest(model_folder(run_recipe(run).model))


def served_digest(ref: str, workspace: Path) -> str:
    """Of the run, version or model that `ref` means."""
    run = versions.locate(workspace, ref)
    return folder_digest(resolve(ref)) if run is None else run_digest(run)


def folder_digest(folder: Path) -> str:
    """Of a model's folder: weights, tokenizer, template, configuration."""
    return files_digest(model_files(folder), folder)


def model_files(folder: Path) -> list[Path]:
    """The files right in a folder that a model may be loaded from."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.glob("*") if path.suffix in _ENDINGS and path.is_file())


def files_digest(files: Iterable[Path], root: Path) -> str:
    """Of names below `root`, and bytes. Raises OSError."""
    lines = [f"{file.relative_to(root).as_posix()} {_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(file: Path) -> str:
    size = file.stat().st_size
    if size <= LARGE:
        return sha256_of(file)
    digest = hashlib.sha256(f"{size}".encode())
    with file.open("rb") as stream:
        for k in range(SAMPLES):
            stream.seek(k * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
