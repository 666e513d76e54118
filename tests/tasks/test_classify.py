from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests import encoders
from tests.conftest import tiny_folder
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError, RecipeError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch, pack_examples
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.classify import CLASSIFY, LabelModel, classes
from tuneloop.tasks.task import SplitView, TaskContext
from tuneloop.training.packing import packs_exactly

HEAD = Head("classifier", ("bad", "good", "so-so"))


def items(lengths: list[int], vocabulary: int) -> Examples:
    drawn = np.random.default_rng(0)
    samples = Sequences.of([
        Sample(drawn.integers(5, vocabulary, n).astype(np.int32), np.zeros(n, np.bool_), f"{n}", True) for n in lengths
    ])  # fmt: skip
    label = np.arange(len(lengths)) % 3
    weight = np.array([0.5, 2.0, 1.0], np.float32)[label]
    columns: dict[str, Any] = {"label": label, "weight": weight}
    return Examples(samples, np.arange(len(lengths))[:, None], weight.astype(np.float64), columns)


@pytest.mark.parametrize("family", [*encoders.FAMILIES, "llama"])
def test_packed_texts_get_the_scores_of_the_models_own_forward(family: str, tmp_path: Path) -> None:
    own = family != "llama"
    folder = encoders.folder(tmp_path, family) if own else tiny_folder(tmp_path, family)
    torch.manual_seed(1)
    model = load_model(folder, head=HEAD)
    given = items([7, 20, 3, 12], len(encoders.WORDS) + 5)
    module = LabelModel(model, torch.from_numpy(given.samples[2].ids.astype(np.int64))[None])
    assert module.read is not None
    row = pack_examples(given, [0, 1, 2, 3])
    with torch.no_grad():
        got = module.scores(row)
        alone = torch.cat([model(input_ids=ids).logits for ids in row.input_ids.split(row.segments, 1)])
        loss = module(row).total
    assert torch.allclose(got, alone, atol=1e-5)
    assert packs_exactly(module, given)
    weights = torch.tensor([0.5, 2.0, 1.0])
    wanted = cross_entropy(alone, row.columns["label"], weights)
    assert float(loss) / given.weights.sum() == pytest.approx(float(wanted), abs=1e-5)


PAIRS = [("the film was good", "i saw the end"), ("a", "the plot was dull and bad ."), ("it", "it")]


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_two_texts_are_the_pair_input_of_the_tokenizer(family: str, tmp_path: Path) -> None:
    """Ids, token types and scores are those that transformers' own tokenizer and model give the two texts."""
    folder = encoders.folder(tmp_path, family)
    torch.manual_seed(1)
    model, tokenizer = load_model(folder, head=HEAD), load_tokenizer(folder)
    records = [Record(tuple(Message("user", text) for text in pair), kind="label", label="good") for pair in PAIRS]
    told = TaskContext(TrainPart(), tokenizer, HEAD.labels, (1.0, 1.0, 1.0))
    found = CLASSIFY.items(SplitView(tokenize(tokenizer, records), lambda: records), told)
    module = CLASSIFY.objective(model, found, told)
    row = pack_examples(found, [0, 1, 2])
    with torch.no_grad():
        got = module.scores(row)  # type: ignore[operator]
        for k, pair in enumerate(PAIRS):
            own = tokenizer(*pair, return_tensors="pt")
            assert found.samples[k].ids.tolist() == own["input_ids"][0].tolist()
            if not getattr(model.config, "type_vocab_size", 0):
                own.pop("token_type_ids")
            assert torch.allclose(got[k], model(**own).logits[0], atol=1e-5)
    assert packs_exactly(module, found)
    both = Classifier(model, tokenizer, CLASSIFY, told).classify([PAIRS[0], PAIRS[0][0]])
    assert both[0] != both[1]


