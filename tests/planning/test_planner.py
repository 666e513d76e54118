from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assembled import assembled
from tests.conftest import TALK
from tuneloop.base import language
from tuneloop.base.errors import MachineError, ModelError
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.encode import Sample, tokenize
from tuneloop.data.tokens.samples import Sequences
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.planning import planner
from tuneloop.planning.budget import (
    EFFICIENCY,
    EFFICIENCY_BFLOAT16,
    GENERATION,
    LAYER_SECONDS,
    forward_flops,
    memory_gb,
    shape,
)
from tuneloop.planning.hardware import Hardware, look
from tuneloop.planning.lengths import Option
from tuneloop.planning.planner import Plan, SectionsSize, make, times
from tuneloop.recipe.defaults import roomy
from tuneloop.recipe.overrides import changed
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import EvaluatePart, Recipe
from tuneloop.tasks.classify import CLASSIFY
from tuneloop.tasks.prefer import PREFER
from tuneloop.tasks.task import TaskContext


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    records = [Record((Message("user", f"{q} {n}"), Message("assistant", a))) for n in range(5) for q, a in TALK]
    return tokenize(load_tokenizer(tiny_model), records)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """This machine, measured once and quiet: a rate that differs from one plan to the next compares badly."""
    import torch

    seen = replace(look(torch.float32, 8), others=0.0)
    monkeypatch.setattr(planner, "look", lambda *asked: seen)
    return seen


def recipe_of(folder: Path, **train: Any) -> Recipe:
    return make_recipe({"model": str(folder), "train": {"epochs": 2, "batch_size": 8, "token_budget": 128, **train},
                        "prepare": {"max_length": 128}})[0]  # fmt: skip


def plan(folder: Path, samples: list[Sample], **train: Any) -> Plan:
    return make(assembled(recipe_of(folder, **train), folder, samples))


