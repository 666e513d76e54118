"""Targets of an export: each is read back by what loads it, or refused with the reason before anything is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tuneloop import pipeline
from tuneloop.base.errors import MachineError, RunError, TuneloopError
from tuneloop.exports import composition as compositions
from tuneloop.exports.adapter import VLLM_MODULES, max_rank, vllm_refusal
from tuneloop.exports.composition import composition
from tuneloop.exports.export import Exported, export
from tuneloop.exports.targets import TARGETS, require_known
from tuneloop.exports.tensor_file import TensorFile
from tuneloop.model import quantize
from tuneloop.tasks.table import TASKS

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble."}]
ASKED = [CHAT[:1]]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    to = tmp_path_factory.mktemp("exports") / "tiny"
    return export(tiny_run, to, ["nf4", "adapter", "merged", "int8"], chats=[CHAT])


def test_several_targets_lie_side_by_side(exported: dict[str, Exported]) -> None:
    assert list(exported) == ["nf4", "adapter", "merged", "int8"]
    folder = exported["merged"].path.parent
    assert {path.name for path in folder.iterdir()} == set(exported)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    for name, one in exported.items():
        assert one.parity.passed
        assert json.loads((one.path / "parity.json").read_text()) == one.parity.as_dict()
        assert json.loads((one.path / "tuneloop.json").read_text())["kind"] == name
        names = {path.name for path in one.path.iterdir()}
        assert {"README.md", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names


def test_one_target_lies_in_the_folder_itself(tiny_run: Path, tmp_path: Path) -> None:
    parity = pipeline.export(tiny_run, tmp_path / "out", as_="adapter")
    assert parity.passed
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("target", ["nf4", "int8"])
def test_folders_in_4_and_8_bits_answer(target: str, exported: dict[str, Exported], tiny_run: Path) -> None:
    """transformers reads them on this CPU, chat and serve open them, and they take less room."""
    folder = exported[target].path
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert quantize.is_quantized(plain)
    answerer = pipeline.load(folder)
    assert quantize.is_quantized(answerer.model)
    assert 0 < answerer.answer(ASKED, max_new_tokens=4)[0].tokens <= 4
    sizes = [(exported[name].path / "model.safetensors").stat().st_size for name in (target, "merged")]
    assert sizes[0] < 0.6 * sizes[1]


def test_serve_opens_a_folder_in_4_bits(exported: dict[str, Exported]) -> None:
    from fastapi.testclient import TestClient

    with TestClient(pipeline.serve(exported["nf4"].path)) as client:
        request = {"model": "nf4", "messages": CHAT[:1], "max_tokens": 4}
        answered = client.post("/v1/chat/completions", json=request)
        assert answered.status_code == 200
        assert 0 < answered.json()["usage"]["completion_tokens"] <= 4


def test_without_bitsandbytes_such_a_folder_says_what_is_missing(
    exported: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MachineError) as caught:
        pipeline.load(exported["nf4"].path)
    assert caught.value.code == "TL-MACHINE-EXTRA"


def test_peft_loads_the_adapter(exported: dict[str, Exported], tiny_model: Path) -> None:
    """On the base it gives the merged model's logits."""
    ids = torch.arange(3, 40)[None]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), exported["adapter"].path)
    merged = AutoModelForCausalLM.from_pretrained(exported["merged"].path)
    assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)
    assert exported["adapter"].command.startswith("vllm serve ")


