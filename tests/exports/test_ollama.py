"""The Modelfile: what Ollama reads in it is what the model's folder says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests import chat_templates
from tests.conftest import byte_tokenizer
from tests.exports import known_tokenizers, modelfiles
from tuneloop.base import language
from tuneloop.base.errors import ModelError
from tuneloop.data.tokens.templates import CHATML
from tuneloop.exports.ollama import modelfile, text_block
from tuneloop.gguf.tokenizer_facts import tokenizer_facts


def model_folder(folder: Path, tokenizer: Any, context: int = 8192, **generation: Any) -> Path:
    """What a Modelfile is made from: tokenizer, config, generation config."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": context}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def parameters(text: str) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, value in modelfiles.read(text):
        out.setdefault(name, []).append(value)
    return out


def test_it_says_all_that_ollama_would_guess(tmp_path: Path) -> None:
    tokenizer = chat_templates.tokenizer("qwen2")
    folder = model_folder(tmp_path, tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    said = parameters(modelfile(folder, "demo-1-Q4_K_M.gguf", system="你是小石。", longest=5000))
    assert said["from"] == ["./demo-1-Q4_K_M.gguf"]
    assert said["system"] == ["你是小石。"]
    assert said["stop"] == ["<|im_end|>", "<|endoftext|>"]
    assert said["num_ctx"] == ["5000"]
    assert said["temperature"] == ["0"]
    assert said["repeat_penalty"] == ["1"]
    assert "adapter" not in said
    (template,) = said["template"]
    assert template.endswith("<|im_start|>assistant\n")
    assert "You are a helpful assistant." in template


@pytest.mark.parametrize(
    ("context", "longest", "size"),
    [(8192, None, 4096), (8192, 60, 4096), (2048, 60, 2048), (2048, 4000, 2048), (131072, 9000, 9000)],
)
def test_the_context_is_that_of_the_run_within_that_of_the_model(
    context: int, longest: int | None, size: int, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path, chat_templates.tokenizer("qwen2"), context)
    assert parameters(modelfile(folder, "m.gguf", longest=longest))["num_ctx"] == [str(size)]


def test_sampling_is_that_of_the_generation_config(tmp_path: Path) -> None:
    tokenizer = chat_templates.tokenizer("qwen2")
    folder = model_folder(
        tmp_path, tokenizer, do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
    said = parameters(modelfile(folder, "m.gguf"))
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n")
    assert [said[name] for name in names] == [["0.7"], ["0.8"], ["20"], ["0"], ["1.05"], ["-1"]]


def test_an_adapter_is_named_beside_its_base(tmp_path: Path) -> None:
    text = modelfile(model_folder(tmp_path, chat_templates.tokenizer("qwen2")), "BASE.gguf", adapter="demo-1-LORA.gguf")
    said = parameters(text)
    assert (said["from"], said["adapter"]) == (["./BASE.gguf"], ["./demo-1-LORA.gguf"])


def test_a_system_prompt_is_taken_from_the_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, chat_templates.tokenizer("qwen2"))
    (folder / "tuneloop.json").write_text(json.dumps({"system": "Be brief."}))
    assert parameters(modelfile(folder, "m.gguf"))["system"] == ["Be brief."]
    assert "system" not in parameters(modelfile(folder, "m.gguf", system=""))


def test_a_system_prompt_that_no_modelfile_holds_stands_in_the_template(tmp_path: Path) -> None:
    system = '写文档字符串：\n"""一句话。"""\n然后写代码。'
    said = parameters(modelfile(model_folder(tmp_path, chat_templates.tokenizer("qwen2")), "m.gguf", system=system))
    assert "system" not in said
    assert "You are a helpful assistant." not in said["template"][0]
    assert r"写文档字符串：\n\"\"\"一句话。\"\"\"\n然后写代码。" in said["template"][0]


@pytest.mark.parametrize("name", ["gemma3", "llama3.1", "deepseek-r1"])
def test_the_opening_token_is_written_once(name: str, tmp_path: Path) -> None:
    """By Ollama where the tokenizer, and so the GGUF, adds it; by the template where it does not."""
    tokenizer = chat_templates.tokenizer(name)
    (template,) = parameters(modelfile(model_folder(tmp_path / "without", tokenizer), "m.gguf"))["template"]
    assert template.count(tokenizer.bos_token) == 1
    text = modelfile(model_folder(tmp_path / "adds", adds_bos(tokenizer)), "m.gguf")
    (template,) = parameters(text)["template"]
    assert tokenizer.bos_token not in template
    assert f"Ollama puts {tokenizer.bos_token} first" in text


def adds_bos(tokenizer: Any) -> Any:
    from tokenizers import processors

    token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, tokenizer.bos_token_id)]
    )
    return tokenizer