def test_the_choices_are_stored_in_both_languages(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    with language.speaking("zh"):
        made = plan(tiny_model, samples, method="freeze").as_dict()
    assert made["choices"] == made["choices_in"]["zh"]
    assert any("步" in line["what"] for line in made["choices"])
    english = made["choices_in"]["en"]
    assert len(english) == len(made["choices"])
    assert all(text.isascii() for line in english for text in line.values())


def test_evaluation_counts_the_losses_of_the_general_set(
    tiny_model: Path, samples: list[Sample], machine: Hardware
) -> None:
    given = assembled(recipe_of(tiny_model), tiny_model, samples, manifest=MANIFEST, prompts=1)
    alone, beside = make(given), make(given, SectionsSize(96, 96_000_000, 9_000_000))
    more = beside.evaluation["seconds"] - alone.evaluation["seconds"]
    size = shape(tiny_model, given.recipe.train, "float32")
    assert more == pytest.approx(
        2 * forward_flops(size, 96_000_000, 9_000_000) / (machine.gflops * 1e9 * EFFICIENCY), rel=0.01
    )
    assert (alone.evaluation["losses"], beside.evaluation["losses"]) == (10, 106)
    assert "losses of 106 rows each" in times(beside)[1].why
    answered = make(given, SectionsSize(96, 960, 96, answers=240))
    assert answered.evaluation["answers"] == alone.evaluation["answers"] + 240
    assert answered.evaluation["seconds"] > alone.evaluation["seconds"]
    recipe = changed(given.recipe, ["evaluate.show=[]"])
    nothing = make(assembled(recipe, tiny_model, samples))
    assert times(nothing)[1].why == "nothing is measured"


def test_a_plan_says_what_will_be(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    made = plan(tiny_model, samples)
    assert made.data == {
        "dialogues": 40, "tokens": sum(len(s.ids) for s in samples), "label_tokens": sum(s.labels for s in samples),
        "steps": 10,
    }  # fmt: skip
    assert made.model["name"] == str(tiny_model)
    assert made.model["dtype"] == "float32"
    assert 0 < made.model["trainable"] < made.model["parameters"]
    assert made.machine == machine
    assert made.seconds >= 0
    assert {("steps", "10"), ("method", "lora")} <= {(c.what, c.value) for c in made.choices}
    assert all(c.what and c.value and c.why for c in made.choices)
    back = json.loads(json.dumps(made.as_dict()))
    assert set(back) == {
        "machine", "model", "data", "choices", "choices_in", "seconds", "evaluation", "memory_gb", "warnings"
    }  # fmt: skip
    assert made.warnings == (), "nothing is known of the dataset"


def test_a_plan_speaks_chinese(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    language.use("zh")
    assert all(
        any("\u4e00" <= c <= "\u9fff" for c in choice.what + choice.why) for choice in plan(tiny_model, samples).choices
    )


def test_time_grows_with_the_work(
    tiny_model: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, machine: Hardware
) -> None:
    slow = replace(machine, gflops=0.01)
    monkeypatch.setattr(planner, "look", lambda *asked: slow)
    two, four = plan(tiny_model, samples), plan(tiny_model, samples, epochs=4)
    assert four.seconds == pytest.approx(2 * two.seconds, rel=0.01)
    assert plan(tiny_model, samples, max_steps=1).seconds == pytest.approx(two.seconds / 10, rel=0.01)
    assert plan(tiny_model, samples, method="full").seconds > two.seconds
    monkeypatch.setattr(planner, "look", lambda *asked: replace(slow, gflops=0.02))
    assert plan(tiny_model, samples).seconds == pytest.approx(two.seconds / 2, rel=0.01)


def test_memory_is_that_of_the_fullest_forward_pass(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    made = plan(tiny_model, samples, packing=False)
    longest = max(len(s.ids) for s in samples)
    train = recipe_of(tiny_model, packing=False).train
    need = memory_gb(shape(tiny_model, train, "float32"), longest, train, fused=True)
    assert made.memory_gb == pytest.approx(need, abs=0.01)


def test_a_run_that_does_not_fit_is_refused(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = plan(tiny_model, samples).memory_gb
    monkeypatch.setattr(planner, "look", lambda *asked: replace(machine, device="cpu", free_gb=need - 0.05))
    with pytest.raises(MachineError) as caught:
        plan(tiny_model, samples)
    assert caught.value.code == "TL-MACHINE-MEMORY"
    assert f"{need:.1f}" in str(caught.value)
    monkeypatch.setattr(planner, "look", lambda *asked: replace(machine, device="cpu", free_gb=need + 0.05))
    assert plan(tiny_model, samples).memory_gb == need
    monkeypatch.setattr(
        planner, "look", lambda *asked: replace(machine, device="cuda", gpu_memory_gb=0.1, gpus=("Card",))
    )
    with pytest.raises(MachineError):
        plan(tiny_model, samples)


MANIFEST = {
    "counts": {"rows_in": 50, "train": 40, "validation": 10, "dropped": 0}, "tokens": {"validation": 400}, "steps": []
}  # fmt: skip


def foreseen(folder: Path, samples: list[Sample], manifest: dict[str, Any] | None = None, **more: Any) -> Plan:
    recipe = recipe_of(folder, **more.pop("train", {}))
    recipe = recipe.model_copy(update={"evaluate": EvaluatePart(**more.pop("evaluate", {}))})
    return make(assembled(recipe, folder, samples, manifest=MANIFEST if manifest is None else manifest, **more))


def test_answers_take_their_time(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(machine, gflops=1e6, weights_gbs=0.001)  # nothing but writing takes time
    monkeypatch.setattr(planner, "look", lambda *asked: slow)
    part = {"rows": 4, "max_new_tokens": 10, "batch_size": 8}
    made = foreseen(tiny_model, samples, evaluate=part, prompts=12)
    assert (made.evaluation["answers"], made.evaluation["longest"]) == (16, 10)
    size = shape(tiny_model, recipe_of(tiny_model).train, "float32")
    step = size.parameters * 4 / (0.001 * GENERATION * 1e9) + size.layers * LAYER_SECONDS
    batches = 1 + 2  # four held-out dialogues, twelve prompts
    assert made.evaluation["seconds"] == pytest.approx(2 * batches * 10 * step, rel=0.01)
    assert made.evaluation["tokens_per_second"] == pytest.approx(16 * 10 / (batches * 10 * step), rel=0.01)
    assert made.total_seconds == made.seconds + made.evaluation["seconds"]
    longer = foreseen(tiny_model, samples, evaluate={**part, "max_new_tokens": 20}, prompts=12)
    assert longer.evaluation["seconds"] == pytest.approx(2 * made.evaluation["seconds"], rel=0.01)
    none = foreseen(tiny_model, samples, evaluate={**part, "rows": 0})
    assert none.evaluation["answers"] == none.evaluation["tokens_per_second"] == 0
    few = foreseen(tiny_model, samples, evaluate={**part, "rows": 99})
    assert few.evaluation["answers"] == 10, "no more rows are answered than were held out"


def test_the_held_out_loss_takes_its_time_as_often_as_it_is_measured(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(machine, device="cpu", gflops=0.01, weights_gbs=1e6)
    monkeypatch.setattr(planner, "look", lambda *asked: slow)

    def seconds(**train: Any) -> float:
        recipe = recipe_of(tiny_model, **train).model_copy(update={"evaluate": EvaluatePart(rows=0)})
        return float(make(assembled(recipe, tiny_model, samples, manifest=MANIFEST)).evaluation["seconds"])

    never = seconds(eval_strategy="no")
    assert seconds(eval_strategy="epoch") == pytest.approx(2 * never, rel=0.01), "before, after, and two epochs"
    assert seconds(eval_strategy="steps", eval_steps=4) == pytest.approx(2.5 * never, rel=0.01), "steps 4, 8 and 10"


def test_the_times_are_told_in_minutes(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = foreseen(tiny_model, samples, prompts=3)
    made = replace(made, seconds=960.0, evaluation={**made.evaluation, "seconds": 80.0, "tokens_per_second": 17.4})
    told = {c.what: c for c in times(made)}
    assert [c.value for c in told.values()] == ["16 min", "80 s", "17 min"]
    assert (
        "answers before and after: 13 each, of at most 64 tokens, at 17 tokens a second" in told["evaluation time"].why
    )


def test_a_plan_warns_of_what_the_dataset_lost(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    lost = {
        "counts": {"rows_in": 100, "train": 12, "validation": 0, "dropped": 88},
        "steps": [{"step": "read", "reason": "broken JSON", "dropped": 88, "changed": 0}],
    }
    made = foreseen(tiny_model, samples, lost, version="datasets/x")
    rows, few, held = made.warnings
    assert rows == (
        "88 of 100 rows were dropped (88 %): the line is not JSON (88 rows). Each row and its reason: datasets/x/ledger.jsonl"
    )
    assert few.startswith("Rows left to train on: 12")
    assert held.startswith("Nothing was held out, so there is no comparison of loss")
    assert foreseen(tiny_model, samples).warnings == ()


def slow_machine(monkeypatch: pytest.MonkeyPatch, machine: Hardware) -> None:
    slow = replace(machine, gflops=0.01)
    monkeypatch.setattr(planner, "look", lambda *asked: slow)


HALF = {"method": "freeze", "freeze": {"layers": 1}}


def test_kept_blocks_cost_one_pass(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_machine(monkeypatch, machine)
    kept, computed = (plan(tiny_model, samples, **HALF, epochs=10, keep_trunk=k) for k in ("auto", "off"))
    one = plan(tiny_model, samples, **HALF, epochs=1)
    size = shape(tiny_model, recipe_of(tiny_model, **HALF).train, "float32")
    below = 2 * size.linear_below * kept.data["tokens"] / (0.01e9 * EFFICIENCY)
    assert computed.seconds == pytest.approx(10 * one.seconds, rel=0.01)
    assert computed.seconds - kept.seconds == pytest.approx(9 * below, rel=0.02)
    said = {c.what: (c.value, c.why) for c in kept.choices}
    assert said["frozen blocks"][0] == "run once for all epochs"
    assert "no gradient goes below block 2 of 2" in said["method"][1]
    off = {c.what: (c.value, c.why) for c in computed.choices}
    assert off["frozen blocks"] == ("run at every step", "train.keep_trunk is off")
    assert "frozen blocks" not in {c.what for c in plan(tiny_model, samples).choices}


def test_keeping_that_cannot_be_is_told_in_the_plan(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    with pytest.raises(ModelError) as caught:
        plan(tiny_model, samples, keep_trunk="on")
    assert caught.value.code == "TL-MODEL-KEEP"


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"method": "qlora"}, "frozen weights in nf4: "),
        ({"method": "ptuning_v2", "virtual": {"tokens": 7}}, "virtual tokens before each text: 7"),
    ],
    ids=str,
)
def test_a_plan_says_what_a_method_does(
    tiny_model: Path, samples: list[Sample], machine: Hardware, train: dict[str, Any], words: str
) -> None:
    assert words in next(c.why for c in plan(tiny_model, samples, **train).choices if c.what == "method")


def test_a_task_that_does_not_write_has_no_answers(tiny_model: Path, samples: list[Sample], machine: Hardware) -> None:
    recipe = recipe_of(tiny_model)
    setting = TaskContext(recipe.train, load_tokenizer(tiny_model), ("no", "yes"), (1.0, 1.0))
    made = make(assembled(recipe, tiny_model, samples, manifest=MANIFEST, prompts=3, task=CLASSIFY, context=setting))
    assert (made.evaluation["answers"], made.evaluation["tokens_per_second"]) == (0, 0.0)
    assert make(assembled(recipe, tiny_model, samples, manifest=MANIFEST, prompts=3)).evaluation["answers"] == 13
    assert made.model["trainable"] > plan(tiny_model, samples).model["trainable"], "the new head"


def test_a_reference_is_measured_once(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_machine(monkeypatch, machine)
    every = Sequences.of(samples)
    pairs = Examples(every, np.arange(len(every)).reshape(-1, 2), np.ones(len(every) // 2))

    def seconds(loss: str) -> float:
        recipe = recipe_of(tiny_model, prefer={"loss": loss})
        return make(assembled(recipe, tiny_model, pairs, task=PREFER)).seconds

    size = shape(tiny_model, recipe_of(tiny_model).train, "float32")
    labels = int(every.labels.sum())
    once = forward_flops(size, every.tokens, labels) / (0.01e9 * EFFICIENCY)
    assert seconds("dpo") - seconds("orpo") == pytest.approx(once, rel=0.02)
    assert make(assembled(recipe_of(tiny_model), tiny_model, pairs, task=PREFER)).data["dialogues"] == 20


def test_time_is_that_of_the_products_that_training_uses(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(dtype: Any, rows: int, training: str) -> Hardware:
        return replace(machine, device="cpu", gflops=0.01, bfloat16_gflops=0.04 if training == "bfloat16" else 0.0)

    monkeypatch.setattr(planner, "look", slow)
    exact, coarse = (foreseen(tiny_model, samples, train={"matmul": m}) for m in ("float32", "bfloat16"))
    assert coarse.seconds == pytest.approx(exact.seconds / 4 * EFFICIENCY / EFFICIENCY_BFLOAT16, rel=0.01)
    assert coarse.evaluation["seconds"] == exact.evaluation["seconds"], "evaluation is in float32 at all times"
    assert "measured in bfloat16" in next(c.why for c in coarse.choices if c.what == "device")


def test_lengths_that_would_fit_are_offered(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the recipe leaves the length to the rows: the largest that fit, what each costs, and the line to write."""
    base = make_recipe({"model": str(tiny_model), "train": {"epochs": 1, "packing": False}})[0]
    long = Record((Message("user", "q"), Message("assistant", "so " * 20_000)))
    rows = Sequences.concatenate([Sequences.of(samples), tokenize(load_tokenizer(tiny_model), [long])])
    recipe = roomy(base, int(rows.lengths.max()))
    assert recipe.train.token_budget == int(rows.lengths.max()) > 20_000
    size = shape(tiny_model, recipe.train, "float32")

    def need(tokens: int, **train: Any) -> float:
        return memory_gb(size, tokens, recipe.train.model_copy(update=train), fused=True)

    room = need(5000)
    monkeypatch.setattr(planner, "look", lambda *asked: replace(machine, device="cpu", free_gb=room))
    with pytest.raises(MachineError) as caught:
        make(assembled(recipe, tiny_model, rows))
    assert caught.value.code == "TL-MACHINE-LENGTH"
    one, two = caught.value.facts["options"][0], caught.value.facts["options"][-1]
    assert (one.rows, one.of) == (1, len(rows))
    assert one.length == 4992
    assert one.settings == {"prepare.max_length": 4992, "train.token_budget": 4992}
    assert need(one.length) <= room < need(one.length + 64)
    assert one.line in str(caught.value)
    assert f"1 of {len(rows)} training rows are longer" in str(caught.value)
    if two is not one:
        assert two.rows < one.rows
        assert two.settings["train.checkpointing"] is True
        assert need(two.length, checkpointing=True) <= room
    chosen = changed(recipe, one.assignments)
    assert (chosen.prepare.max_length, chosen.train.token_budget) == (4992, 4992)
    assert make(assembled(chosen, tiny_model, samples)).memory_gb <= room
    numbered = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"max_length": 30_000})})
    with pytest.raises(MachineError, match="TL-MACHINE-MEMORY"):
        make(assembled(numbered, tiny_model, rows))
    monkeypatch.setattr(planner, "look", lambda *asked: replace(machine, device="cpu", free_gb=0.1))
    with pytest.raises(MachineError, match="TL-MACHINE-MEMORY"):
        make(assembled(recipe, tiny_model, rows))


@pytest.mark.parametrize(("said", "length"), [("1", 128), ("2", 512), ("0", 0), ("", 0), ("3", 0), ("x", 0)])
def test_run_offers_them_on_a_terminal(said: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from tuneloop.cli import run

    found = [Option(n, 1, 9, {"prepare.max_length": n, "train.token_budget": n}) for n in (128, 512)]
    error = MachineError("TL-MACHINE-LENGTH", longest=900, need="9", free="1", lines="", options=found)
    recipe = make_recipe({})[0]
    for asked, there in ((False, True), (True, False)):
        monkeypatch.setattr("sys.stdin.isatty", lambda there=there: there)
        with pytest.raises(MachineError):
            run.shorter(recipe, error, ask=asked)
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr(typer, "prompt", lambda *a, **k: said)
    if length:
        assert run.shorter(recipe, error, ask=True).prepare.max_length == length
    else:
        with pytest.raises(MachineError):
            run.shorter(recipe, error, ask=True)
    with pytest.raises(MachineError):
        run.shorter(recipe, MachineError("TL-MACHINE-MEMORY", need="9", free="1"), ask=True)


def test_a_busy_machine_is_told(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a program that takes one of two cores the minutes of a plan do not hold."""
    two = replace(machine, device="cpu", cores=2, all_cores=2, threads=2)
    card = {"device": "cuda", "gpu_memory_gb": 9.0, "gpus": ("Card",)}
    for more, factor in (
        ({"others": 1.0}, "2.0"), ({"others": 0.2}, ""), ({"all_cores": 8, "others": 5.0}, ""),
        ({"threads": 1, "others": 1.0}, ""), ({**card, "others": 2.0}, ""),
    ):  # fmt: skip
        monkeypatch.setattr(planner, "look", lambda *asked, more=more: replace(two, **more))
        said = [one for one in plan(tiny_model, samples).warnings if "Other programs" in one]
        assert bool(said) == bool(factor), more
        assert not factor or f"about {factor} times" in said[0]


def test_a_type_without_units_is_told_with_the_remedy(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of a processor with AVX2 alone: a float16 step took 12 to 26 times as long as one in float32."""
    slow = replace(machine, device="cpu", gflops=5.0, float32_gflops=100.0, others=0.0)
    monkeypatch.setattr(planner, "look", lambda *asked: slow)
    recipe = recipe_of(tiny_model)
    half = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float16"})})
    said = make(assembled(half, tiny_model, samples)).warnings
    assert len(said) == 1
    assert "float16 on this processor is about 12 times slower" in said[0]
    assert "model.dtype: float32" in said[0]
    language.use("zh")
    assert "慢 12 倍" in make(assembled(half, tiny_model, samples)).warnings[0]
    language.use("en")
    monkeypatch.setattr(planner, "look", lambda *asked: replace(slow, gflops=700.0, float32_gflops=350.0))
    assert make(assembled(half, tiny_model, samples)).warnings == (), "matrix units: no slower than float32"
    assert make(assembled(recipe, tiny_model, samples)).warnings == ()


def test_the_time_of_a_16_bit_run_is_that_of_its_products_where_these_are_slow(
    tiny_model: Path, samples: list[Sample], machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_model)
    half = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float16"})})

    def seconds(gflops: float, float32: float) -> float:
        seen = replace(machine, device="cpu", gflops=gflops, float32_gflops=float32, others=0.0)
        monkeypatch.setattr(planner, "look", lambda *asked: seen)
        return make(assembled(half, tiny_model, samples)).seconds

    work = seconds(0.001, 1e9) * 0.001
    assert seconds(0.002, 1e9) == pytest.approx(work / 0.002, rel=0.01)
    assert seconds(1e9, 0.002) == pytest.approx(work / 0.001, rel=0.01), "all else, at half the rate of float32"
