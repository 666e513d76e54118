"""Every method: trained as PEFT computes it, saved as plain PEFT and transformers load it, answered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.conftest import byte_tokenizer, tiny_folder
from tuneloop.base.errors import ModelError
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.samples import Sample
from tuneloop.data.tokens.templates import CHATML
from tuneloop.inference.generate import Answerer
from tuneloop.inference.sampling import Sampling
from tuneloop.methods import virtual
from tuneloop.methods.adapters import read_config, require_same_base, stacked, with_adapter
from tuneloop.methods.table import METHODS, notes
from tuneloop.methods.wrap import wrap
from tuneloop.model import quantize
from tuneloop.model.backbone import states
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import QloraPart, TrainPart
from tuneloop.tasks.loss import LossModel
from tuneloop.training.model_folder import save_result

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "deepseek_v3")
WORDS = 300
WAYS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "freeze": {"layers": 1}},
    "lora": {"lora": {"rank": 2, "rslora": True}},
    "pissa": {"lora": {"rank": 2, "init": "pissa"}},
    "olora-dora": {"lora": {"rank": 2, "init": "olora", "dora": True, "rslora": True}},
    "embeddings": {"lora": {"rank": 2, "train_also": ["embed_tokens"]}},
    "nf4": {"method": "qlora", "lora": {"rank": 2}},
    "int8": {"method": "qlora", "lora": {"rank": 2}, "qlora": {"bits": "int8"}},
    "prefix": {"method": "ptuning_v2", "virtual": {"tokens": 4}},
    "projected": {"method": "ptuning_v2", "virtual": {"tokens": 4, "projection": True}},
    "prompt": {"method": "prompt_tuning", "virtual": {"tokens": 4}},
}
CANNOT = {("deepseek_v3", "int8"), ("deepseek_v3", "prefix"), ("deepseek_v3", "projected")}


def part(**train: Any) -> TrainPart:
    return TrainPart.model_validate(train)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: tiny_folder(root / name, name, vocab_size=WORDS) for name in FAMILIES}


def samples() -> list[Sample]:
    random, made = np.random.default_rng(0), []
    for n in (9, 5, 14):
        trained = np.ones(n, bool)
        trained[:3] = False
        made.append(Sample(random.integers(3, WORDS, n).astype(np.int32), trained, str(n), True))
    return made


def bits(train: TrainPart) -> QloraPart | None:
    return train.qlora if METHODS[train.method].quantize else None


def begun(folder: Path, train: TrainPart) -> nn.Module:
    return wrap(load_model(folder, quantized=bits(train)), train, 0)


def stepped(model: nn.Module, steps: int = 2) -> LossModel:
    objective = LossModel(model)
    objective.train()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        (objective(pack(samples())).total / 20).backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.eval()
    return objective


def theirs(model: Any, sample: Sample) -> float:
    """The summed loss as PEFT's or transformers' own forward computes it."""
    ids = torch.tensor(sample.ids.tolist())[None]
    labels = ids.clone()
    labels[0, ~torch.tensor(sample.trained.tolist())] = -100
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    return float(loss) * int((labels[0, 1:] != -100).sum())


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits
    return found[:, -5:]  # what virtual tokens themselves give is left out


def code(call: Any, *args: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call(*args)
    assert caught.value.do
    assert "?" not in caught.value.what
    return caught.value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_is_trained_saved_and_loaded_as_others_do(
    folders: dict[str, Path], tmp_path: Path, family: str, way: str
) -> None:
    folder, train = folders[family], part(**WAYS[way])
    if way in {"nf4", "int8"}:
        pytest.importorskip("bitsandbytes")
    if (family, way) in CANNOT:
        assert code(begun, folder, train).code == "TL-MODEL-METHOD"
        return
    before = logits(load_model(folder))
    model = begun(folder, train)
    objective = stepped(model)
    with torch.no_grad():
        together = float(objective(pack(samples())).total)
        apart = sum(float(objective(pack([s])).total) for s in samples())
        assert together == pytest.approx(apart, rel=1e-4)
        assert together == pytest.approx(sum(theirs(model, s) for s in samples()), rel=1e-4)
    save_result(model, byte_tokenizer(CHATML), folder, tmp_path)
    if METHODS[train.method].adapter:
        settings = quantize.settings(train.qlora, torch.float32) if bits(train) else {}
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
        quantize.settle(base)
        other: Any = PeftModel.from_pretrained(base, tmp_path)
    else:
        other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.allclose(logits(other), logits(model), atol=1e-4)
    assert not torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES[:4])
@pytest.mark.parametrize("way", ["prefix", "prompt"])
def test_answers_behind_virtual_tokens_are_those_of_peft(folders: dict[str, Path], family: str, way: str) -> None:
    torch.manual_seed(1)
    model: Any = begun(folders[family], part(**WAYS[way])).eval()
    answerer = Answerer(model, byte_tokenizer(CHATML, eos_token="<|im_end|>"))
    answerer.stops = frozenset()
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [7, 7, 9, 200, 100, 33, 21, 60, 3]]
    expected = []
    for p in prompts:
        ids = torch.tensor([p])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                             eos_token_id=None)  # fmt: skip
        expected.append(out[0].tolist()[-6:])
    assert [[step[0] for step in answerer._decode([p], 6, Sampling())] for p in prompts] == expected
    if not answerer.alone:
        assert [list(row) for row in zip(*answerer._decode(prompts, 6, Sampling()), strict=True)] == expected
    assert answerer.alone == (family == "gemma3_text" and way == "prefix")


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_a_prefix_begins_as_a_text_that_the_model_has_read(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first step the model answers as if that text stood in front: nothing is ruined."""
    text, ids = [7, 9, 200, 33], torch.tensor([[5, 6, 7, 8, 9, 10]])
    monkeypatch.setattr(virtual, "_text", lambda *_: text)
    model: Any = begun(
        folders[family], part(method="ptuning_v2", virtual={"tokens": 4, "text": "four words of it"})
    ).eval()
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        whole = model.get_base_model()(input_ids=torch.cat([torch.tensor([text]), ids], 1)).logits[:, len(text) :]
        assert torch.allclose(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, whole, atol=1e-4)
        ours = LossModel(model).head(states(model, ids, places, (ids.shape[1],)))
        assert torch.allclose(ours, whole[0], atol=1e-4)
    drawn: Any = begun(folders[family], part(method="ptuning_v2", virtual={"tokens": 4})).eval()
    with torch.no_grad():
        prefix = drawn.get_prompt(1)
        own = drawn.get_base_model()(input_ids=ids, use_cache=True).past_key_values
    # Of the size of real keys and values, not of a unit normal distribution.
    for mine, real in zip(prefix.layers, own.layers, strict=True):
        assert 0.2 < float(mine.values.std() / real.values.std()) < 5


