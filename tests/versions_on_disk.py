"""A small dataset version that has everything a profile counts, made by the real builder with a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import byte_tokenizer
from tuneloop.data.card import page
from tuneloop.data.card.excerpts import View
from tuneloop.data.tokens.encode import encode_records, marked
from tuneloop.data.tokens.named_templates import CHATML_THINK
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version import builder
from tuneloop.data.version.dataset import Dataset
from tuneloop.recipe.recipe import make_recipe

EVIL = "<script>alert('x')</script>&\"</div><img src=http://example.org/a.png>"
KEY = "bytes"


def chat(*turns: str, system: str = "", **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + said, **more}


def rows() -> list[dict[str, Any]]:
    """40 rows: 30 plain ones, one each with system prompt and two questions, tools, thought; a repetition, two that are
    too long, one that is personal data, one to be mended, one broken, one harmful to a page."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    return [
        *(chat(f"你好，第 {n} 个问题是什么呢？", f"这是第 {n} 个回答，今天天气很好。" * (1 + n % 4)) for n in range(20)),
        *(chat(f"What is the {n}th question?", f"The answer to that is {n * n}, as everybody knows." * (1 + n % 3))
          for n in range(10)),
        chat("hello there, my friend", "good day to you", "how are you today?", "very well, thank you", system="be kind"),
        chat("which tools do you have?", "I have a function called f.", tools=tools),
        {"messages": [{"role": "user", "content": "why is the sky blue?"},
                      {"role": "assistant", "content": "It scatters.", "reasoning_content": "let me think"}]},
        chat("你好，第 3 个问题是什么呢？", "这是第 3 个回答，今天天气很好。" * 4),
        chat("a long one", "very long words " * 60),
        chat("a longer one", "very long words " * 90),
        chat("my address?", "write to jane.doe@example.org"),
        chat("who is there?", "nobody", "and now?"),
        {"messages": []},
        chat("evil " + EVIL, EVIL),
    ]  # fmt: skip


def view(context: int = 2048) -> View:
    tokenizer = _tokenizer()
    return View(lambda sample: marked(tokenizer, sample), context)


def _tokenizer() -> Any:
    return byte_tokenizer(CHATML_THINK, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")


def build(
    workspace: Path,
    content: list[dict[str, Any]] | None = None,
    *,
    name: str = "talk",
    file: str = "talk.jsonl",
    **prepare: Any,
) -> Dataset:
    """The version of the rows, its card written with the tokenizer's view."""
    path = workspace / file
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (rows() if content is None else content))
    path.write_text(text, encoding="utf-8")
    wanted = {"max_length": 512, "validation": 0.1, **prepare}
    recipe, _ = make_recipe({"name": name, "data": str(path), "prepare": wanted})
    tokenizer = _tokenizer()

    def encode(records: Any) -> Sequences:
        return encode_records(tokenizer, records)

    made = builder.build(recipe, workspace, encode, KEY)
    page.write(made, KEY, view())
    return made
