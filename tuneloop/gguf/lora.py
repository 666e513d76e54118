"""A PEFT LoRA adapter as llama.cpp's adapter file: what `--lora` of llama.cpp and ADAPTER of Ollama take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.language import t
from tuneloop.gguf.architectures import ARCHITECTURES, head_size
from tuneloop.gguf.output import PackedTensor, write_file
from tuneloop.gguf.quantize import quantized
from tuneloop.gguf.weights import ShardedWeights
from tuneloop.gguf.write import architecture_facts, config_of, gguf_names, layer_order, refusing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBEDDING = "token_embd.weight"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT writes before a module's name."""
_LETTERS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "a", "lora_embedding_B": "b"}
"""How PEFT's name of a tensor ends -> which of the two it is."""
_UNHELD = (
    "use_dora", "modules_to_save", "trainable_token_indices", "bias", "lora_bias", "alora_invocation_tokens",
    "layer_replication", "target_parameters",
)  # fmt: skip
"""Settings of PEFT's LoRA that are more than A and B of some layers."""


def write_lora(adapter: Path, base: Path, path: Path) -> None:
    """Write the LoRA adapter in the folder `adapter`, trained on the model in `base`, to `path`, over what was there.

    In float32: the file is small. Raises TL-MODEL-GGUF-WRITE for an adapter that llama.cpp cannot apply,
    TL-MACHINE-DISK and TL-MACHINE-FOLDER; then `path` is as it was. Whether it was trained on `base` is not looked at,
    beyond its shapes.
    """
    from gguf.constants import GGML_QUANT_VERSION

    with refusing(adapter):
        settings = lora_settings(adapter)
        config, kind = config_of(base)
        facts = architecture_facts(config, kind)
        weights = ShardedWeights(base)
        names = {name: target for target, (_, name) in gguf_names(weights, config, ARCHITECTURES[kind]).items()}
        alpha = float(settings["lora_alpha"]) or 1.0
        tensors: dict[str, PackedTensor] = {}
        for module, (a, b) in lora_pairs(adapter, bool(config.tie_word_embeddings)).items():
            target = names.get(f"{module}.weight", "")
            # llama.cpp looks rows of the embedding up in A, so it wants it the other way round there.
            a = a.T if target == EMBEDDING else a
            shape = (len(a), len(b)) if target == EMBEDDING else (len(b), a.shape[1])
            if not target or weights.shapes[f"{module}.weight"] != shape:
                raise ValueError(t("its tensors of {module} are not of this base model", module=module))
            rank, part = b.shape[1], target.split(".")[-2]
            b = b * (scaling(settings, module, rank) * rank / alpha)
            b = ARCHITECTURES[kind].stored(part, b, head_size(facts))  # rows as llama.cpp has those of the weight
            for letter, numbers in (("a", a), ("b", b)):
                tensors[f"{target}.lora_{letter}"] = _packed(numbers)
        about = {
            "general.architecture": kind,
            "general.type": "adapter",
            "general.name": adapter.name,
            "general.file_type": 0,
            "general.quantization_version": GGML_QUANT_VERSION,
            "adapter.type": "lora",
            "adapter.lora.alpha": alpha,
        }
        write_file(path, about, dict(sorted(tensors.items(), key=lambda pair: layer_order(pair[0]))))


def lora_settings(adapter: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ValueError for a kind of adapter, or a setting, that llama.cpp does not have."""
    try:
        settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        kind = str(settings["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(t("{file} is missing or damaged", file=CONFIG)) from error
    if kind != "LORA":
        raise ValueError(t("an adapter of the kind {kind} has no place in a GGUF file", kind=kind))
    for name in _UNHELD:
        if settings.get(name) not in (None, False, "none", [], {}):
            raise ValueError(t("its setting {name} has no place in a GGUF file", name=name))
    return dict(settings)


def lora_pairs(adapter: Path, tied: bool) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Module -> its A [rank, inside] and B [outside, rank]. Raises ValueError for any other tensor.

    `tied`: head and embedding are one tensor, which llama.cpp then looks up by one name: an adapter of one alone would
    be applied to both.
    """
    weights = ShardedWeights(adapter, WEIGHTS)
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name in weights.shapes:
        ending = next((e for e in _LETTERS if name.endswith(f".{e}")), None)
        if ending is None or len(weights.shapes[name]) != 2:
            raise ValueError(t("its tensor {name} has no place in a GGUF file", name=name))
        module = name.removeprefix(_PREFIX).removesuffix(f".{ending}")
        if tied and module in ("lm_head", "model.embed_tokens"):
            raise ValueError(t("it changes {module}, and head and embedding are one tensor there", module=module))
        halves.setdefault(module, {})[_LETTERS[ending]] = weights.tensor(name)
    for module, pair in halves.items():
        if pair.keys() != {"a", "b"} or pair["a"].shape[0] != pair["b"].shape[1]:
            raise ValueError(t("its tensors of {module} do not belong together", module=module))
    return {module: (pair["a"], pair["b"]) for module, pair in halves.items()}


def scaling(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's B A by.

    >>> scaling({"lora_alpha": 32, "use_rslora": True, "alpha_pattern": {"q_proj": 8}}, "model.q_proj", 16)
    2.0
    """
    from peft.utils.other import get_pattern_key

    pattern = settings.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), module), settings["lora_alpha"])
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _packed(numbers: NDArray[np.float32]) -> PackedTensor:
    return PackedTensor(numbers.shape, "F32", lambda: [quantized(numbers, "F32")])
