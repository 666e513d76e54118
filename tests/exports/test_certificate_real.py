"""The certificate on SmolLM2-135M with real Chinese and English answers: the figures that its limits were set by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.real import load
from tuneloop.exports import parity
from tuneloop.exports.certificate import certify
from tuneloop.exports.forms import LlamaForm, TransformersForm
from tuneloop.exports.limits import LIMITS
from tuneloop.exports.parity import Evidence, Parity
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.gguf.write import write_gguf
from tuneloop.hub import resolve
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import QloraPart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.real_model]
FILES = ("llamafactory/alpaca_zh_demo.json", "llamafactory/alpaca_en_demo.json", "emollm/data.json",
         "alpaca_cot_en/strategyqa_train.json")  # fmt: skip
TOKENS = 220
"""Tokens of a dialogue at most."""


class Real:
    """SmolLM2 with an adapter of a tuned one's size, merged on the disk, and what it says to five dialogues."""

    def __init__(self, root: Path) -> None:
        base = resolve.resolve("smollm2-135m-instruct")
        tokenizer = load_tokenizer(base)
        records = [record for name in FILES for record in load(name)[:4]]
        chats = [[m.as_chat() for m in record.messages] for record in records]
        chats = [c for c in chats if len(tokenizer.apply_chat_template(c, tokenize=True)["input_ids"]) < TOKENS][:5]
        torch.manual_seed(0)
        wrapped = get_peft_model(
            load_model(base, "float32"), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        )
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.004)
        self.evidence: Evidence = parity.measure(wrapped.eval(), tokenizer, chats)
        self.merged = root / "merged"
        merged: Any = wrapped.merge_and_unload()
        merged.save_pretrained(self.merged)
        tokenizer.save_pretrained(self.merged)

    def by_llama(self, gguf: Path, target: str) -> Parity:
        with LlamaCpp(gguf, context=1024) as llama:
            return certify(self.evidence, LlamaForm(llama, gguf), target)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return Real(tmp_path_factory.mktemp("real"))


def shown(target: str, found: Parity, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        assert found.kld is not None
        assert found.noise is not None
        assert found.exported_answer_loss is not None
        assert found.trained_answer_loss is not None
        print(
            f"\n{target}: {found.answer_tokens} tokens, kld {found.kld:.3g}, noise {found.noise:.3g}, the same top "
            f"{found.same_top / found.answer_tokens:.1%}, loss {found.exported_answer_loss - found.trained_answer_loss:+.4f},"
            f" greedy {found.greedy_same}/{found.greedy_of}, near ties {found.near_ties}, past {found.past_limits()}"
        )


@pytest.mark.parametrize("target", [name for name in LIMITS if name.startswith("gguf-")])
def test_each_type_of_gguf(target: str, real: Real, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(real.merged, tmp_path / "m.gguf", target.removeprefix("gguf-"))
    found = real.by_llama(tmp_path / "m.gguf", target)
    shown(target, found, capsys)
    assert found.answer_tokens >= 200
    assert found.passed, found.differences() + found.why


@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16", "nf4", "int8"])
def test_each_type_of_folder(target: str, real: Real, capsys: pytest.CaptureFixture[str]) -> None:
    bits: Any = QloraPart(bits=target) if target in ("nf4", "int8") else None  # type: ignore[arg-type]
    model = load_model(real.merged, "float32" if bits else target, quantized=bits)
    found = certify(real.evidence, TransformersForm(model, load_tokenizer(real.merged)), target if bits else "merged")
    shown(target, found, capsys)
    assert found.passed, found.differences() + found.why


def test_planted_in_a_gguf_of_a_real_model(real: Real, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(real.merged, whole, "q8_0")
    for old, new, cause in (
        ("smollm", "falcon", "pre-tokenizer"),
        ("<|im_start|>system", "<|im_start|>sYstem", "template"),
    ):
        copy = Path(shutil.copy(whole, tmp_path / "edited.gguf"))
        raw = copy.read_bytes()
        assert old.encode() in raw
        at = raw.index(old.encode(), raw.index(b"tokenizer.ggml.pre") if old == "smollm" else 0)
        copy.write_bytes(raw[:at] + new.encode() + raw[at + len(old) :])
        found = real.by_llama(copy, "gguf-q8_0")
        assert (found.passed, found.cause) == (False, cause)
