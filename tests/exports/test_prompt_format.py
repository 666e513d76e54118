"""Prompt formats: recognised by what a template writes, and equal to it in every character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import chat_templates
from tests.conftest import byte_tokenizer
from tests.exports import known_tokenizers
from tuneloop.base.errors import DataError
from tuneloop.data.tokens.templates import DEFAULTS, render
from tuneloop.exports.prompt_format import recognise
from tuneloop.exports.tool_format import TOOLS, tool_probes

LLM = "{% for m in messages %}{{ {'user': 'User: ', 'assistant': 'Assistant: '}[m['role']] + m['content'] + '\n\n' }}{% endfor %}{{ 'Assistant:' }}"
MISTRAL = "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
FORGETFUL = "{% for m in messages[-1:] %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
COUNTED = DEFAULTS["chatml"].replace(
    "m['role'] + '\n'", "m['role'] + '\n' + (loop.index0 | string if loop.index0 else '')"
)
CRAMPED = DEFAULTS["chatml"].replace("'<|im_end|>\n'", "'<|im_end|>'")
UPPER = DEFAULTS["chatml"].replace("m['content']", "m['content'] | upper")
WITHOUT_PROMPT = DEFAULTS["chatml"].replace("'<|im_start|>assistant\n'", "''")
BROKEN = "{{ raise_exception('no') }}"


@pytest.mark.parametrize("name", known_tokenizers.NAMES)
def test_a_family_is_recognised_and_writes_what_the_template_writes(name: str) -> None:
    tokenizer, family = known_tokenizers.load(name), known_tokenizers.NAMES[name]
    form = recognise(tokenizer)
    assert form is not None
    assert form.family.name == family
    compared = 0
    for chat in chat_templates.DIALOGUES:
        for thinking in (None, False, True):
            try:
                text = render(tokenizer, chat, prompt=True, thinking=thinking)
            except DataError:  # Gemma 2 has no system role
                continue
            assert form.text(chat, thinking=thinking) == text
            compared += 1
    assert compared == (27 if name == "gemma2" else 60)


@pytest.mark.parametrize("template", [LLM, MISTRAL, FORGETFUL, COUNTED, CRAMPED, UPPER, WITHOUT_PROMPT, BROKEN])
def test_any_other_template_is_not_recognised(template: str) -> None:
    assert recognise(byte_tokenizer(template, eos_token="<|im_end|>")) is None


def test_what_a_model_has_of_its_own_is_read_off() -> None:
    llama = recognise(chat_templates.tokenizer("llama3.1"))
    assert llama is not None
    assert llama.preamble == "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    assert llama.trimmed == {"system", "user", "assistant"}
    r1 = recognise(chat_templates.tokenizer("deepseek-r1"))
    assert r1 is not None
    assert (r1.prompt, r1.thoughts, r1.bos) == ("<think>\n", "dropped", "<｜begin▁of▁sentence｜>")
    qwen2 = recognise(chat_templates.tokenizer("qwen2"))
    assert qwen2 is not None
    assert qwen2.default == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_tools_are_known_where_they_are_written_as_qwen_writes_them() -> None:
    for name, known in {"qwen3-tokenizer": True, "qwen2.5": True, "qwen2": False, "chatml-think": False}.items():
        tokenizer = known_tokenizers.load(name)
        form = recognise(tokenizer)
        assert form is not None
        assert (form.tools is not None) == known, name
        for chat in tool_probes() if known else ():
            assert form.text(chat, tools=TOOLS) == render(tokenizer, chat, prompt=True, tools=TOOLS)
            assert form.text(chat) == render(tokenizer, chat, prompt=True)


def test_names_play_no_part(tmp_path: Path) -> None:
    """A Llama that learned Qwen's format is ChatML, whatever its tokens and its folder are called."""
    tokenizer: Any = byte_tokenizer(
        chat_templates.QWEN2, special=("<s>", "</s>", "<|im_start|>", "<|im_end|>"), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "llama-3-8b")
    form = recognise(tokenizer)
    assert form is not None
    assert form.family.name == "ChatML"
