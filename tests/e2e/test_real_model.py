"""The real SmolLM2-135M, a few steps: what other tools see of a run, and what each verb makes of it.

`make test` pulls the model first; without it these are skipped, and fail in CI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run

DATA = Path(__file__).parents[2] / "tuneloop" / "recipes" / "data"
MODEL = "smollm2-135m-instruct"

PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
adapter = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(adapter)
base = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
out = []
for question in json.loads(sys.argv[2]):
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    answer = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1]:]
    out.append(tokenizer.decode(answer, skip_special_tokens=True))
assert "tuneloop" not in sys.modules
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps of LoRA on persona rows, strong enough to change answers."""
    if not (environment().home / "models" / MODEL).is_dir():
        assert not os.environ.get("CI"), "CI must pull the model before the tests"
        pytest.skip(f"tuneloop model pull {MODEL}")
    workspace = tmp_path_factory.mktemp("real")
    recipe, _ = make_recipe(
        {
            "name": "real", "model": MODEL, "data": [{"path": str(DATA / "persona_en.json"), "rows": "[:30]"}],
            "prepare": {"validation": 4},
            "train": {"max_steps": 6, "batch_size": 4, "learning_rate": 2e-3, "eval_strategy": "no"},
        }
    )  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)


def test_plain_peft_answers_the_same_tokens(run: Run) -> None:
    """A script that knows no tuneloop loads the adapter folder and answers as we do, greedily."""
    questions = ["Who are you?", "What is the capital of France?", "How do I boil an egg?"]
    mine = pipeline.load(run.path).answer([[{"role": "user", "content": q}] for q in questions], max_new_tokens=24)
    untrained = pipeline.load(MODEL).answer([[{"role": "user", "content": questions[0]}]], max_new_tokens=24)
    assert mine[0].text != untrained[0].text
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(run.path / "adapter"), json.dumps(questions)],
        capture_output=True, text=True, cwd=run.path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [r.text for r in mine]


def test_the_merged_model_answers_as_base_and_adapter_do(run: Run, tmp_path: Path) -> None:
    parity = pipeline.export(run.path, tmp_path / "merged")
    assert parity.passed
    assert parity.max_logit_difference < 1e-3
    assert parity.same_tokens == parity.of
    question = [{"role": "user", "content": "Who are you?"}]
    merged = pipeline.load(tmp_path / "merged").answer([question], max_new_tokens=24)
    assert merged[0].text == pipeline.load(run.path).answer([question], max_new_tokens=24)[0].text


def test_the_loss_went_down(run: Run) -> None:
    losses = [json.loads(line)["loss"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
