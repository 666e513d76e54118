"""What is trained is what is exported, merged and gone on from: the weights that a run was measured on, and no others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from tests import encoders
from tests.conftest import TALK, byte_tokenizer, tiny_folder
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import ModelError, RunError
from tuneloop.data.tokens.templates import CHATML
from tuneloop.data.version import dataset as datasets
from tuneloop.evaluation.before_after import held_out_loss
from tuneloop.exports import parity, streamed
from tuneloop.exports import reference as references
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.methods import adapters
from tuneloop.methods.table import notes
from tuneloop.methods.wrap import wrap
from tuneloop.model import quantize
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.registry.versions import locate
from tuneloop.runs.run import Run
from tuneloop.training.adapter_card import code
from tuneloop.training.model_folder import save_result

ROWS = [{"prompt": f"{q} {n}", "completion": a} for n in range(4) for q, a in TALK]
LORA = {"rank": 4, "targets": ["q_proj", "v_proj"]}


def made(workspace: Path, model: Path | str, name: str, **train: Any) -> Run:
    """A run that has moved far enough that another base is another model."""
    settings = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 2e-2,
        **({} if train.get("method") == "full" else {"lora": LORA}),
        **train,
    }
    recipe, _ = make_recipe({
        "name": name, "model": str(model), "data": str(jsonl(workspace / "rows.jsonl", ROWS)), "train": settings,
        "prepare": {"validation": 6, "max_length": 120}, "evaluate": {"rows": 2, "max_new_tokens": 4},
    })  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)


def held(run: Run) -> list[Any]:
    folder = run.dataset()
    assert folder is not None
    return datasets.open_dataset(folder).records("validation")


def loss(model: Any, tokenizer: Any, run: Run) -> float:
    total, tokens = held_out_loss(model.eval(), tokenizer, 2048)(list(held(run)))
    return total / tokens


def _reported(run: Run) -> dict[str, Any]:
    return run.read("evaluation.json") or pipeline.evaluate(run)


def ended(run: Run) -> float:
    """The held-out loss that the run reported."""
    return float(_reported(run)["after"]["loss"])


def began(run: Run) -> float:
    return float(_reported(run)["before"]["loss"])


def of_folder(folder: Path, run: Run) -> float:
    return loss(load_model(folder), load_tokenizer(folder), run)


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are so far from each other that 4 bits of them are other weights; head and embeddings are
    one tensor."""
    folder = tiny_folder(tmp_path_factory.mktemp("rough") / "m", "llama", vocab_size=480, hidden_size=64,
                         intermediate_size=128, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
                         bos_token_id=None)  # fmt: skip
    byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "nf4": {"method": "qlora"},
    "nf4, scales whole": {"method": "qlora", "qlora": {"double": False}},
    "head": {"lora": {"rank": 4, "targets": ["q_proj", "lm_head"]}},
    "embeddings": {"lora": {"rank": 4, "targets": ["q_proj", "embed_tokens"]}},
    "both": {"lora": {"rank": 4, "targets": ["embed_tokens", "lm_head"]}},
    "nf4 and head": {"method": "qlora", "lora": {"rank": 4, "targets": ["q_proj", "lm_head"]}},
    "also the head": {"lora": {**LORA, "train_also": ["lm_head"]}},
    "pissa": {"lora": {**LORA, "init": "pissa"}},
}


QUICK = {"lora", "nf4 and head", "both", "also the head", "pissa"}
"""Each way's parts once: 4 bits, an untied head, untied embeddings, a whole tensor, weights that were changed before."""


