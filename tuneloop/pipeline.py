"""The whole story, in order: raw files -> dataset -> plan -> run -> evaluation -> export -> server -> better run.

Seven functions, each one stage, each reading as its stage, and what belongs to them. Start here.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base import refusals
from tuneloop.base.duration import about
from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.tokens.preflight import Preflight, preflight
from tuneloop.data.version import builder
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation.before_after import measure_before_after
from tuneloop.evaluation.compare import Comparison, evaluation_prompts
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.gate import Verdict, better
from tuneloop.evaluation.progress import ANSWERS_FILE
from tuneloop.evaluation.sections import sections_size
from tuneloop.evaluation.whole_suite import require_measurable, whole_suite
from tuneloop.hub.folder_check import vocabulary
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.assistants import helpers
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.trained import load_trained
from tuneloop.model import checkpoint
from tuneloop.planning import planner
from tuneloop.planning.planner import Plan
from tuneloop.planning.uncosted import uncosted
from tuneloop.recipe.schema import DataFile, Recipe, TrainPart
from tuneloop.registry import versions
from tuneloop.registry.versions import Version
from tuneloop.report import chart, claims, compared, comparison_file, costs, report, run_view
from tuneloop.report.claims import ClaimFinding
from tuneloop.report.compared import ComparedRuns
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run, held_alone, open_run, resumable, run_recipe
from tuneloop.training import distributed
from tuneloop.training.input import TrainingInput, adapter_folder, assemble, labelled, tokenizer_bundle, with_adapters
from tuneloop.training.run_folder import begin, inside
from tuneloop.training.session import Outcome, session

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tuneloop.exports.export import Exported
    from tuneloop.exports.parity import Parity
    from tuneloop.inference.predict import Predicted

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
    recipe = labelled(recipe)
    bundle = tokenizer_bundle(recipe)

    def progress(rows: int) -> None:
        say(t("{n} rows read", n=rows))

    # No process of a launcher needs its peers for this: the first one here holds a lock, the others find what it made.
    return builder.build(
        recipe,
        workspace,
        bundle.encode,
        bundle.key,
        progress,
        bundle.view(),
        helpers(recipe, bundle.folder, bundle.tokenizer, say, about),
        bundle.most_tokens(with_adapters(recipe, workspace)),
        before.held_out() if before else None,
    )


def plan(recipe: Recipe, dataset: Dataset, *, workspace: Path = Path()) -> tuple[Plan, Preflight]:
    """What a run will use, why, how long and how much memory; and a look at what will be trained.

    Of a tokenizer alone, what it can count. Raises TL-DATA-PREFLIGHT, TL-MACHINE-MEMORY or TL-MACHINE-LENGTH rather
    than let a run start that must fail.
    """
    return foresee(assembled(recipe, dataset, workspace))


def assembled(recipe: Recipe, dataset: Dataset, workspace: Path = Path()) -> TrainingInput:
    """What `foresee` and `start` work on, put together once for both."""
    require_measurable(recipe)
    return assemble(recipe, dataset, workspace, evaluation_prompts(recipe))


def foresee(assembled: TrainingInput) -> tuple[Plan, Preflight]:
    """`plan` of what was assembled."""
    recipe = assembled.recipe
    records = [record for record, _, _ in islice(assembled.dataset.rows("train"), LOOKED_AT)]
    preflight_report = preflight(
        assembled.context.tokenizer,
        assembled.samples,
        recipe.train.token_budget,
        records,
        max_sequence_length=assembled.max_sequence_length,
        rows=vocabulary(assembled.folder),
        words=recipe.train.classify.words,
    )
    assembled.require_held()  # also of these rows is said now what would stop the run later
    if assembled.alone:
        return uncosted(assembled), preflight_report
    has_sections = assembled.task.answers == "text"
    sections = sections_size(recipe, assembled.context.tokenizer) if has_sections else None
    return planner.make(assembled, sections), preflight_report


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    workspace: Path = Path(),
    foreseen: Plan | None = None,
    number: int | None = None,
) -> Run:
    """Dataset -> a run folder with an adapter (or model). After Ctrl-C the run has checkpoints and no result."""
    given = assembled(recipe, dataset, workspace)
    return start(given, foreseen or foresee(given)[0], workspace=workspace, number=number)


def start(
    assembled: TrainingInput,
    foreseen: Plan,
    *,
    workspace: Path = Path(),
    number: int | None = None,
    begun: Callable[[Path], None] = lambda run: None,
) -> Run:
    """`train` of what was assembled and foreseen. `begun` hears of the run's folder before its first step."""
    model_folder(assembled.recipe.model)  # a tokenizer alone can be planned with
    assembled.require_held()
    with refusals.writing(workspace / "runs"):
        leads = distributed.leads()
        folder = begin(assembled, foreseen.as_dict(), workspace, number).path if leads else Path()
        run = Run(distributed.shared(folder))
    begun(run.path)
    try:
        _train(run, inside(assembled, run), resume=False)
    except TuneloopError:
        if leads and not run.metrics.exists():  # not one step was made: nothing to look at, nothing to resume
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def resume(run: Run, settings: Sequence[str] = ()) -> Outcome:
    """Take a stopped or crashed run up at its newest checkpoint. `settings` may change what changes no number."""
    recipe = resumable(run_recipe(run.path), list(settings))
    given = assemble(recipe, dataset_of(run))
    given.require_held()
    return _train(run, given, resume=True)


