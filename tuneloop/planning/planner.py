"""The plan: what a run will use, why, how long and how much memory, before it costs anything."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.base.duration import about
from tuneloop.base.errors import MachineError
from tuneloop.base.language import current, in_each, t
from tuneloop.data.augmenting.endpoint import notice
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.plan import batch_plan
from tuneloop.methods.table import METHODS
from tuneloop.model.kernels.matmul import chosen
from tuneloop.model.load import pick_dtype
from tuneloop.planning.budget import (
    EFFICIENCY,
    EFFICIENCY_BFLOAT16,
    EFFICIENCY_QUANTISED,
    OTHER_HALF,
    ModelShape,
    forward_flops,
    generation_seconds,
    kept_flops,
    memory_gb,
    shape,
    step_flops,
)
from tuneloop.planning.cautions import SEMICOLON, cautions, foreign, high_rate, low_rate, nothing_held
from tuneloop.planning.choices import PlanChoice, fullest_pass, run_choices, task_line
from tuneloop.planning.hardware import Hardware, look
from tuneloop.planning.lengths import options
from tuneloop.recipe.choices import USUAL_TASK
from tuneloop.recipe.schema import Recipe, TrainPart
from tuneloop.tasks.table import TASKS
from tuneloop.training.frozen_policy import CacheQuestion, kept_bytes, measurements, objection
from tuneloop.training.input import TrainingInput
from tuneloop.training.optim import total_steps

SLOWER = 1.5
"""From so many times on, a type that is slower than float32 is worth a word."""
QUIET = 0.8
"""With a larger share of its cores idle than this, a machine counts as quiet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run foreseen. `seconds` of training alone; `memory_gb` at its peak, in GB (1e9 bytes).

    `evaluation`: seconds, answers (to be written before and once more after), losses (rows whose loss is measured, the
    general set's among them), longest (tokens of an answer), tokens_per_second (assumed while writing). `warnings` are
    sentences about the dataset. `choices_in` are the choices by language, for a report that has them all.
    """

    machine: Hardware
    model: dict[str, Any]
    data: dict[str, Any]
    choices: tuple[PlanChoice, ...]
    seconds: float
    evaluation: dict[str, Any]
    memory_gb: float
    warnings: tuple[str, ...] = ()
    choices_in: Mapping[str, tuple[PlanChoice, ...]] = field(default_factory=dict)

    @property
    def costed(self) -> bool:
        """Whether there is a model, so that memory and time are known."""
        return bool(self.model["parameters"])

    @property
    def total_seconds(self) -> float:
        """Training and evaluation."""
        return self.seconds + float(self.evaluation["seconds"])

    def as_dict(self) -> dict[str, Any]:
        """What plan.json holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SectionsSize:
    """The rows that are measured beside the held-out ones: rows with a loss, their tokens, and rows to be answered."""

    rows: int = 0
    tokens: int = 0
    labels: int = 0
    answers: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationSize:
    """What evaluation will have before it. `prompts` are those of show and of all probes."""

    rows: int = 0
    tokens: int = 0
    prompts: int = 0
    sections: SectionsSize = field(default_factory=SectionsSize)


def make(assembled: TrainingInput, sections: SectionsSize | None = None) -> Plan:
    """Foresee a run; `sections` are those of its suite beside the held-out rows.

    Raises TL-MACHINE-MEMORY when it will not fit, and what a method says of a recipe that it cannot follow.
    """
    recipe, task, items, manifest = assembled.recipe, assembled.task, assembled.train, assembled.dataset.manifest
    train, ledger = recipe.train, str(assembled.dataset.path / "ledger.jsonl")
    size = shape(assembled.folder, train, recipe.model.dtype, lambda config: task.head(assembled.context, config))
    machine = look(
        pick_dtype(recipe.model.dtype),
        recipe.evaluate.batch_size,
        chosen(train.matmul, exact=task.precompute_reference is not None),
    )
    batches = batch_plan(recipe, items, packing=METHODS[train.method].packable)
    steps = total_steps(train, batches.steps_per_epoch)
    epochs = steps / batches.steps_per_epoch
    used = items.members.ravel()
    tokens = sum(batches.lengths)
    labels = int(items.samples.labels[used].sum()) if task.generates else len(used)
    passed = tokens + (len(used) * size.virtual if METHODS[train.method].virtual else 0)

    def unkept() -> str:
        """Why the output of the frozen blocks is not kept over the epochs, "" where it is. Raises TL-MODEL-KEEP."""
        need = _kept_bytes(recipe, size, items, manifest, steps, batches.steps_per_epoch)
        folder = Path(ledger).parent
        free = shutil.disk_usage(folder if folder.is_dir() else Path()).free
        return objection(train, CacheQuestion(size.below, size.layers, need, free, epochs))

    def choices() -> tuple[PlanChoice, ...]:
        settled = run_choices(recipe, machine, size, batches, steps, unkept())
        return (task_line(_task_name(assembled), manifest), *settled)

    work = step_flops(size, passed, labels, train, cached=not unkept()) * epochs
    if not unkept():
        work += kept_flops(size, passed)
    seconds = work / _rate(machine, size, train, training=True)
    if task.precompute_reference is not None and (task.needs_reference is None or task.needs_reference(items, train)):
        seconds += forward_flops(size, passed, labels) / _rate(machine, size, train)
    fullest = min(train.token_budget, fullest_pass(batches))
    most = max(len(b) for b in batches.step(0)) * items.members.shape[1]
    memory = memory_gb(size, fullest + most * size.virtual, train, fused=_fused(machine, size, train))
    if memory > machine.room_gb:
        raise _too_much(recipe, machine, size, items, memory, most)
    counts = manifest.get("counts") or {}
    held = EvaluationSize(
        int(counts.get("validation") or 0), _held_tokens(manifest), len(assembled.prompts), sections or SectionsSize()
    )
    return Plan(
        machine=machine,
        model={
            "name": recipe.model.name,
            "parameters": size.parameters,
            "trainable": size.trainable,
            "dtype": str(pick_dtype(recipe.model.dtype)).removeprefix("torch."),
        },
        data={"dialogues": len(items), "tokens": tokens, "label_tokens": labels, "steps": steps},
        choices=choices(),
        choices_in=in_each(choices),
        seconds=round(seconds, 3),
        evaluation=_evaluation(
            recipe,
            machine,
            size,
            held,
            measured=2 + measurements(train, steps, batches.steps_per_epoch),
            generates=task.generates,
        ),
        memory_gb=round(memory, 2),
        warnings=(
            *_warnings(assembled, ledger),
            *_slow_half(recipe, machine, size, fullest + most * size.virtual),
            *busy(machine),
            *filter(None, [notice(recipe.prepare.augment.endpoint)]),
        ),
    )


def _task_name(assembled: TrainingInput) -> str:
    """The task of a run by its name in the recipe."""
    name = assembled.recipe.train.task
    return name if name != "auto" else next((n for n, task in TASKS.items() if task is assembled.task), USUAL_TASK)


def _warnings(assembled: TrainingInput, ledger: str) -> list[str]:
    """Sentences about the dataset, the model and the learning rate."""
    recipe, manifest = assembled.recipe, assembled.dataset.manifest
    counts = manifest.get("counts") or {}
    warnings = cautions(counts, manifest.get("steps") or (), ledger) if counts else []
    task = _task_name(assembled)
    warnings += [*foreign(recipe.model.name, Path(ledger).parent), *low_rate(recipe.train, task)]
    warnings += high_rate(recipe.train, task)
    if counts and not counts.get("validation"):
        warnings.append(nothing_held())
    return warnings


def _too_much(
    recipe: Recipe, machine: Hardware, size: ModelShape, items: Examples, memory: float, most: int
) -> MachineError:
    """The error of a run that does not fit. Where the recipe left the length to the rows, with the lengths that would.

    `most` items share a pass, each with its virtual tokens.
    """
    facts: dict[str, Any] = {"need": f"{memory:.1f}", "free": f"{machine.room_gb:.1f}"}
    lengths = items.samples.lengths[items.members].max(axis=1)

    def need(train: TrainPart, tokens: int) -> float:
        return memory_gb(size, tokens + most * size.virtual, train, fused=_fused(machine, size, train))

    fitting = []
    if recipe.prepare.max_length == "auto":
        fitting = options(
            lengths,
            items.members.shape[1],
            recipe.train,
            need,
            machine.room_gb,
            checkpointing=METHODS[recipe.train.method].checkpointing,
        )
    if not fitting:
        return MachineError("TL-MACHINE-MEMORY", **facts)
    lines = SEMICOLON[current()].join(map(str, fitting))
    return MachineError("TL-MACHINE-LENGTH", longest=int(lengths.max()), lines=lines, options=fitting, **facts)


def _rate(machine: Hardware, size: ModelShape, train: TrainPart, *, training: bool = False) -> float:
    """Operations a second: what is reached of the measured rate of matrix products, in training or in evaluation."""
    if machine.device != "cpu":
        return machine.gflops * 1e9 * EFFICIENCY
    rate = machine.gflops * EFFICIENCY
    if size.bytes_each < 4 and machine.float32_gflops:
        rate = 1 / (1 / max(machine.gflops, 1e-9) + 1 / (OTHER_HALF * machine.float32_gflops))
    if training and machine.bfloat16_gflops:
        rate = machine.bfloat16_gflops * EFFICIENCY_BFLOAT16
    return rate * 1e9 * (EFFICIENCY_QUANTISED if METHODS[train.method].quantize else 1.0)


def _slow_half(recipe: Recipe, machine: Hardware, size: ModelShape, tokens: int) -> list[str]:
    """The sentence about a 16-bit type on a processor that is slower in it than in float32."""
    if machine.device != "cpu" or size.bytes_each == 4:
        return []
    train, single = recipe.train, replace(size, bytes_each=4)
    if not METHODS[train.method].quantize:
        single = replace(single, bytes_all=4 * size.parameters)
    quick = replace(machine, gflops=machine.float32_gflops, float32_gflops=0.0)
    times = _rate(quick, single, train) / _rate(machine, size, train)
    if times < SLOWER:
        return []
    name = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    need = memory_gb(single, tokens, train, fused=_fused(machine, single, train))
    return [
        t(
            "{dtype} on this processor is about {times} times slower than float32. Write `model.dtype: float32`; "
            "that takes about {need} GB of memory, and {free} GB are free.",
            dtype=name,
            times=f"{times:.2g}",
            need=f"{need:.1f}",
            free=f"{machine.room_gb:.1f}",
        )
    ]


def busy(machine: Hardware) -> list[str]:
    """The sentence about other programs that take the cores which a run needs; on a card they matter little."""
    if machine.device != "cpu" or machine.spare > QUIET:
        return []
    return [
        t(
            "Other programs keep {busy} of {all} cores busy now: the times of this plan are those of a quiet "
            "machine, and beside them a run takes about {times} times as long.",
            busy=f"{machine.others:.1f}",
            all=machine.all_cores,
            times=f"{1 / max(machine.spare, 0.1):.1f}",
        )
    ]


def _fused(machine: Hardware, size: ModelShape, train: TrainPart) -> bool:
    """Whether the model's blocks get fast parts."""
    return machine.device == "cpu" and size.gated and size.bytes_each == 4 and not METHODS[train.method].quantize


def _held_tokens(manifest: Mapping[str, Any] | None) -> int:
    return int(((manifest or {}).get("tokens") or {}).get("validation") or 0)


def _kept_bytes(
    recipe: Recipe,
    size: ModelShape,
    items: Examples,
    manifest: Mapping[str, Any] | None,
    steps: int,
    per_epoch: int,
) -> int:
    """Bytes of the frozen blocks' output for all rows that are passed more than once."""
    need = kept_bytes(items, size.hidden, size.bytes_each)
    if measurements(recipe.train, steps, per_epoch) > 1:
        need += _held_tokens(manifest) * size.hidden * size.bytes_each
    return need


def _evaluation(
    recipe: Recipe, machine: Hardware, size: ModelShape, held: EvaluationSize, *, measured: int, generates: bool = True
) -> dict[str, Any]:
    """Seconds for answers and losses before and after, and for the held-out loss, `measured` times in all.

    Every answer counts as long as it may become; most end earlier. A task that does not write has none.
    """
    part, beside = recipe.evaluate, held.sections
    rows, prompts = (min(part.rows, held.rows), held.prompts) if generates else (0, 0)
    speed = _rate(machine, size, recipe.train)
    # A prompt is no longer than its dialogue; what a question of a probe takes to read is nothing beside its answer.
    read = forward_flops(size, rows * held.tokens // max(held.rows, 1), rows) / speed
    read += forward_flops(size, beside.answers * beside.tokens // max(beside.rows, 1), beside.answers) / speed
    batches = sum(math.ceil(n / part.batch_size) for n in (rows, prompts, beside.answers))
    write = generation_seconds(size, machine, batches, part.max_new_tokens)
    answers = rows + prompts + beside.answers
    losses = forward_flops(size, beside.tokens, beside.labels) / speed
    loss = forward_flops(size, held.tokens, held.tokens if generates else held.rows) / speed
    return {
        "seconds": round(2 * (read + write + losses) + measured * loss, 3),
        "answers": answers,
        "losses": held.rows + beside.rows,
        "longest": part.max_new_tokens,
        "tokens_per_second": round(answers * part.max_new_tokens / write, 1) if write else 0.0,
    }


def times(plan: Plan) -> list[PlanChoice]:
    """The times of a plan for the reader: training, evaluation, both."""
    measured = plan.evaluation
    losses = measured.get("losses", 0)
    why = (
        t("estimated: no answers, the loss of {losses} rows alone", losses=losses)
        if losses
        else t("nothing is measured")
    )
    if measured["answers"]:
        why = t(
            "estimated; answers before and after: {n} each, of at most {longest} tokens, at {speed} tokens a second; "
            "losses of {losses} rows each",
            losses=losses,
            n=measured["answers"],
            longest=measured["longest"],
            speed=f"{measured['tokens_per_second']:.0f}",
        )
    return [
        PlanChoice(t("training time"), about(plan.seconds), t("estimated from the operations of a step")),
        PlanChoice(t("evaluation time"), about(float(measured["seconds"])), why),
        PlanChoice(t("time in all"), about(plan.total_seconds), t("without loading the model")),
    ]