@pytest.mark.parametrize("way", [pytest.param(w, marks=() if w in QUICK else pytest.mark.slow) for w in WAYS])
def test_the_export_and_a_merge_are_the_model_that_was_measured(way: str, rough: Path, tmp_path: Path) -> None:
    run = made(tmp_path, rough, "a", **WAYS[way])
    measured = ended(run)
    assert abs(measured - began(run)) > 3e-3, "a run that changes nothing shows nothing"
    found = pipeline.export(run.path, tmp_path / "out")
    assert found.passed
    assert found.trained_loss == pytest.approx(measured, abs=1e-3)
    assert of_folder(tmp_path / "out", run) == pytest.approx(measured, abs=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert loss(plain, load_tokenizer(tmp_path / "out"), run) == pytest.approx(measured, abs=1e-3)
    if "also" in way:  # a merge adds LoRA adapters; whole tensors are in it as well
        return
    on = made(tmp_path, rough, "on", merge=[str(run.path)], max_steps=1, learning_rate=1e-9)
    assert began(on) == pytest.approx(measured, abs=1e-3)


def test_a_merge_of_merges(rough: Path, tmp_path: Path) -> None:
    """Each run begins where the one before it ended, whatever held its weights; the last is exported."""
    one = made(tmp_path, rough, "one", method="qlora")
    two = made(tmp_path, rough, "two", merge=[str(one.path)])
    assert began(two) == pytest.approx(ended(one), abs=1e-3)
    three = made(tmp_path, two.path / "base", "three", merge=[str(two.path)])
    assert began(three) == pytest.approx(ended(two), abs=1e-3)
    assert pipeline.export(three.path, tmp_path / "out").passed
    assert of_folder(tmp_path / "out", three) == pytest.approx(ended(three), abs=1e-3)


def test_int8_tells_both_losses(rough: Path, tmp_path: Path) -> None:
    run = made(tmp_path, rough, "a", method="qlora", qlora={"bits": "int8"})
    found = pipeline.export(run.path, tmp_path / "out")
    assert found.passed
    assert found.rounded
    assert found.trained_loss == pytest.approx(ended(run), abs=2e-2)
    assert found.exported_loss == pytest.approx(of_folder(tmp_path / "out", run), abs=1e-3)
    assert found.loss_tolerance is not None
    assert abs((found.trained_loss or 0) - (found.exported_loss or 0)) <= found.loss_tolerance
    assert f"{found.trained_loss:.4f}" in found.line()
    assert f"{found.exported_loss:.4f}" in found.line()


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_a_merge_into_other_weights_is_no_proof(
    bits: str, rough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter of a qlora run added into weights that were never quantised: a model that nobody trained."""
    run = made(tmp_path, rough, "a", method="qlora", qlora={"bits": bits})

    def unquantised(base: Path, recipe: Any, head: Any) -> Any:
        return load_model(base, recipe.model.dtype, head)

    monkeypatch.setattr(streamed.quantize, "numbers", lambda weight, part: weight)
    monkeypatch.setattr(references, "untrained_model", unquantised)
    if bits == "int8":  # its evidence is taken from the dequantised weights as well: the losses tell
        monkeypatch.setattr(parity, "PEAK", 0.0)
    with pytest.raises(RunError) as caught:
        pipeline.export(run.path, tmp_path / "out")
    assert caught.value.code == "TL-RUN-PARITY"
    assert not (tmp_path / "out").exists()
    trained, chats = (
        load_trained(run.path),
        [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]],
    )
    wrong = PeftModel.from_pretrained(load_model(rough), run.path / "adapter").merge_and_unload()
    evidence = parity.measure(trained.model, trained.tokenizer, chats)
    assert not parity.compare(evidence, parity.measure(wrong, trained.tokenizer, chats)).passed


def test_going_on_with_weights_held_otherwise_is_refused(rough: Path, tmp_path: Path) -> None:
    four = made(tmp_path, rough, "four", method="qlora")
    whole = made(tmp_path, rough, "whole")
    wrong: list[tuple[Run, dict[str, Any]]] = [
        (four, {}), (whole, {"method": "qlora"}), (four, {"method": "qlora", "qlora": {"bits": "int8"}}),
    ]  # fmt: skip
    for parent, train in wrong:
        with pytest.raises(ModelError) as caught:
            made(tmp_path, rough, "on", adapter=str(parent.path), **train)
        assert (caught.value.code, caught.value.where) == ("TL-MODEL-METHOD", "train.adapter")
    with pytest.raises(ModelError) as caught:
        made(tmp_path, rough, "on", merge=[str(four.path), str(whole.path)])
    assert (caught.value.code, caught.value.where) == ("TL-MODEL-METHOD", "train.merge")
    on = made(tmp_path, rough, "on", adapter=str(four.path), method="qlora")
    assert began(on) == pytest.approx(ended(four), abs=1e-3)
    # Runs of earlier versions: only the recipe beside the adapter says how its weights were held.
    base = four.path / "adapter" / "base.json"
    base.write_text(json.dumps({"mark": json.loads(base.read_text(encoding="utf-8"))["mark"]}), encoding="utf-8")
    merged = made(tmp_path, rough, "old", merge=[str(four.path)])
    assert began(merged) == pytest.approx(ended(four), abs=1e-3)


@pytest.mark.parametrize("way", ["lora", "nf4", "nf4, scales whole"])
def test_the_cards_code_makes_the_model_that_was_measured(
    way: str, rough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path, rough, "a", **WAYS[way])
    text = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    source = text.split("```python\n")[1].split("```")[0]
    assert source == code(load_trained(run.path).recipe)
    monkeypatch.chdir(run.path / "adapter")
    there: dict[str, Any] = {}
    exec(source, there)
    assert isinstance(there["model"], PeftModel)
    quantize.settle(there["model"])  # else bitsandbytes computes in bfloat16 on processors that can
    assert loss(there["model"], there["tokenizer"], run) == pytest.approx(ended(run), abs=1e-3)


def test_a_merge_that_answers_otherwise_is_refused(
    rough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path, rough, "a", lora={"rank": 4, "targets": ["q_proj", "lm_head"]})
    monkeypatch.setattr(adapters, "untied", lambda *_: None)
    with pytest.raises(ModelError) as caught:
        made(tmp_path, rough, "on", merge=[str(run.path)])
    assert caught.value.code == "TL-MODEL-MERGE"
    assert not (tmp_path / "runs" / "on-1").exists()


@pytest.mark.parametrize("family", [pytest.param("qwen2", marks=pytest.mark.slow), "gemma3_text", "gpt2"])
def test_lora_on_a_tied_head_is_said_and_exported(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"vocab_size": 480, "tie_word_embeddings": True, "bos_token_id": None, "max_position_embeddings": 512}
    folder = tiny_folder(tmp_path / "m", family, **({**more, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
                                                   if family == "gpt2" else more))  # fmt: skip
    byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    run = made(tmp_path, folder, "a", lora={"rank": 4, "targets": ["lm_head"]}, learning_rate=1e-2)
    assert "one tensor" in capsys.readouterr().err
    assert pipeline.export(run.path, tmp_path / "out").passed
    assert of_folder(tmp_path / "out", run) == pytest.approx(ended(run), abs=1e-3)
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False


def test_a_moved_workspace_and_a_deleted_parent(rough: Path, tmp_path: Path) -> None:
    """Everything of a run is found beside its recipe."""
    old = tmp_path / "A"
    a = made(old, rough, "a")
    m, c = made(old, rough, "m", merge=[str(a.path)]), made(old, rough, "c", adapter=str(a.path))
    before = {run.name: pipeline.evaluate(run) for run in (m, c)}
    assert adapters.came_from(c.path / "begun") == str((a.path / "adapter").resolve())
    pipeline.register(m, workspace=old)
    new = tmp_path / "B"
    old.rename(new)
    shutil.rmtree(new / "runs" / "a-1")
    for name, evaluation in before.items():
        again = pipeline.evaluate(Run(new / "runs" / name))
        for side in ("before", "after"):
            assert again[side]["loss"] == pytest.approx(evaluation[side]["loss"], abs=1e-4), (name, side)
    assert pipeline.export(new / "runs" / "m-1", tmp_path / "out").passed
    # A version outlives its run, and so does what its weights belong on.
    shutil.rmtree(new / "runs" / "m-1")
    version = locate(new, "m")
    assert version is not None
    assert load_trained(version).model is not None


def test_a_run_of_an_earlier_version_whose_parent_is_gone(rough: Path, tmp_path: Path) -> None:
    """It has no copy of what it began with: nothing is measured from another beginning, and nothing overwritten."""
    old = tmp_path / "A"
    a, m = made(old, rough, "a"), None
    c, m = made(old, rough, "c", adapter=str(a.path)), made(old, rough, "m", merge=[str(a.path)])
    shutil.rmtree(c.path / "begun")
    for run, ours, theirs in ((c, "./begun", a.path / "adapter"), (m, "./base", m.path / "base")):
        text = run.recipe.read_text(encoding="utf-8")
        assert ours in text
        run.recipe.write_text(text.replace(ours, str(theirs.resolve())), encoding="utf-8")
    measured = {run.name: pipeline.evaluate(run)["before"]["loss"] for run in (c, m)}
    new = tmp_path / "B"
    old.rename(new)
    for name, was in measured.items():  # moved: all of it is found
        assert pipeline.evaluate(Run(new / "runs" / name))["before"]["loss"] == pytest.approx(was, abs=1e-4)
    shutil.rmtree(new / "runs" / "a-1")
    run = Run(new / "runs" / "c-1")
    kept = {name: (run.path / name).read_bytes() for name in ("evaluation.json", "report.html")}
    with pytest.raises(RunError) as caught:
        pipeline.evaluate(run)
    assert caught.value.code == "TL-RUN-BEGINNING"
    assert "runs/a-1/adapter" in str(caught.value)
    assert kept == {name: (run.path / name).read_bytes() for name in kept}


GBK = """import builtins, io
_open = io.open
def open(file, mode="r", buffering=-1, encoding=None, *a, **k):
    if "b" not in mode and encoding in (None, "locale"):
        encoding = "gbk"
    return _open(file, mode, buffering, encoding, *a, **k)
builtins.open = io.open = open
"""
"""Text files are in GBK by default, as on Chinese Windows."""


@pytest.mark.slow
def test_a_base_with_a_chinese_name_whatever_the_locale(rough: Path, tmp_path: Path) -> None:
    """adapter_config.json is read by PEFT in the locale's encoding; a file that cannot be read is not another base."""
    project = tmp_path / "项目"
    model = Path(shutil.copytree(rough, project / "模型"))
    run = made(project, model, "a", max_steps=2)
    names = [*(run.path / "adapter").glob("*.json"), *(project / "模型").glob("config.json")]
    pipeline.export(run.path, project / "导出")
    names += [p for p in (project / "导出").glob("*.json")]
    assert [p.name for p in names if not p.read_bytes().isascii() and p.name != "tokenizer.json"] == []
    assert "\\u9879" in (run.path / "adapter" / "adapter_config.json").read_text(encoding="ascii")
    plain = "import sys; from peft import PeftConfig; print(ascii(PeftConfig.from_pretrained(sys.argv[1]).base_model_name_or_path))"
    simulated = tmp_path / "gbk"
    simulated.mkdir()
    (simulated / "sitecustomize.py").write_text(GBK, encoding="utf-8")
    copy = shutil.copytree(run.path / "adapter", tmp_path / "copy")
    posix = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    gbk = {"PYTHONPATH": f"{simulated}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", plain, str(copy)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **posix},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u6a21" in done.stdout
    # One that an earlier version has written in UTF-8 is read as well, whatever the locale says.
    config = run.path / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    ours = "import sys; from pathlib import Path; from tuneloop.inference.trained import load_trained; load_trained(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ours, str(run.path)], capture_output=True, text=True,
                          encoding="utf-8", errors="replace", env={**os.environ, **gbk}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    config.write_bytes(b'{"peft_type": "LORA", "base": "\xff"}')
    with pytest.raises(RunError) as caught:
        load_trained(run.path)
    assert caught.value.code == "TL-RUN-DAMAGED"


def test_the_classifiers_card_loads_its_4_bits(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "bert", "bert")
    rows = [{"text": f"{w} film", "label": ["neg", "pos"][k % 2]} for k, w in enumerate(encoders.WORDS * 2)]
    recipe, _ = make_recipe({
        "name": "c", "model": str(folder), "data": str(jsonl(tmp_path / "rows.jsonl", rows)),
        "prepare": {"validation": 4, "max_length": 60, "dedupe": "off"},
        "train": {"task": "classify", "method": "qlora", "max_steps": 3, "learning_rate": 1e-2, "lora": {"rank": 2}},
    })  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    text = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    source = (
        text.split("```python\n")[1].split("```")[0].replace('folder = "."', f"folder = {str(run.path / 'adapter')!r}")
    )
    there: dict[str, Any] = {}
    exec(source, there)
    quantize.settle(there["model"])
    ids = torch.tensor([[2, 7, 12, 3]])
    with torch.no_grad():
        theirs, ours = there["model"].eval()(ids).logits, load_trained(run.path).model(ids).logits
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert pipeline.export(run.path, tmp_path / "out").passed


def test_plain_peft_loads_the_adapter(rough: Path, tmp_path: Path) -> None:
    run = made(tmp_path, rough, "a")
    model = AutoPeftModelForCausalLM.from_pretrained(run.path / "adapter")
    assert loss(model, load_tokenizer(run.path / "adapter"), run) == pytest.approx(ended(run), abs=1e-3)


@pytest.mark.parametrize(("family", "target"), [("bert", "decoder"), ("bert", "word_embeddings"), ("modernbert", "decoder"),
                                               ("distilbert", "vocab_projector")])  # fmt: skip
def test_a_tied_head_of_masked_words_is_untied_as_well(family: str, target: str, tmp_path: Path) -> None:
    base, head = encoders.folder(tmp_path / "m", family), Head("masked")
    model = wrap(load_model(base, head=head), TrainPart.model_validate({"lora": {"rank": 2, "targets": [target]}}), 0)
    assert any("one tensor" in line for line in notes(model, TrainPart()))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    save_result(model, encoders.tokenizer(), base, tmp_path / "a")
    whole = adapters.added(load_model(base, head=head), tmp_path / "a")
    whole.save_pretrained(tmp_path / "out")
    ids = torch.tensor([[2, 7, 12, 4, 9, 3]])
    with torch.no_grad():
        before, trained = load_model(base, head=head)(ids).logits, model.eval()(ids).logits
        assert torch.allclose(load_model(tmp_path / "out", head=head)(ids).logits, trained, atol=1e-4)
    assert not torch.allclose(before, trained, atol=1e-2)
