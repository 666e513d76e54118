"""Speed and memory: a LoRA run of ours beside what others do with the same rows, model and types."""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tuneloop.base.language import t
from tuneloop.data.tokens.encode import Sample
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.table import LINEAR
from tuneloop.model.load import pick_dtype
from tuneloop.planning.budget import shape, step_flops
from tuneloop.planning.hardware import product_rate
from tuneloop.runs.journal import Journal
from tuneloop.selftest.lines import FailedError, Lines, NotRunError
from tuneloop.selftest.parity import padded, plainly, samples
from tuneloop.selftest.training import Ground


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: `rows` dialogues, `batch` of them a step in passes of `micro` where others pad; `budget` tokens
    a pass of ours; the adapter."""

    steps: int
    rows: int = 24
    batch: int = 8
    micro: int = 8
    budget: int = 4096
    rank: int = 8
    targets: list[str] | str = "all-linear"


def _most_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _forget(device: torch.device) -> None:
    gc.collect()  # what was measured before may hold itself
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True, slots=True)
class Speed:
    """Real tokens a second without the first step, and the most memory of the card in GB where there is one."""

    rate: float
    memory: float | None

    def describe(self) -> str:
        words = t("{n:,.0f} real tokens/s", n=self.rate)
        return words if self.memory is None else words + t(", {n:.2f} GB at the peak", n=self.memory)


def ours(ground: Ground, device: torch.device, work: Workload) -> tuple[Speed, float, float]:
    """A run by the whole pipeline; what it needed, the memory that was planned, its operations a second / 1e9."""
    _forget(device)
    recipe = ground.recipe(
        "chat",
        "auto",
        batch_size=work.batch,
        max_steps=work.steps,
        save_steps=work.steps,
        learning_rate=2e-4,
        token_budget=work.budget,
        lora={"rank": work.rank, "alpha": 2 * work.rank, "targets": work.targets},
    )
    run = ground.train(recipe, "chat")
    if not any(event.get("packing") for event in Journal(run.events).lines()):
        raise FailedError(t("its rows were not packed"))
    lines = list(Journal(run.metrics).lines())
    later = [line for line in lines if "loss" in line][1:]
    tokens, seconds = (sum(line["tokens"] for line in later), sum(line["clock"]["seconds"] for line in later))
    labels = sum(line["label_tokens"] for line in later)
    work_done = step_flops(shape(ground.model, recipe.train, "auto"), tokens, labels, recipe.train)
    return Speed(tokens / seconds, _most_gb(device)), ground.datasets["chat"][1].memory_gb, work_done / seconds / 1e9


def _targets(model: torch.nn.Module, work: Workload) -> list[str]:
    if not isinstance(work.targets, str):
        return work.targets
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, LINEAR)}
    return sorted(names - {"lm_head"})


def theirs(ground: Ground, device: torch.device, work: Workload, rows: Sequence[Sample]) -> Speed:
    """The same of transformers and PEFT: batches padded to their longest row, in the given order."""
    _forget(device)
    torch.manual_seed(0)
    model = plainly(ground.model, pick_dtype("auto"))
    config = LoraConfig(
        r=work.rank, lora_alpha=2 * work.rank, target_modules=_targets(model, work), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    tokens, seconds = 0, 0.0
    for k in range(work.steps):
        began = time.perf_counter()
        for at in range(0, work.batch, work.micro):
            batch = [rows[(k * work.batch + at + i) % len(rows)] for i in range(work.micro)]
            loss = model(**padded(batch, device)).loss * work.micro / work.batch
            loss.backward()
            tokens += sum(len(s.ids) for s in batch) if k else 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds += time.perf_counter() - began if k else 0.0
    return Speed(tokens / seconds, _most_gb(device))


def with_trl(
    ground: Ground, device: torch.device, work: Workload, rows: Sequence[Sample], *, liger: bool = True
) -> Speed:
    """The same of TRL with Liger's kernels. ImportError where one of the two is absent."""
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    if liger:
        importlib.import_module("liger_kernel")
    callback = importlib.import_module("transformers").TrainerCallback
    _forget(device)
    dtype, marks = pick_dtype("auto"), list[float]()

    class Clock(callback):  # type: ignore[misc, valid-type]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize() if device.type == "cuda" else None
            marks.append(time.perf_counter())

    model = plainly(ground.model, dtype)
    adapter = LoraConfig(
        r=work.rank, lora_alpha=2 * work.rank, target_modules=_targets(model, work), task_type="CAUSAL_LM"
    )
    settings = trl.SFTConfig(
        output_dir=str(ground.folder / "trl"),
        per_device_train_batch_size=work.micro,
        max_steps=work.steps,
        gradient_accumulation_steps=work.batch // work.micro,
        learning_rate=2e-4,
        use_liger_kernel=liger,
        max_length=None,
        bf16=dtype == torch.bfloat16 and device.type == "cuda",
        fp16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="non_padding",
        seed=0,
    )
    table = datasets.Dataset.from_list(
        [{"input_ids": s.ids.tolist(), "completion_mask": s.trained.astype(int).tolist()} for s in rows]
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=table,
        peft_config=adapter,
        callbacks=[Clock()],
        processing_class=load_tokenizer(ground.model),
    )
    trainer.train()
    used = [len(rows[i % len(rows)].ids) for i in range(work.batch, work.batch * work.steps)]
    return Speed(sum(used) / (marks[-1] - marks[0]), _most_gb(device))


def _or_too_large(measured: Callable[[], Speed]) -> Speed:
    """Another way that runs out of memory is no fault of ours."""
    try:
        return measured()
    except torch.OutOfMemoryError as error:
        raise NotRunError(t("out of memory on this card")) from error


def measure(lines: Lines, ground: Ground, device: torch.device, work: Workload, name: str) -> None:
    """Lines of what was measured. Speed passes or fails nothing: only a way that breaks does."""
    rates: dict[str, float] = {}

    def beside() -> str:
        speed = _or_too_large(lambda: theirs(ground, device, work, samples(ground, work.rows)))
        rates["peft"] = speed.rate
        return speed.describe()

    def liger() -> str:
        return _or_too_large(lambda: with_trl(ground, device, work, samples(ground, work.rows))).describe()

    def mine() -> str:
        rate = product_rate(pick_dtype("auto"), device.type, seconds=0.5)
        speed, planned, flops = ours(ground, device, work)
        words = speed.describe()
        if "peft" in rates:
            words += t(", {n:.2f} times as fast as padded", n=speed.rate / rates["peft"])
        if speed.memory is not None:
            words += t("; {n:.2f} GB were planned", n=planned)
        return words + t(
            "; {share:.0f} % of the {rate:,.0f} GFLOP/s that matrix products reach here",
            share=100 * flops / rate,
            rate=rate,
        )

    lines.claim(t("speed"), t("{model}: transformers + PEFT, padded batches", model=name), beside)
    lines.claim(t("speed"), t("{model}: tuneloop", model=name), mine)
    lines.claim(t("speed"), t("{model}: TRL with Liger", model=name), liger)
