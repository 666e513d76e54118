"""Parts of a run that are damaged, changed after training or would go unused: refused by name, before a model loads."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tuneloop import pipeline
from tuneloop.base.errors import TuneloopError
from tuneloop.exports import export as exports
from tuneloop.exports import reference as references
from tuneloop.exports.soundness import notes_on_bases
from tuneloop.hub import folder_check
from tuneloop.model.load import load_model

CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny run whose model must not be loaded."""

    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(exports, "reference", loaded)
    return Path(shutil.copytree(tiny_run, tmp_path / "tiny-1"))


def forget(run: Path) -> None:
    """As a run of an earlier version, which recorded no digests when it ended."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    older = [{k: v for k, v in one.items() if k not in ("weights", "adapter_config", "template")} for one in lines]
    (run / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in older), encoding="utf-8")


def refused(run: Path, target: str = "merged", **more: Any) -> TuneloopError:
    """What exporting raises; nothing may be left."""
    to = run.parent / "out" / "there"
    with pytest.raises(TuneloopError) as caught:
        pipeline.export_all(run, to, [target], **more)
    assert not to.parent.exists() or not list(to.parent.iterdir())
    return caught.value


def settings(run: Path, **changed: Any) -> None:
    file = run / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def tensors(run: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(run / WEIGHTS)
    change(weights)
    save_file(weights, run / WEIGHTS)


@pytest.mark.parametrize("target", ["merged", "adapter", "gguf-lora"])
@pytest.mark.parametrize("length", [0, 5, 1000])
def test_an_adapter_that_is_cut_off(target: str, length: int, run: Path) -> None:
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:length])
    error = refused(run, target)
    assert error.code == "TL-MODEL-TRUNCATED"
    assert error.where == str(run / WEIGHTS)
    assert "tuneloop train --resume" in error.do


@pytest.mark.parametrize("target", ["merged", "adapter", "gguf-q8_0", "nf4"])
def test_an_adapter_of_no_numbers(target: str, run: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values()))[0, 0] = float("nan")

    tensors(run, change)
    error = refused(run, target)
    assert (error.code, error.where) == ("TL-RUN-NOT-FINITE", str(run / WEIGHTS))


def test_a_model_that_computes_no_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are finite, of a size at which the model's numbers are not."""
    monkeypatch.setattr(exports, "reference", references.reference)

    def change(weights: dict[str, torch.Tensor]) -> None:
        for weight in weights.values():
            weight.fill_(1e18)

    tensors(run, change)
    forget(run)
    error = refused(run)
    assert error.code == "TL-RUN-NOT-FINITE"
    assert str(run / "adapter") in error.where


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "the alpha": ({"lora_alpha": 800}, "changed after training"),
    "a rank in words": ({"r": "x"}, '"x"'),
    "a negative rank": ({"r": -1}, "-1"),
    "a rank without end": ({"r": 10**9}, "1000000000"),
    "a rank that is not its tensors'": ({"r": 8}, "8"),
    "an alpha that is no number": ({"lora_alpha": float("nan")}, "NaN"),
    "no modules": ({"target_modules": []}, "target_modules"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_an_adapters_config_that_was_changed(case: str, run: Path) -> None:
    """It is the file that is damaged, and not the base that is another."""
    changed, word = CHANGED[case]
    settings(run, **changed)
    error = refused(run)
    assert (error.code, error.where) == ("TL-RUN-DAMAGED", str(run / CONFIG))
    assert word in str(error)


def test_weights_that_were_changed(run: Path) -> None:
    tensors(run, lambda weights: next(iter(weights.values())).mul_(2))
    assert refused(run).code == "TL-RUN-WEIGHTS-CHANGED"


def test_a_template_that_was_changed(run: Path) -> None:
    file = run / "adapter" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    error = refused(run)
    assert (error.code, error.where) == ("TL-RUN-PARITY", str(file))
    assert "changed after training" in str(error)


@pytest.mark.parametrize("text", ["{{ raise_exception('no') }}", "{% broken"])
def test_a_template_that_cannot_render(text: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is about the run's file, not about a dialogue of the user's."""
    monkeypatch.setattr(exports, "reference", references.reference)
    file = run / "adapter" / "chat_template.jinja"
    file.write_text(text, encoding="utf-8")
    forget(run)
    error = refused(run)
    assert (error.code, error.where) == ("TL-DATA-TEMPLATE", str(file))


def test_a_tensor_that_has_no_place(run: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if ".layers.0." in name)
        weights[name.replace(".layers.0.", ".layers.7.")] = weights[name].clone()

    tensors(run, change)
    forget(run)
    error = refused(run)
    assert error.code == "TL-MODEL-ADAPTER-BASE"
    assert ".layers.7." in str(error)


BASES: dict[str, tuple[str, str | dict[str, Any], str]] = {
    "a size in words": ("config.json", {"hidden_size": "x"}, "hidden_size"),
    "positions in words": ("config.json", {"max_position_embeddings": "abc"}, "max_position_embeddings"),
    "no such type": ("config.json", {"model_type": "nonsense"}, "nonsense"),
    "a path for a type": ("config.json", {"model_type": "../../x"}, "../../x"),
    "no such dtype": ("config.json", {"dtype": "float8_nope", "torch_dtype": "float8_nope"}, "float8_nope"),
    "a million layers": ("config.json", {"num_hidden_layers": 10**6}, "1,000,000 layers"),
    "fewer layers": ("config.json", {"num_hidden_layers": 1}, "layers.1."),
    "a larger vocabulary": ("config.json", {"vocab_size": 10**10}, "embed_tokens"),
    "no rope": ("config.json", {"rope_scaling": {"type": "nope"}, "rope_parameters": {"rope_type": "nope"}}, "nope"),
    "half a file": ("generation_config.json", "[", "generation_config.json"),
    "a penalty in words": ("generation_config.json", {"repetition_penalty": "<"}, "repetition_penalty"),
    "an end token in words": ("generation_config.json", {"eos_token_id": [1, "x"]}, "eos_token_id"),
    "broken provenance": ("tuneloop.json", "[[[", "tuneloop.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_a_base_whose_files_are_broken(case: str, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    name, content, word = BASES[case]
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    if isinstance(content, dict):
        there = json.loads((base / name).read_text(encoding="utf-8")) if (base / name).is_file() else {}
        content = json.dumps(there | content)
    (base / name).write_text(content, encoding="utf-8")
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace(str(tiny_model), str(base))
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    error = refused(run)
    assert (error.code, error.where) == ("TL-MODEL-CONFIG", str(base / name))
    assert word in str(error)


def test_a_package_that_is_missing_for_the_base(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TuneloopError, match="optimum") as caught:
        load_model(base)
    assert caught.value.code == "TL-MODEL-CONFIG"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as what it is: the file is whole, and deleting it would help nobody."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2) + b"{}")

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    assert folder_check.check_safetensors(file) == []
    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(TuneloopError) as caught:
        folder_check.check_safetensors(file)
    assert (caught.value.code, caught.value.where) == ("TL-MACHINE-FOLDER", str(file))


def test_adapters_that_do_not_go_together(run: Path, tmp_path: Path) -> None:
    own = refused(run, more=[str(run / "adapter")])
    assert own.code == "TL-RUN-TARGET"
    assert "twice" in str(own)
    other = Path(shutil.copytree(run / "adapter", tmp_path / "other"))
    twice = refused(run, more=[str(other), str(other)])
    assert twice.code == "TL-RUN-TARGET"
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    (other / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}), encoding="utf-8")
    head = refused(run, more=[str(other)])
    assert head.code == "TL-RUN-TARGET"
    assert "SEQ_CLS" in str(head)


def test_an_adapter_that_names_another_base(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run / "adapter", tmp_path / "other"))
    (other / "base.json").unlink()
    parts = exports.composition(run, [other])
    assert notes_on_bases(parts) == []
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "meta-llama/Other-7B"
    (other / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (note,) = notes_on_bases(parts)
    assert "meta-llama/Other-7B" in note


def test_virtual_tokens_are_served(run: Path) -> None:
    """Told before the model is loaded, and without advice that would be refused next."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["train"]["method"] = "ptuning_v2"
    del recipe["train"]["lora"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    error = refused(run, "gguf-lora")
    assert error.code == "TL-RUN-UNMERGEABLE"
    assert "tuneloop serve" in error.do