def test_a_decoder_reads_two_texts_in_two_lines(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    record = Record((Message("user", "How are you?"), Message("user", "Fine.")), kind="label", label="x")
    assert tokenize(tokenizer, [record])[0].ids.tolist() == tokenizer("How are you?\nFine.")["input_ids"]


def test_an_unknown_head_is_asked_itself(tmp_path: Path) -> None:
    model = load_model(encoders.folder(tmp_path, "bert"), head=HEAD)
    given = items([7, 5], len(encoders.WORDS) + 5)
    module = LabelModel(model, torch.tensor([[2, 6, 3]]))
    row = pack_examples(given, [0, 1])
    with torch.no_grad():
        known = module.scores(row)
        module.read = None
        own = module.scores(row)
    assert torch.allclose(known, own, atol=1e-5)


def test_an_even_guess_loses_what_is_called_chance(tmp_path: Path) -> None:
    model = load_model(encoders.folder(tmp_path, "bert"), head=HEAD)
    module = LabelModel(model, torch.tensor([[2, 6, 3]]))
    for weight in model.classifier.parameters():  # type: ignore[union-attr]
        weight.detach().zero_()
    batch = pack_examples(items([7, 5], len(encoders.WORDS) + 5), [0, 1])
    assert (module(batch).total / batch.columns["weight"].sum()).item() == pytest.approx(module.chance)


def test_a_decoder_reads_the_last_token_that_does_not_pad(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path, "llama"), head=HEAD)
    row = torch.tensor([[5, 6, 7, 0]])  # 0 pads
    module = LabelModel(model, row[:, :3])
    with torch.no_grad():
        got = module.scores(Batch(row, torch.arange(4)[None], *[torch.zeros(0, dtype=torch.int64)] * 2, (4,)))
        assert torch.allclose(got, model(input_ids=row).logits, atol=1e-5)


def test_an_idle_pass_reaches_every_weight(tmp_path: Path) -> None:
    model = load_model(encoders.folder(tmp_path, "bert"), head=HEAD)
    module = LabelModel(model, torch.tensor([[2, 6, 3]]))
    loss = module(pack_examples(items([4], 20), [0], labelled=False)).total
    loss.backward()
    assert loss.item() == 0
    assert model.classifier.weight.grad is not None  # type: ignore[union-attr]


def test_one_label_or_weights_of_other_labels_are_told() -> None:
    with pytest.raises(DataError) as one:
        classes({"a": 3}, TrainPart())
    assert one.value.code == "TL-DATA-ONE-LABEL"
    with pytest.raises(RecipeError) as other:
        classes({"a": 3, "b": 1}, TrainPart.model_validate({"classify": {"weights": {"a": 1, "c": 2}}}))
    assert other.value.code == "TL-RECIPE-WEIGHTS"


def test_a_weight_that_is_not_above_0_is_named() -> None:
    part = TrainPart.model_validate({"classify": {"weights": {"neg": 0, "pos": 2}}})
    with pytest.raises(RecipeError) as error:
        classes({"neg": 3, "pos": 1}, part)
    assert (error.value.code, error.value.facts["got"]) == ("TL-RECIPE-VALUE", "neg: 0")
    assert "above 0" in error.value.what


def rows(folder: Path, n: int = 48, *, name: str = "rows.jsonl") -> Path:
    good, bad = ("good", "great", "fine"), ("bad", "terrible", "dull")
    texts = [
        {"text": f"{('i', 'we')[k % 2]} saw a {(good, bad)[k % 2][k % 3]} film {'and ' * (k // 6)} .",
         "label": ("pos", "neg")[k % 2]}
        for k in range(n)
    ]  # fmt: skip
    return jsonl(folder / name, texts)


def recipe(folder: Path, data: Path, **train: Any) -> Any:
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 5e-3, **train}
    return make_recipe({
        "name": "labels", "model": str(folder), "data": str(data), "prepare": {"validation": 0.25}, "train": settings,
        "evaluate": {"show": ["a great film"]},
    })[0]  # fmt: skip


def made(workspace: Path, folder: Path, **train: Any) -> Any:
    plan = recipe(folder, rows(workspace), **train)
    return pipeline.train(plan, pipeline.prepare(plan, workspace=workspace), workspace=workspace)


@pytest.mark.parametrize(
    "train",
    [{"method": "full"}, {"method": "lora", "lora": {"rank": 4}}, {"method": "freeze", "freeze": {"layers": 0}}],
)
def test_from_rows_to_an_answer_and_an_export(train: dict[str, Any], tmp_path: Path) -> None:
    run = made(tmp_path, encoders.folder(tmp_path / "bert", "bert"), **train)
    found = pipeline.evaluate(run)
    assert found["after"]["texts"] == found["before"]["texts"] > 0
    if train["method"] == "full":  # a random encoder that stays as it is shows a head little
        assert found["after"]["loss"] < found["before"]["loss"]
    assert found["classes"]["fresh"]
    assert (run.path / "report.html").read_text().count("</table>") >= 4
    trained = load_trained(run.path)
    assert trained.setting.labels == ("neg", "pos")
    chance = pipeline.load(run.path).classify(["a great film"])[0]  # type: ignore[union-attr]
    assert sum(chance.values()) == pytest.approx(1)
    assert found["show"][0]["after"].startswith(max(chance, key=chance.__getitem__))
    target = tmp_path / "out"
    assert pipeline.export(run.path, target).passed
    assert json.loads((target / "config.json").read_text())["id2label"] == {"0": "neg", "1": "pos"}
    again = pipeline.load(target).classify(["a great film"])[0]  # type: ignore[union-attr]
    assert again["pos"] == pytest.approx(chance["pos"], abs=1e-5)


