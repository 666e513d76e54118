"""Rows longer than a model has places for, on whatever side they lie: where the length is left to the rows they go and
the ledger tells it; where the recipe names a length above the model's, they are refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests import encoders
from tests.conftest import TALK, byte_tokenizer
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError, TuneloopError
from tuneloop.data.ledger import entries
from tuneloop.data.tokens.templates import CHATML
from tuneloop.data.version.dataset import Dataset
from tuneloop.hub.folder_check import context
from tuneloop.model.load import numbered_places
from tuneloop.recipe.recipe import make_recipe

PLACES = 66


def planned(
    folder: Path, model: Path, train: list[dict[str, Any]], held: list[dict[str, Any]],
    longest: int | str = "auto", **part: Any,
) -> Dataset:  # fmt: skip
    data = [{"path": str(jsonl(folder / f"{side}.jsonl", rows)), "split": side}
            for side, rows in (("train", train), ("validation", held))]  # fmt: skip
    recipe, _ = make_recipe({"name": "places", "model": str(model), "data": data, "train": part,
                             "prepare": {"max_length": longest, "dedupe": "off"}})  # fmt: skip
    dataset = pipeline.prepare(recipe, workspace=folder)
    pipeline.plan(recipe, dataset, workspace=folder)
    return dataset


def refused(*args: Any, **part: Any) -> TuneloopError:
    """The error of a recipe that names a length which the model has no places for."""
    with pytest.raises(DataError) as caught:
        planned(*args, longest=1000, **part)
    error = caught.value
    return error.causes[0] if error.code == "TL-DATA-PREFLIGHT" else error


def dropped(dataset: Dataset) -> list[str]:
    """What the ledger says of the rows that were too long: tokens / limit."""
    return [entry.detail for entry in entries(dataset.path / "ledger.jsonl") if entry.reason == "too long"]


def texts(words: int, count: int = 8) -> list[dict[str, Any]]:
    every = [encoders.WORDS[k % len(encoders.WORDS)] for k in range(words)]
    return [{"text": " ".join([*every[:-1], ["dull", "fine"][n % 2], str(n)]), "label": ["bad", "good"][n % 2]}
            for n in range(count)]  # fmt: skip


def test_a_held_out_row_that_an_encoder_has_no_place_for(tmp_path: Path) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    most = context(model)
    planned(tmp_path / "short", model, texts(5), texts(6, 2), task="classify")
    held = [*texts(6, 2), *texts(most + 5, 1)]
    error = refused(tmp_path / "long", model, texts(5), held, task="classify")
    assert (error.code, error.where) == ("TL-DATA-CONTEXT", "validation")
    left = planned(tmp_path / "auto", model, texts(5), held, task="classify")
    assert dropped(left) == [f"{most + 8} / {most}"]
    assert len(left.records("validation")) == 2


@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning"])
def test_virtual_tokens_take_places_too(tmp_path: Path, method: str) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    most = context(model)
    rows = [
        *texts(most - 23, 4),
        *texts(most - 22, 2),
        *texts(most - 12, 2),
    ]  # a number and a frame of two come to them
    few = planned(tmp_path / "few", model, rows, texts(5, 2), task="classify", method=method, virtual={"tokens": 2})
    assert dropped(few) == []
    part = {"task": "classify", "method": method, "virtual": {"tokens": 20}}
    assert refused(tmp_path / "many", model, rows, texts(5, 2), **part).code == "TL-DATA-CONTEXT"
    left = planned(tmp_path / "auto", model, rows, texts(5, 2), **part)
    assert dropped(left) == [f"{most - 19} / {most - 20}"] * 2 + [f"{most - 9} / {most - 20}"] * 2


def test_the_virtual_tokens_of_an_adapter_that_is_trained_on(tmp_path: Path) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    most = context(model)
    part = {"task": "classify", "method": "ptuning_v2", "virtual": {"tokens": 20}, "max_steps": 1}
    data = [{"path": str(jsonl(tmp_path / "rows.jsonl", texts(6)))}]
    raw = {"name": "first", "model": str(model), "data": data, "train": part, "prepare": {"dedupe": "off"}}
    recipe, _ = make_recipe(raw)
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    more = {**part, "virtual": {"tokens": 2}, "adapter": run.path.name}
    rows = [*texts(most - 23, 4), *texts(most - 22, 2)]
    recipe, _ = make_recipe({**raw, "data": str(jsonl(tmp_path / "more.jsonl", rows)), "train": more,
                             "prepare": {"dedupe": "off", "validation": 0}})  # fmt: skip
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    assert dropped(dataset) == [f"{most - 19} / {most - 20}"] * 2
    pipeline.plan(recipe, dataset, workspace=tmp_path)


@pytest.mark.parametrize(
    ("template", "added"),
    [("{text} it was {mask} .", 4), ("the film was {mask} : {text}", 5)],
    ids=["behind", "before"],
)
def test_what_a_task_writes_around_a_text_takes_places_too(tmp_path: Path, template: str, added: int) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    most = context(model)
    rows = [*texts(most - added - 3, 4), *texts(most - added - 2, 2)]
    part = {"task": "classify_prompt", "classify": {"template": template, "words": {"good": ["fine"], "bad": ["dull"]}}}
    assert refused(tmp_path / "named", model, rows, texts(5, 2), **part).code == "TL-DATA-CONTEXT"
    left = planned(tmp_path / "auto", model, rows, texts(5, 2), **part)
    assert dropped(left) == [f"{most - added + 1} / {most - added}"] * 2


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
    short = [{"prompt": q[:9], "completion": a[:9]} for q, a in TALK]
    left = planned(tmp_path / "z", tmp_path / "gpt2", [*short, *long], short[:1], method="full")
    assert len(dropped(left)) == len(long)
    assert {told.rpartition(" / ")[2] for told in dropped(left)} == {str(PLACES)}
    planned(tmp_path / "y", tiny_model, long, long[:1], method="full")
