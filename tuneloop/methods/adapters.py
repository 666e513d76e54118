"""Adapters on the disk: put on the model they are of, to answer or to be trained on, and added into its weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.errors import ModelError, RunError, TuneloopError, os_words
from tuneloop.base.files import folder_atomic
from tuneloop.base.language import listed, t
from tuneloop.hub.folder_check import check_safetensors
from tuneloop.hub.provenance import provenance_note
from tuneloop.methods.lora import adapter_state
from tuneloop.model.old_keys import keep_old_keys, write_json
from tuneloop.model.precision import tolerance
from tuneloop.model.quiet import quiet
from tuneloop.model.tying import untied
from tuneloop.recipe.choices import METHOD_CHOICES
from tuneloop.recipe.recipe import read_recipe
from tuneloop.recipe.schema import QloraPart

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
"""Files of an adapter folder; the last says which weights it belongs on, and is tuneloop's own."""
LABELS = "labels.json"
"""The classes of an adapter's head, in its order: tuneloop's own as well."""
MOST_RANK = 1 << 16
"""No layer has more rows and columns than that; building an adapter of more would take all memory."""
WHOLE = "none"
"""What `known_base` says of weights that were not quantised."""


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder. Raises TL-MODEL-NO-ADAPTER, and TL-RUN-DAMAGED for a file that is no such."""
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("TL-MODEL-NO-ADAPTER", where=str(folder)) from error
    except (ValueError, RecursionError) as error:
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=os_words(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=t("it does not say what kind of adapter it is"))
    return content


def peft_config(folder: Path) -> PeftConfig:
    """PEFT's form of it. PEFT itself would read the file in the encoding of this machine's locale.

    Raises as `read_config` does.
    """
    content = read_config(folder)
    try:
        with quiet():
            config = PeftConfig.from_peft_type(**PeftConfig.check_kwargs(**content))
    except (TypeError, ValueError, KeyError) as error:
        raise RunError("TL-RUN-DAMAGED", where=str(folder / CONFIG), error=os_words(error)[:200]) from error
    assert isinstance(config, PeftConfig)
    if fault := _fault(content):
        raise RunError("TL-RUN-DAMAGED", where=str(folder / CONFIG), error=fault)
    return config


def _fault(content: dict[str, Any]) -> str:
    """What no LoRA adapter can have in its config, "" where it is sound.

    >>> _fault({"peft_type": "LORA", "r": -1, "lora_alpha": 8, "target_modules": ["q_proj"]})
    'its r is -1'
    """
    if content["peft_type"] != "LORA":
        return ""
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if not isinstance(rank, int) or not 0 < rank <= MOST_RANK:
        return t("its {name} is {written}", name="r", written=json.dumps(rank)[:80])
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return t("its {name} is {written}", name="lora_alpha", written=json.dumps(alpha)[:80])
    if not any(content.get(name) for name in ("target_modules", "target_parameters", "trainable_token_indices")):
        modules = json.dumps(content.get("target_modules"))
        return t("its {name} is {written}", name="target_modules", written=modules)
    return ""


def known_base(adapter: Path) -> dict[str, Any]:
    """What is known of the weights that an adapter was trained on: `mark`, `bits` (WHOLE, nf4 or int8) and `double`.

    A key is missing where nothing tells: an adapter made elsewhere says no more of its base than a name.
    """
    known: dict[str, Any] = {}
    if not (adapter / BASE).is_file():
        return known
    for file in (adapter.parent / "recipe.yaml", adapter / BASE):
        with suppress(OSError, ValueError, TuneloopError):
            known |= _held_by(file) if file.suffix == ".yaml" else json.loads(file.read_text(encoding="utf-8"))
    return known


def _held_by(recipe: Path) -> dict[str, Any]:
    """How the run of a recipe held its weights; adapters of earlier versions do not say it themselves."""
    train = read_recipe(recipe)[0].train if recipe.is_file() else None
    if train is None:
        return {}
    if not METHOD_CHOICES[train.method].quantize:
        return {"bits": WHOLE}
    return {"bits": train.qlora.bits, "double": train.qlora.double}


def held(adapter: Path) -> QloraPart | None:
    """How the weights are held that an adapter was trained on; None where they were whole, or nothing tells."""
    known = known_base(adapter)
    if known.get("bits", WHOLE) == WHOLE:
        return None
    return QloraPart(bits=known["bits"], double=bool(known.get("double", True)))


def require_same_bits(adapter: Path, part: QloraPart | None, method: str, where: str = "train.adapter") -> None:
    """Raise TL-MODEL-METHOD where an adapter is known to be of weights that were held otherwise than `part` says.

    Weights in 4 bits are other weights: an adapter that was trained on them would begin somewhere else.
    """
    known = known_base(adapter)
    if "bits" not in known or held(adapter) == part:
        return
    theirs = held(adapter)
    wanted = "train.method: lora" if theirs is None else f"train.method: qlora, train.qlora: {described(theirs)}"
    reason = t(
        "the adapter was trained on weights held otherwise: take {wanted}, or add it into the weights first "
        "with train.merge",
        wanted=wanted,
    )
    raise ModelError("TL-MODEL-METHOD", where=where, method=method, reason=reason)


def held_alike(adapters: Sequence[Path]) -> QloraPart | None:
    """How the weights are held that adapters were trained on, which are to be added into them together.

    Raises TL-MODEL-METHOD where it is not the same for all that say it: their weights are not the same.
    """
    known = [(folder, held(folder)) for folder in adapters if "bits" in known_base(folder)]
    for folder, part in known[1:]:
        if part != known[0][1]:
            reason = t(
                "{one} and {two} were trained on weights held differently (one of them in 4 or 8 bits): add "
                "them one after the other, each in a run of its own",
                one=known[0][0],
                two=folder,
            )
            raise ModelError("TL-MODEL-METHOD", where="train.merge", method="qlora", reason=reason)
    return known[0][1] if known else None


def copied(adapter: Path, target: Path) -> Path:
    """A copy of an adapter, without its tokenizer: weights, config, and what tuneloop knows of its base and labels.
    Beside it, in `target`.json, stands where it is from."""
    target.mkdir()
    for name in (CONFIG, WEIGHTS, BASE, LABELS):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)
    write_json(target.with_suffix(".json"), {"adapter": str(adapter)})
    return target


def came_from(adapter: Path) -> str:
    """Where an adapter was copied from by `copied`; its own folder where it is no copy."""
    try:
        return str(json.loads(adapter.with_suffix(".json").read_text(encoding="utf-8"))["adapter"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(adapter)


def described(part: QloraPart) -> str:
    """How weights are held, as a recipe says it.

    >>> described(QloraPart()), described(QloraPart(bits="int8"))
    ('{bits: nf4, double: true}', '{bits: int8}')
    """
    double = f", double: {str(part.double).lower()}" if part.bits == "nf4" else ""
    return f"{{bits: {part.bits}{double}}}"


def with_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The model with the adapter of a folder.

    PEFT itself would read a pickle where there is no safetensors file, and begin anew where a weight is missing.
    Raises TL-MODEL-NO-ADAPTER, TL-RUN-DAMAGED, and TL-MODEL-ADAPTER-BASE where the adapter does not fit this model.
    """
    config = peft_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=t("there is no such file"))
    check_safetensors(file)
    try:
        model = _put_on(base, folder, config, trainable)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(folder), reason=reason) from error
    with safe_open(file, "pt") as weights:
        there = set(weights.keys())
    own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if missing := sorted(own - there):
        error_ = t("{n} weights are in no file: {names}", n=len(missing), names=listed(missing[:3]))
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=error_)
    model.train(trainable and base.training)
    return model


