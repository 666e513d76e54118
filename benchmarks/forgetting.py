"""What healthy runs and runs that forget do to the loss of the general set's facts: what `forgetting.MARGIN` rests on.

Runs of SmolLM2-135M on real rows, a few minutes each on two cores. Healthy ones learn a little of one kind of dialogue;
the others learn one domain for ten epochs at ten times the usual rate. The last one learns nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import rows

MODEL = "smollm2-135m-instruct"
LORA: dict[str, Any] = {"method": "lora", "learning_rate": 6e-4, "max_steps": 10}
FULL, FREEZE = {**LORA, "method": "full", "learning_rate": 1e-5}, {**LORA, "method": "freeze", "learning_rate": 1e-4}
DEEP: dict[str, Any] = {"method": "lora", "learning_rate": 3e-3, "epochs": 10, "max_steps": 100}
PERSONA = Path(__file__).parents[1] / "tuneloop" / "recipes" / "data" / "persona_en.json"
Spec = tuple[str, str, dict[str, Any]]
RUNS: dict[str, Spec] = {
    "alpaca en": ("llamafactory/alpaca_en_demo.json", "[:120]", LORA),
    "alpaca zh": ("llamafactory/alpaca_zh_demo.json", "[:200]", LORA),
    "strategyqa": ("alpaca_cot_en/strategyqa_train.json", "[:100]", LORA),
    "medical zh": ("medicalgpt/medical_sft_1K_format.jsonl", "", {**LORA, "max_steps": 9}),
    "persona, 2 epochs": (str(PERSONA), "[:48]", {**LORA, "learning_rate": 5e-4, "max_steps": 14}),
    "alpaca en, full": ("llamafactory/alpaca_en_demo.json", "[:120]", FULL),
    "alpaca en, freeze": ("llamafactory/alpaca_en_demo.json", "[120:260]", FREEZE),
    "persona, 10 epochs": (str(PERSONA), "[:48]", DEEP),
    "medical zh, 10 epochs": ("medicalgpt/medical_sft_1K_format.jsonl", "", {**DEEP, "max_steps": 36}),
    "strategyqa, 10 epochs": ("alpaca_cot_en/strategyqa_train.json", "[100:124]", DEEP),
    "nothing": ("llamafactory/alpaca_en_demo.json", "[:60]", {**LORA, "learning_rate": 1e-9, "max_steps": 4}),
}  # fmt: skip


def recipe(spec: Spec) -> Any:
    """The recipe of one run, which measures the general set and no answers."""
    from tuneloop.recipe.recipe import make_recipe

    path, part, train = spec
    file = {"path": str(path if Path(path).is_absolute() else rows.data() / path)} | ({"rows": part} if part else {})
    return make_recipe(
        {
            "name": "forgetting",
            "model": MODEL,
            "data": [file],
            "prepare": {"max_length": 200, "validation": 8},
            "train": {"batch_size": 4, "save_strategy": "no", "eval_strategy": "no", **train},
            "evaluate": {"rows": 0},
        }
    )[0]


def measure(spec: Spec, workspace: Path, say: Callable[[str], None] = lambda text: None) -> Any:
    """Train one run and measure it: its evaluation."""
    from tuneloop import pipeline

    wanted = recipe(spec)
    run = pipeline.train(wanted, pipeline.prepare(wanted, workspace=workspace), workspace=workspace)
    return pipeline.measure(run, say=say)


def main(arguments: list[str]) -> None:
    """The named runs, or all: verdict, and of each language before, after and the difference with its interval."""
    from tuneloop.evaluation.forgetting import FACTS, figures

    for name in arguments or RUNS:
        with TemporaryDirectory() as workspace:
            judged = measure(RUNS[name], Path(workspace)).forgetting
        facts = {key: change for key, change in judged.sections.items() if key.startswith(FACTS)}
        told = "; ".join(f"{key.removeprefix(FACTS)} {figures(change)}" for key, change in facts.items())
        print(f"{name}: {judged.verdict}; {told}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
