"""The plan: what a run will use, why, how long and how much memory, before it costs anything."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.base.duration import about
from tuneloop.base.errors import MachineError
from tuneloop.base.files import format_bytes
from tuneloop.base.language import current, listed, t
from tuneloop.data.augmenting.endpoint import notice
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.plan import BatchPlan, batch_plan
from tuneloop.data.tokens.samples import Sample
from tuneloop.methods.table import METHODS
from tuneloop.model.kernels.matmul import chosen
from tuneloop.model.load import pick_dtype
from tuneloop.planning.budget import (
    EFFICIENCY,
    EFFICIENCY_BFLOAT16,
    EFFICIENCY_QUANTISED,
    OTHER_HALF,
    STATE,
    Shape,
    forward_flops,
    generation_seconds,
    kept_flops,
    memory_gb,
    shape,
    step_flops,
)
from tuneloop.planning.cautions import SEMICOLON, cautions, foreign, low_rate, nothing_held
from tuneloop.planning.hardware import Hardware, look
from tuneloop.planning.lengths import options
from tuneloop.recipe.schema import Recipe, TrainPart
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.table import TASKS
from tuneloop.tasks.task import Task, TaskContext
from tuneloop.training.frozen_policy import Question, kept_bytes, measurements, objection
from tuneloop.training.optim import total_steps, warmup_steps

SLOWER = 1.5
"""From so many times on, a type that is slower than float32 is worth a word."""
QUIET = 0.8
"""With a larger share of its cores idle than this, a machine counts as quiet."""
COMMA = {"en": ", ", "zh": "，"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing the plan settles, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A run foreseen. `seconds` of training alone; `memory_gb` at its peak, in GB (1e9 bytes).

    `evaluation`: seconds, answers (to be written before and once more after), longest (tokens of one),
    tokens_per_second (assumed while writing). `warnings` are sentences about the dataset.
    """

    machine: Hardware
    model: dict[str, Any]
    data: dict[str, Any]
    choices: tuple[Choice, ...]
    seconds: float
    evaluation: dict[str, Any]
    memory_gb: float
    warnings: tuple[str, ...] = ()

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
class Held:
    """What evaluation will have before it. `prompts` are those of show and of all probes."""

    rows: int = 0
    tokens: int = 0
    prompts: int = 0


def make(
    recipe: Recipe, folder: Path, items: Examples | Sequence[Sample], manifest: Mapping[str, Any] | None = None, *,
    prompts: int = 0, ledger: str = "ledger.jsonl", task: Task = CHAT, setting: TaskContext | None = None,
) -> Plan:  # fmt: skip
    """Foresee a run on `items` of the dataset with this `manifest`, evaluated on `prompts` prompts beside its rows.

    Raises TL-MACHINE-MEMORY when it will not fit, and what a method says of a recipe that it cannot follow.
    """
    train = recipe.train
    told = setting or TaskContext(train, None)
    size = shape(folder, train, recipe.model.dtype, lambda config: task.head(told, config))
    machine = look(pick_dtype(recipe.model.dtype), recipe.evaluate.batch_size,
                   chosen(train.matmul, exact=task.precompute_reference is not None))  # fmt: skip
    items = Examples.of(items)
    batches = batch_plan(recipe, items, packing=METHODS[train.method].packable)
    steps = total_steps(train, batches.steps_per_epoch)
    epochs = steps / batches.steps_per_epoch
    used = items.members.ravel()
    tokens = sum(batches.lengths)
    labels = int(items.samples.labels[used].sum()) if task.generates else len(used)
    passed = tokens + (len(used) * size.virtual if METHODS[train.method].virtual else 0)
    unkept = _unkept(recipe, size, items, manifest, steps, batches.steps_per_epoch, Path(ledger).parent)
    work = step_flops(size, passed, labels, train, kept=not unkept) * epochs
    if not unkept:
        work += kept_flops(size, passed)
    seconds = work / _rate(machine, size, train, training=True)
    if task.precompute_reference is not None and (task.needs_reference is None or task.needs_reference(items, train)):
        seconds += forward_flops(size, passed, labels) / _rate(machine, size, train)
    fullest = min(train.token_budget, _fullest(batches))
    most = max(len(b) for b in batches.step(0)) * items.members.shape[1]
    memory = memory_gb(size, fullest + most * size.virtual, train, fast=_fast(machine, size, train))
    if memory > machine.room_gb:
        raise _too_much(recipe, machine, size, items, memory, most)
    found = manifest or {}
    counts = found.get("counts") or {}
    held = Held(int(counts.get("validation") or 0), _held_tokens(manifest), prompts)
    said = cautions(counts, found.get("steps") or (), ledger) if counts else []
    said += [*foreign(recipe.model.name, Path(ledger).parent), *low_rate(train, _name(task))]
    if counts and not held.rows:
        said.append(nothing_held())
    said += [*_slow_half(recipe, machine, size, fullest + most * size.virtual), *busy(machine)]
    if sent := notice(recipe.prepare.augment.endpoint):
        said.append(sent)
    return Plan(
        machine=machine,
        model={
            "name": recipe.model.name, "parameters": size.parameters, "trainable": size.trainable,
            "dtype": str(pick_dtype(recipe.model.dtype)).removeprefix("torch."),
        },
        data={"dialogues": len(items), "tokens": tokens, "label_tokens": labels, "steps": steps},
        choices=(_task(task, found), *_choices(recipe, machine, size, batches, steps, unkept)),
        seconds=round(seconds, 1),
        evaluation=_evaluation(
            recipe, machine, size, held, measured=2 + measurements(train, steps, batches.steps_per_epoch),
            writes=task.generates,
        ),
        memory_gb=round(memory, 2),
        warnings=tuple(said),
    )  # fmt: skip


