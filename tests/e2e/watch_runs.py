"""Real runs that are watched, for tests: healthy recipes of small models, and children in which they are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lives import fork, wait
from tests.real import shared
from tuneloop import pipeline
from tuneloop.planning.planner import Plan
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

SEEDS = (1, 2, 3)
SMOLLM, MINILM = "smollm2-135m-instruct", "all-minilm-l6-v2"
STEPS = 40
OURS = Path(__file__).parents[2] / "tuneloop" / "recipes" / "data"
SETS: dict[str, Callable[[], list[Any]]] = {
    "persona": lambda: [
        str(OURS / "persona_en.json"), str(OURS / "persona_messages.jsonl"),
        {"path": str(OURS / "persona_chat.jsonl"), "rows": "[8:]"}, {"path": str(OURS / "general_en.csv"), "rows": "[:48]"},
    ],
    "strategyqa": lambda: [str(shared("alpaca_cot_en/strategyqa_train.json"))],
    "smilechat": lambda: [str(shared("smilechat/dialogs.jsonl"))],
    "few": lambda: [{"path": str(shared("alpaca_cot_en/strategyqa_train.json")), "rows": "[:64]"}],
}  # fmt: skip
"""Name -> files of a recipe: who the model is, questions with their reasoning, long dialogues in Chinese, and forty rows to train."""


def chat(kind: str, seed: int, **train: Any) -> Recipe:
    """LoRA of SmolLM2 on a set of `SETS`: 40 steps of 8 rows of at most 192 tokens, by the usual rate and schedule."""
    settings = {
        "method": "lora", "max_steps": STEPS, "batch_size": 8, "eval_strategy": "steps", "eval_steps": 10,
        "save_strategy": "steps", "save_steps": 10, **train,
    }  # fmt: skip
    recipe, _ = make_recipe({
        "name": f"{kind}-{seed}", "seed": seed, "model": SMOLLM, "data": SETS[kind](),
        "prepare": {"validation": 24, "max_length": 192, "too_long": "cut_right"}, "train": settings,
    })  # fmt: skip
    return recipe


def sentiment(method: str, seed: int, **train: Any) -> Recipe:
    """MiniLM on a thousand sentences of films: 56 steps of 16, by the usual rate and schedule of the method."""
    recipe, _ = make_recipe({
        "name": f"{method}-{seed}", "seed": seed, "model": MINILM,
        "data": {"path": str(shared("sst2/train.tsv")), "header": 0, "columns": {"text": "column_1", "label": "column_2"}},
        "prepare": {"validation": 100, "max_length": 128, "too_long": "cut_left"},
        "train": {"task": "classify", "method": method, "batch_size": 16, "max_steps": 56, "eval_strategy": "steps",
                  "eval_steps": 8, **train},
    })  # fmt: skip
    return recipe


def overfitting(seed: int, **train: Any) -> Recipe:
    """Forty rows learned by heart: eight epochs of them, each measured, at a brisk rate that never falls."""
    settings = {"learning_rate": 2e-3, "schedule": "constant", "eval_steps": 5, "save_steps": 5, **train}
    return chat("few", seed, **settings)
