"""Real runs that are watched, for tests: healthy recipes of small models, and children in which they are trained."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.e2e import watch_faults
from tests.lives import events, fork
from tests.real import shared
from tuneloop import pipeline
from tuneloop.data.batches.plan import batch_plan
from tuneloop.data.version.dataset import Dataset
from tuneloop.planning.planner import Plan
from tuneloop.recipe.recipe import make_recipe, read_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

SEEDS = (1, 2, 3)
ALONE = {"remedies": {"memory": False, "spike": False, "stop": False, "disk": False}}
"""A recipe's section `watch` under which a run is looked at and left alone."""
SMOLLM, MINILM = "smollm2-135m-instruct", "all-minilm-l6-v2"
CHOICES = {SMOLLM: 49_152, MINILM: 2}
"""Tokens, or labels, among which a model chooses here."""
STEPS = 40
RECORDS = os.environ.get("TUNELOOP_TEST_RECORD", "")
"""A folder into which runs are recorded for tests/monitor/recorded, where one is named."""
READ_OF_CLOCK = {"seconds": 4, "memory_total_gb": 1, "memory_free_gb": 1, "disk_free_gb": 1}
"""What rules read of a line's clock, and the digits of it that are kept."""
READ = ("step", "loss", "grad_norm", "learning_rate", "tokens", "eval_loss", "eval_error", "eval_rows")
OURS = Path(__file__).parents[2] / "tuneloop" / "recipes" / "data"
SETS: dict[str, Callable[[], list[Any]]] = {
    "persona": lambda: [
        str(OURS / "persona_en.json"), str(OURS / "persona_messages.jsonl"),
        {"path": str(OURS / "persona_chat.jsonl"), "rows": "[8:]"}, {"path": str(OURS / "general_en.csv"), "rows": "[:48]"},
    ],
    "strategyqa": lambda: [str(shared("alpaca_cot_en/strategyqa_train.json"))],
    "smilechat": lambda: [str(shared("smilechat/dialogs.jsonl"))],
    "few": lambda: [{"path": str(shared("alpaca_cot_en/strategyqa_train.json")), "rows": "[:104]"}],
}  # fmt: skip
"""Name -> files of a recipe: who the model is, questions with their reasoning, long dialogues in Chinese, and forty rows to train."""


