from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.assembled import assembled
from tests.conftest import TALK, tiny_folder
from tuneloop.base.errors import MachineError, RunError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import Sample, tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model import checkpoint
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run, new_run
from tuneloop.tasks.chat import objective
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.task import TaskContext
from tuneloop.training import state
from tuneloop.training.packing import packs_exactly, rows
from tuneloop.training.session import Outcome, session

RECORDS = [Record((Message("user", f"{q} {n}"), Message("assistant", a))) for n in range(3) for q, a in TALK]


class Sessions:
    """Runs of the tiny model on 20 dialogues (4 a step: 5 steps an epoch), 4 held out."""

    def __init__(self, folder: Path, workspace: Path) -> None:
        self.folder, self.workspace = folder, workspace
        self.tokenizer = load_tokenizer(folder)
        samples = tokenize(self.tokenizer, RECORDS)
        self.samples, self.held = samples[:20], samples[20:]

    def begin(self, **train: Any) -> tuple[Run, Recipe]:
        settings = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3, "lora": {"rank": 2}, **train}
        if settings.get("method", "lora") not in {"lora", "qlora"}:
            settings.pop("lora", None)
        recipe, _ = make_recipe({"name": "s", "model": str(self.folder), "train": settings})
        run = new_run(self.workspace, "s")
        run.recipe.write_text(dump(recipe), encoding="utf-8")
        return run, recipe

    def go(self, run: Run, recipe: Recipe, files: Sequence[str] = (), **options: Any) -> Outcome:
        setting = TaskContext(recipe.train, self.tokenizer)
        given = assembled(recipe, self.folder, self.samples, self.held, context=setting, files=files)
        return session(run, given, **options)

    def run(self, **train: Any) -> Run:
        run, recipe = self.begin(**train)
        outcome = self.go(run, recipe)
        assert outcome.finished
        assert outcome.step == outcome.total
        return run


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps(run: Run, kind: str) -> list[int]:
    """Steps with a line of metrics of a kind ("loss", "eval_loss"), or with a checkpoint that is still there."""
    if kind == "checkpoint":
        return sorted(int(p.name.removeprefix("step-")) for p in run.checkpoints.iterdir())
    return [m["step"] for m in lines(run.metrics) if kind in m]


