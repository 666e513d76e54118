from __future__ import annotations

import ctypes
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from tests.gguf.test_convert import LLAMA, add_tokenizer, gguf_name, interleave
from tuneloop.base.errors import MachineError, ModelError
from tuneloop.gguf import binding
from tuneloop.gguf.llamacpp import LlamaCpp

ROPE, HEADS, GROUPS = 5000.0, 4, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny random Llama as a float32 GGUF, and the model it was written from."""
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he"]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, max_position_embeddings=2048, rope_theta=ROPE, tie_word_embeddings=True,
        initializer_range=0.3, rms_norm_eps=1e-5,
    )).eval()  # fmt: skip
    path = tmp_path_factory.mktemp("llamacpp") / "tiny 小.gguf"
    writer = GGUFWriter(path, "llama")
    for key, number in {"context_length": 2048, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
                        "attention.head_count": HEADS, "attention.head_count_kv": GROUPS, "rope.dimension_count": 16,
                        "vocab_size": len(tokens)}.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.rope.freq_base", ROPE)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    add_tokenizer(writer, "gpt2", "smollm", tokens, 3)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_chat_template("{{ messages }}")
    heads = {"q_proj": HEADS, "k_proj": GROUPS}
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            count = next((h for part, h in heads.items() if part in name), None)
            writer.add_tensor(
                gguf_name(name, LLAMA), interleave(weight.numpy(), count) if count else weight.numpy().copy()
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


@pytest.fixture(scope="module")
def opened(tiny: tuple[Path, Any]) -> Any:
    with LlamaCpp(tiny[0], context=1024, threads=1) as llama:
        yield llama


def logits_of(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy())


def test_the_layout_is_that_of_the_pinned_package() -> None:
    assert importlib.metadata.version("xllamacpp") == "2026.10.11549", (
        "another llama.cpp: compare binding.py with its llama.h field by field, then change the number here"
    )
    shared = binding.llama_cpp()
    shared.llama_version.restype = ctypes.c_char_p
    assert shared.llama_version() == b"0.6.0-dev"
    assert not hasattr(shared, "llama_set_adapter_lora")


def test_the_defaults_of_every_field_are_those_of_the_library() -> None:
    shared = binding.llama_cpp()
    for given in (shared.llama_model_default_params(), shared.llama_context_default_params()):
        assert binding.differences(given) == []
        raw = bytearray(bytes(given))
        shifted = type(given).from_buffer_copy(raw[4:] + bytes(4))
        assert len(binding.differences(shifted)) > 3  # a field taken away in front shows
    # Offsets as gcc lays out the header's structs on a 64-bit machine.
    assert [ctypes.sizeof(s) for s in (binding.ModelParams, binding.ContextParams, binding.TokenBatch)] == [80, 168, 56]
    fields = binding.ContextParams
    assert (fields.type_k.offset, fields.moe_cache_size.offset, fields.embeddings.offset) == (104, 128, 136)


def test_what_is_set_arrives_where_it_is_meant(tiny: tuple[Path, Any]) -> None:
    with LlamaCpp(tiny[0], context=768, threads=3) as llama:
        llama._log.seek(0)
        log = llama._log.read().decode()
        assert llama.context == 768
    words = dict(
        line.split(": ", 1)[1].split(" = ", 1)
        for line in log.splitlines()
        if "llama_context: " in line and " = " in line
    )
    words = {key.strip(): text.strip() for key, text in words.items()}
    assert (words["n_ctx"], words["n_batch"], words["n_ubatch"], words["n_seq_max"]) == ("768", "512", "512", "1")
    assert words["flash_attn"] == "disabled"
    assert "K (f32)" in log
    assert "V (f32)" in log


def test_logits_are_those_of_transformers_also_past_one_pass(opened: LlamaCpp, tiny: tuple[Path, Any]) -> None:
    ids = torch.randint(3, opened.vocabulary, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    positions = [0, 5, 511, 512, 699]
    expected = logits_of(tiny[1], ids)[positions]
    got = opened.logits(ids, positions)
    assert got.shape == (5, opened.vocabulary)
    assert got.dtype == np.float32
    assert np.abs(expected).max() > 1
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(opened.logits(ids, positions), got)  # nothing of the last question is left
    assert np.array_equal(opened.logits(ids, [699, 5, 5, 0, 512]), got[[4, 1, 1, 0, 3]])
    assert np.abs(opened.logits(ids[:6], [5])[0] - expected[1]).max() < 1e-4 * np.abs(expected).max()


def test_greedy_is_the_likeliest_token_step_by_step(opened: LlamaCpp, tiny: tuple[Path, Any]) -> None:
    ids = [5, 9, 33, 7]
    tokens, gaps = opened.greedy(ids, 12)
    assert len(tokens) == len(gaps) == 12
    for n, token in enumerate(tokens):
        row = logits_of(tiny[1], ids + tokens[:n])[-1]
        second, first = np.sort(row)[-2:]
        assert token == int(row.argmax())
        assert gaps[n] == pytest.approx((first - second) / row.std(), abs=1e-3)
    others, _ = opened.greedy(ids, 12, banned=tokens[:1])
    assert tokens[0] not in others


def test_tokens_there_and_back(opened: LlamaCpp) -> None:
    texts = ["", "the <|im_end|> 12", "你好 😀\x00\n"]
    ids = opened.tokenize(texts)
    assert ids[0] == []
    assert 2 in ids[1]
    assert opened.detokenize(ids) == texts
    assert opened.detokenize([[]]) == [""]
    assert opened.ends() == [0, 2]
    assert opened.facts["tokenizer.chat_template"] == "{{ messages }}"
    assert opened.facts["llama.context_length"] == "2048"


def test_what_llama_cpp_cannot_do_is_an_error_and_it_goes_on(opened: LlamaCpp) -> None:
    for ids, position in (([5] * 1025, 1024), ([5, opened.vocabulary], 1), ([-1], 0), ([5], 1), ([5], -1), ([], 0)):
        with pytest.raises(ModelError) as caught:
            opened.logits(ids, [position])
        assert caught.value.code == "TL-MODEL-LLAMACPP"
    assert opened.logits([5, 6], []).shape == (0, opened.vocabulary)
    assert opened.logits([5], [0]).shape == (1, opened.vocabulary)


def test_a_file_that_is_none_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"a\.gguf") as caught:
        LlamaCpp(tmp_path / "a.gguf")
    assert caught.value.code == "TL-MODEL-LLAMACPP"
    assert "failed to load model" in str(caught.value)
    with pytest.raises(ModelError, match="TL-MODEL-LLAMACPP"):
        LlamaCpp(tmp_path / "none.gguf")


def test_only_the_vocabulary_answers_no_logits(tiny: tuple[Path, Any]) -> None:
    with LlamaCpp(tiny[0], vocab_only=True) as llama:
        assert llama.tokenize(["the"]) != [[]]
        with pytest.raises(ModelError, match="vocab_only"):
            llama.logits([5], [0])


def test_an_abort_is_an_error(tmp_path: Path) -> None:
    """A vocabulary without tokens for bytes: llama.cpp throws at a letter that it does not have, and catches nothing."""
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    add_tokenizer(writer, "llama", "default", ["<unk>", "<s>", "</s>", "a"], 3)
    writer.add_token_scores([0.0] * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with LlamaCpp(tmp_path / "a.gguf", vocab_only=True) as llama:
        for text in ("b", "a"):  # the child is gone, and stays so
            with pytest.raises(ModelError, match="SIGABRT") as caught:
                llama.tokenize([text])
            assert "terminate called" in str(caught.value)


def test_a_lora_is_laid_on(tiny: tuple[Path, Any], opened: LlamaCpp, tmp_path: Path) -> None:
    rank, alpha = 4, 8.0
    weight = tiny[1].model.layers[0].self_attn.o_proj.weight
    numbers = np.random.default_rng(0)
    a, b = (numbers.normal(size=shape, scale=0.3).astype(np.float32) for shape in ((rank, 64), (64, rank)))
    writer = GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_tensor("blk.0.attn_output.weight.lora_a", a)
    writer.add_tensor("blk.0.attn_output.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = [5, 9, 33, 7]
    bare = opened.logits(ids, [3])
    once = torch.from_numpy(b @ a * alpha / rank)
    for times in (1, 2):
        with torch.no_grad():
            weight += once * times
            expected = logits_of(tiny[1], ids)[3]
            weight -= once * times
        with LlamaCpp(tiny[0], adapters=[tmp_path / "lora.gguf"] * times, context=64, threads=1) as llama:
            got = llama.logits(ids, [3])[0]
        assert np.abs(expected - bare).max() > 0.1
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    with pytest.raises(ModelError, match="llama_adapter_lora_init"):
        LlamaCpp(tiny[0], adapters=[tiny[0]], context=64)


def test_without_the_package_the_extra_is_named(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MachineError, match="gguf") as caught:
        LlamaCpp(tiny[0])
    assert caught.value.code == "TL-MACHINE-EXTRA"


def test_one_that_hangs_is_an_error(tiny: tuple[Path, Any]) -> None:
    with LlamaCpp(tiny[0], context=64, threads=1, patience=30.0) as llama:
        llama._patience = 0.5
        os.kill(llama._child.pid, signal.SIGSTOP)
        with pytest.raises(ModelError, match=r"0\.5 seconds"):
            llama.logits([5], [0])


def test_an_interruption_ends_the_child(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pipe: Any) -> None:
        raise KeyboardInterrupt

    with LlamaCpp(tiny[0], context=64, threads=1) as llama:
        with monkeypatch.context() as patch:
            patch.setattr("tuneloop.gguf.child.receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                llama.tokenize(["a"])
        with pytest.raises(ModelError, match="SIGKILL"):  # never the answer to the question before
            llama.tokenize(["b"])


def test_the_child_ends_with_its_parent(tiny: tuple[Path, Any]) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tuneloop.gguf.llamacpp import LlamaCpp\n"
        "llama = LlamaCpp(Path(sys.argv[1]), context=64, threads=1)\n"
        "print(llama._child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny[0])], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            if Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("llama.cpp outlived its parent")
