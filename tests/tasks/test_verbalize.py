from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import encoders
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import RecipeError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.pack import pack_examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.task import SplitView, TaskContext
from tuneloop.tasks.verbalize import CLASSIFY_PROMPT, classes, parts, word_ids
from tuneloop.training.packing import packs_exactly

WORDS = {"neg": ["bad", "terrible"], "pos": ["good"]}


def setting(tokenizer: Any, template: str | None, words: dict[str, list[str]] | None = None) -> TaskContext:
    train = TrainPart.model_validate({"classify": {"template": template, "words": words or WORDS}})
    return TaskContext(train, tokenizer, ("neg", "pos"), (1.0, 1.0))


def records(*texts: str) -> list[Record]:
    return [Record((Message("user", text),), kind="label", label=("neg", "pos")[k % 2]) for k, text in enumerate(texts)]


def rows(tokenizer: Any, *texts: str) -> SplitView:
    made = records(*texts)
    return SplitView(tokenize(tokenizer, made), lambda: made)


@pytest.mark.parametrize("template", ["{text} it was {mask} .", "{mask} film : {text}", "a {text} {mask}"])
@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_a_masked_model_is_read_at_the_mask(family: str, template: str, tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path, family)
    model, tokenizer = load_model(folder, head=Head("masked")), load_tokenizer(folder)
    told = setting(tokenizer, template)
    # A text may hold a mask of its own: it is not the one that is asked.
    items = CLASSIFY_PROMPT.examples(rows(tokenizer, "a dull film", "i saw [MASK] the end and the plot"), told)
    module = CLASSIFY_PROMPT.objective(model, items, told)
    assert not module.own
    assert packs_exactly(module, items)
    row = pack_examples(items, [0, 1])
    with torch.no_grad():
        got = module.scores(row)  # type: ignore[operator]
        for k, ids in enumerate(row.input_ids.split(row.segments, 1)):
            masks = (ids[0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
            at = masks[0] if template.startswith("{mask}") else masks[-1]
            logits = model(input_ids=ids).logits[0, at]
            bad, terrible, good = (logits[tokenizer.convert_tokens_to_ids(w)] for w in ("bad", "terrible", "good"))
            assert got[k].tolist() == pytest.approx([float((bad + terrible) / 2), float(good)], abs=1e-4)


@pytest.mark.parametrize(
    "template", ["{text_a} {mask} {text_b} .", "{text} it was {mask}", "{mask} : {text_b} {text_a}"]
)
def test_both_texts_of_a_pair_stand_in_the_template(template: str, tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path, "bert")
    model, tokenizer = load_model(folder, head=Head("masked")), load_tokenizer(folder)
    pairs = [("the film was good", "i saw the end"), ("a", "the plot was dull and bad .")]
    made = [Record(tuple(Message("user", text) for text in pair), kind="label", label="neg") for pair in pairs]
    told = setting(tokenizer, template)
    items = CLASSIFY_PROMPT.examples(SplitView(tokenize(tokenizer, made), lambda: made), told)
    module = CLASSIFY_PROMPT.objective(model, items, told)
    row = pack_examples(items, [0, 1])
    with torch.no_grad():
        got = module.scores(row)  # type: ignore[operator]
        for k, (a, b) in enumerate(pairs):
            text = template.format(text_a=a, text_b=b, text=f"{a}\n{b}", mask="[MASK]")
            own = tokenizer(text, return_tensors="pt")
            assert items.samples[k].ids.tolist() == own["input_ids"][0].tolist()
            at = (own["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
            logits = model(input_ids=own["input_ids"]).logits[0, at]
            bad, terrible, good = (logits[tokenizer.convert_tokens_to_ids(w)] for w in ("bad", "terrible", "good"))
            assert got[k].tolist() == pytest.approx([float((bad + terrible) / 2), float(good)], abs=1e-4)


def test_a_model_that_writes_is_read_at_the_end(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    told = setting(tokenizer, "Review: {text} It was {mask}")
    items = CLASSIFY_PROMPT.examples(rows(tokenizer, "dull", "a longer text with more tokens"), told)
    module = CLASSIFY_PROMPT.objective(model, items, told)
    row = pack_examples(items, [0, 1])
    ids = [tokenizer("Review: dull It was")["input_ids"]]
    assert row.input_ids[0, : row.segments[0]].tolist() == ids[0]
    with torch.no_grad():
        got = module.scores(row)[0]  # type: ignore[operator]
        logits = model(input_ids=torch.tensor(ids)).logits[0, -1]
    # Several words of several tokens: the mean over a word's tokens, then over the label's words.
    means = [[logits[word].mean() for word in own] for own in word_ids(told)]
    assert [float(x) for x in got] == pytest.approx([float(torch.stack(m).mean()) for m in means], abs=1e-4)


@pytest.mark.parametrize(
    "template",
    [None, "no place", "{text} {text} {mask}", "{text} without a mask", "{text_a} {mask}", "{text} {text_b} {mask}"],
)
def test_a_template_that_cannot_be_is_told_with_an_example(template: str | None) -> None:
    with pytest.raises(RecipeError) as error:
        parts(setting(encoders.tokenizer(), template))
    assert error.value.code == "TL-RECIPE-PROMPT"
    assert '"neg": ["terrible"], "pos": ["great"]' in error.value.do


def test_a_model_that_writes_cannot_fill_the_middle(tiny_model: Path) -> None:
    with pytest.raises(RecipeError):
        parts(setting(load_tokenizer(tiny_model), "{text} It was {mask}."))


def test_words_must_be_there_for_each_label_and_of_one_label() -> None:
    lacking = TrainPart.model_validate({"classify": {"words": {"neg": ["bad"]}}})
    with pytest.raises(RecipeError) as error:
        classes({"neg": 1, "pos": 1}, lacking)
    assert error.value.code == "TL-RECIPE-WORDS"
    twice = setting(encoders.tokenizer(), "{text} {mask}", {"neg": ["good"], "pos": ["good"]})
    with pytest.raises(RecipeError):
        word_ids(twice)


def prepending() -> Any:
    """A tokenizer in the way of Llama 2: each text begins with a blank of its own, and blanks are written ▁."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", *"abdgost", "▁g", "▁b", "oo", "▁goo", "▁good", "ad", "▁bad"]
    merges = [("▁", "g"), ("▁", "b"), ("o", "o"), ("▁g", "oo"), ("▁goo", "d"), ("a", "d"), ("▁b", "ad")]
    made = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_words_are_those_of_the_sentence() -> None:
    tokenizer = prepending()
    told = setting(tokenizer, "{text} tastes", {"neg": ["bad"], "pos": ["good"]})
    assert [[tokenizer.convert_ids_to_tokens(ids) for ids in own] for own in word_ids(told)] == [
        [["▁bad"]],
        [["▁good"]],
    ]
    assert tokenizer.tokenize(" good") == ["▁", "▁good"]  # alone it has a blank too many


def test_a_word_that_joins_with_the_text_before_it_is_read_alone(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    told = setting(tokenizer, "{text} 这很", {"neg": ["坏"], "pos": ["好"]})
    assert word_ids(told) == [[tokenizer("坏")["input_ids"]], [tokenizer("好")["input_ids"]]]


@pytest.mark.parametrize("word", ["awful", "not awful"])
def test_a_word_that_the_model_does_not_know_is_told(word: str) -> None:
    with pytest.raises(RecipeError) as error:
        word_ids(setting(encoders.tokenizer(), "{text} was {mask}", {"neg": [word], "pos": ["good"]}))
    assert error.value.code == "TL-RECIPE-WORDS"
    assert f"'{word}' is not in the model's vocabulary" in error.value.what


def test_zero_shot_then_tuned(tiny_model: Path, tmp_path: Path) -> None:
    texts = [{"text": f"a {('good', 'bad')[k % 2]} film no {k}", "label": ("pos", "neg")[k % 2]} for k in range(40)]
    recipe, _ = make_recipe({
        "name": "prompt", "model": str(tiny_model), "data": str(jsonl(tmp_path / "rows.jsonl", texts)),
        "prepare": {"validation": 0.2},
        "train": {"task": "classify_prompt", "epochs": 3, "learning_rate": 1e-2,
                  "classify": {"template": "{text} It was", "words": WORDS}},
    })  # fmt: skip
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    run = pipeline.train(recipe, dataset, workspace=tmp_path)
    found = pipeline.evaluate(run)
    assert not found["classes"]["fresh"]
    assert found["after"]["loss"] < found["before"]["loss"]
    assert pipeline.load(run.path).classify(["a good film"])[0].keys() == {"neg", "pos"}  # type: ignore[union-attr]
    assert pipeline.export(run.path, tmp_path / "out").passed
