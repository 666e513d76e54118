"""Merge: the exported folder is the trained model, whole or absent, and others stop where it was taught to."""

from __future__ import annotations

import filecmp
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
from tuneloop.exports import proof as proofs
from tuneloop.exports import streamed
from tuneloop.exports.composition import composition
from tuneloop.exports.evidence import dialogues
from tuneloop.exports.export import export
from tuneloop.exports.merge import merge as merge_folder
from tuneloop.exports.parity import Parity
from tuneloop.exports.reference import reference
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model.load import load_model

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble."}]


def merge(run: Path, target: Path, **options: Any) -> Parity:
    return export(run, target, **options)["merged"].parity


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

    monkeypatch.setattr(proofs, "load_model", damaged)
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


def test_another_type_is_written_as_asked(tiny_run: Path, tmp_path: Path) -> None:
    parity = merge(tiny_run, tmp_path / "out", dtype="float16", chats=[CHAT])
    assert parity.passed
    assert parity.tolerance > 1e-3
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_finer_type_than_the_trained_one(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "half-1"))
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace("dtype: auto", "dtype: bfloat16")
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    assert merge(run, tmp_path / "out", dtype="float32", chats=[CHAT]).passed


def test_a_stream_gives_what_peft_gives(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files to the bit: weights, config and all, with two adapters, in each type."""
    one = reference(composition(tiny_run, [tiny_run / "adapter"]), [CHAT])
    for dtype in ("float32", "bfloat16"):
        merge_folder(one, tmp_path / f"streamed-{dtype}", dtype)
    assert streamed.additions(one.parts.weights, one.head, one.parts.adapters, torch.float32)
    monkeypatch.setattr(streamed, "additions", lambda *parts: None)
    monkeypatch.setattr(streamed, "write", None)
    for dtype in ("float32", "bfloat16"):
        merge_folder(one, tmp_path / f"peft-{dtype}", dtype)
        streamed_folder, ours = tmp_path / f"streamed-{dtype}", tmp_path / f"peft-{dtype}"
        names = sorted(path.name for path in ours.iterdir())
        assert sorted(path.name for path in streamed_folder.iterdir()) == names
        assert filecmp.cmpfiles(streamed_folder, ours, names, shallow=False)[0] == names


def test_two_adapters_are_added_in_order(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "two-1"))
    twice = export(run, tmp_path / "twice", more=[tiny_run / "adapter"], chats=[CHAT])["merged"]
    assert twice.parity.passed
    once = merge(run, tmp_path / "once", chats=[CHAT])
    assert once.passed
    base, single, double = (
        load_model(folder).state_dict() for folder in (composition(run).weights, tmp_path / "once", tmp_path / "twice")
    )
    changed = [name for name in base if not torch.equal(base[name], single[name])]
    assert changed
    for name in changed:
        assert torch.allclose(double[name] - base[name], 2 * (single[name] - base[name]), atol=1e-6)


def test_shards_stay_shards(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(base, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model / name, base / name)
    run = _moved(tiny_run, tiny_model, base, tmp_path / "cut-1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert merge(run, cut, chats=[CHAT]).passed
    assert merge(tiny_run, whole, chats=[CHAT]).passed
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    ours, theirs = load_model(cut).state_dict(), load_model(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_of_other_weights(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    model.save_pretrained(base)
    run = _moved(tiny_run, tiny_model, base, tmp_path / "odd-1", digest=True)
    with pytest.raises(RunError) as caught:
        merge(run, tmp_path / "out")
    assert caught.value.code == "TL-RUN-OTHER-BASE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "odd-1"]


def _moved(run: Path, was: Path, base: Path, target: Path, *, digest: bool = False) -> Path:
    """A copy of a run on another base folder; its record of the old one is left out unless `digest`."""
    shutil.copytree(run, target)
    text = (target / "recipe.yaml").read_text(encoding="utf-8").replace(str(was), str(base))
    (target / "recipe.yaml").write_text(text, encoding="utf-8")
    if not digest:
        (target / "adapter" / "base.json").unlink()
    return target
