"""Rows that go through different adapters in one batch are those that PEFT gives each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.inference.test_batch import alone, model_of, prompts_of
from tests.inference.test_scheduler import run, scheduler_of
from tuneloop.base.errors import ServeError
from tuneloop.inference.batch import Generation
from tuneloop.inference.row_adapters import RowAdapters
from tuneloop.inference.scheduler import Scheduler
from tuneloop.model.kernels.install import install
from tuneloop.model.kernels.prepacked import prepacked

MOST = 10
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": EVERY},
    {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"r": 4, "lora_alpha": 4, "target_modules": EVERY, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 16}},
    {"r": 3, "lora_alpha": 6, "target_modules": ["down_proj"], "layers_to_transform": [1]},
]


def adapter(folder: Path, base: Path, seed: int, **config: Any) -> Path:
    """A folder of a random adapter that says something, as PEFT writes it."""
    from tuneloop.model.load import load_model

    model = get_peft_model(load_model(base, "float32"), LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    model_of(folder, "llama")
    return [adapter(folder / f"a{n}", folder / "llama", n, **kind) for n, kind in enumerate(KINDS)]


def base_of(folders: list[Path]) -> Any:
    from tuneloop.model.load import load_model

    return load_model(folders[0].parent / "llama", "float32")


def by_peft(folders: list[Path], prompts: list[list[int]], names: list[str | None]) -> list[list[int]]:
    """What each prompt is answered by PEFT's own model of its adapter, without a cache."""
    models: dict[str | None, Any] = {None: base_of(folders)}
    for n, folder in enumerate(folders):
        models[f"a{n}"] = PeftModel.from_pretrained(base_of(folders), folder).eval()
    return [alone(models[name], prompt, MOST) for prompt, name in zip(prompts, names, strict=True)]


@pytest.mark.parametrize("way", ["fast", "own", "installed", "prepacked"])
def test_rows_of_one_batch_go_through_their_own_adapters(folders: list[Path], way: str) -> None:
    prompts = prompts_of(3, 15)
    names = [(None, "a0", "a1", "a2", "a3")[n % 5] for n in range(15)]
    wanted = by_peft(folders, prompts, names)
    assert len({tuple(x) for x in by_peft(folders, [prompts[0]] * 5, [None, "a0", "a1", "a2", "a3"])}) >= 4
    model = base_of(folders)
    if way == "installed":
        assert install(model)
    adapters = RowAdapters(model)
    for n, folder in enumerate(folders):
        adapters.load(f"a{n}", folder)
    assert adapters.names == ("a0", "a1", "a2", "a3")
    scheduler = scheduler_of(model, adapters=adapters, slots=6)
    assert (scheduler.decoder.quick is None) == (way == "installed")
    if way == "own":
        scheduler.decoder.quick = None
    generations = [Generation(p, MOST, adapter=name) for p, name in zip(prompts, names, strict=True)]
    if way == "prepacked":
        scheduler.decoder.quick = None
        with prepacked(model, 8):
            run(scheduler, generations)
    else:
        run(scheduler, generations)
    assert [one.error for one in generations] == [None] * 15
    assert [one.tokens for one in generations] == wanted


def test_adapters_come_and_go_between_two_steps(folders: list[Path]) -> None:
    """One comes while others write; one goes, and takes only its own answers with it; the base is what it was."""
    model = base_of(folders)
    adapters = RowAdapters(model)
    adapters.load("a0", folders[0])
    adapters.load("gone", folders[1])
    scheduler = scheduler_of(model, adapters=adapters)
    prompts = prompts_of(5, 4)
    first, base, lost = (
        Generation(prompts[0], MOST, adapter="a0"),
        Generation(prompts[1], MOST),
        Generation(prompts[2], 50, adapter="gone"),
    )
    for one in (first, base, lost):
        scheduler.add(one)
    while not all(one.tokens for one in (first, base, lost)):
        scheduler.step()
    prepared = adapters.prepare(folders[2])
    assert prepared.bytes > 0
    adapters.add("a2", prepared)
    late = Generation(prompts[3], MOST, adapter="a2")
    scheduler.add(late)
    scheduler.step()
    adapters.unload("gone")
    run(scheduler, [])
    assert lost.error is not None
    assert lost.error.code == "TL-SERVE-MODEL"
    wanted = by_peft(folders, [prompts[0], prompts[1], prompts[3]], ["a0", None, "a2"])
    assert [one.tokens for one in (first, base, late)] == wanted
    for name in ("a0", "a2"):
        adapters.unload(name)
    assert not any(m._forward_hooks for m in model.modules())
    again = Generation(prompts[0], MOST)
    run(scheduler, [again])
    assert again.tokens == alone(model, prompts[0], MOST)