@pytest.mark.parametrize(
    ("train", "logged", "evaluated", "saved"),
    [
        ({"epochs": 2}, range(1, 11), [5, 10], [5, 10]),
        ({"epochs": 1.5}, range(1, 9), [5, 8], [5, 8]),
        ({"epochs": 0.2}, [1], [1], [1]),
        ({"max_steps": 7, "epochs": 1}, range(1, 8), [5, 7], [5, 7]),
        ({"save_strategy": "no", "eval_strategy": "no"}, range(1, 6), [], [5]),
        (
            {"epochs": 2, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2},
            [4, 8, 10], [2, 4, 6, 8, 10], [9, 10],
        ),
        ({"epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}, range(1, 11), [5, 10], [8, 9, 10]),
        ({"epochs": 2, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}, range(1, 11), [5, 10], [4, 8, 10]),
        ({"epochs": 2, "save_total_limit": 1, "logging_strategy": "epoch"}, [5, 10], [5, 10], [10]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_written_when(
    sessions: Sessions, train: dict[str, Any], logged: Any, evaluated: list[int], saved: list[int]
) -> None:
    run = sessions.run(**train)
    assert steps(run, "loss") == list(logged)
    assert steps(run, "eval_loss") == evaluated
    assert steps(run, "checkpoint") == saved
    last = lines(run.metrics)[-1]
    assert last["epoch"] == pytest.approx(last["step"] / 5)
    events = lines(run.events)
    assert [e["event"] for e in events if e["event"] != "checkpoint"] == ["started", "finished"]
    assert events[0]["total"] == events[-1]["step"] == last["step"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_learns_and_its_result_is_what_it_measured(sessions: Sessions, method: str) -> None:
    run = sessions.run(method=method, epochs=3)
    losses = [m["eval_loss"] for m in lines(run.metrics) if "eval_loss" in m]
    assert losses[-1] < losses[0]
    assert sorted(p.name for p in run.path.iterdir()) == sorted(
        [
            "recipe.yaml",
            "metrics.jsonl",
            "rows.jsonl",
            "held.jsonl",
            "events.jsonl",
            "checkpoints",
            "adapter" if method == "lora" else "model",
        ]
    )
    trained = load_trained(run.path)
    model = objective(trained.model, Examples.of(sessions.held))
    with torch.no_grad():
        total = sum(model(row).total.item() for row in rows(sessions.held, 2048))
    assert total / sum(s.labels for s in sessions.held) == pytest.approx(losses[-1], abs=1e-5)


def test_the_same_recipe_gives_the_same_bytes(sessions: Sessions) -> None:
    one, two = (sessions.run(lora={"rank": 2, "dropout": 0.2}) for _ in range(2))
    file = Path("adapter") / "adapter_model.safetensors"
    assert (one.path / file).read_bytes() == (two.path / file).read_bytes()
    assert [m["loss"] for m in lines(one.metrics) if "loss" in m] == [
        m["loss"] for m in lines(two.metrics) if "loss" in m
    ]


def test_a_run_that_diverges_stops_and_leaves_its_last_checkpoint(sessions: Sessions) -> None:
    run, recipe = sessions.begin(
        learning_rate=1e37, warmup_ratio=0, save_strategy="steps", save_steps=1, epochs=3, method="full"
    )
    with pytest.raises(RunError) as caught:
        sessions.go(run, recipe)
    assert caught.value.code == "TL-RUN-NAN"
    done = steps(run, "loss")
    assert f"step {len(done) + 1}" in str(caught.value)
    newest = checkpoint.newest(run.checkpoints)
    assert newest == run.checkpoints / f"step-{done[-1]}"
    assert all(torch.isfinite(w).all() for w in load_file(newest / "trained.safetensors").values())
    assert run.trained_folder() is None
    with pytest.raises(RunError) as caught:
        load_trained(run.path)
    assert caught.value.code == "TL-RUN-UNFINISHED"


def test_a_stopped_run_may_save_and_measure_otherwise_when_it_goes_on(sessions: Sessions) -> None:
    from tuneloop.runs.run import resumable

    run, recipe = sessions.begin(epochs=2, save_strategy="steps", save_steps=3)
    whole = sessions.run(epochs=2, save_strategy="steps", save_steps=3)
    shutil.copytree(whole.checkpoints / "step-9", run.checkpoints / "step-9")
    shutil.copy(whole.metrics, run.metrics)
    other = resumable(recipe, ["train.save_steps=1", "train.eval_strategy=steps", "train.eval_steps=1"])
    assert sessions.go(run, other, resume=True) == Outcome(True, 10, 10)
    assert steps(run, "loss") == list(range(1, 11))
    assert steps(run, "eval_loss") == [5, 10]
    assert [m["loss"] for m in lines(run.metrics) if "loss" in m] == [
        m["loss"] for m in lines(whole.metrics) if "loss" in m
    ]


def test_the_meters_of_a_run_and_of_one_that_was_taken_up(sessions: Sessions) -> None:
    """What a line tells beside its clock is the same to the bit, whatever was smoothed before the interruption."""
    files = ["x/a.jsonl"] * 8 + ["x/b.jsonl"] * 12
    whole, recipe = sessions.begin(epochs=2, save_strategy="steps", save_steps=3)
    sessions.go(whole, recipe, files)
    for kind in ("metrics", "held"):
        path = whole.path / f"{kind}.jsonl"
        shutil.copy(path, sessions.workspace / path.name)
    shutil.rmtree(whole.checkpoints / "step-10")
    sessions.go(whole, recipe, files, resume=True)

    def without_clocks(path: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "clock"} for line in lines(path)]

    for name in ("metrics.jsonl", "held.jsonl"):
        assert without_clocks(whole.path / name) == without_clocks(sessions.workspace / name)
    trained = [line for line in lines(whole.metrics) if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 11))
    assert any(set(line["sources"]) == {"a.jsonl", "b.jsonl"} for line in trained)
    for line in trained:
        assert set(line["sources"]) <= {"a.jsonl", "b.jsonl"}
        assert min(line["sources"].values()) - 1e-6 <= line["loss"] <= max(line["sources"].values()) + 1e-6
        assert list(line["grad_groups"]) == ["layer 0", "layer 1"]
        assert sum(norm**2 for norm in line["grad_groups"].values()) == pytest.approx(line["grad_norm"] ** 2, rel=1e-4)
        assert line["padding"] == 0
        clock = line["clock"]
        assert {"process_gb", "memory_total_gb", "memory_free_gb", "cpu", "disk_free_gb"} <= set(clock)
        assert 0 < sum(clock["phases"].values()) <= clock["seconds"] + 1e-3
    measured = [line for line in lines(whole.metrics) if "eval_loss" in line]
    for line, rows_of in zip(measured, lines(whole.path / "held.jsonl"), strict=True):
        assert rows_of["step"] == line["step"]
        assert line["eval_rows"] == len(rows_of["losses"]) == len(rows_of["weights"]) == 4
        assert np.average(rows_of["losses"], weights=rows_of["weights"]) == pytest.approx(line["eval_loss"], abs=1e-5)
        assert 0 < line["eval_error"] < line["eval_loss"]


def test_a_finished_run_goes_on_to_nothing(sessions: Sessions) -> None:
    run, recipe = sessions.begin()
    sessions.go(run, recipe)
    before = (run.path / "adapter" / "adapter_model.safetensors").read_bytes()
    metrics = run.metrics.read_bytes()
    assert sessions.go(run, recipe, resume=True) == Outcome(True, 5, 5)
    assert (run.path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert run.metrics.read_bytes() == metrics


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(sessions: Sessions) -> None:
    run, recipe = sessions.begin()
    with pytest.raises(RunError) as caught:
        sessions.go(run, recipe, resume=True)
    assert caught.value.code == "TL-RUN-NO-CHECKPOINT"


def test_a_run_without_checkpoints_on_the_way_asks_the_disk_for_the_last_one_alone(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: dict[str, int] = {}
    for strategy in ("epoch", "no"):
        monkeypatch.setattr(state, "require_space", lambda path, size, name=strategy: needs.update({name: size}))
        run, recipe = sessions.begin(save_strategy=strategy)
        sessions.go(run, recipe)
    # Weights and two moments, of three checkpoints or of one; and the result.
    assert needs["epoch"] * 4 == needs["no"] * 10 > 0


def test_a_full_disk_is_told_before_the_first_step(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2**26))
    run, recipe = sessions.begin()
    with pytest.raises(MachineError) as caught:
        sessions.go(run, recipe)
    assert caught.value.code == "TL-MACHINE-DISK"
    assert not run.metrics.exists()
    assert not run.checkpoints.exists()


def test_no_held_out_rows_no_held_out_loss(sessions: Sessions) -> None:
    sessions.held = []
    run = sessions.run()
    assert steps(run, "eval_loss") == []
    assert steps(run, "loss") == [1, 2, 3, 4, 5]


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(3, 128, n, dtype=np.int32), np.arange(n) > n // 3, f"r{n}", True) for n in (19, 8, 11, 25)
    ]


@pytest.mark.parametrize(
    ("family", "packs"),
    [("llama", True), ("gemma2", True), ("gemma3_text", True), ("falcon_h1", False), ("recurrent_gemma", False), ("gpt2", True), ("bloom", False)],
)  # fmt: skip
def test_a_model_whose_samples_see_each_other_is_not_packed(tmp_path: Path, family: str, packs: bool) -> None:
    """Recurrent states run through a row, and distances of bloom do not begin anew."""
    model = objective(load_model(tiny_folder(tmp_path / family, family), "float32"), Examples.of(samples()))
    assert packs_exactly(model, Examples.of(samples())) == packs
    assert packs_exactly(model, Examples.of(samples()[:1])), "one sample is alone in any row"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_no_leak(tmp_path: Path, dtype: str) -> None:
    model = load_model(tiny_folder(tmp_path / "llama", "llama"), dtype)
    assert packs_exactly(LossModel(model), Examples.of(samples()))


@pytest.mark.parametrize(("family", "packs"), [("qwen2", True), ("bloom", False)])
def test_rows_of_another_shape_may_round_otherwise(tmp_path: Path, family: str, packs: bool) -> None:
    """On a card a product's rounding goes by how many rows it has; here each state's last bits go by the row's length."""
    model = load_model(tiny_folder(tmp_path / family, family), "bfloat16")

    def rounded(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        exact = output.float()
        return (exact * (1 + 2**-8 * torch.sin(1e4 * exact * output.shape[-2]))).to(output.dtype)

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(rounded)
    assert packs_exactly(LossModel(model), Examples.of(samples())) == packs


def test_a_model_that_cannot_be_packed_is_trained_one_dialogue_a_row(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path / "bloom", "bloom", vocab_size=480)
    for part in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / part, folder)
    apart = Sessions(folder, tmp_path)
    packed, single = apart.run(max_steps=2), apart.run(max_steps=2, packing=False)
    assert "cannot be packed" in capsys.readouterr().err
    assert lines(packed.events)[0]["packing"] is False
    losses = [[m["loss"] for m in lines(r.metrics) if "loss" in m] for r in (packed, single)]
    assert losses[0] == losses[1]


def test_held_rows_are_whole_samples_in_order() -> None:
    every = samples()
    for budget, expected in [(100, [(19, 8, 11, 25)]), (30, [(19, 8), (11,), (25,)]), (44, [(19, 8, 11), (25,)])]:
        assert [row.segments for row in rows(every, budget)] == expected
    assert [row.segments for row in rows(every, 100, packing=False)] == [(19,), (8,), (11,), (25,)]
    assert list(rows([], 100)) == []


def test_rows_that_turn_by_their_longest_sample_are_not_packed(tmp_path: Path) -> None:
    """Rotary positions of the kind dynamic go by a row's longest sample; up to the first length all turn alike."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = LossModel(
        load_model(tiny_folder(tmp_path / "m", "llama", rope_parameters=rope, max_position_embeddings=16))
    )

    def of(*lengths: int) -> Examples:
        return Examples.of(
            [Sample(np.arange(3, 3 + n, dtype=np.int32), np.ones(n, np.bool_), "", True) for n in lengths]
        )

    assert packs_exactly(model, of(9, 7, 16))
    assert not packs_exactly(model, of(9, 7, 40))
    assert not packs_exactly(model, of(9, 7), of(40))
