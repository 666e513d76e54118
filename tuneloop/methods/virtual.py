"""Virtual tokens: trained vectors before every layer (P-tuning v2) or before the text (prompt tuning)."""

from __future__ import annotations

from typing import NoReturn

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.model.anatomy import new_parts, task_type
from tuneloop.model.backbone import states, unwrap
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import TrainPart


def prefix(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    """P-tuning v2 (Liu et al. 2021, arXiv:2110.07602): keys and values before every layer, PEFT's prefix tuning.

    They begin as those that the model itself makes of a text, or of tokens drawn from the vocabulary (Li & Liang 2021,
    arXiv:2101.00190, section 7.4): random ones would first of all ruin the model.
    """
    part, width = train.virtual, int(model.config.get_text_config().hidden_size)
    config = PrefixTuningConfig(
        task_type=task_type(model),
        num_virtual_tokens=part.tokens,
        prefix_projection=part.projection,
        encoder_hidden_size=width if part.projection else None,  # type: ignore[arg-type]
        modules_to_save=new_parts(model) or None,
    )
    wrapped = _wrapped(model, train, config)
    if part.projection and part.text:
        _refuse(train, t("a network makes the vectors, so that they cannot begin as a text"))
    if not part.projection and model.device.type != "meta":
        _begin_as_read(wrapped, model, train)
    return wrapped


def prompt(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): embeddings before the text.

    As wide as the model's own embeddings: ALBERT's are narrower than its blocks. They begin as those of tokens drawn
    from the vocabulary, or of a text, repeated until it fills them.
    """
    part = train.virtual
    config = PromptTuningConfig(
        task_type=task_type(model),
        num_virtual_tokens=part.tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
        token_dim=int(model.get_input_embeddings().embedding_dim),  # type: ignore[arg-type]
        modules_to_save=new_parts(model) or None,
    )
    wrapped = _wrapped(model, train, config)
    if part.text and model.device.type != "meta":
        _begin_as(wrapped, model, train, part.text)
    return wrapped


def describe_virtual(train: TrainPart) -> str:
    """How many virtual tokens there are."""
    return t("{n} virtual tokens", n=train.virtual.tokens)


def _wrapped(model: PreTrainedModel, train: TrainPart, config: PeftConfig) -> PeftModel:
    if task_type(model) is None:
        reason = t("PEFT puts virtual tokens before models that write or that score labels, not before this one")
        raise ModelError("TL-MODEL-METHOD", where="train.method", method=train.method, reason=reason)
    try:
        with quiet():
            wrapped = get_peft_model(model, config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError("TL-MODEL-METHOD", where="train.method", method=train.method, reason=reason) from error
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _text(model: PreTrainedModel, train: TrainPart, text: str) -> list[int]:
    """The tokens of a text, as many as there are virtual ones: repeated until they are. Raises TL-MODEL-METHOD."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, local_files_only=True, trust_remote_code=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    most = train.virtual.tokens
    if not ids or len(ids) > most:
        _refuse(train, t("the text has {n} tokens, and there are {most} virtual ones", n=len(ids), most=most))
    return [ids[k % len(ids)] for k in range(most)]


def _refuse(train: TrainPart, reason: str) -> NoReturn:
    raise ModelError("TL-MODEL-METHOD", where="train.virtual.text", method=train.method, reason=reason)


def _begin_as(wrapped: PeftModel, model: PreTrainedModel, train: TrainPart, text: str) -> None:
    ids = torch.tensor(_text(model, train, text), device=model.device)
    with torch.no_grad():
        for weight in wrapped.prompt_encoder.parameters():  # the only one it has
            weight.copy_(model.get_input_embeddings()(ids))


def _begin_as_read(wrapped: PeftModel, model: PreTrainedModel, train: TrainPart) -> None:
    """The prefix begins as the model's own keys and values. A model that keeps none of the prefix's form stays as PEFT
    began it: encoders, for one, keep none at all."""
    config, part = model.config.get_text_config(), train.virtual
    if part.text:
        ids = torch.tensor(_text(model, train, part.text))
    else:
        ids = torch.randint(config.vocab_size, (part.tokens,))
        if isinstance(getattr(config, "bos_token_id", None), int):  # what comes first, much is looked at
            ids[0] = config.bos_token_id
    backbone, was = getattr(model, model.base_model_prefix), model.training
    backbone.eval()
    try:
        with torch.no_grad():
            cache = backbone(input_ids=ids[None].to(model.device), use_cache=True).get("past_key_values")
    finally:
        backbone.train(was)
    every = [x for layer in getattr(cache, "layers", ()) for x in (layer.keys, layer.values)]
    (weight,) = wrapped.prompt_encoder.parameters()
    if every and all(x is not None and x.shape == (1, *every[0].shape[1:]) for x in every):
        rows = torch.stack([x[0].transpose(0, 1).flatten(1) for x in every], 1).flatten(1)
        if rows.shape == weight.shape:
            with torch.no_grad():
                weight.copy_(rows)
            return
    if part.text:
        _refuse(train, t("this model keeps no keys and values of a text that its vectors could begin as"))


def require_effect(model: PeftModel, method: str) -> None:
    """Raise TL-MODEL-METHOD for a model that cannot take virtual tokens, or takes no notice of them.

    Heads of different widths for keys and values (DeepSeek's latent attention) leave no place for a prefix, and a model
    that makes no use of a cache of keys and values would drop it without a word.
    """
    base = unwrap(model)
    ids = torch.arange(3, device=base.device)[None]
    trained = [p for p in model.prompt_encoder.parameters() if p.requires_grad]
    was = model.training
    model.eval()
    try:
        hidden = states(model, ids, ids, (3,))
        # Half of the width: the sum over all of it is one number whatever the input, behind a norm.
        gradients = torch.autograd.grad(hidden[:, : hidden.shape[1] // 2].float().sum(), trained, allow_unused=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("TL-MODEL-METHOD", where="train.method", method=method, reason=reason) from error
    finally:
        model.train(was)
    if all(g is None or not g.any() for g in gradients):
        reason = t("virtual tokens change nothing in a {model}", model=type(base).__name__)
        raise ModelError("TL-MODEL-METHOD", where="train.method", method=method, reason=reason)
