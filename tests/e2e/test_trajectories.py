"""Loss by loss, a run is what plain transformers, and TRL, make of the same batches."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TALK
from tests.made import jsonl
from tests.real import shared
from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.plan import batch_plan
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sample
from tuneloop.data.version.dataset import Dataset
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.task import TaskContext
from tuneloop.training.model_folder import starting_model
from tuneloop.training.optim import curve, warmup_steps

STEPS, BATCH = 20, 4
MODEL = "smollm2-135m-instruct"
LORA = {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}


@dataclass
class Course:
    """One recipe's way through its batches: as we go it, and what another needs to go it as well."""

    recipe: Recipe
    dataset: Dataset
    model: Path

    def ours(self) -> list[float]:
        run = pipeline.train(self.recipe, self.dataset, workspace=self.dataset.path.parents[2])
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        assert max(line["samples"] for line in lines) == BATCH
        return [line["loss"] for line in lines]

    @cached_property
    def batches(self) -> list[list[Sample]]:
        tokenizer = load_tokenizer(self.model)
        items = Examples.of(tokenize(tokenizer, self.dataset.records("train")))
        plan = batch_plan(self.recipe, items)
        return [[items.samples[k] for one in plan.step(n) for k in sorted(one)] for n in range(STEPS)]

    def plain_model(self) -> nn.Module:
        """transformers' model, with PEFT's LoRA begun as ours is."""
        model: nn.Module = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        if self.recipe.train.method == "full":
            return model
        config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=LORA["targets"],
                            task_type="CAUSAL_LM")  # fmt: skip
        model = get_peft_model(model, config)  # type: ignore[arg-type]
        begun = starting_model(
            self.recipe, self.model, CHAT, TaskContext(self.recipe.train, load_tokenizer(self.model))
        )
        set_peft_model_state_dict(model, get_peft_model_state_dict(begun))
        return model

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR]:
        train = self.recipe.train
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=train.learning_rate, weight_decay=0.0, fused=False)
        return optimizer, LambdaLR(optimizer, curve(train.schedule, warmup_steps(train, STEPS), STEPS))


def labels(sample: Sample) -> list[int]:
    return np.where(sample.trained, sample.ids, -100).tolist()


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def by_transformers(course: Course) -> list[float]:
    """The loop of a textbook: padded batches, the model's own loss."""
    model = course.plain_model().train()
    optimizer, scheduler = course.optimizer(model)

    def loss_of(batch: list[Sample]) -> torch.Tensor:
        loss: torch.Tensor = model(
            input_ids=padded([one.ids.tolist() for one in batch], 0), labels=padded([labels(one) for one in batch], -100),
            attention_mask=padded([[1] * len(one.ids) for one in batch], 0),
        ).loss  # fmt: skip
        return loss

    with torch.no_grad():
        untrained = loss_of(course.batches[-1]).item()
    losses = []
    for batch in course.batches:
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], course.recipe.train.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < untrained - 1e-2, "nothing was learned, so nothing is shown"
    return losses


def by_trl(course: Course, folder: Path) -> list[float]:
    """SFTTrainer with its own collator, loss and loop; the rows are in order, and its batches are ours."""
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer

    losses: list[float] = []

    class Told(SFTTrainer):
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
            return loss

    rows = [{"input_ids": one.ids.tolist(), "labels": labels(one)} for batch in course.batches for one in batch]
    config = SFTConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
        train_sampling_strategy="sequential", max_grad_norm=course.recipe.train.max_grad_norm, bf16=False, fp16=False,
        gradient_checkpointing=False, use_cpu=True, report_to=[], save_strategy="no", max_length=None, packing=False,
        disable_tqdm=True,
    )  # fmt: skip
    model = course.plain_model()
    trainer = Told(
        model=model, args=config, train_dataset=Table.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(course.model), optimizers=course.optimizer(model),
    )  # fmt: skip
    trainer.train()
    return losses


def apart(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs) == STEPS
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def course(folder: Path, model: Path, data: Path, method: str, rate: float) -> Course:
    recipe, _ = make_recipe({
        "name": method, "model": {"name": str(model), "dtype": "float32"}, "data": str(data),
        "prepare": {"validation": 4, "dedupe": "off"},
        "train": {"method": method, "max_steps": STEPS, "batch_size": BATCH, "learning_rate": rate, "matmul": "float32",
                  "eval_strategy": "no", "save_strategy": "no", **({"lora": LORA} if method == "lora" else {})},
    })  # fmt: skip
    return Course(recipe, pipeline.prepare(recipe, workspace=folder), model)


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-3), ("full", 5e-4)])
def test_a_tiny_run_goes_as_plain_transformers_goes(
    method: str, rate: float, tiny_model: Path, tmp_path: Path
) -> None:  # fmt: skip
    rows = ({"question": f"{q} ({n})", "answer": a} for n in range(11) for q, a in TALK)
    one = course(tmp_path, tiny_model, jsonl(tmp_path / "talk.jsonl", rows), method, rate)
    assert apart(one.ours(), by_transformers(one)) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("full", 3e-5)])
def test_a_real_run_goes_as_trl_and_plain_transformers_go(method: str, rate: float, tmp_path: Path) -> None:
    """SmolLM2-135M on rows of a real data set, without the long ones."""
    model = environment().home / "models" / MODEL
    if not model.is_dir():
        assert not os.environ.get("CI"), "CI must pull the model before the tests"
        pytest.skip(f"tuneloop model pull {MODEL}")
    with shared("llamafactory/alpaca_en_demo.json").open(encoding="utf-8") as file:
        short = (r for r in json.load(file) if len(r["instruction"]) + len(r["output"]) < 500)
        data = jsonl(tmp_path / "short.jsonl", islice(short, STEPS * BATCH + 4))
    one = course(tmp_path, model, data, method, rate)
    ours = one.ours()
    assert apart(ours, by_transformers(one)) < 1e-3
    assert apart(ours, by_trl(one, tmp_path / "trl")) < 1e-3
