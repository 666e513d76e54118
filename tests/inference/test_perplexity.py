"""How likely a model finds a text: the same as transformers' own loss, whatever the text was batched with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import TALK, tiny_folder
from tuneloop.inference import perplexity
from tuneloop.inference.perplexity import nll
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model

TEXTS = [text for pair in TALK for text in pair]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path):
    return load_model(tiny_model), load_tokenizer(tiny_model)


def theirs(model, ids: list[int]) -> float:
    """transformers' mean loss of one text alone."""
    row = torch.tensor([ids])
    with torch.no_grad():
        return float(model(input_ids=row, labels=row, use_cache=False).loss)


def test_it_is_the_loss_of_transformers(loaded) -> None:
    model, tokenizer = loaded
    for text, (total, tokens) in zip(TEXTS, nll(model, tokenizer, TEXTS), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens == len(ids)
        assert total / tokens == pytest.approx(theirs(model, [tokenizer.eos_token_id, *ids]), abs=1e-4)


def test_neighbours_and_order_change_nothing(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    texts = [*TEXTS, "a", TEXTS[1] * 3]
    alone = [nll(model, tokenizer, [text])[0] for text in texts]
    for limit in (1, 40, 10_000):
        monkeypatch.setattr(perplexity, "TOKENS", limit)
        for order in (texts, texts[::-1]):
            wanted = alone if order is texts else alone[::-1]
            for mine, one in zip(nll(model, tokenizer, order), wanted, strict=True):
                assert mine[1] == one[1]
                assert mine[0] == pytest.approx(one[0], abs=1e-3)


def test_a_text_without_tokens_and_no_text(loaded) -> None:
    assert nll(*loaded, [""]) == [(0.0, 0)]
    assert nll(*loaded, []) == []
    assert nll(*loaded, ["", "Paris"])[0] == (0.0, 0)


def test_a_text_longer_than_the_context_is_scored_whole(loaded) -> None:
    model, tokenizer = loaded
    text = " ".join(TEXTS * 6)
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    context = model.config.max_position_embeddings
    assert len(ids) > 2 * context
    ((total, tokens),) = nll(model, tokenizer, [text])
    assert tokens == len(ids) - 1
    windows = [ids[at : at + context] for at in range(0, len(ids) - 1, context - 1)]
    assert total == pytest.approx(sum(theirs(model, w) * (len(w) - 1) for w in windows), rel=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_heads_that_scale_and_cap(family: str, tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    model = load_model(tiny_folder(tmp_path / family, family, vocab_size=len(tokenizer)))
    text = TEXTS[1][:40]
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    ((total, tokens),) = nll(model, tokenizer, [text])
    assert total / tokens == pytest.approx(theirs(model, ids), abs=1e-4)
