"""Makes the workspace of this folder with the tuneloop that is installed: python -m tests.old_workspace.make

It is run once, with the commit that README.md names, and kept: what it wrote must open for ever. It looks inside
tuneloop, as that commit had it; the test that reads the workspace does not.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import signal
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import tiny

HERE = Path(__file__).resolve().parent
WORK = Path("/tmp/tuneloop-old-workspace")
"""Where it is made. The files name this place, and it is deleted: whoever opens them has moved the workspace."""
DECODER = {"words": 320, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_attention_heads": 2,
           "num_key_value_heads": 1, "num_hidden_layers": 2}  # fmt: skip
ENCODER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
STEPS, SAVED, KILLED = 6, 2, 3
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("llama", {"task": "chat", "method": "lora", "lora": {"rank": 2, "dropout": 0.1}}),
    "whole": ("llama", {"task": "chat", "method": "full"}),
    "labels": ("bert", {"task": "classify", "method": "lora", "lora": {"rank": 2}}),
    "pairs": ("llama", {"task": "prefer", "method": "lora", "lora": {"rank": 2, "dropout": 0.1}}),
}
"""Name of a run -> the family of its model and its section `train`. Chat and pairs are made once more, and stopped."""
STOPPED = ("chat", "pairs")
QUESTION = "Who are you?"
TEXT = "the good film was fine"
INSPECTED = ("hash", "counts", "kinds", "tokens", "lengths", "steps", "labels", "duplicates", "samples")


def recipe_of(name: str) -> Any:
    from tuneloop import make_recipe

    family, train = RUNS[name]
    kind = tiny.KIND[str(train["task"])]
    settings = {"max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-2, "save_strategy": "steps",
                "save_steps": SAVED, "save_total_limit": 1, "matmul": "float32", **train}  # fmt: skip
    return make_recipe({
        "name": name, "model": str(WORK / "base" / family), "data": str(WORK / "rows" / f"{kind}.jsonl"),
        "prepare": {"validation": 4, "dedupe": "exact"}, "train": settings,
        "evaluate": {"rows": 2, "max_new_tokens": 8, "show": [QUESTION] if family == "llama" else []},
    })[0]  # fmt: skip


def rows(name: str) -> None:
    """The rows of a run; two dialogues more are for the ledger: one said before, one without an answer."""
    kind = tiny.KIND[str(RUNS[name][1]["task"])]
    file = tiny.rows(WORK / "rows", kind, times=3)
    if kind == "chat":
        first = file.read_text(encoding="utf-8").split("\n")[0]
        alone = json.dumps({"messages": [{"role": "user", "content": "Is anybody there?"}]})
        with file.open("a", encoding="utf-8") as more:
            more.write(f"{first}\n{alone}\n")


def tuneloop(*words: str) -> str:
    """What `python -m tuneloop WORDS` prints."""
    said = StringIO()
    with mock.patch.object(sys, "argv", ["tuneloop", *words]), redirect_stdout(said), suppress(SystemExit):
        runpy.run_module("tuneloop", run_name="__main__")
    return said.getvalue()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def column(file: Path, name: str) -> list[Any]:
    found = [line[name] for line in lines(file) if name in line]
    return [value.hex() if isinstance(value, float) else value for value in found]


def stopped(name: str, dataset: Any) -> str:
    """A run like `name` that is killed after its third step: a checkpoint of the second is there, and no result."""
    from tuneloop import pipeline
    from tuneloop.training.callbacks import Saver

    child = os.fork()
    if child == 0:
        inner = Saver.on_step

        def on_step(self: Any, state: Any, result: Any) -> None:
            inner(self, state, result)
            if state.step == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)

        Saver.on_step = on_step  # type: ignore[method-assign]
        pipeline.train(recipe_of(name), dataset, workspace=WORK)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return sorted((WORK / "runs").glob(f"{name}-*"))[-1].name


def of_dataset(name: str) -> dict[str, Any]:
    """What `data inspect` and `data export` say of a version."""
    told = json.loads(tuneloop("data", "inspect", name, "--workspace", str(WORK), "--json"))
    kept: dict[str, Any] = {"inspect": {key: told[key] for key in INSPECTED}}
    for side in ("train", "validation"):
        file = WORK / f"{side}.jsonl"
        tuneloop("data", "export", name, str(file), "--side", side, "--workspace", str(WORK))
        kept[side] = lines(file)
        file.unlink()
    return kept


def of_run(path: Path) -> dict[str, Any]:
    """Losses and gradient norms, exactly; row ids of the batches; and what the finished run says."""
    from tuneloop import evaluate, load, register, runs  # type: ignore[attr-defined]

    run = runs.Run(path)
    told = {name: column(path / "metrics.jsonl", name) for name in ("loss", "grad_norm", "batch", "eval_loss")}
    measured = evaluate(run)
    told |= {"before": measured["before"], "after": measured["after"], "version": register(run, workspace=WORK).ref}
    model = load(path)
    if hasattr(model, "classify"):
        return {**told, "answer": model.classify([TEXT])[0]}
    return {**told, "answer": model.answer([[{"role": "user", "content": QUESTION}]], max_new_tokens=8)[0].text}


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "TUNELOOP_LANG": "en", "TUNELOOP_OFFLINE": "1"}
    import torch

    from tuneloop import pipeline

    promote = importlib.import_module("tuneloop.registry").promote  # as it lay in that commit

    torch.set_num_threads(1)
    shutil.rmtree(WORK, ignore_errors=True)
    tiny.model(WORK / "base" / "llama", "llama", **DECODER)
    tiny.model(WORK / "base" / "bert", "bert", **ENCODER)
    expected: dict[str, Any] = {"processor": tiny.processor(), "runs": {}, "datasets": {}}
    for name in RUNS:
        rows(name)
        dataset = pipeline.prepare(recipe_of(name), workspace=WORK)
        if name != "whole":
            expected["datasets"][f"{name}/{dataset.hash}"] = of_dataset(name)
        run = pipeline.train(recipe_of(name), dataset, workspace=WORK)
        expected["runs"][run.name] = {"stopped": stopped(name, dataset) if name in STOPPED else None} | of_run(run.path)
    promote(WORK, "whole:v1", "production")
    pipeline.export(WORK / "runs" / "chat-1", WORK / "exports" / "chat-1")
    keep(expected)


def keep(expected: dict[str, Any]) -> None:
    """Into this folder, without what is only to be looked at (pages, pictures) and checkpoints of finished runs."""
    for run in expected["runs"]:
        shutil.rmtree(WORK / "runs" / run / "checkpoints")
    target = HERE / "workspace"
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.png", "*.html", "*.lock", ".lock", "*.db-shm", "*.db-wal")
    shutil.copytree(WORK, target, ignore=ignored)
    shutil.rmtree(WORK)
    text = json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (HERE / "expected.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
