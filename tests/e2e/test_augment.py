"""Derived rows with real models: SmolLM2 judges English, and what it rejects is nonsense."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.real import shared
from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.base.records import Record
from tuneloop.data.augmenting.helpers import Helpers
from tuneloop.data.augmenting.reword import Languages
from tuneloop.data.augmenting.substitute import groups, substituted
from tuneloop.data.dedupe.exact import contamination
from tuneloop.data.ledger import entries
from tuneloop.data.version.dataset import Dataset
from tuneloop.inference.likelihood_ratio import log_ratios
from tuneloop.inference.perplexity import nll
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe

MODEL = "smollm2-135m-instruct"
NONSENSE = ("banana", "theorem", "kneel", "purple", "grandfather", "evaporate", "seventeen", "trousers")


@pytest.fixture(scope="module", autouse=True)
def _model() -> None:
    if not (environment().home / "models" / MODEL / "model.safetensors").is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{MODEL} is not pulled")
        pytest.skip(f"{MODEL} is not pulled")


def prepared(workspace: Path, said: list[str], file: str, rows: str, **augment: object) -> Dataset:
    recipe, _ = make_recipe(
        {
            "name": "augmented",
            "model": MODEL,
            "data": [{"path": str(shared(file)), "rows": rows}],
            "prepare": {"max_length": 2048, "validation": 0.2, "augment": augment},
        }
    )
    return pipeline.prepare(recipe, workspace=workspace, say=said.append)


def children(made: Dataset) -> list[Record]:
    return [r for r in made.records("train") if r.parent]


def words() -> Iterator[str]:
    yield from (word for word in groups() if word.isascii())


@pytest.mark.real_model
def test_synonyms_of_real_questions(tmp_path: Path) -> None:
    said: list[str] = []
    file, rows = "llamafactory/alpaca_en_demo.json", "[:160]"
    made = prepared(tmp_path, said, file, rows, methods=["synonyms"], share=0.3)
    new = children(made)
    told = made.manifest["augment"]
    tried = told["made"]["synonyms"] + told["rejected"]["synonyms"].get("nonsense", 0)
    assert len(new) >= 15
    assert told["made"]["synonyms"] / tried > 0.6
    train = {r.id for r in made.records("train") if not r.parent}
    assert all(r.parent in train for r in new)
    assert not contamination(new, made.records("validation"), 0.8)
    assert len([e for e in entries(made.path / "ledger.jsonl") if e.action == "added"]) >= len(new)
    assert any(line.startswith("synonyms: ") for line in said)
    # The same words replaced by nonsense: nearly all is rejected.
    table = tmp_path / "nonsense.txt"
    table.write_text("".join(f"{w} > {' '.join(NONSENSE)}\n" for w in words()), encoding="utf-8")
    wrong = prepared(tmp_path, [], file, rows, methods=["synonyms"], share=0.3, synonyms_file=str(table))
    told = wrong.manifest["augment"]
    passed, rejected = told["made"]["synonyms"], told["rejected"]["synonyms"]["nonsense"]
    assert rejected >= 20
    assert passed / (passed + rejected) < 0.1


@pytest.mark.real_model
def test_the_verdicts_are_those_of_whole_sentences() -> None:
    """Nothing that is left out turns one, and the head sees a fraction of the tokens."""
    folder, limit = environment().home / "models" / MODEL, math.log(1.3)
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    rows = json.loads(shared("llamafactory/alpaca_en_demo.json").read_text(encoding="utf-8"))
    found = (substituted(row["instruction"], groups(), random.Random(n)) for n, row in enumerate(rows))
    pairs = [(new.before, new.after) for new in found if new][:60]
    scores = nll(model, tokenizer, [text for pair in pairs for text in pair])
    seen: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2).shape[0]))
    ratios = log_ratios(model, tokenizer, pairs, limit)
    whole = [now - was <= limit * tokens for (was, tokens), (now, _) in zip(scores[::2], scores[1::2], strict=True)]
    assert len(pairs) == 60
    assert 5 < sum(whole) < 60
    assert sum((more <= limit * n) != one for (more, n), one in zip(ratios, whole, strict=True)) <= 1
    assert sum(seen) < 0.6 * sum(tokens for _, tokens in scores)


@pytest.mark.real_model
def test_a_model_that_knows_chinese_judges_short_questions() -> None:
    """The sentences of an examination paper are short and dense; by them alone Gemma would seem a foreigner."""
    folder = environment().home / "models" / "gemma-3-270m"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("gemma-3-270m is not pulled")
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    rows = json.loads(shared("gaokao_zh/derived_cot_zh.json").read_text(encoding="utf-8"))
    texts = [row["Question"] for row in rows if substituted(row["Question"], groups(), random.Random(0))]
    assert Languages(Helpers(score=partial(nll, model, tokenizer))).known([("zh", text) for text in texts]) == {"zh"}


@pytest.mark.real_model
def test_an_english_model_judges_no_chinese(tmp_path: Path) -> None:
    made = prepared(tmp_path, [], "emollm/data.json", "[:30]", methods=["synonyms"], share=1.0)
    assert not children(made)
    assert made.manifest["augment"]["rejected"]["synonyms"]["language unknown to the model"] >= 10


@pytest.mark.real_model
def test_a_dialogue_goes_on_with_the_local_model(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    talk = [
        ("What is a good breakfast before a long run?", "Oatmeal with a banana, about two hours before you start."),
        (
            "How do I keep bread fresh for longer?",
            "Keep it in a paper bag, and freeze what you do not eat in three days.",
        ),
        ("Which plants need little light?", "Snake plants, pothos and ZZ plants do well in dark rooms."),
    ]
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in talk), encoding="utf-8")
    augment = {"methods": ["follow_up"], "share": 1.0}
    recipe, _ = make_recipe({"model": MODEL, "data": str(file), "prepare": {"validation": 0, "augment": augment}})
    made = pipeline.prepare(recipe, workspace=tmp_path)
    told = made.manifest["augment"]
    assert told["made"]["follow_up"] + sum(told["rejected"]["follow_up"].values()) <= 3
    for child in children(made):
        assert [m.trained for m in child.messages if m.role == "assistant"] == [False, True]
        assert child.messages[2].content not in (q for q, _ in talk)
    assert pipeline.prepare(recipe, workspace=tmp_path).hash == made.hash