def _name(task: Task) -> str:
    return next((name for name, one in TASKS.items() if one is task), "chat")


def _too_much(
    recipe: Recipe, machine: Hardware, size: Shape, items: Examples, memory: float, most: int
) -> MachineError:
    """The error of a run that does not fit. Where the recipe left the length to the rows, with the lengths that would.

    `most` items share a pass, each with its virtual tokens.
    """
    facts: dict[str, Any] = {"need": f"{memory:.1f}", "free": f"{machine.room_gb:.1f}"}
    lengths = items.samples.lengths[items.members].max(axis=1)

    def need(train: TrainPart, tokens: int) -> float:
        return memory_gb(size, tokens + most * size.virtual, train, fast=_fast(machine, size, train))

    found = []
    if recipe.prepare.max_length == "auto":
        found = options(lengths, items.members.shape[1], recipe.train, need, machine.room_gb,
                        checkpointing=METHODS[recipe.train.method].checkpointing)  # fmt: skip
    if not found:
        return MachineError("TL-MACHINE-MEMORY", **facts)
    lines = SEMICOLON[current()].join(map(str, found))
    return MachineError("TL-MACHINE-LENGTH", longest=int(lengths.max()), lines=lines, options=found, **facts)


def _rate(machine: Hardware, size: Shape, train: TrainPart, *, training: bool = False) -> float:
    """Operations a second: what is reached of the measured rate of matrix products, in training or in evaluation."""
    if machine.device != "cpu":
        return machine.gflops * 1e9 * EFFICIENCY
    rate = machine.gflops * EFFICIENCY
    if size.bytes_each < 4 and machine.float32_gflops:
        rate = 1 / (1 / max(machine.gflops, 1e-9) + 1 / (OTHER_HALF * machine.float32_gflops))
    if training and machine.bfloat16_gflops:
        rate = machine.bfloat16_gflops * EFFICIENCY_BFLOAT16
    return rate * 1e9 * (EFFICIENCY_QUANTISED if METHODS[train.method].quantize else 1.0)


