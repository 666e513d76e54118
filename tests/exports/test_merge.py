"""Merge: the exported folder is the trained model, whole or absent, and others stop where it was taught to."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneloop.base.errors import MachineError, RunError
from tuneloop.exports import merge as merging
from tuneloop.exports.evidence import dialogues
from tuneloop.exports.merge import merge
from tuneloop.exports.parity import Parity
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model.load import load_model

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble."}]


@pytest.fixture(scope="module")
def merged(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parity]:
    target = tmp_path_factory.mktemp("exports") / "deep" / "tiny"
    return target, merge(tiny_run, target, chats=[CHAT])


def test_the_proof_is_in_the_folder(merged: tuple[Path, Parity]) -> None:
    target, parity = merged
    assert parity.passed
    assert parity.same_tokens == parity.of > 0
    assert parity.max_logit_difference < 1e-3
    assert json.loads((target / "parity.json").read_text()) == parity.as_dict()
    assert [p.name for p in target.parent.iterdir()] == ["tiny"]


def test_transformers_loads_it_and_says_what_the_run_says(tiny_run: Path, merged: tuple[Path, Parity]) -> None:
    target, _ = merged
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    trained = load_trained(tiny_run)
    ours = Answerer(trained.model, trained.tokenizer).answer([CHAT[:1]], max_new_tokens=16)[0]
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) == ours.text


def test_it_is_not_the_base_model(tiny_model: Path, merged: tuple[Path, Parity]) -> None:
    target, _ = merged
    before, after = load_model(tiny_model).state_dict(), load_model(target).state_dict()
    assert before.keys() == after.keys()
    assert not any("lora" in name for name in after)
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_the_folder_is_plain(merged: tuple[Path, Parity]) -> None:
    target, _ = merged
    names = {p.name for p in target.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert not names & {"adapter_config.json", "pytorch_model.bin"}
    with safe_open(target / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) > 0
    modes = {stat.S_IMODE(p.stat().st_mode) for p in target.iterdir()}
    assert len(modes) == 1


def test_other_tools_stop_at_the_templates_end(tiny_run: Path, merged: tuple[Path, Parity]) -> None:
    target, _ = merged
    config = json.loads((target / "generation_config.json").read_text())
    tokenizer = load_tokenizer(target)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in config["eos_token_id"]


def test_an_existing_target_is_not_touched(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunError) as caught:
        merge(tiny_run, tmp_path / "mine")
    assert caught.value.code == "TL-RUN-EXISTS"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="TL-RUN-MISSING"):
        merge(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_leaves_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read back from the disk counts: here the disk gives back other weights than were written."""

    def damaged(folder: Path, *how: Any) -> Any:
        model = load_model(folder, *how)
        with torch.no_grad():
            model.model.norm.weight *= 1.1
        return model

    monkeypatch.setattr(merging, "load_model", damaged)
    with pytest.raises(RunError) as caught:
        merge(tiny_run, tmp_path / "out")
    assert caught.value.code == "TL-RUN-PARITY"
    assert str(tmp_path / "out") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_adapter_weights_that_are_no_numbers(tiny_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = Path(shutil.copytree(tiny_run, tmp_path / "bad-1"))
    file = run / "adapter" / "adapter_model.safetensors"
    save_file({n: torch.full_like(w, float("nan")) for n, w in load_file(file).items()}, file)
    with pytest.raises(RunError) as caught:
        merge(run, tmp_path / "out")
    assert caught.value.code in {"TL-RUN-NOT-FINITE", "TL-RUN-PARITY"}
    assert [p.name for p in tmp_path.iterdir()] == ["bad-1"]


def test_a_full_disk_is_said_before_anything_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    with pytest.raises(MachineError) as caught:
        merge(tiny_run, tmp_path / "out")
    assert caught.value.code == "TL-MACHINE-DISK"
    assert list(tmp_path.iterdir()) == []


def test_without_dialogues_it_asks_its_own_questions(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "bare-1"))
    (run / "evaluation.json").unlink(missing_ok=True)
    assert dialogues(run) == []
    assert merge(run, tmp_path / "out").of > 0


def test_a_greedy_configuration_with_a_temperature(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Some published models carry a temperature and do_sample: false; transformers refuses to write that again."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": False}))
    run = Path(shutil.copytree(tiny_run, tmp_path / "odd-1"))
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace(str(tiny_model), str(base))
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    assert merge(run, tmp_path / "out", chats=[CHAT]).passed


def test_in_bfloat16_too(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "half-1"))
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace("dtype: auto", "dtype: bfloat16")
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    parity = merge(run, tmp_path / "out", chats=[CHAT])
    assert parity.passed
    assert parity.tolerance > 1e-3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