def _train(run: Run, assembled: TrainingInput, *, resume: bool) -> Outcome:
    with refusals.writing(run.path, then=lambda: _way_on(run)):
        with held_alone(run) if distributed.leads() else nullcontext():
            outcome = session(run, assembled, resume=resume)
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
    return measure(run, held=held, say=say).as_dict()


def measure(run: Run, *, held: Sequence[Record] | None = None, say: Say = _quiet) -> Evaluation:
    """The evaluation of a finished run, written into its folder with the report: what `evaluate` does."""
    began = time.perf_counter()
    refusals.require_space(run.path, EVALUATION_ROOM)  # asked before minutes of answering, not after them
    refusals.require_writable(run.path)
    require_measurable(run_recipe(run.path))
    trained = load_trained(run.path)
    own = None if held is not None else dataset_of(run).records("validation")
    evaluation = measure_before_after(trained, held if held is not None else own or (), say)
    evaluation = whole_suite(run, trained, evaluation, own, say)
    with refusals.writing(run.path):
        evaluation.write(run.path)
        Journal(run.events).event("evaluated", seconds=round(time.perf_counter() - began, 2))
        chart.loss_curve(run.metrics, run.path / "loss_curve.png", evaluation)
        report.write(run.path)
        (run.path / ANSWERS_FILE).unlink(missing_ok=True)  # they are in the evaluation
    return evaluation


def measure_at(run: Run, url: str, model: str = "", *, say: Say = _quiet) -> tuple[Evaluation, Path]:
    """The suite of a run asked of an OpenAI-compatible endpoint, and the file that holds it, below <run>/evaluations.

    The run's own evaluation stays as it is. Answers are written down as they come: after an error the same call goes
    on where it stopped. Raises TL-MACHINE-ENDPOINT.
    """
    from tuneloop.evaluation.endpoint_suite import evaluate_endpoint

    refusals.require_space(run.path, EVALUATION_ROOM)
    refusals.require_writable(run.path)
    return evaluate_endpoint(run, url, model, say)


def compare(
    run: Run, other: Run | None = None, prompts: Sequence[str] = (), *, max_new_tokens: int = 96, say: Say = _quiet
) -> Comparison:
    """The same prompts answered by two runs, or by one before and after training; and their metrics."""
    from tuneloop.evaluation.runs import compare_runs

    return compare_runs(run, other, prompts, max_new_tokens=max_new_tokens, say=say)


def compare_runs(runs: Sequence[Run]) -> ComparedRuns:
    """Finished runs on the rows they share: figures with intervals, who is better than whom, and cost. Nothing runs."""
    return compared.compared([run_view.read(run.path) for run in runs])


def compare_variants(recipe: Recipe, runs: Mapping[str, Run]) -> tuple[ComparedRuns, list[ClaimFinding]]:
    """The finished variants of a recipe, by name: compared, its claims held against them, both in each one's report."""
    folders = {name: run_view.read(run.path) for name, run in runs.items()}
    side_by_side = compared.compared(list(folders.values()))
    findings = []
    for claim in recipe.compare.claims:
        mine, other = folders[claim.variant], folders[claim.against]
        evaluations = (mine.evaluation or Evaluation(), other.evaluation or Evaluation())
        findings.append(claims.finding(claim, (costs.cost(mine), costs.cost(other)), evaluations))
    content = {**side_by_side.as_dict(), "claims": [one.as_dict() for one in findings]}
    for run in runs.values():
        with refusals.writing(run.path):
            run.write(comparison_file.FILE, content)
            report.write(run.path)
    return side_by_side, findings


