"""Rows longer than a model has places for are refused before the first step, on whatever side they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests import encoders
from tests.conftest import TALK, byte_tokenizer
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.data.templates import CHATML
from tuneloop.errors import DataError, TuneloopError
from tuneloop.model.load import numbered_places
from tuneloop.model.model_folder import context
from tuneloop.recipe import make_recipe

PLACES = 66


def planned(folder: Path, model: Path, train: list[dict[str, Any]], held: list[dict[str, Any]], **part: Any) -> None:
    data = [{"path": str(jsonl(folder / f"{side}.jsonl", rows)), "split": side}
            for side, rows in (("train", train), ("validation", held))]  # fmt: skip
    recipe, _ = make_recipe({"name": "places", "model": str(model), "data": data, "train": part})
    pipeline.plan(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)


def refused(*args: Any, **part: Any) -> TuneloopError:
    with pytest.raises(DataError) as caught:
        planned(*args, **part)
    error = caught.value
    return error.causes[0] if error.code == "TL-DATA-PREFLIGHT" else error


def texts(words: int, count: int = 8) -> list[dict[str, Any]]:
    every = [encoders.WORDS[k % len(encoders.WORDS)] for k in range(words)]
    return [{"text": " ".join([*every[:-1], ["dull", "fine"][n % 2], str(n)]), "label": ["bad", "good"][n % 2]}
            for n in range(count)]  # fmt: skip


def test_a_held_out_row_that_an_encoder_has_no_place_for(tmp_path: Path) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    most = context(model)
    planned(tmp_path / "short", model, texts(5), texts(6, 2), task="classify")
    error = refused(tmp_path / "long", model, texts(5), texts(most + 5, 1), task="classify")
    assert (error.code, error.where) == ("TL-DATA-CONTEXT", "validation")


@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning"])
def test_virtual_tokens_take_places_too(tmp_path: Path, method: str) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    rows = texts(context(model) - 12)
    planned(tmp_path / "few", model, rows, texts(5, 2), task="classify", method=method, virtual={"tokens": 2})
    error = refused(tmp_path / "many", model, rows, texts(5, 2), task="classify", method=method, virtual={"tokens": 20})
    assert error.code == "TL-DATA-CONTEXT"


def test_a_model_that_writes_with_a_table_of_places(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=PLACES, n_embd=32, n_layer=1, n_head=2,
                        bos_token_id=None, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    for part in (GPT2LMHeadModel(config), tokenizer):
        part.save_pretrained(tmp_path / "gpt2")
    assert numbered_places(tmp_path / "gpt2")
    assert not numbered_places(tiny_model)
    long = [{"prompt": q, "completion": a * 9} for q, a in TALK]
    assert refused(tmp_path / "x", tmp_path / "gpt2", long, long[:1], method="full").code == "TL-DATA-CONTEXT"
    planned(tmp_path / "y", tiny_model, long, long[:1], method="full")
