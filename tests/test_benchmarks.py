"""The arithmetic of the benchmark: the floor, ratios, targets, and the pages made from results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import busy, results, same, table, walk
from benchmarks.floor import Shape, flops
from benchmarks.ratios import Found, Target, rate, targets

SMOL = Shape(hidden=576, inner=1536, layers=30, heads=9, keys=3, width=64, words=49152)


def one(section: str, way: str, **more: Any) -> dict[str, Any]:
    told = {
        "session": "a", "section": section, "way": way, "rows": 40, "held_rows": 50, "epochs": 1, "step_seconds": [9.0, 2.0, 2.0],
        "step_tokens": [100, 100, 100], "epoch_ends": [4.0, 6.0, 8.0], "loop": 13.0, "work": 14.0, "cpu": 20.0, "whole": 30.0,
        "whole_cpu": 40.0, "peak_gb": 2.0, "held": 1.6, "versions": {"torch": "2.13.0"}, "threads": 2,
    }  # fmt: skip
    return told | more


def test_the_shape_of_a_model_is_read_from_its_configuration() -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    shape = Shape.of(config.to_dict())
    model = LlamaForCausalLM(config)
    layer = model.model.layers[0]
    parts = [
        *(getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"), layer.mlp.gate_proj, layer.mlp.up_proj,
        layer.mlp.down_proj,
    ]  # fmt: skip
    assert shape.linears == [(part.in_features, part.out_features) for part in parts]
    assert (shape.layers, shape.words) == (2, 32)


def test_the_floor_counts_what_the_model_needs_and_no_more() -> None:
    """Against FLOPs that torch counts: a full pass with every logit, attention over the whole matrix."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model, n = LlamaForCausalLM(config), 10
    for weight in model.parameters():
        weight.requires_grad_(False)
    states = torch.randn(1, n, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=states).logits.sum().backward()
    whole = 3 * 4 * 4 * 4 * 2 * (n * n - n * (n + 1) / 2)  # the masked half, which the floor leaves out
    assert flops(Shape.of(config.to_dict()), [(n, n)], rank=0) + whole == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_the_floor_grows_with_labels_and_adds_up_over_samples() -> None:
    assert flops(SMOL, [(100, 50), (30, 10)]) == pytest.approx(flops(SMOL, [(100, 50)]) + flops(SMOL, [(30, 10)]))
    assert flops(SMOL, [(100, 51)]) - flops(SMOL, [(100, 50)]) == 4 * 576 * 49152
    assert flops(SMOL, [(200, 50)]) > 2 * flops(SMOL, [(100, 25)])  # attention grows with the square


def test_the_first_step_does_not_count() -> None:
    assert rate(one("lora", "trl")) == 50.0
    assert rate(one("lora", "trl", step_seconds=[4.0], step_tokens=[100])) == 25.0


def test_ratios_are_to_the_best_peer() -> None:
    found = Found([
        one("lora", "tuneloop", step_seconds=[9.0, 0.5, 0.5], peak_gb=3.0),
        one("lora", "trl"),
        one("lora", "trl-packing", step_seconds=[9.0, 1.0, 1.0], peak_gb=6.0),
        one("lora", "tuneloop-reduced", step_seconds=[9.0, 0.25, 0.25]),
        one("lora", "tutorial", error="it failed"),
        one("freeze", "tuneloop"),
        one("freeze", "trl-packing", epoch_ends=[8.0, 16.0, 24.0]),
        one("freeze", "llamafactory", epoch_ends=[9.0, 18.0, 27.0]),
        one("floor", "floor", tokens_per_second=250.0),
    ])  # fmt: skip
    assert found.faster("lora", "trl") == 4.0
    assert found.faster("lora") == 2.0
    assert found.faster("lora", "tuneloop", "tuneloop-reduced") == 2.0
    assert found.faster("lora", "tutorial") is None
    assert found.memory() == pytest.approx(1.5)
    assert found.over_floor() == 1.25
    assert found.quicker("freeze", 3) == 3.0
    assert found.quicker("freeze", 10) is None


def test_a_target_is_judged_as_it_is_shown() -> None:
    assert Target("full", ">=", 1.6, 1.597).reached
    assert not Target("full", ">=", 1.6, 1.594).reached
    assert Target("start", "<=", 1.6, 1.604).reached
    assert Target("dpo_loss", "~", 0.01, 0.991).reached
    assert not Target("dpo_loss", "~", 0.01, 1.0102).reached
    assert Target("flat", "<=", 1.5, None).reached is None


def test_nothing_measured_is_said_to_be_so() -> None:
    assert {target.reached for target in targets(Found([]))} == {None}


def test_the_latest_result_of_a_way_in_its_session_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    every = [one("lora", "trl", rows=8), one("lora", "trl", rows=16), one("lora", "trl", session="b", rows=1)]
    file.write_text("".join(json.dumps(x) + "\n" for x in every), encoding="utf-8")
    assert [x["rows"] for x in results.read("a", file)] == [16]
    assert [x["rows"] for x in results.read("last", file)] == [1]


