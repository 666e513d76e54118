"""The whole story, in order: raw files -> dataset -> plan -> run -> evaluation -> export -> server -> better run.

Seven functions, each one stage, each reading as its stage, and what belongs to them. Start here.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base import refusals
from tuneloop.base.duration import about
from tuneloop.base.errors import RunError, TuneloopError
from tuneloop.base.files import printable
from tuneloop.base.language import t
from tuneloop.base.records import Record, Reply
from tuneloop.data.tokens.preflight import Preflight, preflight
from tuneloop.data.version import builder
from tuneloop.data.version import dataset as datasets
from tuneloop.data.version.dataset import Dataset
from tuneloop.evaluation.before_after import measure_before_after, questions
from tuneloop.evaluation.compare import ask, changes, check_probe, different_rows, read_prompts, side_by_side
from tuneloop.evaluation.gate import Verdict, better
from tuneloop.evaluation.untrained import untrained
from tuneloop.hub.folder_check import vocabulary
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.assistants import helpers
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.methods import adapters
from tuneloop.model import checkpoint, quantize
from tuneloop.model.load import load_model
from tuneloop.planning import planner
from tuneloop.planning.planner import Plan
from tuneloop.planning.uncosted import uncosted
from tuneloop.recipe.choices import task_choice
from tuneloop.recipe.paths import anchored
from tuneloop.recipe.recipe import dump
from tuneloop.recipe.schema import DataFile, Recipe, TrainPart
from tuneloop.registry import versions
from tuneloop.registry.versions import Version
from tuneloop.report import chart, report
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import BASE, BEGUN, Run, held_alone, new_run, open_run, resumable, run_recipe
from tuneloop.tasks.table import task_name
from tuneloop.tasks.task import SplitView
from tuneloop.training import distributed
from tuneloop.training.input import assemble, held_items, max_sequence_length, setting_of, settle, tokenizer_bundle
from tuneloop.training.session import Outcome, session

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tuneloop.exports.parity import Parity

Say = Callable[[str], None]
LOOKED_AT = 2000
"""Dialogues whose rendering the preflight looks at; of their tokens it looks at all."""
EVALUATION_ROOM = 4 << 20
"""Bytes of what an evaluation writes: its figures, the report, the curve."""


def _quiet(text: str) -> None:
    """Says nothing: the default of the Python API."""


def prepare(recipe: Recipe, *, workspace: Path = Path(), say: Say = _quiet, before: Dataset | None = None) -> Dataset:
    """Raw files -> a dataset version with ledger and card under workspace/datasets.

    What the version `before` holds out is held out again, with all that belongs to it.
    """
    recipe = _labelled(recipe)
    words = tokenizer_bundle(recipe)

    def progress(rows: int) -> None:
        say(t("{n} rows read", n=rows))

    # No process of a launcher needs its peers for this: the first one here holds a lock, the others find what it made.
    return builder.build(recipe, workspace, words.encode, words.key, progress, words.view(),
                         helpers(recipe, words.folder, words.tokenizer, say, about),
                         words.most_tokens(_found(recipe, workspace)),
                         before.held_out() if before else None)  # fmt: skip


def _found(recipe: Recipe, workspace: Path) -> Recipe:
    """The recipe with the folders of its adapters; without them where they are not there yet: rows can be prepared."""
    try:
        return _with_adapters(recipe, workspace)
    except TuneloopError:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update={"adapter": None})})


def _labelled(recipe: Recipe) -> Recipe:
    """The recipe with what its task says of its rows: those of a classifier are labelled texts, however many labels."""
    reads = task_choice(recipe.train.task).reads
    if reads is None:
        return recipe
    data = [d if d.task or d.columns else d.model_copy(update={"task": reads}) for d in recipe.data]
    return recipe.model_copy(update={"data": data})


def plan(recipe: Recipe, dataset: Dataset, *, workspace: Path = Path()) -> tuple[Plan, Preflight]:
    """What a run will use, why, how long and how much memory; and a look at what will be trained.

    Of a tokenizer alone, what it can count. Raises TL-DATA-PREFLIGHT, TL-MACHINE-MEMORY or TL-MACHINE-LENGTH rather
    than let a run start that must fail.
    """
    recipe, words = _with_adapters(settle(recipe, dataset), workspace), tokenizer_bundle(recipe)
    task, setting = setting_of(recipe, dataset, words)
    rows = SplitView(words.samples(dataset, "train"), lambda: dataset.records("train"))
    samples = task.samples(rows, setting)
    records = [record for record, _, _ in islice(dataset.rows("train"), LOOKED_AT)]
    looked = preflight(words.tokenizer, samples, recipe.train.token_budget, records,
                       room=max_sequence_length(recipe, words.folder, task), rows=vocabulary(words.folder),
                       words=recipe.train.classify.words)  # fmt: skip
    prompts = [*read_prompts(recipe.evaluate.show), *(p for one in recipe.evaluate.probes for p in check_probe(one))]
    held_items(recipe, dataset, words, task, setting)  # also of them is said now what would stop the run later
    ledger = str(dataset.path / "ledger.jsonl")
    if words.alone:
        return uncosted(recipe, task.items(rows, setting), dataset.manifest, ledger=ledger, task=task), looked
    foreseen = planner.make(recipe, words.folder, task.items(rows, setting), dataset.manifest, prompts=len(prompts),
                            ledger=ledger, task=task, setting=setting)  # fmt: skip
    return foreseen, looked


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    workspace: Path = Path(),
    foreseen: Plan | None = None,
    number: int | None = None,
) -> Run:
    """Dataset -> a run folder with an adapter (or model). After Ctrl-C the run has checkpoints and no result."""
    model_folder(recipe.model)  # a tokenizer alone can be planned with
    recipe = settle(recipe, dataset)
    recipe = _with_adapters(recipe, workspace)
    if foreseen is None:
        foreseen, _ = plan(recipe, dataset, workspace=workspace)
    read_prompts(recipe.evaluate.show)
    for probe in recipe.evaluate.probes:
        check_probe(probe)
    with refusals.writing(workspace / "runs"):
        path = distributed.shared(
            _begin(recipe, dataset, workspace, foreseen, number).path if distributed.leads() else Path()
        )
    run = Run(path)
    if recipe.train.adapter or recipe.train.merge:
        recipe = run_recipe(run.path)
    try:
        _train(run, recipe, dataset, resume=False)
    except TuneloopError:
        if (
            distributed.leads() and not run.metrics.exists()
        ):  # not one step was made: nothing to look at, nothing to resume
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def _begin(recipe: Recipe, dataset: Dataset, workspace: Path, foreseen: Plan, number: int | None) -> Run:
    """The run folder, with what is known before the first step; where that fails, nothing is left of it."""
    refusals.require_name(workspace)
    run = new_run(workspace, recipe.name, number)
    try:
        return _described(run, recipe, dataset, foreseen)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def _described(run: Run, recipe: Recipe, dataset: Dataset, foreseen: Plan) -> Run:
    # What auto has found is written down: whoever reads the run later need not have its rows.
    name = task_name(recipe.train.task, list(dataset.manifest["kinds"]), printable(dataset.path))
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"task": name})})
    recipe = _begun(_stacked(_anywhere(recipe), run), run)
    run.recipe.write_text(dump(recipe), encoding="utf-8")
    run.write("plan.json", foreseen.as_dict())
    run.write(
        "dataset.json",
        {
            "path": str(dataset.path.resolve()), "name": dataset.name, "hash": dataset.hash,
            "counts": dataset.manifest.get("counts", {}), "tokens": dataset.manifest.get("tokens", {}),
            "thoughts": dataset.thinks(),
        },
    )  # fmt: skip
    Journal(run.events).event("plan", seconds=foreseen.seconds, memory_gb=foreseen.memory_gb)
    return run


def _with_adapters(recipe: Recipe, workspace: Path) -> Recipe:
    """The recipe with the folders of the adapters it names by run, version or folder. Raises TL-MODEL-NO-ADAPTER."""

    def folder(ref: str) -> str:
        run = versions.locate(workspace, ref)
        found = Path(ref).expanduser() if run is None else run / "adapter"
        adapters.read_config(found)
        return str(found.resolve())

    train = recipe.train
    update = {"adapter": folder(train.adapter) if train.adapter else None, "merge": [folder(m) for m in train.merge]}
    adapters.held_alike([Path(str(m)) for m in update["merge"] or ()])
    return recipe.model_copy(update={"train": train.model_copy(update=update)})


def _stacked(recipe: Recipe, run: Run) -> Recipe:
    """The recipe on a base of the run's own, <run>/base: its model with adapters added into the weights that they were
    trained on, which a run of qlora has rounded. In the recipe it stands as ./base: the run may be moved."""
    if not recipe.train.merge:
        return recipe
    base, others = model_folder(recipe.model), [Path(m) for m in recipe.train.merge]
    bits = adapters.held_alike(others)
    model = load_model(base, recipe.model.dtype, quantized=bits)
    adapters.stacked(quantize.dequantized(model) if bits else model, base, others, run.path / BASE)
    run.write("merged.json", {"base": recipe.model.name, "revision": recipe.model.revision,
                              "adapters": recipe.train.merge, "into": BASE,
                              "bits": bits.bits if bits else adapters.WHOLE})  # fmt: skip
    model_part = recipe.model.model_copy(update={"name": f"./{BASE}", "revision": None})
    train = recipe.train.model_copy(update={"merge": []})
    return recipe.model_copy(update={"model": model_part, "train": train})


def _begun(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with a copy of the adapter it goes on from, <run>/begun: it outlives the run that it is from."""
    if not recipe.train.adapter:
        return recipe
    adapters.copied(Path(recipe.train.adapter), run.path / BEGUN)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"adapter": f"./{BEGUN}"})})


