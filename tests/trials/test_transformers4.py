"""Exports and adapters in transformers 4, which many installations of vLLM, llama.cpp and MLX still have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests import encoders
from tests.conftest import byte_tokenizer, tiny_folder
from tests.made import jsonl
from tests.trials.test_weights import made
from tuneloop import pipeline
from tuneloop.data.tokens.templates import CHATML
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.old_keys import keep_old_keys, tokenizer_keys, with_old_names
from tuneloop.recipe.recipe import make_recipe

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "qwen2": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {}),
    "deepseek": ("deepseek_v3", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e4}}),
    "stablelm": ("stablelm", {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4,
                                                  "partial_rotary_factor": 0.25}}),
    "neox": ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}}),
    "moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                          "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}  # fmt: skip
ASKED = [[5, 6, 7, 8, 9, 10, 11, 12, *range(20, 60)]]


def folder_of(name: str, path: Path) -> Path:
    """A tiny model as transformers 5 writes it, and a tokenizer with special tokens of its own."""
    family, more = FAMILIES[name]
    tiny_folder(path, family, vocab_size=480, max_position_embeddings=512, bos_token_id=None, **more)
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                               additional_special_tokens=["<|im_start|>", "<|endoftext|>"])  # type: ignore[arg-type]  # fmt: skip
    tokenizer.save_pretrained(path)
    return path


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", FAMILIES)
def test_the_old_keys_stand_beside_the_new_and_change_nothing(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path / "m")
    config, words = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(ASKED)).logits
    keep_old_keys(folder, tmp_path / "nothing")
    written, told = read(folder / "config.json"), read(folder / "tokenizer_config.json")
    rope = config.rope_parameters
    nested = rope.get("full_attention", rope)
    theta = "rotary_emb_base" if name == "neox" else "rope_theta"
    assert written[theta] == nested["rope_theta"]
    assert ("rope_scaling" in written) == (nested["rope_type"] != "default")
    assert written["torch_dtype"] == "float32"
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["additional_special_tokens"] == ["<|im_start|>", "<|endoftext|>"]
    assert not isinstance(told.get("extra_special_tokens"), list)
    again, same = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert again.rope_parameters == rope
    assert (same.extra_special_tokens, same.all_special_tokens) == (
        words.extra_special_tokens,
        words.all_special_tokens,
    )
    assert same("<|im_start|>user\n你好")["input_ids"] == words("<|im_start|>user\n你好")["input_ids"]
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(ASKED)).logits, before)


def test_what_the_base_had_is_kept() -> None:
    base = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "chat_template": "old", "auto_map": None,
            "added_tokens_decoder": {"1": {"content": "<s>"}}}  # fmt: skip
    ours = {"tokenizer_class": "TokenizersBackend", "model_specific_special_tokens": {"image": "<i>"},
            "extra_special_tokens": ["<a>"], "bos_token": "<s>"}  # fmt: skip
    assert tokenizer_keys(ours, base, "new") == {
        "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "chat_template": "new", "bos_token": "<s>",
        "added_tokens_decoder": {"1": {"content": "<s>"}}, "additional_special_tokens": ["<a>"],
        "extra_special_tokens": {"image": "<i>"},
    }  # fmt: skip
    own_code = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["x", None]}}
    assert tokenizer_keys(ours, own_code)["tokenizer_class"] == "PreTrainedTokenizerFast"
    nested = {"text_config": {"model_type": "gemma3_text", "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }}}  # fmt: skip
    inner = with_old_names(nested)["text_config"]
    assert (inner["rope_theta"], inner["rope_local_base_freq"]) == (1e6, 1e4)
    assert inner["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_all_that_a_run_writes_has_them(tmp_path: Path) -> None:
    base = folder_of("llama3", tmp_path / "m")
    run = made(tmp_path, base, "a", max_steps=2)
    full = made(tmp_path, base, "f", max_steps=1, method="full", learning_rate=1e-4)
    on = made(tmp_path, base, "on", max_steps=1, merge=[str(run.path)])
    pipeline.export(run.path, tmp_path / "out")
    for folder in (tmp_path / "out", full.path / "model", on.path / "base", run.path / "adapter"):
        told = read(folder / "tokenizer_config.json")
        assert told["tokenizer_class"] == "PreTrainedTokenizerFast", folder
        assert told["additional_special_tokens"] == ["<|im_start|>", "<|endoftext|>"], folder
        assert "extra_special_tokens" not in told
        if folder != run.path / "adapter":
            config = read(folder / "config.json")
            assert (config["rope_theta"], config["rope_scaling"]["factor"]) == (5e5, 8.0), folder
    assert load_tokenizer(tmp_path / "out").all_special_tokens == load_tokenizer(base).all_special_tokens


OLD = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.0", "peft==0.17.1")
ASK = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
out = {"version": transformers.__version__}
for folder, base in json.loads(sys.argv[1]):
    words = AutoTokenizer.from_pretrained(folder)
    kind = AutoModelForSequenceClassification if base == "labels" else AutoModelForCausalLM
    model = kind.from_pretrained(folder if base in (None, "labels") else base, dtype=torch.float32).eval()
    if base not in (None, "labels"):
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, folder).eval()
    ids = torch.tensor(ASKED if base != "labels" else [[2, 7, 12, 3]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    text = "<|im_start|>user\\n你好 Who? 12<|im_end|>" if base != "labels" else "the good film"
    chat = [{"role": "user", "content": "Who are you?"}]
    out[folder] = {"logits": logits.double().flatten().tolist(), "ids": words(text)["input_ids"],
                   "special": sorted(words.all_special_tokens),
                   "chat": words.apply_chat_template(chat, tokenize=False) if words.chat_template else ""}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers 4.57 in a folder of its own, beside the torch that is here."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *OLD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"no package index here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def said(places: list[tuple[str, str | None]], python_path: str) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [python_path, os.environ.get("PYTHONPATH", "")]))
    code = ASK.replace("ASKED", repr(ASKED))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, json.dumps(places)], capture_output=True, text=True,
                          encoding="utf-8", timeout=600, env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_transformers_4_answers_as_5_does(old: Path, tmp_path: Path) -> None:
    places: list[tuple[str, str | None]] = []
    for name in FAMILIES:
        base = folder_of(name, tmp_path / name / "m")
        keep_old_keys(base, base)  # as a base folder of the hub is, which both versions read
        targets = {"neox": ["query_key_value"], "deepseek": ["o_proj"]}.get(name, ["q_proj", "v_proj"])
        run = made(tmp_path / name, base, name, max_steps=3, lora={"rank": 4, "targets": targets})
        pipeline.export(run.path, tmp_path / name / "out")
        places += [(str(tmp_path / name / "out"), None), (str(run.path / "adapter"), str(base))]
    folder = encoders.folder(tmp_path / "bert" / "m", "modernbert")
    rows = [{"text": f"{w} film", "label": ["neg", "pos"][k % 2]} for k, w in enumerate(encoders.WORDS * 2)]
    recipe, _ = make_recipe({
        "name": "c", "model": str(folder), "data": str(jsonl(tmp_path / "bert" / "rows.jsonl", rows)),
        "prepare": {"validation": 4, "max_length": 60, "dedupe": "off"},
        "train": {"task": "classify", "max_steps": 3, "learning_rate": 1e-2, "lora": {"rank": 2}},
    })  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    pipeline.export(run.path, tmp_path / "bert" / "out")
    places.append((str(tmp_path / "bert" / "out"), "labels"))
    new, four = said(places, ""), said(places, str(old))
    assert (new["version"][:2], four["version"]) == ("5.", "4.57.6")
    for place, _ in places:
        ours, theirs = torch.tensor(new[place].pop("logits")), torch.tensor(four[place].pop("logits"))
        assert torch.allclose(ours, theirs, atol=1e-3), (place, float((ours - theirs).abs().max()))
        assert new[place] == four[place], place
