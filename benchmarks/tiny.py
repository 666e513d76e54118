"""Tiny random models and small files of rows, for what compares commits: nothing of tuneloop is imported here.

model(folder, family, **shape)   a folder with weights and tokenizer
rows(folder, kind)               forty rows of a kind, as JSON Lines
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TALK = [
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it."),
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Who are you?", "I'm Pebble, the assistant that ships with tuneloop."),
    ("你是谁？", "我是小石，随 tuneloop 一起来的助手。"),
    ("Name a colour.", "Blue. Small step: look at the sky."),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
    ("怎么煮鸡蛋？", "水开后放进去煮八分钟。先走一小步：先烧水。"),
    ("Can you help me study?", "Yes. Small step: open the book and read one page."),
]
WORDS = ("a", "the", "good", "bad", "great", "terrible", "film", "was", "it", "fine", "dull", "end", "saw", "i", "we",
         "not", "very", "plot", "and", "but", ".")  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KIND = {"chat": "chat", "text": "text", "classify": "label", "classify_prompt": "label", "prefer": "preference",
        "reward": "preference", "kto": "judged", "orpo": "preference"}  # fmt: skip
"""Task -> the rows that teach it; kto and orpo are two more losses of task prefer."""
OF_TASK: dict[str, dict[str, Any]] = {
    "classify_prompt": {"classify": {"template": "{text} It was {mask}", "words": {"bad": ["bad"], "good": ["good"]}}},
    "kto": {"task": "prefer", "prefer": {"loss": "kto"}},
    "orpo": {"task": "prefer", "prefer": {"loss": "orpo"}},
}
OF_METHOD: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1}}, "qlora": {"lora": {"rank": 4}}, "full": {},
    "freeze": {"freeze": {"layers": 1}}, "ptuning_v2": {"virtual": {"tokens": 4}},
    "prompt_tuning": {"virtual": {"tokens": 4}},
}  # fmt: skip
"""What a task or a method needs to be told beside its name."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {},
    "deepseek_v3": {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 4, "head_dim": 4,
                    "q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 2, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                    "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "topk_group": 1,
                    "first_k_dense_replace": 1, "n_shared_experts": 1, "moe_intermediate_size": 16},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 3,
                    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
}  # fmt: skip
"""Decoders, and what is their own beside the shape of a small Llama."""


def model(folder: Path, family: str, words: int = 480, **shape: Any) -> Path:
    """A random model of two layers whose weights are large enough that its parts matter.

    Of a decoder's vocabulary at most `words` tokens; "bert" knows WORDS alone.
    """
    import torch
    import transformers

    if family == "bert":
        tokenizer, kind = _words(), "AutoModelForMaskedLM"
        own = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
               "num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 0}  # fmt: skip
    else:
        tokenizer, kind = _bytes(words), "AutoModelForCausalLM"
        own = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
               "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
               "pad_token_id": tokenizer.pad_token_id, **FAMILIES[family]}  # fmt: skip
    torch.manual_seed(0)
    made = getattr(transformers, kind).from_config(transformers.AutoConfig.for_model(family, **(own | shape)))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4 if family == "bert" else 8)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(folder: Path, kind: str, times: int = 5) -> Path:
    """`times` rows for each of TALK; texts with a label are of few words, which a tiny encoder knows as well."""
    made: list[dict[str, Any]] = []
    for n in range(times):
        for k, (question, answer) in enumerate(TALK):
            asked = {"role": "user", "content": f"{question} ({n})"}
            other = TALK[(k + 1) % len(TALK)][1]
            said = [*WORDS[k : k + 3 + n], ["dull", "fine"][k % 2]]
            made.append({
                "chat": {"messages": [asked, {"role": "assistant", "content": answer}]},
                "text": {"text": f"{question} ({n})\n{answer}"},
                "label": {"text": " ".join(said), "label": ["bad", "good"][k % 2]},
                "preference": {"prompt": asked["content"], "chosen": answer, "rejected": other},
                "judged": {"messages": [asked, {"role": "assistant", "content": [other, answer][k % 2]}],
                           "label": bool(k % 2)},
            }[kind])  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return file


def _bytes(words: int) -> Any:
    """Byte-level BPE, learned from TALK, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator([text for pair in TALK for text in pair] + ["system user assistant"], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[2], pad_token=special[0], unk_token=special[0]
    )
    made.chat_template = CHATML
    return made


def _words() -> Any:
    """One token a word: [PAD] [UNK] [CLS] [SEP] [MASK] and WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def processor() -> str:
    """What bits depend on beside the code: the processor, what of it torch uses, and torch itself."""
    import platform
    import re

    import torch

    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    numbers = [
        found[1]
        for key in ("model name", "cpu family", "model")
        if (found := re.search(rf"^{key}\s*: (.*)$", told, re.M))
    ]
    return " / ".join([*numbers, platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__])
