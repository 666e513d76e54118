"""Is this folder a model that can be loaded? Answered from its files' names, JSON and headers, without loading it.

    check(folder)          config, weights, tokenizer: each fault is its own error
    check_tokenizer(folder) the tokenizer alone

A config is input from strangers: a shard's name is looked up among the folder's files, never followed, and code that a
folder brings along is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ModelError, nearby, os_words
from tuneloop.base.language import listed, t
from tuneloop.base.refusals import refused

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""What files of pickled weights are called. They can run code when read, so they are never read."""

WEIGHTS = (".safetensors", ".gguf", *PICKLES)
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("source.spm", "target.spm", "vocab.json"),
)
"""Each entry is a set of files that is a tokenizer."""

_CLOSED = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_MOST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def check(folder: Path) -> None:
    """Raise a ModelError unless `folder` holds a model that tuneloop loads.

    TL-MODEL-PATH no such folder; TL-MODEL-ADAPTER an adapter alone; TL-MODEL-CONFIG no or broken config.json;
    TL-MODEL-CODE it wants code of its own; TL-MODEL-PICKLE pickled weights only; TL-MODEL-WEIGHTS no weights or a shard
    missing; TL-MODEL-TRUNCATED a weights file is not whole; TL-MODEL-TOKENIZER no tokenizer.
    """
    if not folder.is_dir():
        raise ModelError("TL-MODEL-PATH", where=str(folder), name=str(folder), near=nearby(folder))
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError("TL-MODEL-ADAPTER", where=str(folder), base=_base_of(folder))
    config = _read_config(folder)
    _refuse_code(folder, config)
    _require_sizes(folder, config)
    _require_generation(folder)
    names = [name for file in weight_files(folder) for name in check_safetensors(file)]
    _require_layers(folder, config, names)
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Raise TL-MODEL-TOKENIZER unless `folder` has a tokenizer's files, TL-MODEL-CODE if they need code of its own."""
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if not any(names.issuperset(files) for files in TOKENIZER_FILES):
        raise ModelError(
            "TL-MODEL-TOKENIZER", where=str(folder), error=t("there is no tokenizer.json or tokenizer.model")
        )
    if "tokenizer.json" in names:
        _read_json(folder / "tokenizer.json", "TL-MODEL-TOKENIZER")
    if "tokenizer_config.json" in names:
        config = _read_json(folder / "tokenizer_config.json", "TL-MODEL-TOKENIZER")
        if config.get("auto_map") and "tokenizer.json" not in names:
            raise ModelError(
                "TL-MODEL-CODE", where=str(folder / "tokenizer_config.json"), classes=str(config["auto_map"])
            )


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a sound tokenizer and nothing of a model. Raises what `check_tokenizer` raises."""
    names = {p.name for p in folder.iterdir()}
    if names & {"config.json", "adapter_config.json"} or any(n.endswith(WEIGHTS) for n in names):
        return False
    if not any(names.issuperset(files) for files in TOKENIZER_FILES):
        return False
    check_tokenizer(folder)
    return True


COUNTING_ON = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer",
                         "mpnet", "esm", "ibert", "data2vec-text", "xmod"})  # fmt: skip


def context(folder: Path) -> int:
    """The longest sequence in tokens that the model in `folder` was made for, 0 where its config.json does not say."""
    try:
        config = _read_config(folder)
    except ModelError:  # a folder with a tokenizer alone
        return 0
    inner = config.get("text_config")
    own = inner if isinstance(inner, dict) else config
    positions = own.get("max_position_embeddings") or own.get("n_positions")
    if not isinstance(positions, int) or positions <= 0:
        return 0
    # RoBERTa and its kin have places that no text reaches: they count from behind the padding's number.
    before = own.get("pad_token_id") if own.get("model_type") in COUNTING_ON else None
    return positions - (before + 1 if isinstance(before, int) else 0)


def vocabulary(folder: Path) -> int:
    """Rows of the embeddings of the model in `folder`, 0 where its config.json does not say."""
    try:
        config = _read_config(folder)
    except ModelError:  # a folder with a tokenizer alone
        return 0
    inner = config.get("text_config")
    size = (inner if isinstance(inner, dict) else config).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else 0


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are the model's weights: the index's shards, or model.safetensors.

    Raises TL-MODEL-PICKLE, TL-MODEL-WEIGHTS.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = _read_json(index, "TL-MODEL-WEIGHTS").get("weight_map")
        shards = {str(name) for name in table.values()} if isinstance(table, dict) else set()
        missing = sorted(shards - {p.name for p in folder.iterdir()})
        if missing or not shards:
            names = listed(missing[:5])
            broken = t("its index names {names}, which is not in the folder", names=names) if missing else ""
            raise ModelError("TL-MODEL-WEIGHTS", where=str(folder), error=broken or t("its index is empty"))
        return [folder / s for s in sorted(shards)]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    names_there = sorted(p.name for p in folder.iterdir() if p.is_file())
    pickles = [name for name in names_there if name.endswith(PICKLES) and name != "training_args.bin"]
    tensors = [name for name in names_there if name.endswith(".safetensors")]
    if pickles and not tensors:
        raise ModelError("TL-MODEL-PICKLE", where=str(folder), files=listed(pickles[:3]))
    others = tensors or [name for name in names_there if name.endswith(".gguf")]
    error = t("there is no model.safetensors") + (f" ({', '.join(others[:3])})" if others else "")
    raise ModelError("TL-MODEL-WEIGHTS", where=str(folder), error=error)


def check_safetensors(file: Path) -> list[str]:
    """The names of a file's tensors. Raises TL-MODEL-TRUNCATED unless its header is whole and its tensors end where the
    file ends, TL-MACHINE-FOLDER where the system does not let it be read."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 0 < length <= min(_MOST_HEADER, size - 8):
                raise ValueError(t("its header is cut off"))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if expected != size:
            raise ValueError(t("it has {size:,} bytes, its header says {expected:,}", size=size, expected=expected))
        return list(header)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        _refuse_closed(error)
        raise ModelError("TL-MODEL-TRUNCATED", where=str(file), error=os_words(error)) from error