def _anywhere(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: read from its run folder it means the same, wherever the reader stands."""
    recipe = anchored(recipe, Path.cwd())
    if not Path(recipe.model.name).is_dir():
        return recipe
    model = recipe.model.model_copy(update={"name": str(Path(recipe.model.name).resolve())})
    return recipe.model_copy(update={"model": model})


def resume(run: Run, settings: Sequence[str] = ()) -> Outcome:
    """Take a stopped or crashed run up at its newest checkpoint. `settings` may change what changes no number."""
    recipe = run_recipe(run.path)
    recipe = resumable(recipe, list(settings))
    return _train(run, recipe, _dataset(run), resume=True)


def _dataset(run: Run) -> Dataset:
    told = run.read("dataset.json").get("path")
    if not told:
        raise RunError("TL-RUN-DAMAGED", where=str(run.path / "dataset.json"), error=t("there is no such file"))
    return datasets.open_dataset(run.dataset() or Path(told))


def _train(run: Run, recipe: Recipe, dataset: Dataset, *, resume: bool) -> Outcome:
    found = assemble(_with_adapters(recipe, Path()), dataset)
    with refusals.writing(run.path, then=lambda: _way_on(run)):
        with held_alone(run) if distributed.leads() else nullcontext():
            outcome = session(run, recipe, found, resume=resume)
        if distributed.leads():
            chart.loss_curve(run.metrics, run.path / "loss_curve.png")
    gc.collect()  # modules whose forward was replaced hold themselves; what is loaded next needs their memory
    return outcome


def _way_on(run: Run) -> str:
    """How training goes on after it was stopped from outside."""
    if checkpoint.newest(run.checkpoints) is None:
        return t("No checkpoint is there yet; then start it again.")
    return t("Then go on with: tuneloop train --resume {run}", run=run.path)


def evaluate(run: Run, *, held: Sequence[Record] | None = None, say: Say = _quiet) -> dict[str, Any]:
    """A finished run -> evaluation.json, loss_curve.png and report.html: the same questions before and after.

    `held` are the rows to measure on; by default those the run's dataset held out.
    """
    began = time.perf_counter()
    refusals.require_space(run.path, EVALUATION_ROOM)  # asked before minutes of answering, not after them
    refusals.require_writable(run.path)
    trained = load_trained(run.path)
    if held is None:
        held = _dataset(run).records("validation")
    evaluation = measure_before_after(trained, held, say)
    with refusals.writing(run.path):
        run.write("evaluation.json", evaluation)
        Journal(run.events).event("evaluated", seconds=round(time.perf_counter() - began, 2))
        chart.loss_curve(run.metrics, run.path / "loss_curve.png", evaluation)
        report.write(run.path)
    return evaluation


def compare(
    run: Run, other: Run | None = None, prompts: Sequence[str] = (), *, max_new_tokens: int = 96
) -> dict[str, Any]:
    """The same prompts answered by two runs, or by one before and after training; and their metrics.

    `warning` says why the metrics of two runs must not be compared, "" if they may be.
    """
    from tuneloop.inference.open import make_answerer

    first = load_trained(run.path)
    answered = [row["prompt"] for row in run.read("evaluation.json").get("answers", [])]
    asked = list(prompts) or questions(first.recipe) or answered

    def answers(of: Trained, model: Any) -> list[Reply]:
        return ask(make_answerer(replace(of, model=model)), asked, max_new_tokens=max_new_tokens, batch_size=8,
                   system=first.recipe.prepare.system)  # fmt: skip

    mine = run.read("evaluation.json")
    left_rows, warning = changes(mine), ""
    if other is None:
        right = answers(first, first.model)
        with untrained(first) as base:
            left = answers(first, base)
        metrics = [{"metric": c.label, "left": c.before, "right": c.after, "of": c.total} for c in left_rows]
    else:
        left = answers(first, first.model)
        second = load_trained(other.path)
        right = answers(second, second.model)
        measured = other.read("evaluation.json")
        theirs = {c.metric: c for c in changes(measured)}
        if mine and measured:
            warning = different_rows(mine, measured, [_held(run), _held(other)])
        metrics = [
            {"metric": c.label, "left": c.after, "right": theirs[c.metric].after, "of": c.total}
            for c in left_rows if c.metric in theirs
        ]  # fmt: skip
    rows = [asdict(side_by_side(p, a, b)) for p, a, b in zip(asked, left, right, strict=True)]
    shown = [m for m in metrics if m["left"] is not None or m["right"] is not None]
    return {"answers": rows, "metrics": shown, "warning": warning}


def _held(run: Run) -> list[str] | None:
    """Ids of the rows that a run's evaluation was measured on, None where nothing tells them any more."""
    told = run.read("evaluation.json").get("held")
    if isinstance(told, list):
        return told
    try:  # evaluations of earlier versions name no rows
        return [record.id for record in _dataset(run).records("validation")]
    except TuneloopError:
        return None


def export(ref: str | Path, target: Path, *, workspace: Path = Path()) -> Parity:
    """A run or version -> one merged model folder that any tool loads, proven to answer as base and adapter do."""
    from tuneloop.exports.merge import merge

    refusals.require_name(target)
    with refusals.writing(target.parent):
        return merge(versions.locate(workspace, str(ref)) or open_run(ref, workspace).path, target)


def serve(ref: str | Path, *, workspace: Path = Path(), api_key: str | None = None) -> FastAPI:
    """A run, version or model -> an application that speaks OpenAI's chat API (needs the extra `serve`)."""
    from tuneloop.serving.api import create_app
    from tuneloop.serving.torch_engine import TorchEngine

    name = Path(ref).name if Path(ref).exists() else str(ref)
    return create_app(TorchEngine(load(ref, workspace=workspace)), model_name=name, api_key=api_key)


def improve(
    run: Run, files: Sequence[str | Path], *, workspace: Path = Path(), say: Say = _quiet
) -> tuple[Run, Verdict]:
    """New files beside the old ones -> a new run, registered only if it is no worse on what the old one held out.

    What was held out stays so, and new rows that belong with it (that ask the same, or nearly repeat it) are held out
    too. One that training needs, for its label, is no witness any more and is left out of both scores.
    """
    recipe = run_recipe(run.path)
    more = [DataFile(path=str(Path(f).resolve())) for f in files]
    grown = recipe.model_copy(update={"data": [*recipe.data, *more]})
    if grown.prepare.max_length == "auto":  # the pass was made as long as the old rows are
        usual = TrainPart().token_budget
        grown = grown.model_copy(update={"train": grown.train.model_copy(update={"token_budget": usual})})
    old = _dataset(run)
    dataset = prepare(grown, workspace=workspace, say=say, before=old)
    new = train(grown, dataset, workspace=workspace)
    if new.trained_folder() is None:
        return new, Verdict(False, None, None, ())
    before = old.records("validation")
    learned = set(dataset.ids("train"))
    held = [record for record in before if record.id not in learned]
    old_score = (
        run.read("evaluation.json") if held == before else measure_before_after(load_trained(run.path), held, say)
    )
    verdict = better(old_score or evaluate(run, held=held, say=say), evaluate(new, held=held, say=say))
    if verdict.better:
        register(new, workspace=workspace)
    return new, verdict


def register(run: Run, *, workspace: Path = Path()) -> Version:
    """Keep a finished run as the next version of its name."""
    with refusals.writing(workspace / "models"):
        return versions.register(run.path, workspace)


def load(ref: str | Path, *, workspace: Path = Path()) -> Answerer | Classifier | Scorer:
    """A run, a registered version or a model -> something that answers: `.answer([[{"role": "user", …}]])`."""
    from tuneloop.inference.open import answerer

    return answerer(ref, workspace)
