"""LLaMA-Factory's supervised fine-tuning. Run by the interpreter of its environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared import SYSTEM, Job, Meter, callback, peer


def way(job: Job, meter: Meter) -> Any:
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    rows = [{"instruction": r["prompt"], "input": "", "output": r["completion"]} for r in job.train]
    Path("rows.json").write_text(json.dumps(rows), encoding="utf-8")
    Path("dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    settings: dict[str, Any] = {
        "model_name_or_path": job.model, "stage": "sft", "do_train": True, "dataset": "rows", "dataset_dir": ".",
        "template": "chatml", "default_system": SYSTEM, "cutoff_len": 1024, "output_dir": "out",
        "per_device_train_batch_size": job.batch, "gradient_accumulation_steps": 1, "learning_rate": job.rate,
        "num_train_epochs": job.epochs, "logging_steps": 1000, "save_strategy": "no", "report_to": "none", "seed": 0,
        "disable_tqdm": True,
    }  # fmt: skip
    if job.section == "lora":
        settings |= {"finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 32, "lora_target": "q_proj,v_proj"}
    elif job.section == "freeze":
        settings |= {"finetuning_type": "freeze", "freeze_trainable_layers": 2}
    else:
        settings |= {"finetuning_type": "full"}
    if job.mode == "no-checkpointing":
        settings["disable_gradient_checkpointing"] = True
    meter.load()
    run_exp(settings, callbacks=[callback(meter)])
    return AutoTokenizer.from_pretrained(job.model)


if __name__ == "__main__":
    peer(way, ("torch", "transformers", "peft", "llamafactory", "accelerate"))