def unfilled(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with an adapter of the same kind and size, begun anew: for the dry run of the planner."""
    config = peft_config(folder)
    config.inference_mode = False
    for name, setting in (("prefix_projection", False), ("prompt_tuning_init", "RANDOM"), ("init_lora_weights", True)):
        if hasattr(config, name):
            setattr(config, name, setting)
    try:
        with quiet():
            model = get_peft_model(base, config)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(folder), reason=reason) from error
    assert isinstance(model, PeftModel)
    return model


def _put_on(base: PreTrainedModel, folder: Path, config: PeftConfig, trainable: bool) -> PeftModel:
    if not (trainable and config.is_prompt_learning):  # these PEFT loads to answer only
        # PEFT takes no path for a folder unless it is text, and looks at a hub for one that is not there.
        with quiet():
            return PeftModel.from_pretrained(
                base, str(folder), is_trainable=trainable, config=config, local_files_only=True
            )
    # What is saved of a prefix are its keys and values, not the network that made them, and of a prompt its vectors.
    model = unfilled(base, folder)
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    return model


def require_same_base(adapter: Path, base: Path) -> None:
    """Raise TL-MODEL-ADAPTER-BASE where an adapter is known to be of other weights than those in the folder `base`.

    An adapter made elsewhere says no more than a name, and then its shapes decide when it is loaded.
    """
    known = known_base(adapter).get("mark")
    if known is not None and known != provenance_note(base):
        named = str(read_config(adapter).get("base_model_name_or_path") or "?")
        reason = t("it was trained on {base}, whose weights are others", base=named)
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(adapter), reason=reason)


def merged(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """The model with adapters added into its weights, in turn; `model` is held as they were trained on it, unquantised.

    Raises as `with_adapter` and `added`; TL-MODEL-METHOD.
    """
    for folder in adapters:
        config = read_config(folder)
        if config["peft_type"] != "LORA" or config.get("task_type") == "SEQ_CLS":
            reason = t(
                "only LoRA adapters of models that write can be added into the weights, and {adapter} is none",
                adapter=folder,
            )
            raise ModelError("TL-MODEL-METHOD", where="train.merge", method=config["peft_type"], reason=reason)
        model = added(model, folder)
    return model


def added(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with one adapter added into its weights, which then answers as model and adapter do.

    An adapter on one of two tied tensors unties them: the sum is of that one alone. Raises as `with_adapter`,
    TL-RUN-NOT-FINITE, and TL-MODEL-MERGE where it answers otherwise.
    """
    untied(model, read_config(adapter).get("target_modules"))
    wrapped = with_adapter(model, adapter)
    before = _answer(wrapped)
    try:
        merged_model = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's word for weights that are not finite
        raise RunError("TL-RUN-NOT-FINITE", where=str(adapter), error=str(error)) from error
    assert isinstance(merged_model, PreTrainedModel)
    require_same(before, _answer(merged_model), merged_model.dtype, adapter)
    return merged_model


@torch.no_grad()
def _answer(model: nn.Module) -> torch.Tensor:
    """What a model says to two texts of drawn tokens: float32 [2, 24, anything], on the CPU."""
    model.eval()
    words = next(m for m in model.modules() if isinstance(m, PreTrainedModel)).get_input_embeddings()
    assert isinstance(words.weight, torch.Tensor)
    ids = torch.randint(len(words.weight), (2, 24), generator=torch.Generator().manual_seed(0))
    logits: torch.Tensor = model(input_ids=ids.to(words.weight.device)).logits
    return logits.float().cpu()


def require_same(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype, adapter: Path) -> None:
    """Raise TL-MODEL-MERGE unless what two models said is the same but for rounding in `dtype`."""
    allowed = tolerance(dtype, float(before.abs().max()))
    largest = float((before - after).abs().max().nan_to_num(nan=float("inf")))
    if not largest <= allowed:
        raise ModelError("TL-MODEL-MERGE", where=str(adapter), largest=f"{largest:.3g}", tolerance=f"{allowed:.3g}")


def stacked(model: PreTrainedModel, base: Path, adapters: Sequence[Path], target: Path) -> Path:
    """A model folder `target`: the model loaded from `base` with adapters added. Written aside, then renamed.

    What was written is read back, and must answer as the last adapter did. Raises TL-MODEL-ADAPTER-BASE and what
    `merged` raises.
    """
    for adapter in adapters:
        require_same_base(adapter, base)
    with folder_atomic(target) as draft:
        merged_model = merged(model, adapters)
        logits, kind = _answer(merged_model), type(merged_model)
        with quiet():
            merged_model.save_pretrained(draft, safe_serialization=True)
        for path in base.iterdir():  # tokenizer, template, licence, where it is from
            weights = path.name.endswith((".bin", ".gguf", ".pt")) or ".safetensors" in path.name
            if path.is_file() and not weights and not (draft / path.name).exists():
                shutil.copyfile(path, draft / path.name)
        keep_old_keys(draft, base)
        back = kind.from_pretrained(
            draft,
            dtype=merged_model.dtype,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation=merged_model.config._attn_implementation,
        )
        require_same(logits, _answer(back), merged_model.dtype, adapters[-1])
    return target


def save_adapter(
    model: PeftModel, target: Path, base: Path, named: dict[str, Any], bits: QloraPart | None = None
) -> None:
    """Write an adapter in PEFT's own layout, to be put on the weights in `base`; `named` goes into its config.

    `bits` says how those were held while it was trained.
    """
    model.save_pretrained(str(target), safe_serialization=True)
    config = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    state: dict[str, torch.Tensor] = load_file(target / WEIGHTS)
    before = dict(state)
    adapter_state(model, state, config)
    if any(state[n] is not before[n] for n in state):
        save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    write_json(target / CONFIG, config | named)
    write_json(
        target / BASE,
        {"mark": provenance_note(base), **({"bits": bits.bits, "double": bits.double} if bits else {"bits": WHOLE})},
    )
