"""What every way shares, ours and the peers': one job, one meter, one measure of the held-out rows.

Here stand the standard library, and torch inside functions: the peers' interpreters have no tuneloop. A script reads
its job from the JSON file that its one argument names, and prints one line RESULT with what it measured.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's own template says where no system prompt is given; LLaMA-Factory's chatml has to be told."""


class Job:
    """One way to measure: its folder with train.json and held.json, and what `runner.py` says of it."""

    def __init__(self, path: str) -> None:
        self.told: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        self.folder = Path(path).parent
        self.section: str = self.told["section"]
        self.mode: str = self.told["mode"]
        self.model: str = self.told["model"]
        self.epochs: int = self.told["epochs"]
        self.rate: float = self.told["rate"]
        self.batch: int = self.told["batch"]
        self.train: list[dict[str, Any]] = json.loads((self.folder / "train.json").read_text(encoding="utf-8"))
        self.held: list[dict[str, Any]] = json.loads((self.folder / "held.json").read_text(encoding="utf-8"))


def peak_gb() -> float:
    """Most memory that this process, or any one child, ever held (GB, 1e9). Linux counts VmHWM from its own start."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii")) if status.is_file() else None
    own = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024 / 1e9


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


class Meter:
    """Steps of a training loop: seconds, CPU seconds and real tokens of each; where epochs end; the peak of memory."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, int]] = []
        self.epochs: list[float] = []
        self.tokens = 0
        self.model: Any = None
        self.loading = time.perf_counter()

    def load(self) -> None:
        """The libraries are imported; from here on the model is loaded, and all is made ready for the loop."""
        self.loading = time.perf_counter()

    def begin(self, model: Any) -> None:
        """The loop begins. Tokens are counted where they enter the model: what its mask does not call padding."""
        self.model = model
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.began = self._last = time.perf_counter()
        self.cpu_began = self._cpu_last = cpu_seconds()

    def _count(self, module: Any, positional: Any, named: dict[str, Any]) -> None:
        mask, ids = named.get("attention_mask"), named.get("input_ids", positional[0] if positional else None)
        if mask is not None and mask.dim() == 2:
            self.tokens += int(mask.sum())
        elif ids is not None:
            self.tokens += ids.numel()

    def step(self) -> None:
        now, cpu = time.perf_counter(), cpu_seconds()
        self.steps.append((now - self._last, cpu - self._cpu_last, self.tokens))
        self._last, self._cpu_last, self.tokens = now, cpu, 0

    def epoch(self) -> None:
        self.epochs.append(time.perf_counter() - self.began)

    def end(self) -> None:
        self.loop, self.work = time.perf_counter() - self.began, time.perf_counter() - self.loading
        self.cpu = cpu_seconds() - self.cpu_began
        self.peak = peak_gb()

    def figures(self) -> dict[str, Any]:
        seconds, cpu, tokens = zip(*self.steps, strict=True) if self.steps else ((), (), ())
        return {
            "step_seconds": seconds, "step_cpu": cpu, "step_tokens": tokens, "epoch_ends": self.epochs,
            "loop": self.loop, "work": self.work, "cpu": self.cpu, "peak_gb": self.peak,
        }  # fmt: skip


def callback(meter: Meter) -> Any:
    """The meter as a callback of transformers' Trainer and of all that is built on it."""
    from transformers import TrainerCallback

    class Metering(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.begin(more["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.step()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.epoch()

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.end()

    return Metering()


def encode(tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> tuple[list[int], int]:
    """Token ids of a prompt with its answer, and how many of them are the prompt's."""
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    asked = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = tokenizer(answer + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
    return asked + said, len(asked)


def asked(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}]


def answer_losses(model: Any, ids: list[int], start: int) -> Any:
    """Losses of the tokens from `start` on, float32 [n]: one row alone, the full logits."""
    import torch

    out = model(input_ids=torch.tensor([ids], device=next(model.parameters()).device)).logits[0, start - 1 : -1].float()
    return torch.nn.functional.cross_entropy(out, torch.tensor(ids[start:], device=out.device), reduction="none")


def chat_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean loss of the answers' tokens, row by row: the same for every way."""
    total, count = 0.0, 0
    for row in rows:
        losses = answer_losses(model, *encode(tokenizer, asked(row), row["completion"]))
        total += float(losses.sum())
        count += len(losses)
    return {"held": total / count}


def pair_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]], beta: float = 0.1) -> dict[str, float]:
    """Mean DPO loss (Rafailov et al. 2023, arXiv:2305.18290, equation 7) against the model without its adapter."""
    import torch

    total = 0.0
    for row in rows:
        gain = {}
        for side in ("chosen", "rejected"):
            text = encode(tokenizer, row["prompt"], row[side])
            own = -answer_losses(model, *text).sum()
            with model.disable_adapter():
                gain[side] = own + answer_losses(model, *text).sum()
        total += float(-torch.nn.functional.logsigmoid(beta * (gain["chosen"] - gain["rejected"])))
    return {"held": total / len(rows)}


def class_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean cross entropy of the labels, and the share that is right."""
    import torch

    names = {str(name): int(k) for name, k in model.config.label2id.items()}
    total, right = 0.0, 0
    for row in rows:
        words = tokenizer(row["text"], truncation=True, max_length=256, return_tensors="pt")
        out = model(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).logits.float()
        wanted = torch.tensor([names[row["label"]]])
        total += float(torch.nn.functional.cross_entropy(out, wanted))
        right += int(out.argmax(-1) == wanted)
    return {"held": total / len(rows), "accuracy": right / len(rows)}


HELD: dict[str, Callable[..., dict[str, float]]] = {
    "lora": chat_loss, "full": chat_loss, "freeze": chat_loss, "dpo": pair_loss, "classify": class_loss,
}  # fmt: skip


def held(job: Job, model: Any, tokenizer: Any) -> dict[str, float]:
    """What the trained model loses on the held-out rows."""
    import torch

    model.eval()
    with torch.inference_mode():
        return HELD[job.section](model, tokenizer, job.held)


def peer(ways: Callable[[Job, Meter], Any], packages: tuple[str, ...]) -> None:
    """A peer's script: train as the job says, then report. `ways` returns the tokenizer."""
    from importlib.metadata import version

    job, meter = Job(sys.argv[1]), Meter()
    os.chdir(job.folder)
    tokenizer = ways(job, meter)
    told = {"whole": time.time() - job.told["began"], "whole_cpu": cpu_seconds(), **meter.figures()}
    told["dtype"] = str(next(meter.model.parameters()).dtype).removeprefix("torch.")
    report({**told, **held(job, meter.model, tokenizer), "versions": {name: version(name) for name in packages}})


def report(result: dict[str, Any]) -> None:
    print("RESULT", json.dumps(result), flush=True)
