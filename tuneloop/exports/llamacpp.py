"""Exports for llama.cpp and Ollama: the merged model as a GGUF of one type, or the adapter alone as one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.base.optional import quoted
from tuneloop.data.version.dataset import open_dataset
from tuneloop.exports.composition import Composition
from tuneloop.exports.merge import generation_config
from tuneloop.exports.reference import Reference
from tuneloop.gguf.library import library
from tuneloop.runs.run import Run

MODELFILE = "Modelfile"
BASE = "BASE.gguf"
"""What a Modelfile with an adapter calls the model below it: only whoever serves it knows which file that is."""


def require_writable(parts: Composition) -> None:
    """Raise what keeps the run's model out of a GGUF file, before anything is loaded.

    TL-MACHINE-EXTRA where llama.cpp's library is not installed, TL-MODEL-GGUF-WRITE for an architecture that has no
    place in such a file, TL-MODEL-GGUF-TOKENIZER for such a tokenizer.
    """
    from tuneloop.gguf.tokenizer_facts import tokenizer_facts
    from tuneloop.gguf.write import architecture_facts, config_of, refusing

    library()
    with refusing(parts.weights):
        architecture_facts(*config_of(parts.weights))
    tokenizer_facts(parts.weights)


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
    return _modelfile(reference.parts, merged, folder, name)


def write_adapter(reference: Reference, folder: Path, scratch: Path) -> list[str]:
    """Write the run's adapter as a GGUF that goes onto a GGUF of its base, with a Modelfile; returns notes."""
    from tuneloop.gguf.lora import write_lora

    parts, (adapter,) = reference.parts, reference.parts.adapters
    folder.mkdir()
    name = gguf_name(parts, "lora")
    write_lora(adapter, parts.weights, folder / name)
    generation_config(reference, folder)
    model = scratch / "prompts"  # what a Modelfile is made from: the run's tokenizer with the base's config
    reference.tokenizer.save_pretrained(model)
    shutil.copyfile(parts.weights / "config.json", model / "config.json")
    shutil.copyfile(folder / "generation_config.json", model / "generation_config.json")
    notes = _modelfile(parts, model, folder, BASE, adapter=name)
    note = t("Its Modelfile asks for {name}: a GGUF of {base}, to be put beside it.", name=BASE, base=parts.base_name)
    return notes or [note]


def _modelfile(parts: Composition, model: Path, folder: Path, name: str, adapter: str | None = None) -> list[str]:
    """A Modelfile beside the GGUF `name`; where Ollama's templates cannot say the model's own, why, as a note."""
    from tuneloop.exports.ollama import modelfile

    try:
        text = modelfile(model, name, adapter=adapter, system=parts.recipe.prepare.system, longest=_longest(parts))
    except TuneloopError as error:
        serve = f"llama-server --jinja -m {quoted(name)}" + (f" --lora {quoted(adapter)}" if adapter else "")
        return [t("{reason} Serve it with: {command}", reason=f"{error.code}  {error.what}", command=serve)]
    (folder / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    return []


def _longest(parts: Composition) -> int | None:
    """Tokens of the longest row that was trained on; None where the dataset is gone."""
    folder = Run(parts.run).dataset()
    try:
        return None if folder is None else int(open_dataset(folder).manifest["tokens"]["longest"])
    except (TuneloopError, KeyError, TypeError, ValueError):
        return None