def adapter(folder: Path, tiny_run: Path, names: dict[str, str] | None = None, **settings: Any) -> Path:
    """A copy of the tiny run's adapter with other settings, and with other names for its tensors."""
    shutil.copytree(tiny_run / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if names:
        tensors = load_file(folder / "adapter_model.safetensors")
        (old, new), *_ = names.items()
        save_file({name.replace(old, new): w for name, w in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str] | None, str]] = {
    "dora": ({"use_dora": True}, None, "use_dora"),
    "layers beside it": ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
    "biases": ({"bias": "all"}, None, "biases"),
    "ranks apart": ({"rank_pattern": {"q_proj": 2}}, None, "rank_pattern"),
    "a rank too high": ({"r": 1024}, None, "1024"),
    "no lora": ({"peft_type": "PREFIX_TUNING"}, None, "PREFIX_TUNING"),
    "a classifier": ({"task_type": "SEQ_CLS"}, None, "SEQ_CLS"),
    "another module": ({}, {"q_proj": "c_attn"}, "c_attn"),
    "a tensor of its own": ({}, {"lora_B.weight": "lora_magnitude_vector"}, "lora_magnitude_vector"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_why_vllm_does_not_load_an_adapter(case: str, tiny_run: Path, tmp_path: Path) -> None:
    settings, names, word = REFUSED[case]
    assert word in vllm_refusal(adapter(tmp_path / "odd", tiny_run, names, **settings), "llama")


def test_what_vllm_loads(tiny_run: Path, tmp_path: Path) -> None:
    assert vllm_refusal(tiny_run / "adapter", "llama") == ""
    assert vllm_refusal(adapter(tmp_path / "rs", tiny_run, use_rslora=True), "qwen2") == ""
    assert "mamba" in vllm_refusal(tiny_run / "adapter", "mamba")
    assert {"llama", "qwen2", "qwen3", "gemma3_text"} <= VLLM_MODULES.keys()
    assert [max_rank({"r": r}) for r in (1, 4, 16, 100, 512, 600)] == [1, 8, 16, 128, 512, None]


def refused(run: Path, to: Path, *targets: str) -> TuneloopError:
    """What exporting raises; nothing may be left beside the run."""
    before = sorted(to.parent.rglob("*"))
    with pytest.raises(TuneloopError) as caught:
        pipeline.export_all(run, to, targets)
    assert sorted(to.parent.rglob("*")) == before
    return caught.value


def test_no_such_target(tiny_run: Path, tmp_path: Path) -> None:
    error = refused(tiny_run, tmp_path / "out", "merged", "gguf-q4km")
    assert error.code == "TL-RUN-TARGET"
    assert "gguf-q4_k_m" in str(error)
    with pytest.raises(RunError, match="merged"):
        require_known(["xyz"])


def test_another_type_than_there_is(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        pipeline.export(tiny_run, tmp_path / "out", dtype="fp8")
    assert caught.value.code == "TL-RUN-TARGET"


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("merged", "adapter")])
def test_a_classifier_has_no_such_form(
    target: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by what the task says of its answers, before the model is loaded."""
    monkeypatch.setattr(compositions, "task_name", lambda *names: "classify")
    assert TASKS["classify"].answers == "label"
    error = refused(tiny_run, tmp_path / "out", target)
    assert error.code == "TL-RUN-TARGET"
    assert target in str(error)


@pytest.mark.parametrize("target", ["gguf-f16", "gguf-q4_k_m", "gguf-lora"])
def test_without_llama_cpp(target: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.gguf.library import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    error = refused(tiny_run, tmp_path / "out", target)
    assert error.code == "TL-MACHINE-EXTRA"
    assert "xllamacpp" in str(error)


def test_a_method_that_adds_no_weights(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "prefix-1"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["train"]["method"] = "ptuning_v2"
    del recipe["train"]["lora"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for target in ("merged", "gguf-f16", "nf4"):
        assert refused(run, tmp_path / "out", target).code == "TL-RUN-UNMERGEABLE"


def test_one_adapter_is_no_two(tiny_run: Path, tmp_path: Path) -> None:
    for target in ("adapter", "gguf-lora"):
        with pytest.raises(RunError) as caught:
            export(tiny_run, tmp_path / "out", [target], more=[tiny_run / "adapter"])
        assert caught.value.code == "TL-RUN-TARGET"
    assert composition(tiny_run, [tiny_run / "adapter"]).adapters == (tiny_run / "adapter", tiny_run / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TensorFile, tensors: Any) -> None:
        self.path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorFile, "write", full)
    assert refused(tiny_run, tmp_path / "out", "merged", "nf4").code == "TL-MACHINE-DISK"


def test_each_target_says_what_it_is_for() -> None:
    from tuneloop.base import language

    for code in ("en", "zh"):
        language.use(code)
        purposes = [target.purpose() for target in TARGETS.values()]
        assert len(set(purposes)) == len(TARGETS)
        assert all(any("一" <= c <= "鿿" for c in text) == (code == "zh") for text in purposes)