def test_a_beginning_read_through_another_adapter_is_not_taken_over(folders: list[Path]) -> None:
    """Nor one that was read under the same name before it was loaded anew."""
    model = base_of(folders)
    adapters = RowAdapters(model)
    adapters.load("a", folders[0])
    scheduler = scheduler_of(model, adapters=adapters)
    prompt = prompts_of(7, 1, 30)[0] * 3
    for name in (None, "a"):
        for expected in (0, len(prompt) - 1):
            one = Generation(prompt, 2, adapter=name)
            run(scheduler, [one])
            assert one.reused == expected
    adapters.load("a", folders[2])
    one = Generation(prompt, MOST, adapter="a")
    run(scheduler, [one])
    assert one.reused == 0
    assert one.tokens == by_peft(folders, [prompt], ["a2"])[0]


def test_what_cannot_share_a_batch_is_refused_and_nothing_changes(folders: list[Path], tmp_path: Path) -> None:
    base = folders[0].parent / "llama"
    kinds: dict[str, dict[str, Any]] = {
        "DoRA": {"r": 2, "target_modules": ["q_proj"], "use_dora": True},
        "biases": {"r": 2, "target_modules": ["q_proj"], "bias": "all"},
        "modules_to_save": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "embed_tokens": {"r": 2, "target_modules": ["embed_tokens"]},
    }
    bad = {word: adapter(tmp_path / f"k{n}", base, 1, **kind) for n, (word, kind) in enumerate(kinds.items())}
    other = tmp_path / "other"
    model_of(other, "llama", hidden_size=96)
    bad["q_proj is"] = adapter(tmp_path / "shape", other / "llama", 1, r=2, target_modules=["q_proj"])
    bad["adapter_config.json"] = tmp_path / "nothing"
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())
    (torn / "adapter_model.safetensors").write_bytes(b"x" * 30)
    bad["adapter_model.safetensors"] = torn
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "layers.0.self_attn.q_proj.lora_B" not in k},
        lone / "adapter_model.safetensors",
    )
    bad["one of its two"] = lone
    nan = tmp_path / "nan"
    nan.mkdir()
    (nan / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())
    save_file({k: v * float("nan") for k, v in tensors.items()}, nan / "adapter_model.safetensors")
    bad["not a number"] = nan
    virtual = tmp_path / "virtual"
    virtual.mkdir()
    (virtual / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    bad["PREFIX_TUNING"] = virtual
    model = base_of(folders)
    adapters = RowAdapters(model)
    adapters.load("a", folders[0])
    for word, folder in bad.items():
        with pytest.raises(ServeError) as caught:
            adapters.load("b", folder)
        assert caught.value.code == "TL-SERVE-ADAPTER"
        assert word in str(caught.value)
    assert adapters.names == ("a",)
    one = Generation(prompts_of()[0], MOST, adapter="a")
    run(Scheduler(scheduler_of(model).decoder, frozenset(), adapters=adapters), [one])
    assert one.tokens == by_peft(folders, [prompts_of()[0]], ["a0"])[0]


def test_an_adapter_whose_numbers_grow_without_end_fails_its_own_rows_alone(folders: list[Path]) -> None:
    model = base_of(folders)
    adapters = RowAdapters(model)
    adapters.load("a0", folders[0])
    bad = adapters.prepare(folders[1])
    for down, _ in bad.layers.values():
        down.fill_(1e38)
    adapters.add("bad", bad)
    prompts = prompts_of(6, 6)
    names = ["a0", "bad", None, "bad", "a0", None]
    generations = [Generation(p, MOST, adapter=name) for p, name in zip(prompts, names, strict=True)]
    run(scheduler_of(model, adapters=adapters, slots=6), generations)
    good = [n for n, name in enumerate(names) if name != "bad"]
    assert [one.error and one.error.code for one in generations] == [
        "TL-SERVE-NUMBER" if name == "bad" else None for name in names
    ]
    wanted = by_peft(folders, [prompts[n] for n in good], [names[n] for n in good])
    assert [generations[n].tokens for n in good] == wanted


def test_what_was_laid_side_by_side_in_advance_is_what_is_loaded(folders: list[Path]) -> None:
    """Also where another adapter comes under the name in the meantime."""
    prompts, names = prompts_of(5, 3), ["a0", "a1", "a2"]
    wanted = by_peft(folders, prompts, list(names))
    adapters = RowAdapters(base_of(folders))
    scheduler = scheduler_of(adapters.base, adapters=adapters, slots=3)

    def answers(*loaded: str) -> list[list[int]]:
        every = [Generation(p, MOST, adapter=name) for p, name in zip(prompts, loaded, strict=False)]
        run(scheduler, every)
        return [one.tokens for one in every]

    for n in range(2):
        adapters.load(names[n], folders[n])
    assert answers("a0", "a1") == wanted[:2]
    foreseen = adapters.prepare(folders[2])
    adapters.foresee("a2", foreseen)
    made = adapters._sets["a0", "a1", "a2"]
    adapters.add("a2", foreseen)
    assert answers(*names) == wanted
    assert adapters._sets["a0", "a1", "a2"] is made, "nothing was laid again"
    adapters.foresee("a2", foreseen)
    adapters.load("a2", folders[0])
    assert answers(*names)[2] == by_peft(folders, prompts, ["a0"] * 3)[2]
