"""The export: a finished run as one or several targets, each proven against what was trained, whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.base import refusals
from tuneloop.base.errors import MachineError, RunError
from tuneloop.base.files import flush, nearest_folder, sha256_of
from tuneloop.base.language import listed, t
from tuneloop.data.tokens.templates import Chat, stop_texts
from tuneloop.exports import card, parity
from tuneloop.exports.composition import Composition, added_adapters, composition
from tuneloop.exports.draft import draft_folder, remove_abandoned
from tuneloop.exports.merge import merge, write_origin
from tuneloop.exports.parity import Parity
from tuneloop.exports.reference import Reference, reference
from tuneloop.exports.soundness import notes_on_bases, require_fit, require_sound
from tuneloop.exports.targets import TARGETS, ExportInput, require_known, require_possible
from tuneloop.exports.tensor_file import TensorFile
from tuneloop.hub.folder_check import weight_files
from tuneloop.model.load import pick_dtype
from tuneloop.model.old_keys import write_json

SIDE_BYTES = 64 << 20
"""Room for a target's tokenizer, card and proof."""
LARGER = 1.3
"""By how much a quantised model may be larger than its bits say: embeddings and head keep more of them."""
TERMS = re.compile(r"(?i)(^|[_.-])(licen[cs]es?|notice|copying|copyright|terms|use[_-]policy)(?![a-z])")
"""How the files are called that hold a model's licence, notices and terms of use: LICENSE, USE_POLICY.md, X_TERMS.html.
"""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Exported:
    """One target that was written. `command` uses it; `notes` are what whoever uses it should know."""

    target: str
    path: Path
    parity: Parity
    command: str
    notes: tuple[str, ...] = ()


def export(
    run: Path,
    to: Path,
    targets: Sequence[str] = ("merged",),
    *,
    dtype: str | None = None,
    more: Sequence[Path] = (),
    chats: Sequence[Chat] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Exported]:
    """Write the run's model to `to`: one target in it directly, of several each in a folder of its name below it.

    `dtype` is the type of the merged weights, by default the one that was trained in; `more` are adapters that are
    added after the run's own; `chats` are dialogues for the proof, by default some that the run's evaluation has
    answered; `say` gets lines of progress. All is made in a sibling folder that gets its name last. Raises
    TL-RUN-EXISTS, TL-MACHINE-FOLDER, TL-MACHINE-DISK, TL-RUN-PARITY and what `require_known`, `composition`,
    `require_sound`, `require_possible`, `require_fit`, `reference` and the targets raise; then `to` does not exist.
    """
    names = list(dict.fromkeys(targets))
    require_known(names)
    dtype = _dtype(dtype)
    _require_free(to)
    parts = composition(run, more)
    require_sound(parts, names)
    require_possible(parts, names)
    require_fit(parts)
    usual = str(pick_dtype(parts.recipe.model.dtype)).removeprefix("torch.")
    remove_abandoned(to)
    refusals.require_space(to.parent, needed(parts, names, dtype or usual))
    to.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(to) as partial:
        say(t("asking the trained model (the exports are asked the same)"))
        one = reference(parts, chats)
        notes, proofs = _make(one, partial, names, dtype or one.dtype, to, say)
        _named(partial / names[0] if len(names) == 1 else partial, to)
    folders = {name: to if len(names) == 1 else to / name for name in names}
    common = notes_on_bases(parts)
    return {
        name: Exported(name, path, proofs[name], TARGETS[name].command(parts, path), (*common, *notes[name]))
        for name, path in folders.items()
    }


def _dtype(named: str | None) -> str | None:
    """The name of a type as torch has it. Raises TL-RUN-TARGET for one that is no type of weights."""
    if named is None or named.lower() in DTYPES:
        return named and named.lower()
    reason = t("{dtype} is no type of weights; they are {names}", dtype=named, names=listed(list(DTYPES)))
    raise RunError("TL-RUN-TARGET", where="--dtype", target=named, reason=reason)


