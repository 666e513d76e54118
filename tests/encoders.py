"""Tiny random encoders with a word tokenizer, for tests of tasks that name labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")
WORDS = ("a", "the", "good", "bad", "great", "terrible", "film", "was", "it", "fine", "dull", "end", "saw", "i", "we",
         "not", "very", "plot", "and", "but", ".")  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "classifier_pooling": "cls",
                   "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}  # fmt: skip


def tokenizer() -> Any:
    """One token a word: [PAD] [UNK] [CLS] [SEP] [MASK] and WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: k for k, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def config(family: str) -> Any:
    from transformers import AutoConfig

    base = {
        "vocab_size": len(WORDS) + 5, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 0,
    }  # fmt: skip
    return AutoConfig.for_model(family, **(base | _OWN.get(family, {})))


def folder(path: Path, family: str, kind: str = "AutoModelForMaskedLM") -> Path:
    """A model folder whose weights are large enough that its parts matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
