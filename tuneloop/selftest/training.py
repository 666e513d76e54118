"""Training on this device: every method with every task, packed as one by one, resumed as never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tuneloop import pipeline
from tuneloop.base.language import t
from tuneloop.base.records import Kind
from tuneloop.data.kinds import KINDS
from tuneloop.data.version.dataset import Dataset
from tuneloop.inference.trained import load_trained
from tuneloop.methods.table import METHODS
from tuneloop.model import checkpoint
from tuneloop.planning.planner import Plan
from tuneloop.recipe.choices import USUAL
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.selftest import subject
from tuneloop.selftest.lines import FailedError, Lines
from tuneloop.tasks.table import TASKS

STEPS = 4
OF_METHOD: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1}}, "qlora": {"lora": {"rank": 4}}, "freeze": {"freeze": {"layers": 1}},
    "ptuning_v2": {"virtual": {"tokens": 4}}, "prompt_tuning": {"virtual": {"tokens": 4}},
}  # fmt: skip
OF_TASK: dict[str, dict[str, Any]] = {
    "classify_prompt": {"classify": {"template": "{text} True:", "words": {"yes": ["y"], "no": ["n"]}}},
}
"""What a method or a task needs to be told beside its name."""
CLEAN = {"unicode": False, "mojibake": False, "html": False, "templates": False, "pii": "off", "repetition": "off",
         "refusal": "off", "gibberish": "off"}  # fmt: skip
"""Rows that are made need no cleaning, nor the packages that it takes."""


@dataclass
class Ground:
    """A workspace, and what is made in it once: the model, a dataset a kind of row, a plan a dataset."""

    folder: Path
    model: Path
    longest: int = 10**6
    """Characters of a row."""
    rows: Callable[[], Iterable[dict[str, Any]]] | None = None
    """The dialogues, where they are not those of the demo."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """What else preparing is told."""
    datasets: dict[Kind, tuple[Dataset, Plan]] = field(default_factory=dict)
    bases: dict[str, Run] = field(default_factory=dict)

    def recipe(self, kind: Kind, dtype: str = "float32", **train: Any) -> Recipe:
        file = self.folder / f"{kind}.jsonl"
        if not file.is_file() and self.rows is not None:
            file.write_text("".join(json.dumps(row) + "\n" for row in self.rows()), encoding="utf-8")
        elif not file.is_file():
            subject.row_file(self.folder, kind, longest=self.longest)
        settings = {"max_steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "save_strategy": "steps",
                    "save_steps": STEPS // 2, "save_total_limit": None, "eval_strategy": "no", "warmup_ratio": 0.0,
                    **train}  # fmt: skip
        recipe, _ = make_recipe(
            {
                "name": kind,
                "model": {"name": str(self.model), "dtype": dtype},
                "data": {"path": str(file), "task": kind},
                "prepare": {"validation": 4, "clean": CLEAN, **self.prepare},
                "train": settings,
            }
        )
        return recipe

    def train(self, recipe: Recipe, kind: Kind) -> Run:
        """A finished run of the recipe. Prepared and planned once a kind."""
        if kind not in self.datasets:
            dataset = pipeline.prepare(recipe, workspace=self.folder)
            self.datasets[kind] = dataset, pipeline.plan(self.recipe(kind), dataset)[0]
        dataset, foreseen = self.datasets[kind]
        return pipeline.train(recipe, dataset, workspace=self.folder, foreseen=foreseen)

    def chat(self, dtype: str = "float32", **train: Any) -> Run:
        """A finished run on dialogues."""
        return self.train(self.recipe("chat", dtype, **train), "chat")

    def base(self, method: str) -> Run:
        """The run that others of this method are held against, made once."""
        if method not in self.bases:
            self.bases[method] = self.chat(method=method)
        return self.bases[method]


def kind_for(task: str) -> Kind:
    """The rows that a task is shown: those it is mostly for, else any it can take.

    >>> kind_for("text")
    'text'
    """
    usual = [k for k in KINDS if USUAL[k] == task]
    return next(k for k in [*usual, *KINDS] if k in TASKS[task].kinds)


def combinations(ground: Ground, lines: Lines) -> None:
    """One line a method and task: it trains, its result is read back whole, and resuming changes nothing."""
    for method in METHODS:
        for task in TASKS:
            lines.claim(
                t("training"),
                f"{method} x {task}",
                lambda m=method, k=task: combination(ground, m, k),  # type: ignore[misc]
                may_refuse=True,
            )


def combination(ground: Ground, method: str, task: str, **more: Any) -> str:
    """A run of this method and task: trained, read back, resumed. `more` are settings of `train`."""
    kind = kind_for(task)
    settings = OF_METHOD.get(method, {}) | OF_TASK.get(task, {}) | more
    recipe = ground.recipe(kind, task=task, method=method, **settings)
    run = ground.train(recipe, kind)
    losses = _losses(run)
    if not all(x == x and abs(x) < 1e4 for x in losses):
        raise FailedError(t("losses {losses}", losses=losses))
    _read_back(run)
    _resumed(run)
    return t("loss {first:.4f} -> {last:.4f}; read back; resumed bit for bit", first=losses[0], last=losses[-1])


def _read_back(run: Run) -> None:
    """The result, loaded as a user would, has the weights of the last checkpoint."""
    last = load_file(run.checkpoints / f"step-{STEPS}" / "trained.safetensors")
    parameters = dict(load_trained(run.path).model.named_parameters())
    for name, weight in last.items():
        short = name.partition(".")[2]  # the objective's own name for its model stands in front
        if short not in parameters:
            raise FailedError(t("{name} is not in the result", name=short))
        if not torch.equal(parameters[short].detach().float().cpu(), weight.float()):
            raise FailedError(t("{name} is another one in the result", name=short))


def _resumed(run: Run) -> None:
    """Stopped after half the steps and taken up again, the run ends with the same bytes."""
    copy = Run(run.path.with_name(f"{run.name.rpartition('-')[0]}-9{run.name.rpartition('-')[2]}"))
    shutil.copytree(run.path, copy.path)
    trained = copy.trained_folder()
    assert trained is not None
    shutil.rmtree(trained)
    shutil.rmtree(copy.checkpoints / f"step-{STEPS}")
    pipeline.resume(copy)
    a, b = (checkpoint.newest(r.checkpoints) for r in (run, copy))
    assert a is not None
    assert b is not None
    for name in ("trained.safetensors", "optimizer.safetensors"):
        if (a / name).read_bytes() != (b / name).read_bytes():
            raise FailedError(t("the resumed run differs: {what}", what=name))
    shutil.rmtree(copy.path)


def _lines(run: Run) -> list[dict[str, Any]]:
    every = list(Journal(run.metrics).lines())
    return [line for line in every if "loss" in line]


def _losses(run: Run) -> list[float]:
    return [line["loss"] for line in _lines(run)]


def equal_recipes(ground: Ground, lines: Lines, methods: Sequence[str] = ("lora", "full"), name: str = "") -> None:
    """However samples share forward passes, a step loses the same and has the same gradient. `name` is the shape's."""
    before = f"{name}, " if name else ""
    variants: dict[str, dict[str, Any]] = {
        t("packed as one by one"): {"packing": False}, t("micro-batches of 1"): {"micro_batch_size": 1},
        t("half the token budget"): {"token_budget": 1024}, t("activations computed again"): {"checkpointing": True},
    }  # fmt: skip
    for method in methods:
        for what, variant in variants.items():
            lines.claim(
                t("equal recipes"),
                f"{before}{method}, {what}",
                lambda m=method, v=variant: _same(ground.chat(method=m, **v), ground.base(m), 1e-4, 1e-3),  # type: ignore[misc]
            )


def _same(got: Run, wanted: Run, of_loss: float, of_norm: float) -> str:
    """Losses, relative to what they are, and gradient norms of two runs."""
    a, b = _lines(got), _lines(wanted)
    losses = max(abs(x["loss"] - y["loss"]) / abs(y["loss"]) for x, y in zip(a, b, strict=True))
    norms = max(abs(x["grad_norm"] - y["grad_norm"]) / y["grad_norm"] for x, y in zip(a, b, strict=True))
    summary = t("losses within {losses:.1e}, gradient norms within {norms:.1e}", losses=losses, norms=norms)
    if not (losses <= of_loss and norms <= of_norm):
        raise FailedError(summary + t("; allowed {a:.0e} and {b:.0e}", a=of_loss, b=of_norm))
    return summary


def types(ground: Ground, lines: Lines, halves: Sequence[str]) -> None:
    """16-bit types lose what float32 loses, within their rounding."""
    for dtype in halves:
        for method in ("lora", "full"):
            lines.claim(
                t("types"),
                t("{method} in {dtype} as in float32", method=method, dtype=dtype),
                lambda d=dtype, m=method: _same(ground.chat(d, method=m), ground.base(m), 1e-2, 5e-2),  # type: ignore[misc]
            )
