"""Tasks of lm-evaluation-harness (Gao et al. 2021-, https://github.com/EleutherAI/lm-evaluation-harness), in a child
process: it brings packages that tuneloop never imports, and it may ask no hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuneloop.base.errors import MachineError, RunError
from tuneloop.base.language import listed, t
from tuneloop.base.optional import install
from tuneloop.evaluation.task_scores import TaskScore
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.trained import Trained
from tuneloop.methods.table import METHODS
from tuneloop.recipe.choices import METHOD_CHOICES
from tuneloop.runs.run import Run

Say = Callable[[str], None]
CHILD = Path(__file__).with_name("harness_child.py")
"""What the child runs; it is never imported here."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


def require(tasks: Sequence[str]) -> None:
    """Raise where tasks cannot be measured, before anything expensive: TL-MACHINE-EXTRA without the package, and
    TL-RUN-TASK-DATA for a task that it does not know, or whose data is not on this disk."""
    if not tasks:
        return
    if find_spec("lm_eval") is None:
        raise MachineError("TL-MACHINE-EXTRA", module="lm_eval", command=install("eval"), error="lm_eval")
    missing = _child({"tasks": list(tasks), "check": True})
    if missing["missing"]:
        causes = missing["missing"]
        raise RunError(
            "TL-RUN-TASK-DATA", where="evaluate.tasks", tasks=listed(causes), error=next(iter(causes.values()))[:300]
        )


def measure_tasks(run: Run, trained: Trained, say: Say) -> tuple[TaskScore, ...]:
    """The tasks of the run's recipe, with the base and with the trained model. Raises TL-RUN-TASK."""
    tasks = trained.recipe.evaluate.tasks
    if not tasks:
        return ()
    say(t("Measuring {tasks} with lm-evaluation-harness", tasks=listed(tasks)))
    base, device = str(model_folder(trained.recipe.model)), next(trained.model.parameters()).device.type
    before, after = (
        _child({"tasks": list(tasks), "model": how, "device": device})["scores"]
        for how in (_begun(base, trained), _tuned(base, run, trained))
    )
    return tuple(paired(before, after))


def _begun(base: str, trained: Trained) -> dict[str, Any]:
    """How the harness loads the model as training found it."""
    adapter = trained.recipe.train.adapter
    return {"pretrained": base, **_held(trained), **({"peft": adapter} if adapter else {})}


def _tuned(base: str, run: Run, trained: Trained) -> dict[str, Any]:
    """How the harness loads the trained model."""
    if METHODS[trained.recipe.train.method].adapter:
        return {"pretrained": base, **_held(trained), "peft": str((run.path / "adapter").resolve())}
    return {"pretrained": str((run.path / "model").resolve()), **_held(trained)}


def _held(trained: Trained) -> dict[str, Any]:
    """The type of the weights, and that they are held in 4 or 8 bits where training held them so."""
    how: dict[str, Any] = {"dtype": str(next(trained.model.parameters()).dtype).removeprefix("torch.")}
    if METHOD_CHOICES[trained.recipe.train.method].quantize:
        bits = "load_in_8bit" if trained.recipe.train.qlora.bits == "int8" else "load_in_4bit"
        how = {"dtype": "auto", bits: True}
    return how


def paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[TaskScore]:
    """The metrics of both models side by side.

    >>> one = {"task": "a", "metric": "acc", "error": 0.1, "rows": 9, "up": True}
    >>> [(s.metric, s.before, s.after) for s in paired([{**one, "score": 0.5}], [{**one, "score": 0.25}])]
    [('acc', 0.5, 0.25)]
    """
    theirs = {(one["task"], one["metric"]): one for one in after}
    return [
        TaskScore(
            one["task"], one["metric"], one["score"], last["score"], one["error"], last["error"], one["rows"], one["up"]
        )
        for one in before
        if (last := theirs.get((one["task"], one["metric"]))) is not None
    ]


def _child(wish: dict[str, Any]) -> dict[str, Any]:
    """What the child makes of a wish. Raises TL-RUN-TASK with its last words where it makes nothing."""
    with TemporaryDirectory() as folder:
        wish_file, out = Path(folder, "wish.json"), Path(folder, "out.json")
        wish_file.write_text(json.dumps(wish), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(CHILD), str(wish_file), str(out)],
            env={**os.environ, **OFFLINE},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode or not out.is_file():
            last = " ".join(done.stderr.strip().splitlines()[-3:])[-400:]
            raise RunError("TL-RUN-TASK", where="evaluate.tasks", error=last or f"exit {done.returncode}")
        answer: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return answer
