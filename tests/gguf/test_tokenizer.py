from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tuneloop.base.environment import environment
from tuneloop.base.errors import ModelError
from tuneloop.gguf.tokenizer import write_tokenizer

TEXTS = (
    "In 2024, 小石 costs 1,234.50.",
    "It's  two   spaces,    don't you  know? 12  345",
    "你好，世界！今天天气怎么样？😀",
    "def f(x):\n    return x ** 2\n\n\n\treturn\t\tnone\n",
    " leading and trailing ",
    "²³½ Ⅻ ١٢٣ naïve café",
    "",
    "x" + " " * 45 + "y" + "\n" * 40 + "z",
)


def byte_level_facts() -> dict[str, Any]:
    """A byte-level BPE trained with SmolLM's pre-tokenizer, as a GGUF lists it."""
    from tokenizers import models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS * 20, trainer)
    content = json.loads(bpe.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    return {
        "general.architecture": "llama",
        "llama.context_length": 256,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in special else 1 for t in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in content["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE of Gemma's making: byte fallback, runs of spaces and newlines as user-defined tokens."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text.txt").write_text("\n".join(TEXTS * 30), encoding="utf-8")
    runs = ["▁" * n for n in range(2, 8)] + ["\n" * n for n in range(1, 5)] + ["<b>", "</b>"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), model_type="bpe", vocab_size=520,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=runs,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        character_coverage=0.99, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def sentencepiece_facts(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """What llama.cpp's converter writes of such a model: spaces of user-defined tokens as they are, score -1000."""
    tokens, kinds, scores = [], [], []
    for i in range(model.get_piece_size()):
        piece = model.id_to_piece(i)
        control = model.is_control(i) or model.is_unknown(i)
        user = not control and not model.is_byte(i) and (set(piece) <= {"▁"} or set(piece) <= {"\n"} or "b>" in piece)
        user = user and piece != "▁"
        kinds.append(3 if control else 6 if model.is_byte(i) else 4 if user else 1)
        tokens.append(piece.replace("▁", " ") if user else piece)
        scores.append(-1000.0 if control or user else model.get_score(i))
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": 256,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
    }


def load(facts: dict[str, Any], folder: Path) -> Any:
    from transformers import AutoTokenizer

    write_tokenizer(facts, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


def test_byte_level_comes_back_whole_with_digits_apart(tmp_path: Path) -> None:
    tokenizer = load(byte_level_facts(), tmp_path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("know? 12  345")["input_ids"])
    assert tokens[-7:] == ["Ġ", "1", "2", "ĠĠ", "3", "4", "5"]


def test_byte_level_is_what_the_trained_tokenizer_does(tmp_path: Path) -> None:
    facts = byte_level_facts()
    write_tokenizer(facts, tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert [p["type"] for p in raw["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    assert raw["model"]["vocab"] == {t: i for i, t in enumerate(facts["tokenizer.ggml.tokens"])}


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    """Qwen3's own tokenizer: Qwen2's, with a few more added tokens."""
    file = environment().home / "models" / "qwen3-tokenizer" / "tokenizer.json"
    if not file.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail("the qwen3-tokenizer is missing in CI")
        pytest.skip("tuneloop model pull qwen3-tokenizer")
    return Tokenizer.from_file(str(file))


def qwen_facts(theirs: Tokenizer) -> dict[str, Any]:
    """That tokenizer as a GGUF of Qwen2 lists it: unused rows of the embedding at the end."""
    raw = json.loads(theirs.to_str())
    added = {a["id"]: a for a in raw["added_tokens"]}
    names = {**{i: t for t, i in raw["model"]["vocab"].items()}, **{i: a["content"] for i, a in added.items()}}
    first = len(raw["model"]["vocab"])
    rows = first + 293
    return {
        "general.architecture": "qwen2",
        "qwen2.context_length": 32768,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [names.get(i, f"[PAD{i}]") for i in range(rows)],
        "tokenizer.ggml.token_type": [
            1 if i < first else 5 if i not in added else 3 if added[i]["special"] else 4 for i in range(rows)
        ],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 2,
        "tokenizer.ggml.padding_token_id": first,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_qwen2_is_its_publishers_tokenizer(qwen: Tokenizer, tmp_path: Path) -> None:
    tokenizer = load(qwen_facts(qwen), tmp_path)
    chance = random.Random(2)
    parts = [
        *" \n\r\tab1，。你好é😀<>/'",
        "'re",
        "'LL",
        "e\u0301",
        "  ",
        "\r\n",
        " return",
        "天气",
        "\u3000",
        "한국",
        "12",
        "²",
    ]
    texts = [*TEXTS, *("".join(chance.choices(parts, k=chance.randint(1, 40))) for _ in range(1500))]
    texts += [f"x{c * n}y" for n in range(1, 40) for c in " \n\t"]
    texts += [
        "<|im_start|>user\n你好<|im_end|>\n",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        "<|fim_prefix|>a",
        "[PAD151700]",
    ]
    for text in texts:
        assert tokenizer(text)["input_ids"] == qwen.encode(text, add_special_tokens=False).ids, text
    assert len(tokenizer) == qwen.get_vocab_size()  # unused rows are no tokens
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    call = tokenizer("<tool_call>1</tool_call><|im_end|>")["input_ids"]
    assert tokenizer.decode(call, skip_special_tokens=True) == "<tool_call>1</tool_call>"


def test_special_tokens_are_one_id_and_no_bos_is_added(tmp_path: Path) -> None:
    tokenizer = load(byte_level_facts(), tmp_path)
    ids = tokenizer("<|im_start|>user<|im_end|>")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert set(ids[1:-1]).isdisjoint({0, 1, 2})
    assert tokenizer("<|im_end|>")["input_ids"] == [2]
    assert tokenizer("")["input_ids"] == []
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 256)
    assert tokenizer.chat_template == "{{ messages }}"


def test_gemma_is_sentencepiece(pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path) -> None:
    write_tokenizer(sentencepiece_facts(pieces), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    chance = random.Random(1)
    parts = [*" \n\tab1，。你好é😀<>/", "the", "  ", "\n\n", "<b>", "</b>", "▁", " return", "天气", "\U00010348"]
    texts = [*TEXTS, *("".join(chance.choices(parts, k=chance.randint(1, 40))) for _ in range(1500))]
    texts += [f"x{c * n}y" for n in range(1, 40) for c in " \n"]
    for text in texts:
        expected = pieces.encode(text)
        got = tokenizer.encode(text, add_special_tokens=False)
        assert got.ids == expected, (text, got.tokens, pieces.id_to_piece(expected))


def test_gemma_begins_with_bos_and_comes_back_whole(
    pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    tokenizer = load(sentencepiece_facts(pieces), tmp_path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 2
        assert ids.count(2) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for token in ("<start_of_turn>", "<end_of_turn>", "\n\n", "<b>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    turn = tokenizer("<start_of_turn>user\n你好<end_of_turn>\n", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(turn) == "<start_of_turn>user\n你好<end_of_turn>\n"
    assert tokenizer.chat_template is None


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    facts = byte_level_facts() | {"tokenizer.ggml.pre": "llama-bpe"}
    with pytest.raises(ModelError, match="gpt2/llama-bpe") as caught:
        write_tokenizer(facts, tmp_path)
    assert caught.value.code == "TL-MODEL-GGUF"
    assert list(tmp_path.iterdir()) == []