def ask_runs(
    runs: Sequence[Run], prompts: Sequence[str], *, max_new_tokens: int = 96, say: Say = _quiet
) -> list[tuple[str, ...]]:
    """(prompt, the answer of each run) of each prompt."""
    from tuneloop.evaluation.runs import answers_of

    texts = [answers_of(run, runs[0], prompts, max_new_tokens=max_new_tokens, say=say) for run in runs]
    return [(prompt, *row) for prompt, row in zip(prompts, zip(*texts, strict=True), strict=True)]


def export(
    ref: str | Path, target: Path, *, workspace: Path = Path(), as_: str = "merged", dtype: str | None = None
) -> Parity:
    """A run or version -> the folder `target` that other tools load, proven to answer as base and adapter do.

    `as_` is one of `exports.targets.TARGETS`, by default one merged model; `dtype` the type of its weights.
    """
    return export_all(ref, target, [as_], workspace=workspace, dtype=dtype)[as_].parity


def export_all(
    ref: str | Path,
    to: Path,
    targets: Sequence[str] = ("merged",),
    *,
    workspace: Path = Path(),
    dtype: str | None = None,
    more: Sequence[str | Path] = (),
    say: Say = _quiet,
) -> dict[str, Exported]:
    """A run or version -> each of the targets, all of the same merged weights: one in the folder `to` itself, several
    in folders of their names below it. `more` are adapters (runs, versions or folders) to add after the run's own."""
    from tuneloop.exports.export import export
    from tuneloop.exports.targets import require_known

    require_known(targets)
    refusals.require_name(to)
    run = versions.locate(workspace, str(ref)) or open_run(ref, workspace).path
    folders = [adapter_folder(str(one), workspace) for one in more]
    with refusals.writing(to.parent):
        return export(run, to, targets, dtype=dtype, more=folders, say=say)


def serve(ref: str | Path, *, workspace: Path = Path(), api_key: str | None = None, say: Say | None = None) -> FastAPI:
    """A run, version or model -> an application that speaks OpenAI's API (needs the extra `serve`).

    The section `serve` of the run's recipe says how; `api_key` stands in place of the key in its key file. `say` hears
    when what computes the answers is started again; without it the log does.
    """
    from tuneloop.serving.application import application

    if say is None:
        return application(ref, workspace=workspace, api_key=api_key)
    return application(ref, workspace=workspace, api_key=api_key, say=say)


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
    old = dataset_of(run)
    dataset = prepare(grown, workspace=workspace, say=say, before=old)
    new = train(grown, dataset, workspace=workspace)
    if new.trained_folder() is None:
        return new, Verdict(False, None, None, ())
    before = old.records("validation")
    learned = set(dataset.ids("train"))
    held = [record for record in before if record.id not in learned]
    old_score = Evaluation.read(run.path) if held == before else measure_before_after(load_trained(run.path), held, say)
    verdict = better(old_score or measure(run, held=held, say=say), measure(new, held=held, say=say))
    if verdict.better:
        register(new, workspace=workspace)
    return new, verdict


def register(run: Run, *, workspace: Path = Path()) -> Version:
    """Keep a finished run as the next version of its name."""
    with refusals.writing(workspace / "models"):
        return versions.register(run.path, workspace)


def predict(
    file: str | Path,
    *,
    run: str | Path = "latest",
    to: Path | None = None,
    workspace: Path = Path(),
    again: bool = False,
    say: Say = _quiet,
    **settings: Any,
) -> Predicted:
    """Each row of a file -> a row of another: the answer, label or score of a run, version or model, by default of the
    newest run. `settings` are those of `PredictSettings`: max_new_tokens, temperature, column, batch_size, …"""
    from tuneloop.inference.predict import PredictSettings, predict

    how, target = PredictSettings(**settings), to or predicted_path(file)
    located = versions.locate(workspace, str(run))
    name = located.name if located is not None and str(run) == "latest" else str(run)
    return predict(load(run, workspace=workspace), str(file), target, how, again=again, name=name, say=say)


def predicted_path(file: str | Path) -> Path:
    """Where `predict` writes what it is told no file for: here, named after the input.

    >>> predicted_path("data/questions.csv").name, predicted_path("-").name
    ('questions.predicted.jsonl', 'stdin.predicted.jsonl')
    """
    return Path("stdin.predicted.jsonl" if str(file) == "-" else f"{Path(file).stem}.predicted.jsonl")


def load(ref: str | Path, *, workspace: Path = Path()) -> Answerer | Classifier | Scorer:
    """A run, a registered version or a model -> something that answers: `.answer([[{"role": "user", …}]])`."""
    from tuneloop.inference.open import answerer

    return answerer(ref, workspace)
