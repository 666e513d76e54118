"""Exports for llama.cpp and Ollama: the merged model as a GGUF of one type, or the adapter alone as one."""

from __future__ import annotations

from pathlib import Path

from tuneloop.base.errors import TuneloopError
from tuneloop.exports.composition import Composition
from tuneloop.exports.merge import generation_config
from tuneloop.exports.reference import Reference
from tuneloop.gguf.library import library

MODELFILE = "Modelfile"


def missing() -> str:
    """ "": raises TL-MACHINE-EXTRA where llama.cpp's library, which writes and reads GGUF here, is not installed."""
    library()
    return ""


def gguf_name(parts: Composition, kind: str) -> str:
    """The name of the GGUF file in its folder, as llama.cpp's community names them: name-TYPE.gguf."""
    return f"{parts.name}-{kind.upper()}.gguf"


def write_model(reference: Reference, merged: Path, folder: Path, kind: str) -> list[str]:
    """Write the merged model's folder as one GGUF file of a type, with a Modelfile for Ollama; returns notes."""
    from tuneloop.gguf.write import write_gguf

    folder.mkdir()
    name = gguf_name(reference.parts, kind)
    write_gguf(merged, folder / name, kind)
    generation_config(reference, folder)
    return _modelfile(merged, folder, name)


def write_adapter(reference: Reference, base: Path, folder: Path) -> list[str]:
    """Write the run's adapter as a GGUF adapter (f16), which goes onto a GGUF of its base; returns notes."""
    from tuneloop.gguf.lora import write_lora

    (adapter,) = reference.parts.adapters
    folder.mkdir()
    name = gguf_name(reference.parts, "lora")
    write_lora(adapter, base, folder / name)
    generation_config(reference, folder)
    return []


def _modelfile(model: Path, folder: Path, name: str) -> list[str]:
    """A Modelfile beside the GGUF `name`; where Ollama's templates cannot say the model's own, why, as a note."""
    from tuneloop.exports.ollama import modelfile

    try:
        text = modelfile(model, name)
    except TuneloopError as error:
        return [str(error)]
    (folder / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    return []