def _refuse_closed(error: BaseException) -> None:
    """Raise TL-MACHINE-FOLDER where the system does not let a file be read: that is no fault of the file."""
    if isinstance(error, OSError) and error.errno in _CLOSED and (refusal := refused(error)):
        raise refusal from error


def _require_sizes(folder: Path, config: dict[str, Any]) -> None:
    """Raise TL-MODEL-CONFIG for a size that is no number, or none that a model can have."""
    inner = config.get("text_config")
    own = inner if isinstance(inner, dict) else config
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        size = own.get(name)
        least = -1 if name == "max_position_embeddings" else 1  # -1: as many as one likes
        if isinstance(size, str | float | bool) or (isinstance(size, int) and size < least):
            error = t("its {name} is {written}", name=name, written=json.dumps(size))
            raise ModelError("TL-MODEL-CONFIG", where=str(folder / "config.json"), error=error)


def _require_generation(folder: Path) -> None:
    """Raise TL-MODEL-CONFIG for a generation_config.json that says nothing that can be followed."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    config = _read_json(file, "TL-MODEL-CONFIG")
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "length_penalty"):
        if isinstance(config.get(name), str | list | dict):
            error = t("its {name} is {written}", name=name, written=json.dumps(config[name])[:80])
            raise ModelError("TL-MODEL-CONFIG", where=str(file), error=error)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(name)
        if not all(one is None or type(one) is int for one in (ids if isinstance(ids, list) else [ids])):
            error = t("its {name} is {written}", name=name, written=json.dumps(ids)[:80])
            raise ModelError("TL-MODEL-CONFIG", where=str(file), error=error)


_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
"""The number of a layer in a tensor's name, as most architectures write it."""


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, by its name; None where the name has none.

    >>> layer_of("model.layers.11.mlp.up_proj.weight"), layer_of("model.norm.weight")
    (11, None)
    """
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _require_layers(folder: Path, config: dict[str, Any], names: Sequence[str]) -> None:
    """Raise TL-MODEL-CONFIG where it wants more layers than there are weights of: building them can take all memory."""
    inner = config.get("text_config")
    wanted = (inner if isinstance(inner, dict) else config).get("num_hidden_layers")
    there = max((layer for name in names if (layer := layer_of(name)) is not None), default=None)
    if there is not None and isinstance(wanted, int) and wanted > there + 1:
        error = t("it wants {wanted:,} layers, and there are weights of {there:,}", wanted=wanted, there=there + 1)
        raise ModelError("TL-MODEL-CONFIG", where=str(folder / "config.json"), error=error)


def _base_of(folder: Path) -> str:
    config = _read_json(folder / "adapter_config.json", "TL-MODEL-CONFIG")
    return str(config.get("base_model_name_or_path") or "?")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=t("there is no config.json"))
    config = _read_json(file, "TL-MODEL-CONFIG")
    if not isinstance(config.get("model_type"), str):
        raise ModelError("TL-MODEL-CONFIG", where=str(file), error=t("it has no model_type"))
    return config


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    """Code in the folder does not matter where transformers has the architecture itself (DeepSeek-V3); else refuse."""
    if not config.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    kind = config["model_type"]
    own = {str(name) for name in config.get("architectures") or ()}
    if kind in CONFIG_MAPPING and all(_is_native(name) for name in own):
        return
    classes = ", ".join(sorted(own)) or kind
    raise ModelError("TL-MODEL-CODE", where=str(folder / "config.json"), classes=classes)


def _is_native(architecture: str) -> bool:
    from transformers.models.auto import modeling_auto

    tables = (getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES"))
    for table in tables:
        for names in table.values():
            if architecture == names or (isinstance(names, (tuple, list)) and architecture in names):
                return True
    return False


def _read_json(file: Path, code: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        _refuse_closed(error)
        raise ModelError(code, where=str(file), error=os_words(error)) from error
    if not isinstance(content, dict):
        raise ModelError(code, where=str(file), error=t("it is not a JSON object"))
    return content