def test_a_decoder_learns_labels(tiny_model: Path, tmp_path: Path) -> None:
    run = made(tmp_path, tiny_model, method="lora", lora={"rank": 4})
    assert pipeline.evaluate(run)["after"]["accuracy"] > 0.9


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "bert", "bert")
    whole = made(tmp_path / "a", folder, method="full", save_strategy="steps", save_steps=5, save_total_limit=None)
    cut = made(tmp_path / "b", folder, method="full", save_strategy="steps", save_steps=5, save_total_limit=None)
    steps = sorted(cut.checkpoints.glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
    for later in steps[1:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    pipeline.resume(cut)

    def digest(path: Path) -> str:
        return hashlib.sha256((path / "model" / "model.safetensors").read_bytes()).hexdigest()

    assert digest(whole.path) == digest(cut.path)


def test_a_held_out_label_that_no_training_row_has_is_told(tmp_path: Path) -> None:
    train, other = rows(tmp_path, 12), jsonl(tmp_path / "other.jsonl", [{"text": "a film", "label": "odd"}])
    plan = recipe(encoders.folder(tmp_path / "bert", "bert"), train)
    files = [{"path": str(train), "split": "train"}, {"path": str(other), "split": "validation"}]
    plan = plan.model_copy(update={"data": make_recipe({"data": files})[0].data})
    dataset = pipeline.prepare(plan, workspace=tmp_path)
    with pytest.raises(DataError) as error:
        pipeline.train(plan, dataset, workspace=tmp_path)
    assert error.value.code == "TL-DATA-LABEL"


def test_a_text_longer_than_the_model_takes_is_told_before_training(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [{"text": f"{w} " * 80, "label": w} for w in ("good", "bad") * 10])
    plan = recipe(encoders.folder(tmp_path / "bert", "bert"), data)
    part = plan.prepare.model_copy(update={"dedupe": "off"})
    named = plan.model_copy(update={"prepare": part.model_copy(update={"max_length": 100})})
    dataset = pipeline.prepare(named, workspace=tmp_path)
    with pytest.raises(DataError) as error:
        pipeline.plan(named, dataset)
    assert [cause.code for cause in error.value.causes] == ["TL-DATA-CONTEXT"]
    with pytest.raises(DataError) as error:  # left to the rows, such a row goes when it is prepared
        pipeline.prepare(plan.model_copy(update={"prepare": part}), workspace=tmp_path)
    assert error.value.code == "TL-DATA-NOTHING-LEFT"
    assert "max_length: 20 (82 / 66)" in str(error.value)


def test_a_server_names_the_label(tmp_path: Path, tiny_run: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    run = made(tmp_path, encoders.folder(tmp_path / "bert", "bert"), method="full", max_steps=2)
    with TestClient(pipeline.serve(run.path, api_key="k")) as client:
        asked = {"model": run.path.name, "input": "a great film"}
        assert client.post("/v1/classify", json=asked).status_code == 401
        client.headers["Authorization"] = "Bearer k"
        told = client.post("/v1/classify", json=asked).json()
        assert told["scores"].keys() == {"neg", "pos"}
        assert told["label"] == max(told["scores"], key=told["scores"].__getitem__)
        chat = {"model": run.path.name, "messages": [{"role": "user", "content": "a great film"}]}
        answer = client.post("/v1/chat/completions", json=chat).json()
        assert answer["choices"][0]["message"]["content"] == told["label"]
        long = client.post("/v1/classify", json={**asked, "input": "film " * 200})
        assert long.json()["error"]["code"] == "TL-SERVE-CONTEXT"
    with TestClient(pipeline.serve(tiny_run)) as client:
        refused = client.post("/v1/classify", json={"model": tiny_run.name, "input": "x"})
        assert refused.json()["error"]["code"] == "TL-SERVE-NO-LABELS"
