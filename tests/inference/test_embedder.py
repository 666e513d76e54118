"""Vectors of texts: those that transformers and the pooling written out by hand give, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import encoders
from tuneloop.base.errors import ModelError, ServeError
from tuneloop.hub.resolve import resolve
from tuneloop.inference.embedder import MODULES, is_encoder, load_embedder

TEXTS = [
    "the film was good.",
    "bad",
    "i saw a great film and it was not dull . the end",
    "",
    "a very fine plot but a dull end",
]


def by_hand(folder: Path, text: str) -> torch.Tensor:
    """float32 [length, width]: the states of one text by itself."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return states


def described(folder: Path, pooling: dict[str, object], *more: str) -> None:
    """Write sentence-transformers' files beside a model."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [{"idx": n, "path": "" if not n else f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
               for n, kind in enumerate(kinds)]  # fmt: skip
    (folder / MODULES).write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_without_a_word_of_the_folder_the_mean_of_length_one(tmp_path: Path, family: str) -> None:
    folder = encoders.folder(tmp_path, family)
    assert is_encoder(folder)
    vectors = load_embedder(folder).embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 32)
    assert vectors.dtype == np.float32
    for vector, text in zip(vectors, TEXTS, strict=True):
        mean = by_hand(folder, text).mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


POOLED = {
    "pooling_mode_cls_token": lambda states: states[0],
    "pooling_mode_max_tokens": lambda states: states.max(0).values,
    "pooling_mode_mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "pooling_mode_lasttoken": lambda states: states[-1],
    "pooling_mode_weightedmean_tokens": lambda states: (
        sum((n + 1) * s for n, s in enumerate(states)) / sum(range(1, len(states) + 1))
    ),
}


@pytest.mark.parametrize("name", POOLED)
def test_the_folders_files_are_obeyed(tmp_path: Path, name: str) -> None:
    folder = encoders.folder(tmp_path, "bert")
    described(folder, {"pooling_mode_mean_tokens": False, name: True})
    vectors = load_embedder(folder).embed(TEXTS)
    for vector, text in zip(vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, POOLED[name](by_hand(folder, text)).numpy(), atol=1e-5)


def test_two_poolings_stand_behind_each_other_and_a_mode_may_have_its_name(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path, "bert")
    described(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "Normalize")
    embedder = load_embedder(folder)
    states = by_hand(folder, TEXTS[2])
    both = torch.cat([states[0], states.mean(0)])
    assert embedder.width == 64
    np.testing.assert_allclose(embedder.embed(TEXTS[2:3])[0], (both / both.norm()).numpy(), atol=1e-5)
    described(folder, {"pooling_mode": "cls"})
    np.testing.assert_allclose(load_embedder(folder).embed(TEXTS[2:3])[0], states[0].numpy(), atol=1e-5)


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path, "bert")
    described(folder, {"pooling_mode_mean_tokens": True}, "LSTM")
    with pytest.raises(ModelError, match="LSTM"):
        load_embedder(folder)
    described(folder, {"pooling_mode_mean_tokens": False})
    with pytest.raises(ModelError, match="pooling"):
        load_embedder(folder)


def test_ids_and_bad_input(tmp_path: Path) -> None:
    embedder = load_embedder(encoders.folder(tmp_path, "bert"))
    ids = embedder.ids("bad film")
    assert ids == [2, 8, 11, 3]
    np.testing.assert_array_equal(embedder.embed([ids]), embedder.embed(["bad film"]))
    assert embedder.ids("bad [SEP] film").count(3) == 1  # a text has no control token
    assert embedder.embed([]).shape == (0, 32)
    for bad, code in (("bad " * 70, "CONTEXT"), ([2, 10**6, 3], "TOKEN"), ([-1], "REQUEST"), ([], "REQUEST")):
        with pytest.raises(ServeError) as raised:
            embedder.embed(["good", bad])
        assert raised.value.code == f"TL-SERVE-{code}"


@pytest.mark.real_model
def test_minilm() -> None:
    """The vectors of the real model, and what its makers promise: close in meaning is close by cosine."""
    folder = resolve("all-minilm-l6-v2")
    embedder = load_embedder(folder)
    assert (embedder.width, embedder.context) == (384, 256)
    texts = [
        "A man is eating food.",
        "A man eats a meal.",
        "The weather in Rome is sunny today, and it will stay so. " * 5,
    ]
    vectors = embedder.embed(texts)
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")  # as its model card writes it
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    np.testing.assert_allclose(vectors, mean.numpy(), atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.7 > 0.2 > vectors[0] @ vectors[2]