def test_both_pages_have_the_same_tables_and_name_what_failed(tmp_path: Path) -> None:
    every = [one("lora", "tuneloop"), one("lora", "trl", held=1.7), {**one("dpo", "trl"), "error": "no"}]
    pages = [path.read_text(encoding="utf-8") for path in table.write("a", every, tmp_path)]
    shapes = [
        [line.count("|") if line.startswith("|") else line[:3] == "## " for line in p.splitlines()] for p in pages
    ]
    assert shapes[0] == shapes[1]
    assert all("dpo/trl" in page and "1.7000" in page for page in pages)
    assert "not measured" in pages[0]
    assert "未测" in pages[1]


def test_a_step_beside_a_busy_core_is_the_best_of_its_kind() -> None:
    """A process that had a bad moment at one step does not count there, and does elsewhere."""
    assert busy.best([[1.0, 9.0, 3.0], [8.0, 2.0, 4.0]]) == 2.0
    assert set(busy.WAYS) == {"before", "after"}
    assert busy.WAYS["after"] == {}, "what tuneloop does by itself"


def test_a_program_keeps_a_core_busy_and_ends() -> None:
    import psutil

    before = {one.pid for one in psutil.Process().children()}
    with busy.busy():
        (spinner,) = [one for one in psutil.Process().children() if one.pid not in before]
        assert spinner.is_running()
    assert not psutil.pid_exists(spinner.pid)


def told(path: Path, runs: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"about": {"commit": path.stem, "processor": "one"}, "runs": runs}), encoding="utf-8")
    return path


def test_two_commits_that_compute_the_same_differ_in_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"llama/lora/chat": {"metrics": [{"loss": (1.5).hex()}, {"loss": (1.25).hex()}], "export": {"passed": True}}}
    assert same.compare(told(tmp_path / "a.json", runs), told(tmp_path / "b.json", runs), 10) == 0
    assert capsys.readouterr().out.startswith("0 differences in 1 runs")


def test_each_difference_of_two_commits_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        "demo": {"metrics": [{"loss": (1.5).hex()}, {"loss": (1.25).hex()}], "refused": "TL-MODEL-METHOD"},
        "gone": {},
    }
    after = {"demo": {"metrics": [{"loss": (1.5).hex()}, {"loss": (1.125).hex()}, {"loss": (1.0).hex()}]}, "new": {}}
    assert same.compare(told(tmp_path / "a.json", before), told(tmp_path / "b.json", after), 10) == 5
    out = capsys.readouterr().out
    for line in ("demo: metrics[1].loss: 0x1.4000000000000p+0 (1.25) -> 0x1.2000000000000p+0 (1.125)",
                 "demo: metrics[2].loss: nothing -> 0x1.0000000000000p+0 (1)",
                 'demo: refused: "TL-MODEL-METHOD" -> nothing', "gone: only in", "new: only in"):  # fmt: skip
        assert line in out


def test_passes_are_found_in_a_step_and_read_whatever_holds_them() -> None:
    """A dict of tensors today, an object with fields of its own tomorrow: the same numbers are the same."""

    @dataclass
    class Pass:
        input_ids: Any
        position_ids: Any
        positions: Any
        targets: Any
        segments: Any
        members: Any

    @dataclass
    class Step:
        number: int
        micros: list[Any]

    held = {"input_ids": torch.tensor([[5, 6]]), "position_ids": torch.tensor([[0, 1]]), "positions": torch.tensor([0]),
            "targets": torch.tensor([6]), "segments": (2,), "members": (1,)}  # fmt: skip
    names = np.array([b"aaaaaaaaaaaa", b"bbbbbbbbbbbb"])
    (mapping,), (object_,) = (list(same.found_passes(Step(0, [one]))) for one in (held, Pass(**held)))
    assert same.of_pass(mapping, names) == same.of_pass(object_, names)
    assert same.of_pass(mapping, names)["rows"] == ["bbbbbbbbbbbb"]
    other = same.of_pass({**held, "targets": torch.tensor([7])}, names)
    assert {key for key, value in same.of_pass(mapping, names).items() if other[key] != value} == {"targets"}


def test_a_way_that_opens_each_file_once_has_no_return() -> None:
    assert walk.returns(["a", "a", "b", "c", "c"]) == 0
    assert walk.returns(["a", "b", "b", "a", "c", "b", "b"]) == 2


def test_a_function_is_handed_a_row_also_with_others_or_in_an_object_that_holds_it() -> None:
    class Record:
        pass

    @dataclass
    class Holder:
        row: Any

    Holder.__module__ = "tuneloop.somewhere"
    route = walk.Route("row", walk.is_row)
    assert all(map(route.has, (Record(), [Record()], (Record(), 1), Holder(Record()))))
    assert not any(map(route.has, (1, "Record", [], [1], Holder(2), None)))