def _require_free(to: Path) -> None:
    """Raise TL-RUN-EXISTS where something of that name is, TL-MACHINE-FOLDER where a file is in the way to it."""
    if to.exists() or to.is_symlink() or to.name in ("", ".."):  # new/.. is the folder that new would be in
        raise RunError("TL-RUN-EXISTS", where=str(to), path=to)
    above = nearest_folder(to.parent)
    if not above.is_dir():
        raise MachineError("TL-MACHINE-FOLDER", where=str(above), error=t("it is a file, and no folder"), then="")


def _make(
    one: Reference, partial: Path, names: Sequence[str], dtype: str, to: Path, say: Callable[[str], None]
) -> tuple[dict[str, Sequence[str]], dict[str, Parity]]:
    """Make, prove and describe each target in the folder `partial`; returns its notes and its proof."""
    scratch, merged = partial / ".scratch", None
    scratch.mkdir()
    if any(TARGETS[name].of_merged for name in names):
        merged = partial / "merged" if "merged" in names else scratch / "merged"
        say(t("merging base and adapters"))
        merge(one, merged, dtype)
    work = ExportInput(one, merged, scratch, dtype)
    notes, proofs = dict[str, Sequence[str]](), dict[str, Parity]()
    for name in sorted(names, key=lambda name: name != "merged"):  # a fault of the merge is no other target's
        folder, target = partial / name, TARGETS[name]
        notes[name] = target.make(work, folder)
        say(t("{target}: written; it is read back and asked", target=name))
        proofs[name] = target.prove(work, folder)
        parity.require(proofs[name], str(to if len(names) == 1 else to / name))
        _describe(one, name, proofs[name], folder, dtype)
        _sync(folder)
    shutil.rmtree(scratch)
    return notes, proofs


def needed(parts: Composition, names: Sequence[str], dtype: str) -> int:
    """Bytes that the targets take while they are made, at most."""
    files = [TensorFile.read(file) for file in weight_files(parts.weights)]
    numbers = sum(shape.bytes // shape.dtype.itemsize for file in files for shape in file.shapes)
    unquantised = numbers * (4 if dtype == "float32" else 2)
    most = len(names) * SIDE_BYTES
    for name in names:
        bits = TARGETS[name].bits
        most += unquantised if bits is None else int(numbers * bits / 8 * LARGER)
        most += sum(file.stat().st_size for folder in parts.adapters for file in folder.glob("*.safetensors"))
    if "merged" not in names and any(TARGETS[name].of_merged for name in names):
        most += unquantised
    return most + (2 * numbers if "gguf-lora" in names else 0)


def _describe(one: Reference, target: str, proof: Parity, folder: Path, dtype: str) -> None:
    """Beside the weights: the proof, where the model is from, and the model card."""
    parts = one.parts
    write_json(folder / "parity.json", proof.as_dict())
    weights = sorted(file for ending in ("*.gguf", "*.safetensors") for file in folder.glob(ending))
    write_origin(parts, folder, target, {file.name: sha256_of(file) for file in weights})
    stops = stop_texts(one.tokenizer) if parts.task.answers == "text" else ()
    text = card.card(
        parts.run,
        parts.recipe,
        parts.base,
        proof,
        dtype=dtype,
        head=one.head,
        target=target,
        folder=folder,
        stops=stops,
        more=added_adapters(parts),
    )
    for file in _terms(parts.base) if target not in ("adapter", "gguf-lora") else ():
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _terms(base: Path) -> list[Path]:
    """The files of a base model that say under which terms its weights may be passed on: they go with the weights."""
    return sorted(file for file in base.iterdir() if file.is_file() and TERMS.search(file.name))


def _named(finished: Path, to: Path) -> None:
    try:
        finished.rename(to)
    except OSError as error:
        raise RunError("TL-RUN-EXISTS", where=str(to), path=to) from error


def _sync(folder: Path) -> None:
    """Bytes reach the disk before the name does: a crash must not leave a named folder with empty files.

    safetensors makes its files private; they get the permissions of the others.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod((folder / "README.md").stat().st_mode)
            flush(path)