def chat(kind: str, seed: int, held: int = 24, watch: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """LoRA of SmolLM2 on a set of `SETS`: 40 steps of 4 rows of at most 192 tokens, by the usual rate and schedule."""
    settings = {
        "method": "lora", "max_steps": STEPS, "batch_size": 4, "eval_strategy": "steps", "eval_steps": 10,
        "save_strategy": "steps", "save_steps": 10, **train,
    }  # fmt: skip
    recipe, _ = make_recipe({
        "name": f"{kind}-{seed}", "seed": seed, "model": SMOLLM, "data": SETS[kind](),
        "prepare": {"validation": held, "max_length": 192, "too_long": "cut_right"}, "train": settings,
        "watch": watch or {},
    })  # fmt: skip
    return recipe


def sentiment(method: str, seed: int, watch: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """MiniLM on a thousand sentences of films: 56 steps of 16, by the usual rate and schedule of the method."""
    recipe, _ = make_recipe({
        "name": f"{method}-{seed}", "seed": seed, "model": MINILM,
        "data": {"path": str(shared("sst2/train.tsv")), "header": 0, "columns": {"text": "column_1", "label": "column_2"}},
        "prepare": {"validation": 100, "max_length": 128, "too_long": "cut_left"},
        "train": {"task": "classify", "method": method, "batch_size": 16, "max_steps": 56, "eval_strategy": "steps",
                  "eval_steps": 8, **train},
        "watch": watch or {},
    })  # fmt: skip
    return recipe


def overfitting(seed: int, **train: Any) -> Recipe:
    """Forty rows learned by heart: eight epochs of them, each measured on 64 others, at a brisk rate that never falls."""
    settings = {
        "learning_rate": 2e-3,
        "schedule": "constant",
        "batch_size": 8,
        "eval_steps": 5,
        "save_steps": 5,
        **train,
    }
    return chat("few", seed, held=64, **settings)


def nothing() -> None:
    """No fault."""


@dataclass(frozen=True)
class Job:
    """A recipe that a child trains below a folder of this name; `plant` puts a fault into the child before."""

    side: str
    recipe: Recipe
    plant: Callable[[], None] = nothing


@dataclass(frozen=True)
class Ended:
    """A run whose child has ended: with this status (-9 where it was killed), having said this much on stderr."""

    run: Run
    status: int
    log: str

    def alerts(self, *levels: str) -> list[dict[str, Any]]:
        """The alerts of these levels, by default of those above a note."""
        wanted = levels or ("watch", "bad")
        return [line for line in events(self.run, "alert") if line["level"] in wanted]

    def remedies(self) -> list[dict[str, Any]]:
        return events(self.run, "remedy")

    def held_loss(self) -> float:
        """The last held-out loss that was measured; of a run that was ended early, that of the state that it kept."""
        stops = [line for line in self.remedies() if line["remedy"] == "stop"]
        if stops:
            return float(stops[-1]["facts"]["loss"])
        return float([line for line in lines(self.run.metrics) if "eval_loss" in line][-1]["eval_loss"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Ground:
    """A folder in which runs are trained, each in a forked child, as many at once as there are cores.

    Datasets and plans are made once for each set and seed.
    """

    folder: Path
    made: dict[tuple[str, int], tuple[Dataset, Plan]] = field(default_factory=dict)

    def prepared(self, recipe: Recipe) -> tuple[Dataset, Plan]:
        key = (recipe.name, recipe.seed)
        if key not in self.made:
            dataset = pipeline.prepare(recipe, workspace=self.folder)
            self.made[key] = dataset, pipeline.plan(recipe, dataset, workspace=self.folder)[0]
        return self.made[key]

    def train(self, jobs: Sequence[Job]) -> list[Ended]:
        """The runs of these jobs, which have ended one way or the other."""

        def work(job: Job) -> None:
            dataset, plan = self.prepared(job.recipe)
            job.plant()
            pipeline.train(job.recipe, dataset, workspace=self.folder / job.side, foreseen=plan, number=1)

        for job in jobs:
            self.prepared(job.recipe)
        return self._children([(self.run_of(job), partial(work, job)) for job in jobs])

    def resume(self, runs: Mapping[Run, Callable[[], None]]) -> list[Ended]:
        """The runs, taken up in children that have their faults as well."""

        def work(run: Run) -> None:
            runs[run]()
            pipeline.resume(run)

        return self._children([(run, partial(work, run)) for run in runs])

    def run_of(self, job: Job) -> Run:
        return Run(self.folder / job.side / "runs" / f"{job.recipe.name}-1")

    def _children(self, works: Sequence[tuple[Run, Callable[[], None]]]) -> list[Ended]:
        waiting, running, ended = list(enumerate(works)), dict[int, tuple[int, Run, Path]](), dict[int, Ended]()
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                k, (run, work) = waiting.pop(0)
                log = run.path.parent.with_name(f"{run.name}.log")
                log.parent.mkdir(parents=True, exist_ok=True)
                running[fork(work, log)] = k, run, log
            for pid, (k, run, log) in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[k] = Ended(run, os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8"))
                    del running[pid]
            time.sleep(0.1)
        return [ended[k] for k in range(len(works))]


FIRST_AT = {"nan": 12, "memory": 7}
"""Fault -> the step at which it is met first."""


def planted(ground: Ground, name: str) -> dict[int, Callable[[], None]]:
    """Seed -> what plants this fault into the run of our own rows with that seed."""
    at = FIRST_AT[name]
    if name == "memory":
        return dict.fromkeys(SEEDS, partial(watch_faults.no_memory, at, rows=1))
    return {seed: partial(watch_faults.no_number, _row_of_step(ground, seed, at)) for seed in SEEDS}


def _row_of_step(ground: Ground, seed: int, step: int) -> int:
    """A row that the batch of a step holds, counted in the training side; later epochs hold it as well."""
    recipe = chat("persona", seed)
    given = pipeline.assembled(recipe, ground.prepared(recipe)[0], ground.folder)
    return batch_plan(recipe, given.train).step(step - 1)[0][0]


def finished(ended: Sequence[Ended]) -> None:
    """All of them trained to their end and left a result."""
    for one in ended:
        assert one.status == 0, one.log[-3000:]
        assert one.run.trained_folder() is not None
        assert events(one.run, "finished")


def close_to(healthy: Sequence[Ended], mended: Sequence[Ended], within: float = 0.05) -> None:
    """The mended runs lose at most 5 % more than the healthy ones of the same seeds: the median of the ratios."""
    ratios = [two.held_loss() / one.held_loss() for one, two in zip(healthy, mended, strict=True)]
    print("held-out loss, mended by healthy:", ", ".join(f"{ratio:.4f}" for ratio in ratios))
    assert median(ratios) <= 1 + within, ratios


def raised(ended: Ended, rule: str, effect: int, *levels: str, within: int = 20) -> dict[str, Any]:
    """The first alert of a rule at these levels (above a note by default), which must come within 20 steps of the
    fault's first step."""
    found = [line for line in ended.alerts(*levels) if line["rule"] == rule]
    assert found, (rule, [(line["rule"], line["level"], line["step"]) for line in events(ended.run, "alert")])
    assert effect <= found[0]["step"] <= effect + within, found[0]
    return found[0]


def recorded(ended: Ended, name: str) -> None:
    """With TUNELOOP_TEST_RECORD: what the rules read of this run, as one file of lines in the order they were written.

    The first line has the run's steps and the loss of an even guess; single rows (held.jsonl) stand before their mean,
    as the rules take them.
    """
    if not RECORDS:
        return
    rows = {line["step"]: line for line in lines(ended.run.path / "held.jsonl")}
    recipe, _ = read_recipe(ended.run.recipe)
    chance = math.log(CHOICES[recipe.model.name])
    out: list[dict[str, Any]] = [{"total": events(ended.run, "started")[0]["total"], "chance": _digits(chance)}]
    for line in lines(ended.run.metrics):
        if "eval_loss" in line and line["step"] in rows:
            each = rows[line["step"]]
            out.append(
                {"step": line["step"], "losses": [_digits(x) for x in each["losses"]], "weights": each["weights"]}
            )
        clock = {key: round(line["clock"][key], n) for key, n in READ_OF_CLOCK.items() if key in line["clock"]}
        out.append({**{key: _digits(line[key]) for key in READ if key in line}, "clock": clock})
    Path(RECORDS).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in out)
    Path(RECORDS, f"{name}.jsonl").write_text(text, encoding="utf-8")


def _digits(number: float) -> float:
    return float(f"{number:.6g}") if isinstance(number, float) else number
