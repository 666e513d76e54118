"""Tokenizers that adapters share with their base, and those that they do not."""

from __future__ import annotations

from pathlib import Path

from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.serving.worker.chat_format import TokenizerStore


def test_what_training_saved_of_the_base_s_tokenizer_is_not_read_again(
    tiny_model: Path, tiny_run: Path, tmp_path: Path
) -> None:
    other = load_tokenizer(tiny_model, "plain")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "base").mkdir()
    for file in tiny_model.iterdir():  # the same tokenizer, written otherwise: as others lay it out on the hub
        text = file.read_bytes()
        (tmp_path / "base" / file.name).write_bytes(text + b"\n" if file.name == "tokenizer.json" else text)
    store = TokenizerStore()
    base = store.add(tmp_path / "base", load_tokenizer(tmp_path / "base"))
    assert store.load(tmp_path / "base") is base
    assert store.load(tiny_run / "adapter") is base
    assert store.load(tmp_path / "other") is not base
    assert store.load(tmp_path / "other").template == other.chat_template != base.template
