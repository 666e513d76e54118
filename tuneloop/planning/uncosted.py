"""A plan from a tokenizer alone: rows, tokens and steps are known; memory and time need a model."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.base.language import in_each, t
from tuneloop.data.batches.plan import batch_plan
from tuneloop.methods.table import METHODS
from tuneloop.planning.cautions import cautions, nothing_held
from tuneloop.planning.choices import PlanChoice, shared_choices
from tuneloop.planning.hardware import look
from tuneloop.planning.planner import Plan
from tuneloop.training.input import TrainingInput
from tuneloop.training.optim import total_steps


def uncosted(assembled: TrainingInput) -> Plan:
    """What training would be, without its cost."""
    recipe, items, task, manifest = assembled.recipe, assembled.train, assembled.task, assembled.dataset.manifest
    train, ledger = recipe.train, str(assembled.dataset.path / "ledger.jsonl")
    batches = batch_plan(recipe, items, packing=METHODS[train.method].packable)
    steps = total_steps(train, batches.steps_per_epoch)
    used = items.members.ravel()
    labels = int(items.samples.labels[used].sum()) if task.generates else len(used)
    counts = manifest["counts"]
    warnings: Sequence[str] = [
        t("{name} is a tokenizer alone: rows, tokens and steps are counted; memory and time need a model, and so does "
          "training", name=recipe.model.name),
        *cautions(counts, manifest["steps"], ledger), *([] if counts["validation"] else [nothing_held()]),
    ]  # fmt: skip
    none = {
        "seconds": 0.0,
        "answers": 0,
        "losses": 0,
        "longest": recipe.evaluate.max_new_tokens,
        "tokens_per_second": 0.0,
    }

    def choices() -> tuple[PlanChoice, ...]:
        return PlanChoice(t("method"), train.method, ""), *shared_choices(recipe, batches, steps)

    return Plan(
        machine=look(),
        model={"name": recipe.model.name, "parameters": 0, "trainable": 0, "dtype": ""},
        data={"dialogues": len(items), "tokens": sum(batches.lengths), "label_tokens": labels, "steps": steps},
        choices=choices(),
        choices_in=in_each(choices),
        seconds=0.0,
        evaluation=none,
        memory_gb=0.0,
        warnings=tuple(warnings),
    )