def _slow_half(recipe: Recipe, machine: Hardware, size: Shape, tokens: int) -> list[str]:
    """The sentence about a 16-bit type on a processor that is slower in it than in float32."""
    if machine.device != "cpu" or size.bytes_each == 4:
        return []
    train, whole = recipe.train, replace(size, bytes_each=4)
    if not METHODS[train.method].quantize:
        whole = replace(whole, bytes_all=4 * size.parameters)
    quick = replace(machine, gflops=machine.float32_gflops, float32_gflops=0.0)
    times = _rate(quick, whole, train) / _rate(machine, size, train)
    if times < SLOWER:
        return []
    name = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    need = memory_gb(whole, tokens, train, fast=_fast(machine, whole, train))
    return [t("{dtype} on this processor is about {times} times slower than float32. Write `model.dtype: float32`; "
              "that takes about {need} GB of memory, and {free} GB are free.", dtype=name, times=f"{times:.2g}",
              need=f"{need:.1f}", free=f"{machine.room_gb:.1f}")]  # fmt: skip


def busy(machine: Hardware) -> list[str]:
    """The sentence about other programs that take the cores which a run needs; on a card they matter little."""
    if machine.device != "cpu" or machine.spare > QUIET:
        return []
    return [t("Other programs keep {busy} of {all} cores busy now: the times of this plan are those of a quiet "
              "machine, and beside them a run takes about {times} times as long.", busy=f"{machine.others:.1f}",
              all=machine.all_cores, times=f"{1 / max(machine.spare, 0.1):.1f}")]  # fmt: skip


def _fast(machine: Hardware, size: Shape, train: TrainPart) -> bool:
    """Whether the model's blocks get fast parts."""
    return machine.device == "cpu" and size.gated and size.bytes_each == 4 and not METHODS[train.method].quantize


def _held_tokens(manifest: Mapping[str, Any] | None) -> int:
    return int(((manifest or {}).get("tokens") or {}).get("validation") or 0)


def _unkept(
    recipe: Recipe, size: Shape, items: Examples, manifest: Mapping[str, Any] | None, steps: int, per_epoch: int,
    folder: Path,
) -> str:  # fmt: skip
    """Why the output of the frozen blocks is not kept over the epochs, "" where it is. Raises TL-MODEL-KEEP."""
    train = recipe.train
    need = kept_bytes(items, size.hidden, size.bytes_each)
    if measurements(train, steps, per_epoch) > 1:
        need += _held_tokens(manifest) * size.hidden * size.bytes_each
    free = shutil.disk_usage(folder if folder.is_dir() else Path()).free
    return objection(train, Question(size.below, size.layers, need, free, steps / per_epoch))


