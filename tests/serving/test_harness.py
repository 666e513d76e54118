"""lm-evaluation-harness asks our server what it would ask the model itself, and gets the same log-likelihoods."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.made import jsonl
from tests.real import load
from tuneloop.evaluation import harness
from tuneloop.hub.resolve import resolve

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
ROWS = {"llamafactory/alpaca_zh_demo.json": 25, "llamafactory/alpaca_en_demo.json": 25}
LONGEST = 300
"""Characters of a row: nothing of it is cut, and the model reads all twice in a minute."""
CHILD = """
import json, sys
from lm_eval import simple_evaluate
wish = json.loads(sys.argv[1])
task = {
    "task": "rows", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": wish["rows"]}},
    "output_type": "loglikelihood", "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    "target_delimiter": " ", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}], "metadata": {"version": 1},
}
measured = simple_evaluate(model=wish["model"], model_args=wish["arguments"], tasks=[task], batch_size=wish["batch"],
                           device="cpu", bootstrap_iters=0)
samples = sorted(measured["samples"]["rows"], key=lambda one: one["doc_id"])
json.dump([one["resps"][0][0] for one in samples], open(sys.argv[2], "w"))
"""


def python_with_harness() -> str:
    """LM_EVAL_PYTHON is a Python that has the extra eval beside what tuneloop needs."""
    python = os.environ.get("LM_EVAL_PYTHON") or (sys.executable if harness.find_spec("lm_eval") else "")
    if not python:
        pytest.skip("LM_EVAL_PYTHON names no Python with lm_eval")
    return python


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """The address of `tuneloop serve` for a model folder, in a process of its own."""
    command = [sys.executable, "-m", "tuneloop", "serve", str(folder), "--port", "0"]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=log.parent,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), "TUNELOOP_LANG": "en"})  # fmt: skip
    assert process.stdout is not None
    try:
        lines = (re.search(r"http://[\w.:]+(?=/v1)", line) for line in process.stdout)
        address = next((match[0] for match in lines if match), None)
        assert address is not None, log.read_text(encoding="utf-8")[-2000:]
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=60)


def log_likelihoods(rows: Path, model: str, arguments: dict[str, Any], batch: int) -> list[tuple[float, bool]]:
    """Of each row, how likely its answer is behind its question, and whether it is the greedy one."""
    out = rows.with_suffix(f".{model}.json")
    wish = {"rows": str(rows), "model": model, "arguments": arguments, "batch": batch}
    done = subprocess.run(
        [python_with_harness(), "-c", CHILD, json.dumps(wish), str(out)],
        env={**os.environ, **harness.OFFLINE, "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(float(number), bool(greedy)) for number, greedy in json.loads(out.read_text(encoding="utf-8"))]


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_the_harness_gets_the_log_likelihoods_of_the_model(tmp_path: Path) -> None:
    """50 real rows, one and several at a time, beside the model in the harness's own process."""
    python_with_harness()
    folder = resolve(MODEL)
    rows: list[dict[str, str]] = []
    for name, count in ROWS.items():
        pairs = ((r.messages[0].content, r.messages[1].content) for r in load(name))
        short = [(q, a) for q, a in pairs if a.strip() and len(q + a) <= LONGEST]
        rows += [{"question": q, "answer": a} for q, a in short[:count]]
    assert len(rows) == 50
    file = jsonl(tmp_path / "rows.jsonl", rows)
    alone = log_likelihoods(file, "hf", {"pretrained": str(folder), "dtype": "float32"}, 1)
    with served(folder, tmp_path / "server.log") as address:
        arguments = {"base_url": f"{address}/v1/completions", "model": folder.name, "tokenizer": str(folder),
                     "tokenizer_backend": "huggingface", "num_concurrent": 8, "max_length": 2048}  # fmt: skip
        for batch in (1, 4):
            asked = log_likelihoods(file, "local-completions", arguments, batch)
            assert [greedy for _, greedy in asked] == [greedy for _, greedy in alone]
            apart = max(abs(a - b) for (a, _), (b, _) in zip(asked, alone, strict=True))
            print(f"{batch} at a time: log-likelihoods differ by {apart:.2g} at most")
            assert apart < 1e-3
    assert all(number < 0 for number, _ in alone)
