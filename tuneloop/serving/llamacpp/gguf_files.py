"""Which GGUF model and adapters a path means, and whether they are what was exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.files import sha256_of
from tuneloop.base.language import listed, t
from tuneloop.gguf.file import GgufFile

PARITY, ABOUT = "parity.json", "tuneloop.json"
_ADAPTER_ENDING = "-LORA"


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model file and what goes with it: `context` is how many tokens it was trained to read, `token_bytes` what one
    takes in the cache, `penalty` its own repetition penalty, `adapters` are GGUF adapters by name, `systems` the system
    prompts that the model and they were trained with, by name, and `templates` the chat templates of adapters that
    were trained with one of their own."""

    path: Path
    name: str
    context: int
    token_bytes: int
    penalty: float
    adapters: Mapping[str, Path] = field(default_factory=dict)
    systems: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


def is_gguf(ref: str | Path) -> bool:
    """Whether a path is a .gguf file, or a folder that holds one and no model of another form."""
    path = Path(ref).expanduser()
    holds = path.is_dir() and not (path / "config.json").is_file() and next(path.glob("*.gguf"), None) is not None
    return path.suffix == ".gguf" or holds


def gguf_model(ref: str | Path, notice: Callable[[str], None]) -> GgufModel:
    """The model of a .gguf file, or the one in a folder (or in the folders right below it), verified; adapters that
    lie beside it are taken along.

    Raises TL-SERVE-GGUF where there is no model, or more than one; TL-MODEL-GGUF for a damaged file, TL-SERVE-EXPORT
    for an export that does not verify.
    """
    path = Path(ref).expanduser()
    files = _files(path)
    facts = {file: _facts(file) for file in files}
    models = [file for file in files if facts[file].get("general.type", "model") != "adapter"]
    if path.is_file() and path.suffix == ".gguf":
        if path not in models:
            raise ServeError("TL-SERVE-GGUF", where=str(ref), error=t("it is an adapter; name the model's file"))
        models = [path]
    if len(models) != 1:
        names = listed([str(file) for file in models[:8]])
        error = t("there are several; name one: {names}", names=names) if models else _absent(path, files)
        raise ServeError("TL-SERVE-GGUF", where=str(ref), error=error)
    (model,) = models
    require_verified(model, notice)
    context, token_bytes = _sizes(facts[model])
    if not context or not token_bytes:
        raise ServeError("TL-SERVE-GGUF", where=str(model), error=t("it names no context length"))
    beside = [file for file in files if facts[file].get("general.type") == "adapter"]
    adapters = _adapters(model, beside, facts, notice)
    systems = {name: system for name, file in {model.stem: model, **adapters}.items() if (system := _system(file))}
    templates = {name: text for name, file in adapters.items() if (text := _template(file))}
    return GgufModel(model, model.stem, context, token_bytes, _penalty(model.parent), adapters, systems, templates)


def require_verified(file: Path, notice: Callable[[str], None]) -> None:
    """Raise TL-SERVE-EXPORT where the proof beside an exported file failed, or is of other bytes than it has."""
    proof = read_json(file.parent / PARITY)
    if proof is None:
        notice(t("{path}: there is no parity.json beside it, so nothing says which model it is", path=file))
        return
    if proof.get("passed") is not True:
        raise ServeError("TL-SERVE-EXPORT", where=str(file), error=t("its comparison with the trained model failed"))
    digests = (read_json(file.parent / ABOUT) or {}).get("files")
    digest = digests.get(file.name) if isinstance(digests, dict) else None
    if digest is None:
        notice(t("{path}: its tuneloop.json has no digest of it (an older export)", path=file))
    elif digest != sha256_of(file):
        raise ServeError(
            "TL-SERVE-EXPORT", where=str(file), error=t("its bytes are others than those that were proven")
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of an export; None where there is no file, {} where it is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _files(path: Path) -> list[Path]:
    folder = path.parent if path.is_file() else path
    if path.is_file() and path.suffix != ".gguf":
        return []
    deeper = [] if path.is_file() else sorted(folder.glob("*/*.gguf"))
    return sorted(folder.glob("*.gguf")) + deeper


def _facts(path: Path) -> dict[str, Any]:
    with GgufFile(path) as file:
        return file.facts


def _absent(path: Path, files: list[Path]) -> str:
    if not path.exists():
        return t("there is no such file or folder")
    if (path / "recipe.yaml").is_file():
        return t("it is a run; export it as a GGUF")
    return t("only adapters lie in it") if files else t("no .gguf file lies in it")


def _adapters(
    model: Path, files: list[Path], facts: Mapping[Path, Mapping[str, Any]], notice: Callable[[str], None]
) -> dict[str, Path]:
    """Adapters by name. One that was exported is of the weights it was trained on: an exported model is none of those,
    it has an adapter in it already."""
    about = read_json(model.parent / ABOUT) or {}
    merged = str(about.get("kind", "")).startswith("gguf-") and about.get("kind") != "gguf-lora"
    adapters: dict[str, Path] = {}
    for file in files:
        if facts[file].get("general.architecture") != facts[model].get("general.architecture"):
            notice(t("{path}: an adapter of another kind of model; it is not served", path=file))
        elif merged and (read_json(file.parent / ABOUT) or {}).get("kind") == "gguf-lora":
            notice(t("{path}: it belongs on the base model, not on this export; it is not served", path=file))
        else:
            require_verified(file, notice)
            adapters[file.stem.removesuffix(_ADAPTER_ENDING)] = file
    adapters.pop(model.stem, None)
    return adapters


def _sizes(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the context, and bytes that one takes in a cache of 16-bit numbers; 0 where the file does not say."""
    kind = facts.get("general.architecture")
    names = ("context_length", "block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
    context, blocks, heads, groups, width = (_number(facts.get(f"{kind}.{name}")) for name in names)
    keys = _number(facts.get(f"{kind}.attention.key_length")) or width // max(1, heads)
    return context, 4 * blocks * (groups or heads) * keys


def _number(given: Any) -> int:
    """The largest of a list, which has a number for each layer."""
    number = max(given, default=0) if isinstance(given, list) else given
    return number if isinstance(number, int) and number > 0 else 0


def _system(file: Path) -> str:
    about = read_json(file.parent / ABOUT) or {}
    of_adapter = about.get("kind") == "gguf-lora"
    return str(about.get("system") or "") if of_adapter == file.stem.endswith(_ADAPTER_ENDING) else ""


def _template(adapter: Path) -> str:
    """The chat template that lies beside an exported adapter, "" where there is none: of earlier exports the model's
    own is the trained one."""
    about, file = read_json(adapter.parent / ABOUT) or {}, adapter.parent / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if about.get("kind") == "gguf-lora" and file.is_file() else ""


def _penalty(folder: Path) -> float:
    """The model's own repetition penalty (generation_config.json), 1 where it has none."""
    number = (read_json(folder / "generation_config.json") or {}).get("repetition_penalty")
    return float(number) if isinstance(number, int | float) and number > 0 else 1.0