def _evaluation(
    recipe: Recipe, machine: Hardware, size: Shape, held: Held, *, measured: int, writes: bool = True
) -> dict[str, Any]:
    """Seconds for the answers before and after and for the held-out loss, `measured` times.

    Every answer counts as long as it may become; most end earlier. A task that does not write has none.
    """
    part = recipe.evaluate
    rows, prompts = (min(part.rows, held.rows), held.prompts) if writes else (0, 0)
    speed = _rate(machine, size, recipe.train)
    # A prompt is no longer than its dialogue; what a question of a probe takes to read is nothing beside its answer.
    read = forward_flops(size, rows * held.tokens // max(held.rows, 1), rows) / speed
    batches = math.ceil(rows / part.batch_size) + math.ceil(prompts / part.batch_size)
    write = generation_seconds(size, machine, batches, part.max_new_tokens)
    answers = rows + prompts
    loss = forward_flops(size, held.tokens, held.tokens if writes else held.rows) / speed
    return {
        "seconds": round(2 * (read + write) + measured * loss, 1),
        "answers": answers,
        "longest": part.max_new_tokens,
        "tokens_per_second": round(answers * part.max_new_tokens / write, 1) if write else 0.0,
    }


def times(plan: Plan) -> list[Choice]:
    """The times of a plan for the reader: training, evaluation, both."""
    measured = plan.evaluation
    why = t("estimated: no answers, the held-out loss alone")
    if measured["answers"]:
        why = t(
            "estimated; answers before and after: {n} each, of at most {longest} tokens, at {speed} tokens a second",
            n=measured["answers"], longest=measured["longest"], speed=f"{measured['tokens_per_second']:.0f}",
        )  # fmt: skip
    return [
        Choice(t("training time"), about(plan.seconds), t("estimated from the operations of a step")),
        Choice(t("evaluation time"), about(float(measured["seconds"])), why),
        Choice(t("time in all"), about(plan.total_seconds), t("without loading the model")),
    ]


def _fullest(batches: BatchPlan) -> int:
    """Tokens of the fullest forward pass of the first epoch."""
    return max(sum(batches.lengths[i] for i in b) for k in range(batches.steps_per_epoch) for b in batches.step(k))


def _method(train: TrainPart, size: Shape) -> str:
    """What there is to say of the method: how much it trains, and what it does beside that."""
    part = 100 * size.trainable / size.parameters
    said = [t("{part} % of {all} parameters are trained", part=f"{part:.2f}" if part >= 0.01 else f"{part:.1g}",
              all=f"{size.parameters:,}")]  # fmt: skip
    if METHODS[train.method].quantize:
        said.append(
            t("frozen weights in {bits}: {size} in all", bits=train.qlora.bits, size=format_bytes(size.bytes_all))
        )
    if size.virtual:
        said.append(t("virtual tokens before each text: {n}", n=size.virtual))
    if size.below:
        said.append(t("no gradient goes below block {n} of {all}", n=size.below + 1, all=size.layers)
                    if size.below < size.layers else t("no gradient goes into the blocks"))  # fmt: skip
    return COMMA[current()].join(said)


def _frozen(size: Shape, unkept: str) -> list[Choice]:
    """What becomes of blocks that are not trained, where there are some."""
    if not size.below:
        return []
    value = t("run at every step") if unkept else t("run once for all epochs")
    why = unkept or t("frozen blocks: {n} of {all}; their output is kept on the disk", n=size.below, all=size.layers)
    return [Choice(t("frozen blocks"), value, why)]


def _task(task: Task, manifest: Mapping[str, Any]) -> Choice:
    kinds = listed(manifest.get("kinds") or ())
    why = t("kind of the rows: {kinds}", kinds=kinds) if kinds else t("the recipe says so")
    return Choice(t("task"), _name(task), why)


def _choices(
    recipe: Recipe, machine: Hardware, size: Shape, batches: BatchPlan, steps: int, unkept: str
) -> list[Choice]:
    train = recipe.train
    device = machine.gpus[0] if machine.gpus else t("CPU, cores: {n}", n=machine.cores)
    dtype = "bfloat16" if machine.bfloat16_gflops else str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    rate = machine.bfloat16_gflops or machine.gflops
    return [
        Choice(t("device"), device, t("{rate} GFLOP/s measured in {dtype}", rate=f"{rate:.0f}", dtype=dtype)),
        Choice(t("method"), train.method, _method(train, size)),
        *_frozen(size, unkept),
        *shared_choices(recipe, batches, steps),
        Choice(
            t("optimizer"), train.optimizer,
            t("its state: {size}", size=format_bytes(round(size.trainable * STATE[train.optimizer]))),
        ),
    ]  # fmt: skip


def shared_choices(recipe: Recipe, batches: BatchPlan, steps: int) -> list[Choice]:
    """What follows from rows and recipe alone: lengths, batches, steps, the learning rate."""
    train, wanted = recipe.train, recipe.prepare.max_length
    passes = sum(len(batches.step(k)) for k in range(batches.steps_per_epoch)) / batches.steps_per_epoch
    longest = t("tokens: {n}", n=max(batches.lengths))
    return [
        Choice(t("longest row"), longest, f"prepare.max_length: {wanted}"),
        Choice(
            t("batch"), t("dialogues a step: {n}", n=train.batch_size),
            t("forward passes a step: {n} on average, at most {budget} tokens each, no padding",
              n=f"{passes:.1f}", budget=_fullest(batches)),
        ),
        Choice(
            t("steps"), str(steps),
            t("dialogues: {n}, epochs: {epochs}", n=len(batches.lengths),
              epochs=f"{steps / batches.steps_per_epoch:.3g}"),
        ),
        Choice(
            t("learning rate"), f"{train.learning_rate:g}",
            t("{schedule}, steps in which it rises: {n}", schedule=train.schedule, n=warmup_steps(train, steps)),
        ),
    ]  # fmt: skip
