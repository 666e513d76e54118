"""TRL, and transformers' own Trainer as tutorials use it. Run by the interpreter of TRL's environment."""

from __future__ import annotations

from typing import Any

from shared import Job, Meter, asked, callback, peer


def _model(job: Job, meter: Meter) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    meter.load()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(job.model)


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def _settings(job: Job) -> dict[str, Any]:
    """Of every trainer here. The learning rate falls in a line, from the first step on: transformers' default."""
    return {
        "output_dir": "out", "per_device_train_batch_size": job.batch, "num_train_epochs": job.epochs,
        "learning_rate": job.rate, "seed": 0, "report_to": "none", "save_strategy": "no", "logging_steps": 1000,
        "use_cpu": True, "disable_tqdm": True, "bf16": False,
    }  # fmt: skip


def _mode(job: Job, longest: int = 1024) -> dict[str, Any]:
    """What the ways set beside bf16, which TRL has on: on a processor without it, it halves the speed."""
    if job.mode == "defaults":
        return {}
    more: dict[str, Any] = {"gradient_checkpointing": False}
    if job.mode == "padding-free":  # without packing it demands that nothing is cut
        more |= {"padding_free": True, "max_length": None}
    if job.mode == "packing":  # as many tokens a step as eight rows have
        more |= {"packing": True, "max_length": longest, "per_device_train_batch_size": max(1, job.batch // 4)}
    return more


def _freeze(model: Any, last: int = 2) -> None:
    """Only the last blocks, and the norm behind them, learn."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    for part in (*model.model.layers[-last:], model.model.norm):
        for weight in part.parameters():
            weight.requires_grad_(True)


def sft(job: Job, meter: Meter) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _model(job, meter)
    if job.section == "freeze":
        _freeze(model)
    rows = [{"prompt": asked(r), "completion": [{"role": "assistant", "content": r["completion"]}]} for r in job.train]
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**(_settings(job) | _mode(job))), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=_lora() if job.section == "lora" else None,
        callbacks=[callback(meter)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return tokenizer


def dpo(job: Job, meter: Meter) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _model(job, meter)
    rows = [
        {"prompt": r["prompt"], **{s: [{"role": "assistant", "content": r[s]}] for s in ("chosen", "rejected")}}
        for r in job.train
    ]
    trainer = DPOTrainer(
        model=model, args=DPOConfig(**(_settings(job) | {"beta": 0.1} | _mode(job))),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=_lora(),
        callbacks=[callback(meter)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return tokenizer


def tutorial(job: Job, meter: Meter) -> Any:
    """What tutorials show: every row padded to 512, the labels are the ids, transformers' Trainer."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments, default_data_collator

    model, tokenizer = _model(job, meter)

    def encoded(row: dict[str, Any]) -> dict[str, Any]:
        chat = [*asked(row), {"role": "assistant", "content": row["completion"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        out = tokenizer(text, padding="max_length", truncation=True, max_length=512)
        return {**out, "labels": list(out["input_ids"])}

    rows = Dataset.from_list(job.train).map(encoded, remove_columns=["prompt", "completion"])
    trainer = Trainer(
        model=get_peft_model(model, _lora()), args=TrainingArguments(**_settings(job)), train_dataset=rows,
        data_collator=default_data_collator, callbacks=[callback(meter)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return tokenizer


def classify(job: Job, meter: Meter) -> Any:
    """A frozen encoder under a new head: dynamic padding, nothing else that the guides do not do."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    meter.load()
    torch.manual_seed(0)
    names = sorted({row["label"] for row in job.train})
    model = AutoModelForSequenceClassification.from_pretrained(
        job.model, dtype=torch.float32, label2id={name: k for k, name in enumerate(names)},
        id2label=dict(enumerate(names)),
    )  # fmt: skip
    for weight in model.base_model.parameters():
        weight.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(job.model)

    def encoded(row: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(row["text"], truncation=True, max_length=256), "labels": names.index(row["label"])}

    rows = Dataset.from_list(job.train).map(encoded, remove_columns=["text", "label"])
    trainer = Trainer(
        model=model, args=TrainingArguments(**_settings(job)), train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer), callbacks=[callback(meter)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return tokenizer


def way(job: Job, meter: Meter) -> Any:
    if job.mode == "tutorial":
        return tutorial(job, meter)
    return {"dpo": dpo, "classify": classify}.get(job.section, sft)(job, meter)


if __name__ == "__main__":
    peer(way, ("torch", "transformers", "peft", "trl", "accelerate"))
