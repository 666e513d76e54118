"""Translation there and back by small models of the real kinds, trained here on eight sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.base.errors import DataError, ModelError
from tuneloop.hub import resolve
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.translate import Translator

PAIRS = [
    ("你好。", "Hello."), ("天为什么是蓝的?", "Why is the sky blue?"), ("怎么煮鸡蛋?", "How do I boil an egg?"),
    ("谢谢!", "Thank you!"),
]  # fmt: skip
"""With the marks that SentencePiece itself would make of full-width ones."""


def pieces(folder: Path) -> tuple[Path, list[str]]:
    """A SentencePiece model of the sentences, and its pieces."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in PAIRS for text in pair] * 20), model_prefix=str(folder / "spm"),
        vocab_size=90, hard_vocab_limit=False, character_coverage=1.0, pad_id=3, minloglevel=2,
    )  # fmt: skip
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    return folder / "spm.model", [loaded.id_to_piece(n) for n in range(loaded.get_piece_size())]


def taught(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    """The model after it has learnt to write each second list for the first one."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        losses = [model(input_ids=torch.tensor([a]), labels=torch.tensor([b])).loss for a, b in rows]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    return model.eval()


SIZE = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M2M100 that knows the pairs in both directions."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    folder = tmp_path_factory.mktemp("m2m100")
    spm, words = pieces(folder / "pieces")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    table = {word: n for n, word in enumerate([*special, *(w for w in words if w not in special)])}
    (folder / "v.json").write_text(json.dumps(table), encoding="utf-8")
    tokenizer = M2M100Tokenizer(str(folder / "v.json"), str(spm))
    torch.manual_seed(0)
    config = M2M100Config(vocab_size=len(table) + 120, **SIZE)  # behind the pieces stand the languages
    rows = []
    for zh, en in PAIRS:
        for source, target, a, b in (("zh", "en", zh, en), ("en", "zh", en, zh)):
            tokenizer.src_lang, tokenizer.tgt_lang = source, target
            coded = tokenizer(a, text_target=b)
            rows.append((coded["input_ids"], coded["labels"]))
    model = taught(M2M100ForConditionalGeneration(config), rows)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two Marian models: Chinese to English, and English to Chinese."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    out = []
    for name, order in (("there", 1), ("back", -1)):
        folder = tmp_path_factory.mktemp(name)
        spm, words = pieces(folder / "pieces")
        table = {word: n for n, word in enumerate([*(w for w in words if w != "<pad>"), "<pad>"])}
        (folder / "v.json").write_text(json.dumps(table), encoding="utf-8")
        tokenizer = MarianTokenizer(str(spm), str(spm), str(folder / "v.json"))
        torch.manual_seed(0)
        ends = {"pad_token_id": table["<pad>"], "eos_token_id": table["</s>"], "decoder_start_token_id": table["<pad>"],
                "forced_eos_token_id": table["</s>"]}  # fmt: skip
        config = MarianConfig(vocab_size=len(table), **SIZE, **ends)
        rows = []
        for pair in PAIRS:
            a, b = pair[::order]
            coded = tokenizer(a, text_target=b)
            rows.append((coded["input_ids"], coded["labels"]))
        taught(MarianMTModel(config), rows).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        out.append(folder / "model")
    return out


def test_one_model_goes_both_ways(many: Path) -> None:
    translator = Translator([resolve.resolve(str(many))], "en")
    zh, en = [list(side) for side in zip(*PAIRS, strict=True)]
    assert translator.translate(zh, "zh", "en") == en
    assert translator.translate(en, "en", "zh") == zh
    assert translator.translate([], "en", "zh") == []


def test_two_models_each_their_way_whatever_the_home(two: list[Path]) -> None:
    translator = Translator([resolve.resolve(str(folder)) for folder in two], "en")
    zh, en = [list(side) for side in zip(*PAIRS, strict=True)]
    assert translator.translate(translator.translate(zh, "zh", "en"), "en", "zh") == zh
    assert translator.translate(translator.translate(en, "en", "zh"), "zh", "en") == en


def test_sentences_lines_and_neighbours(many: Path) -> None:
    translator = Translator([many], "en")
    assert translator.translate(["你好。谢谢！\n怎么煮鸡蛋？"], "zh", "en") == [
        "Hello. Thank you!\nHow do I boil an egg?"
    ]
    assert translator.translate(["Hello. Thank you!"], "en", "zh") == ["你好。谢谢!"]


def test_nothing_is_cut_in_silence(many: Path) -> None:
    long = "天为什么是蓝的" * 40 + "？"
    assert len(load_tokenizer(many)(long)["input_ids"]) > 64
    assert Translator([many], "en").translate([long, "你好。" + long, "你好。"], "zh", "en") == ["", "", "Hello."]


def test_a_language_it_does_not_know(many: Path) -> None:
    with pytest.raises(DataError) as caught:
        Translator([many], "en").translate(["你好。"], "zh", "xx")
    assert (caught.value.code, caught.value.facts["language"]) == ("TL-DATA-TRANSLATOR", "xx")


def test_a_model_that_translates_nothing(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Translator([tiny_model], "en")
    assert caught.value.code == "TL-MODEL-CONFIG"


def test_weights_that_are_missing_are_not_made_up(many: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(many, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        Translator([tmp_path / "m"], "en")
    assert caught.value.code == "TL-MODEL-WEIGHTS"
