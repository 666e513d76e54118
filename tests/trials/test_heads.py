"""Tokens, heads and labels that do not fit the model, the rows or each other: told before the first step, or made right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests import encoders
from tests.conftest import TALK, byte_tokenizer, tiny_folder
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError, ServeError
from tuneloop.data.tokens.templates import CHATML
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model.head import Head
from tuneloop.model.load import known_labels, load_model, same_labels
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.runs.run import Run
from tuneloop.tasks.classify import classes, ordered

CASES = Path(__file__).parents[1] / "cases"
CHATS = [{"prompt": f"{q} {n}", "completion": a} for n in range(4) for q, a in TALK]


def recipe_of(folder: Path, model: Path, rows: list[dict[str, Any]], **train: Any) -> Any:
    return make_recipe({
        "name": "r", "model": str(model), "data": str(jsonl(folder / "rows.jsonl", rows)),
        "prepare": {"validation": 0.2, "max_length": 60, "dedupe": "off"},
        "train": {"max_steps": 2, "batch_size": 8, **({} if "method" in train else {"lora": {"rank": 2}}), **train},
        "evaluate": {"rows": 2, "max_new_tokens": 4},
    })[0]  # fmt: skip


def planned(folder: Path, model: Path, rows: list[dict[str, Any]], **train: Any) -> Any:
    recipe = recipe_of(folder, model, rows, **train)
    return pipeline.plan(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)


def trained(folder: Path, model: Path, rows: list[dict[str, Any]], **train: Any) -> Run:
    recipe = recipe_of(folder, model, rows, **train)
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)


@pytest.fixture
def short(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer has two tokens more than it has rows; its template writes one where a command is given."""
    folder = tmp_path / "short"
    load_model(tiny_model).save_pretrained(folder)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["<cmd>", "</cmd>"], special_tokens=True)
    tokenizer.chat_template = "{% if messages[0]['content'] == 'do it' %}<cmd>{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


COMMAND = {"prompt": "do it", "completion": "run 1"}


@pytest.mark.parametrize("side", ["all", "one", "held out"])
def test_tokens_that_the_model_has_no_row_for(side: str, short: Path, tmp_path: Path) -> None:
    rows = [COMMAND] * 20 if side == "all" else [*CHATS, COMMAND]
    if side == "held out":
        jsonl(tmp_path / "held.jsonl", [COMMAND])
        recipe = recipe_of(tmp_path, short, CHATS)
        held = recipe.data[0].model_copy(update={"path": str(tmp_path / "held.jsonl"), "split": "validation"})
        recipe = recipe.model_copy(update={"data": [*recipe.data, held]})
    else:
        recipe = recipe_of(tmp_path, short, rows)
        recipe = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"validation": 0})})
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    with pytest.raises(DataError) as caught:
        pipeline.train(recipe, dataset, workspace=tmp_path)
    (told,) = caught.value.causes or (caught.value,)
    rows_there = load_model(short).get_input_embeddings().num_embeddings
    assert told.code == "TL-DATA-VOCABULARY"
    assert f"{rows_there + 2} tokens" in str(told)
    assert f"{rows_there} rows" in str(told)
    assert "cmd>" in str(told)
    assert not list((tmp_path / "runs").glob("*"))


def test_a_tokenizer_with_more_tokens_that_no_row_uses(short: Path, tmp_path: Path) -> None:
    _, looked = planned(tmp_path, short, CHATS)
    assert any("no row here uses the others" in line for line in looked.warnings)
    answerer = pipeline.load(short)
    assert answerer.answer([[{"role": "user", "content": "Who are you?"}]], max_new_tokens=2)
    with pytest.raises(ServeError) as caught:
        answerer.answer([[{"role": "user", "content": "do it"}]], max_new_tokens=2)
    assert caught.value.code == "TL-SERVE-TOKEN"
    assert answerer.answer([[{"role": "user", "content": "<cmd>"}]], max_new_tokens=2)  # text, as it stands there


