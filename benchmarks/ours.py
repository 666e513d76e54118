"""tuneloop's way of each job, through its public functions, in a process of its own: -m benchmarks.ours JOB.JSON"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.shared import Job, asked, cpu_seconds, held, peak_gb, report

LORA = {"rank": 8, "alpha": 32, "targets": ["q_proj", "v_proj"]}
# The task is not named: tuneloop sees it in the rows.
PARTS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": LORA},
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "freeze": {"layers": 2}},
    "classify": {"method": "freeze", "freeze": {"layers": 0, "head": True}},
    "dpo": {"method": "lora", "lora": LORA, "prefer": {"loss": "dpo", "beta": 0.1}},
}
# The rows are the peers' rows, letter by letter: nothing is repaired or left out.
UNCHANGED = {"unicode": False, "mojibake": False, "html": False, "templates": False, "pii": "off",
             "repetition": "off", "refusal": "off"}  # fmt: skip


def write_rows(job: Job) -> Path:
    """The job's rows as a file that tuneloop reads."""
    if job.section == "classify":
        path = job.folder / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(job.train)
        return path
    path = job.folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in job.train:
            if job.section != "dpo":
                row = {"messages": [*asked(row), {"role": "assistant", "content": row["completion"]}]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def recipe(job: Job, rows: Path) -> dict[str, Any]:
    """The peers' settings: AdamW without decay, a learning rate that falls in a line from the first step on."""
    prepare: dict[str, Any] = {"clean": UNCHANGED, "dedupe": "off", "validation": 0}
    if job.section == "classify":
        prepare |= {"max_length": 256, "too_long": "cut_right"}
    return {
        "name": "bench", "seed": 0, "model": {"name": job.model, "dtype": "float32"}, "data": str(rows),
        "prepare": prepare,
        "train": {
            **PARTS[job.section], "epochs": job.epochs, "batch_size": job.batch, "learning_rate": job.rate,
            "schedule": "linear", "warmup_ratio": 0, "matmul": job.told["matmul"], "save_strategy": "no",
            "eval_strategy": "no",
        },
    }  # fmt: skip


def train(job: Job) -> tuple[Path, dict[str, Any]]:
    """Raw rows -> a trained run; and what its own files tell of its steps."""
    import tuneloop

    workspace = job.folder / "workspace"
    made, _ = tuneloop.make_recipe(recipe(job, write_rows(job)))
    dataset = tuneloop.prepare(made, workspace=workspace)
    foreseen, _ = tuneloop.plan(made, dataset)
    began, cpu = time.time(), cpu_seconds()
    run = tuneloop.train(made, dataset, workspace=workspace, foreseen=foreseen)
    told = {
        "whole": time.time() - job.told["began"], "whole_cpu": cpu_seconds(), "cpu": cpu_seconds() - cpu,
        "train": time.time() - began, "peak_gb": peak_gb(), "counts": dataset.manifest["counts"],
    }  # fmt: skip
    return run.path, {**told, **steps(run.path, job.epochs, began)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps(run: Path, epochs: int, called: float) -> dict[str, Any]:
    """Seconds and real tokens of each step and the ends of epochs, as metrics.jsonl and events.jsonl have them.

    The loop begins at the event `started`, before frozen blocks are run for all epochs; the work begins where
    `tuneloop.train` was called, before the model is loaded and a reference's answers are weighed.
    """
    every = [line for line in lines(run / "metrics.jsonl") if "tokens" in line]
    began = next(line["time"] for line in lines(run / "events.jsonl") if line["event"] == "started")
    ends = [
        max(line["clock"]["time"] for line in every if line["epoch"] <= epoch) - began
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    return {
        "step_seconds": [line["clock"]["seconds"] for line in every],
        "step_tokens": [line["tokens"] for line in every], "epoch_ends": ends,
        "loop": every[-1]["clock"]["time"] - began, "work": every[-1]["clock"]["time"] - called,
    }  # fmt: skip


def trained(job: Job, run: Path) -> tuple[Any, Any]:
    """What the run made, loaded by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForSequenceClassification if job.section == "classify" else AutoModelForCausalLM
    if (run / "adapter").is_dir():
        base = kind.from_pretrained(job.model, dtype=torch.float32)
        return PeftModel.from_pretrained(base, run / "adapter"), AutoTokenizer.from_pretrained(job.model)
    return kind.from_pretrained(run / "model", dtype=torch.float32), AutoTokenizer.from_pretrained(job.model)


def main() -> None:
    from importlib.metadata import version

    import tuneloop

    job = Job(sys.argv[1])
    run, told = train(job)
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    versions = {"tuneloop": tuneloop.__version__, **versions}
    report({**told, **held(job, *trained(job, run)), "versions": versions})


if __name__ == "__main__":
    main()
