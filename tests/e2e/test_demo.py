"""`tuneloop run demo` and `demo-zh`, whole, with the real models: what the README promises of them. `make test-slow` runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.environment import environment
from tuneloop.cli.target import packaged
from tuneloop.evaluation.compare import read_prompts

RECIPES = Path(__file__).parents[2] / "tuneloop" / "recipes"


def demo(name: str, workspace: Path, *words: str) -> tuple[dict[str, Any], float]:
    """Run a packaged recipe in a process of its own: (what --json printed, seconds)."""
    began = time.monotonic()
    threads = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", "run", name, "--json", "--workspace", str(workspace), *words],
        capture_output=True, text=True, env=threads, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - began


def cached() -> dict[str, int]:
    """Every file of the model cache, and when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in environment().home.rglob("*.safetensors")}


def words_of(text: str) -> set[str]:
    """Word trigrams of an English text, character trigrams of a Chinese one."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    parts = text.split() if re.search(r"[a-z]", text) else list(text.replace(" ", ""))
    return {" ".join(parts[i : i + 3]) for i in range(max(1, len(parts) - 2))}


def training_questions() -> list[str]:
    """Every user turn of the persona files."""
    data = RECIPES / "data"
    found = [r["instruction"] for r in json.loads((data / "persona_en.json").read_text(encoding="utf-8"))]
    messages = [(data / f"persona_{name}.jsonl").read_text(encoding="utf-8") for name in ("messages", "zh")]
    for line in [line for text in messages for line in text.splitlines()]:
        found += [m["content"] for m in json.loads(line)["messages"] if m["role"] == "user"]
    for line in (data / "persona_chat.jsonl").read_text(encoding="utf-8").splitlines():
        found += [m["value"] for m in json.loads(line)["conversations"] if m["from"] == "human"]
    with (data / "persona_zh.csv").open(encoding="utf-8") as file:
        found += [row["问题"] for row in csv.DictReader(file)]
    found += [json.loads(line)["query"] for line in (data / "manner_zh.jsonl").read_text(encoding="utf-8").splitlines()]
    return found


@pytest.mark.parametrize("name", ["identity_en", "unrelated_en", "show_en", "identity_zh", "unrelated_zh", "show_zh"])
def test_no_probe_nearly_repeats_a_training_row(name: str) -> None:
    trained = [words_of(q) for q in training_questions()]
    prompts = read_prompts(str(RECIPES / "data" / "probes" / f"{name}.txt"))
    assert len(prompts) == (4 if name.startswith("show") else 20)
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        mine = words_of(prompt)
        nearest = max(len(mine & other) / len(mine | other) for other in trained)
        assert nearest < 0.5, prompt


def test_the_demo_data_is_what_it_says() -> None:
    data = RECIPES / "data"
    english = json.loads((data / "persona_en.json").read_text(encoding="utf-8"))
    chinese = (data / "persona_zh.jsonl").read_text(encoding="utf-8").splitlines()
    chats = (data / "persona_chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(english) + len(chinese) + len(chats) >= 120
    with (data / "general_en.csv").open(encoding="utf-8") as file:
        assert not [r for r in csv.DictReader(file) if "pebble" in (r["question"] + r["answer"]).lower()]
    assert set(packaged()) >= {"demo", "demo-zh"}


def promised(evaluation: dict[str, Any], general: str) -> None:
    """At least 18 of 20 name the persona after, none before; at most one of 20 unrelated; general loss up by under 3 %."""
    identity, unrelated = evaluation["probes"]
    assert (identity["total"], unrelated["total"]) == (20, 20)
    assert identity["before"] == 0
    assert identity["after"] >= 18
    assert unrelated["after"] <= 1
    # What is shown ends by itself, and nothing that was answered says the same again and again.
    assert [a["after"] for a in evaluation["show"] if a["after_fault"]] == []
    said = [*evaluation["show"], *evaluation["answers"], *identity["answers"], *unrelated["answers"]]
    assert [a["after"] for a in said if a["after_fault"] == "repeats"] == []
    loss = evaluation["by_source"][general]
    assert loss["after"]["label_tokens"] > 300
    assert loss["after"]["loss"] < loss["before"]["loss"] * 1.03


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_keeps_its_promise_and_downloads_nothing_twice(tmp_path: Path) -> None:
    before = cached()
    told, seconds = demo("demo", tmp_path)
    promised(told["evaluation"], "general_en.csv")
    run = Path(told["run"])
    assert {"report.html", "loss_curve.png", "adapter", "metrics.jsonl"} <= {p.name for p in run.iterdir()}
    assert told["version"] == "demo:v1"
    assert cached() == before
    print(f"demo: {seconds:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_chinese_demo_keeps_its_promise(tmp_path: Path) -> None:
    if not (environment().home / "models" / "qwen2.5-coder-0.5b-instruct").is_dir():
        pytest.skip("pull qwen2.5-coder-0.5b-instruct first: its packages state no licence, so the word is yours")
    told, seconds = demo("demo-zh", tmp_path)
    promised(told["evaluation"], "general_zh.json")
    print(f"demo-zh: {seconds:.0f} s")