def test_going_on_from_an_adapter_begins_where_it_ended(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, tokenizer = folders["llama"], byte_tokenizer(CHATML)
    for way in ("pissa", "olora-dora", "prefix", "projected", "prompt"):
        model = begun(folder, part(**WAYS[way]))
        stepped(model)
        save_result(model, tokenizer, folder, tmp_path / way)
        train = part(**{**WAYS[way], "adapter": str(tmp_path / way)})
        again = begun(folder, train)
        assert torch.allclose(logits(again), logits(model), atol=1e-4), way
        stepped(again)
        assert not torch.allclose(logits(again), logits(model), atol=1e-4), way
        assert any(str(tmp_path / way) in line for line in notes(again, train))


def test_an_adapter_of_another_base_or_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, tokenizer = folders["llama"], byte_tokenizer(CHATML)
    save_result(begun(folder, part(**WAYS["lora"])), tokenizer, folder, tmp_path / "lora")
    other = tiny_folder(tmp_path / "other", "llama", vocab_size=WORDS, hidden_act="gelu")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(other)
    wanted = part(lora={"rank": 2}, adapter=str(tmp_path / "lora"))
    assert code(begun, other, wanted).code == "TL-MODEL-ADAPTER-BASE"
    assert code(begun, folders["gemma3_text"], wanted).code == "TL-MODEL-ADAPTER-BASE"
    (tmp_path / "lora" / "base.json").unlink()  # of one made elsewhere the shapes are known
    require_same_base(tmp_path / "lora", other)
    assert code(begun, tiny_folder(tmp_path / "wide", "llama", hidden_size=64, vocab_size=WORDS), wanted).code == (
        "TL-MODEL-ADAPTER-BASE"
    )
    kind = part(method="prompt_tuning", adapter=str(tmp_path / "lora"))
    assert code(begun, folder, kind).code == "TL-MODEL-METHOD"
    assert code(read_config, tmp_path).code == "TL-MODEL-NO-ADAPTER"


def test_adapters_are_stacked_into_a_model_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    base, tokenizer = tmp_path / "base", byte_tokenizer(CHATML)
    shutil.copytree(folders["qwen3"], base)
    tokenizer.save_pretrained(base)
    for k, way in enumerate(("lora", "pissa")):
        model = begun(base, part(**WAYS[way]))
        stepped(model, k + 1)
        save_result(model, tokenizer, base, tmp_path / way)
    every = [tmp_path / "lora", tmp_path / "pissa"]
    made = stacked(load_model(base), base, every, tmp_path / "stacked")
    whole = {n: p.detach() for n, p in load_model(made).named_parameters()}
    start = {n: p.detach() for n, p in load_model(base).named_parameters()}
    for name in start:
        change = torch.zeros_like(start[name])
        for adapter in every:
            merged = with_adapter(load_model(base), adapter).merge_and_unload()
            change += dict(merged.named_parameters())[name].detach() - start[name]
        assert torch.allclose(whole[name], start[name] + change, atol=1e-5)
    assert any(not torch.equal(whole[n], start[n]) for n in start)
    assert (made / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    save_result(begun(base, part(**WAYS["prefix"])), tokenizer, base, tmp_path / "prefix")
    assert code(stacked, load_model(base), base, [tmp_path / "prefix"], tmp_path / "x").code == "TL-MODEL-METHOD"
    assert not (tmp_path / "x").exists()


def test_a_saved_adapter_says_which_weights_it_is_of(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["llama"]
    save_result(begun(folder, part(**WAYS["pissa"])), byte_tokenizer(CHATML), folder, tmp_path)
    config = read_config(tmp_path)
    assert (config["init_lora_weights"], config["r"], config["lora_alpha"]) == (True, 4, 32)
    assert config["base_model_name_or_path"] == str(folder)
    assert len(json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))["mark"]) == 12


def test_a_run_goes_on_from_another_and_one_stands_on_a_merged_base(
    tiny_run: Path, tiny_model: Path, talk_file: Path
) -> None:
    from tuneloop import pipeline
    from tuneloop.inference.trained import load_trained
    from tuneloop.recipe.recipe import make_recipe

    workspace = tiny_run.parent.parent

    def run(**train: Any) -> Path:
        settings = {"max_steps": 2, "learning_rate": 0.01, **train}
        recipe, _ = make_recipe({"name": "more", "model": str(tiny_model), "data": str(talk_file), "train": settings})
        return pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace).path

    on = run(adapter=str(tiny_run), lora={"rank": 64})
    assert read_config(on / "adapter")["r"] == 4, "the adapter's own rank holds"
    merged = run(merge=[str(tiny_run / "adapter")], method="qlora", lora={"rank": 2})
    assert json.loads((merged / "merged.json").read_text(encoding="utf-8"))["base"] == str(tiny_model)
    trained = load_trained(merged)
    assert quantize.is_quantized(trained.model)
    assert Path(read_config(merged / "adapter")["base_model_name_or_path"]) == merged / "base"
    before = {p.name for p in (workspace / "runs").iterdir()}
    assert code(lambda: run(adapter="nothing-here")).code == "TL-MODEL-NO-ADAPTER"
    assert code(lambda: run(method="prompt_tuning", adapter=str(tiny_run))).code == "TL-MODEL-METHOD"
    assert {p.name for p in (workspace / "runs").iterdir()} == before