def labelled(labels: dict[str, str], n: int = 30) -> list[dict[str, Any]]:
    """Rows whose words say which label is theirs."""
    return [{"text": f"{word} film {encoders.WORDS[k % 20]} {encoders.WORDS[(k * 7) % 20]}", "label": label}
            for k in range(n) for word, label in labels.items()]  # fmt: skip


OLD = {"bad": "bad", "good": "good", "fine": "fine"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier (bad, fine, good) as a folder."""
    root = tmp_path_factory.mktemp("old")
    model = encoders.folder(root / "bert", "bert")
    run = trained(root, model, labelled(OLD), task="classify", max_steps=40, learning_rate=1e-2)
    pipeline.export(run.path, root / "ex")
    return root / "ex"


NEW_HEADS: dict[str, tuple[dict[str, str], bool]] = {
    "the same": (OLD, False),
    "renamed": ({"bad": "terrible", "good": "positive", "fine": "neutral"}, True),
    "some renamed": ({"bad": "bad", "good": "positive", "fine": "fine"}, True),
    "fewer": ({"bad": "bad", "good": "good"}, True),
}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("case", NEW_HEADS)
def test_a_head_of_other_labels_is_begun_anew_and_said(
    case: str, method: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, new = NEW_HEADS[case]
    run = trained(
        tmp_path, classifier, labelled(labels), task="classify", method=method, max_steps=1, learning_rate=1e-6
    )
    assert ("head is of other labels" in capsys.readouterr().err) == new
    found = pipeline.evaluate(run)
    assert found["classes"]["fresh"] == new
    if new:  # chance, and not as sure of the wrong label as the old head was
        assert found["before"]["loss"] < 1.5
    else:
        assert found["before"]["accuracy"] > 0.5
    again = load_trained(run.path)
    assert again.setting.labels == tuple(sorted(set(labels.values())))
    assert pipeline.evaluate(run)["after"]["loss"] == pytest.approx(found["after"]["loss"], abs=1e-5)


def test_a_head_that_never_named_its_labels(tmp_path: Path) -> None:
    """LABEL_0 and LABEL_1 are the rows' 0 and 1; of words nobody knows which is which."""
    folder = encoders.folder(tmp_path / "b", "bert", "AutoModelForSequenceClassification")
    assert known_labels(folder) == ("LABEL_0", "LABEL_1")
    weight = load_model(folder, head=Head("classifier", ("0", "1"))).classifier.weight
    torch.manual_seed(3)
    drawn = load_model(folder, head=Head("classifier", ("neg", "pos"))).classifier.weight
    assert not torch.equal(weight, drawn)
    assert torch.equal(weight, load_model(folder, head=Head("classifier", ("LABEL_0", "LABEL_1"))).classifier.weight)
    assert same_labels(["LABEL_0"], ["reward"])


def test_numbers_as_labels_are_ordered_by_size(tmp_path: Path) -> None:
    assert ordered(str(n) for n in range(12)) == tuple(str(n) for n in range(12))
    assert ordered(["1.5", "-2", "10"]) == ("-2", "1.5", "10")
    model = encoders.folder(tmp_path / "b", "bert")
    rows = [{"text": f"{encoders.WORDS[k % 20]} {k}", "label": k % 12} for k in range(96)]
    run = trained(tmp_path, model, rows, task="classify")
    pipeline.export(run.path, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["id2label"]
    assert told == {str(n): str(n) for n in range(12)}


def test_ratings_with_decimals_are_no_classes(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line) for line in (CASES / "10-numbers-as-labels" / "stars.jsonl").read_text("utf-8").splitlines()
    ]
    for task in ({}, {"task": "classify"}):
        with pytest.raises(DataError) as caught:
            planned(tmp_path, tiny_model, rows, **task)
        assert caught.value.code == ("TL-DATA-NUMBERS" if task else "TL-DATA-MANY-LABELS")
    assert "regression" in str(caught.value)


NUMBERS: dict[str, tuple[dict[str, int], bool]] = {
    "stars in halves": ({f"{n / 2}": 9 for n in range(1, 11)}, True),
    "whole stars": ({str(n): 3 for n in range(1, 6)}, True),
    "77 intents by number": ({str(n): 5 for n in range(77)}, True),
    "tenths": ({f"{n / 10}": 40 for n in range(51)}, False),
    "hundredths, one row each": ({f"{n / 100:.2f}": 1 for n in range(65)}, False),
    "prices, one row each": ({str(100 + 7 * n): 1 for n in range(40)}, False),
    "words, one row each": ({f"intent {n}": 1 for n in range(40)}, True),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_what_is_a_class_and_what_a_measurement(case: str) -> None:
    counts, good = NUMBERS[case]
    if good:
        assert set(classes(counts, TrainPart())[0]) == set(counts)
        return
    with pytest.raises(DataError) as caught:
        classes(counts, TrainPart())
    assert caught.value.code == "TL-DATA-NUMBERS"


def test_forty_intents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tuneloop.cli import tables

    rows = [{"text": f"{encoders.WORDS[k % 20]} {encoders.WORDS[(k // 20) % 20]} {k}", "label": f"intent {k % 40}"}
            for k in range(400)]  # fmt: skip
    model = encoders.folder(tmp_path / "b", "bert")
    with pytest.raises(DataError) as caught:
        planned(tmp_path, model, rows)
    assert caught.value.code == "TL-DATA-MANY-LABELS"
    assert "40 different labels in the first 50 rows" in str(caught.value)
    run = trained(tmp_path, model, rows, task="classify")
    assert len(load_trained(run.path).setting.labels) == 40
    capsys.readouterr()
    tables.classes(pipeline.measure(run))
    assert max(map(len, capsys.readouterr().out.splitlines())) < 200


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_model_of_experts_that_asks_for_its_routers(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"num_experts": 4, "moe_intermediate_size": 16} if family == "qwen3_moe" else {"num_local_experts": 4}
    folder = tiny_folder(tmp_path / "m", family, vocab_size=480, num_experts_per_tok=2, output_router_logits=True,
                         bos_token_id=None, max_position_embeddings=512, **more)  # fmt: skip
    byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    run = trained(tmp_path, folder, CHATS, lora={"rank": 2, "targets": ["q_proj"]})
    assert "output_router_logits" in capsys.readouterr().err
    assert pipeline.evaluate(run)["after"]["loss"] > 0
    assert pipeline.export(run.path, tmp_path / "out").passed
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["output_router_logits"] is True


def test_a_model_that_writes_though_its_tokenizer_has_a_mask(tmp_path: Path) -> None:
    """Gemma's tokenizer has a mask token: the model's head says whether it fills masks."""
    folder = tiny_folder(tmp_path / "g", "gemma3_text", vocab_size=480, bos_token_id=None, max_position_embeddings=512)
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", mask_token="<|im_start|>")
    tokenizer.save_pretrained(folder)
    part = {"template": "Review: {text} It was", "words": {"neg": ["bad"], "pos": ["good"]}}
    rows = [{"text": f"a {['dull', 'fine'][k % 2]} film {k}", "label": ["neg", "pos"][k % 2]} for k in range(24)]
    run = trained(tmp_path, folder, rows, task="classify_prompt", classify=part)
    found = load_trained(run.path)
    assert (found.head.kind, found.setting.masked) == ("causal", False)
    assert pipeline.evaluate(run)["after"]["accuracy"] is not None
    masked = encoders.folder(tmp_path / "b", "bert")
    assert AutoModelForMaskedLM.from_pretrained(masked) is not None
    part["template"] = "{text} it was {mask} ."
    run = trained(tmp_path / "two", masked, rows, task="classify_prompt", classify=part)
    assert (load_trained(run.path).head.kind, load_trained(run.path).setting.masked) == ("masked", True)