def test_an_opening_token_that_the_template_does_not_write_is_refused_on_a_base_that_adds_it(tmp_path: Path) -> None:
    special = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer = adds_bos(byte_tokenizer(CHATML, special=special, bos_token="<s>", eos_token="</s>"))
    folder = model_folder(tmp_path, tokenizer)
    with pytest.raises(ModelError) as caught:
        modelfile(folder, "base.gguf", adapter="lora.gguf")
    own = modelfile(folder, "m.gguf")
    assert tokenizer_facts(folder)["tokenizer.ggml.add_bos_token"] is False, "our own file does not say so"
    assert "<s>" not in own
    assert caught.value.code == "TL-MODEL-OLLAMA"
    assert "begins each prompt with <s>" in str(caught.value)


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_a_template_outside_the_table_is_refused_with_what_it_writes(tongue: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("{{ '[INST] ' + messages[-1]['content'] + ' [/INST]' }}", eos_token="<|im_end|>")
    folder = model_folder(tmp_path, tokenizer)
    language.use(tongue)
    with pytest.raises(ModelError) as caught:
        modelfile(folder, "m.gguf")
    text = str(caught.value)
    assert caught.value.code == "TL-MODEL-OLLAMA"
    for words in ("[INST]", "ChatML", "llama-server --jinja"):
        assert words in text


def test_a_template_that_writes_the_day_is_held_at_the_day_of_the_export(tmp_path: Path) -> None:
    """As in Llama 3.2."""
    tokenizer = chat_templates.tokenizer("llama3.1")
    tokenizer.chat_template = chat_templates.LLAMA31.replace("'26 Jul 2024'", "strftime_now('%Y')")
    text = modelfile(model_folder(tmp_path, tokenizer), "m.gguf")
    assert "here is the date of the export" in text
    assert re.search(r"Today Date: 20\d\d\n", text)


def test_in_chinese(tmp_path: Path) -> None:
    """Comments are for the reader; what Ollama reads is the same."""
    folder = model_folder(tmp_path, chat_templates.tokenizer("deepseek-r1"))
    english = modelfile(folder, "书店-1-Q8_0.gguf")
    language.use("zh")
    chinese = modelfile(folder, "书店-1-Q8_0.gguf")
    assert modelfiles.read(chinese) == modelfiles.read(english)
    remarks = [line for line in chinese.splitlines() if line.startswith("# ")]
    assert len(remarks) == 7
    assert not [line for line in remarks if not any("\u4e00" <= one <= "\u9fff" for one in line)]


PIECES = st.sampled_from(
    ['"', '""', '"""', "\n", "\r\n", " ", "\t", "a", "字", "\\", "\u3000", "\u200b", "{{", "}}", "#"]
)


@given(st.lists(PIECES, max_size=12).map("".join))
@example('"""\nx')
@example('""')
@example('a"')
@example(' " \n')
@example("\n")
def test_a_quoted_text_is_read_as_it_was(text: str) -> None:
    block = text_block(text)
    if block is None:
        assert '"' in text or "\u3000" in text or "\u200b" in text
    else:
        assert modelfiles.read(f"FROM x\nSYSTEM {block}\nPARAMETER top_k 1\n")[1:] == [("system", text), ("top_k", "1")]


@pytest.mark.parametrize("name", known_tokenizers.OWN | known_tokenizers.PUBLISHED)
def test_each_family_has_a_modelfile(name: str, tmp_path: Path) -> None:
    text = modelfile(model_folder(tmp_path, known_tokenizers.load(name)), "m.gguf")
    assert [command for command, _ in modelfiles.read(text)][:2] == ["from", "template"]
