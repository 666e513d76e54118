from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from tuneloop.base.errors import ModelError
from tuneloop.hub.pull import pull
from tuneloop.hub.smoke_test import answers, embeds, quiet, tokenizes


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model from the cache, pulled if it is not there."""
    try:
        return pull("smollm2")
    except ModelError as error:
        if error.code not in ("TL-MODEL-DOWNLOAD", "TL-MODEL-OFFLINE") or os.environ.get("CI"):
            raise
        pytest.skip(f"SmolLM2 is not in the cache and cannot be pulled: {error.what}")


def test_a_wrong_answer_fails_the_trial(tiny_model: Path) -> None:
    assert isinstance(answers(tiny_model, "Hello", "", chat=True), str)
    with pytest.raises(ModelError, match="Paris") as caught:
        answers(tiny_model, "What is the capital of France?", "Paris", chat=True)
    assert caught.value.code == "TL-MODEL-TRIAL"
    with pytest.raises(ModelError):
        answers(tiny_model, "The capital of France is", "Paris", chat=False)


def test_a_token_that_is_cut_fails_the_trial(tiny_model: Path) -> None:
    assert tokenizes(tiny_model, ("<|im_start|>", "<|im_end|>")).endswith(" tokens")
    with pytest.raises(ModelError, match="start_of_turn"):
        tokenizes(tiny_model, ("<start_of_turn>",))


def test_a_tokenizer_that_loses_text_fails_the_trial(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match="it's 2024") as caught:
        tokenizes(folder, ())
    assert caught.value.code == "TL-MODEL-TRIAL"


def test_an_encoder_that_knows_no_meaning_fails_the_trial(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "cat", "kitten", "shares"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=5, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        embeds(tmp_path, ("cat", "kitten", "shares"))
    assert caught.value.code == "TL-MODEL-TRIAL"
    near, far = embeds(tmp_path, ("cat", "cat", "shares")).split(" > ")
    assert float(near) == pytest.approx(1.0, abs=1e-3)
    assert float(far) < 0.8


def test_quiet_is_silent_and_restores(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    answers(tiny_model, "Hello", "", chat=True)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    with pytest.raises(ZeroDivisionError), quiet():
        _ = 1 / 0
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.real_model
def test_the_real_model_answers(smollm2: Path) -> None:
    assert "Paris" in answers(smollm2, "What is the capital of France?", "Paris", chat=True)


@pytest.mark.real_model
def test_the_real_tokenizer_is_right(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert tokenizer.tokenize("It's 1234.  12") == ["It", "'s", "Ġ", "1", "2", "3", "4", ".", "ĠĠ", "1", "2"]
    assert tokenizer("<|im_start|>user<|im_end|>")["input_ids"][::2] == [1, 2]
    assert tokenizer("hello")["input_ids"] == tokenizer("hello", add_special_tokens=False)["input_ids"]
    for text in ("In 2024,  don't.", "你好，世界！今天天气怎么样？", "😀 naïve\n\n\tcafé", " a "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real_model
def test_the_real_folder_is_clean(smollm2: Path) -> None:
    from tuneloop.hub.pull import provenance

    names = {p.name for p in smollm2.iterdir()}
    assert names == {
        "LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "tuneloop.json",
    }  # fmt: skip
    config = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    assert (config["dtype"], config["rms_norm_eps"], config["rope_theta"]) == ("float32", 1e-05, 100000.0)
    assert provenance(smollm2)["licence"] == "Apache-2.0"
