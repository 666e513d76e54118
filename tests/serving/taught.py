"""A tiny model that has learned a few dialogues by heart: it answers, thinks, calls one tool or two, and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneloop.data.tokens.named_templates import DEFAULTS

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}}, "required": ["city"], "additionalProperties": False}}}
    for name in ("weather", "time")
]  # fmt: skip


def call(name: str, city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"city": city}}}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


LEARNED: list[tuple[list[Any], tuple[Any, ...], dict[str, Any]]] = [
    (user("Hello"), (), {"content": "Hi, I'm Pebble. 你好!"}),
    (user("Think"), (), {"content": "It is 4.", "reasoning_content": "2 and 2"}),
    (user("Rome?"), tuple(TOOLS), {"content": "", "tool_calls": [call("weather", "Rome")]}),
    (user("Both?"), tuple(TOOLS), {"content": "Sure.", "tool_calls": [call("weather", "Rome"), call("time", "Paris")]}),
    (user("Words?"), tuple(TOOLS), {"content": "No tool."}),
]  # fmt: skip
TOOL_ANSWER = [*user("Rome?"), {"role": "assistant", "content": "", "tool_calls": [{"id": "c", **call("weather", "Rome")}]},
               {"role": "tool", "content": "rain", "tool_call_id": "c"}]  # fmt: skip
LEARNED.append((TOOL_ANSWER, tuple(TOOLS), {"content": "Take an umbrella."}))


WORDS = [
    *(json.dumps(one) for one in TOOLS),
    "# Tools\n\nYou may call these functions, each by a JSON object within <tool_call></tool_call>:\n<tools>",
    '<tool_call>\n{"name": "", "arguments": {"city": "Rome"}}\n</tool_call>',
]
"""What the tokenizer learns first, so that the rows are short."""


def taught_model(folder: Path) -> Path:
    """A tiny Llama that has learned LEARNED by heart, in the form of Hermes and Qwen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import byte_tokenizer
    from tuneloop.data.tokens.templates import encode, render

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_tokenizer(DEFAULTS["chatml-think"], special=special, words=WORDS * 40,
                               eos_token="<|im_end|>", pad_token="<|endoftext|>")  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows, labels = [], []
    for chat, tools, answer in LEARNED:
        asked = render(tokenizer, chat, prompt=True, tools=tools)
        text = render(tokenizer, [*chat, {"role": "assistant", **answer}], tools=tools).removesuffix("\n")
        before, ids = len(encode(tokenizer, [asked])[0]), encode(tokenizer, [text])[0]
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor([-100] * before + ids[before:]))
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(300):
        loss = model(input_ids=batch, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
