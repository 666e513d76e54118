"""One training session: puts model, data, optimizer, checkpoints and watchers together and hands them to the loop."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import io
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator, DistributedType

from tuneloop.base import refusals
from tuneloop.base.duration import about
from tuneloop.base.errors import RunError
from tuneloop.base.files import format_bytes
from tuneloop.base.language import current, t
from tuneloop.data.batches.loader import Steps, loader
from tuneloop.methods.table import notes
from tuneloop.model import checkpoint
from tuneloop.model.kernels.matmul import MatmulPrecision, chosen, matmul_precision
from tuneloop.model.load import pick_dtype
from tuneloop.monitor.remedies import Remedy, shown
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.tasks.task import Task
from tuneloop.training import device, distributed
from tuneloop.training.attempt import Attempt, saver_for, watchers
from tuneloop.training.callbacks import Due, Screen
from tuneloop.training.ending import close
from tuneloop.training.finite import NotANumber
from tuneloop.training.frozen_policy import CachePolicy, kept_blocks, measurements
from tuneloop.training.guards import Guard, require_held_out
from tuneloop.training.input import TrainingInput
from tuneloop.training.interrupt import Interrupt
from tuneloop.training.loop import train
from tuneloop.training.mending import Mender, alert_of, newest_before
from tuneloop.training.out_of_memory import OutOfMemory, ran_out
from tuneloop.training.outlets import Outlets
from tuneloop.training.row_watch import ROWS_FILE
from tuneloop.training.state import TrainState, build, unordered_operation
from tuneloop.training.waiting import Waiting
from tuneloop.training.watching import Watcher


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `finished` is false after Ctrl-C: a checkpoint is there and the run can go on."""

    finished: bool
    step: int
    total: int


def _accelerator() -> Accelerator:
    """accelerate for devices and processes; precision and accumulation are ours, whatever its launcher set.

    Raises TL-RUN-DISTRIBUTED for sharded training (FSDP, DeepSpeed), which checkpoints here do not hold yet.
    """
    accelerator = Accelerator(cpu=distributed.on_cpu(), mixed_precision="no")
    accelerator.gradient_accumulation_steps = 1
    kind = accelerator.distributed_type
    if kind not in {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}:
        raise RunError("TL-RUN-DISTRIBUTED", where=str(kind), kind=str(kind))
    return accelerator


def session(run: Run, assembled: TrainingInput, *, resume: bool = False) -> Outcome:
    """Train what was assembled into runs/<name>-<n>/adapter (or model/), with what it takes to get there.

    With `resume` the newest checkpoint that verifies is taken up; the rest of the run is then bit for bit what it would
    have been. A remedy ends an attempt, and the next one resumes with what that has changed. Raises
    TL-RUN-NO-CHECKPOINT, TL-MACHINE-DISK, TL-RUN-NAN, TL-RUN-MEMORY.
    """
    with Outlets(run, assembled.recipe) as outlets:
        while (outcome := _attempt(run, assembled, resume, outlets)) is None:
            resume = True
            gc.collect()  # the model of the attempt that has ended
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        outlets.ended(outcome.finished, outcome.step, outcome.total)
    return outcome


def _attempt(run: Run, assembled: TrainingInput, resume: bool, outlets: Outlets) -> Outcome | None:
    """One attempt of a session; None where a remedy has ended it."""
    accelerator = _accelerator()
    setup = build(run, assembled, accelerator.device)
    file = sys.stderr if accelerator.is_main_process else io.StringIO()
    settings = setup.recipe.train
    lines = Due(settings.logging_strategy, settings.logging_steps, setup.batches.steps_per_epoch, setup.total)
    screen = Screen(setup.total, setup.meter, file, due=lines)
    with Interrupt(lambda: screen.say(t("Stopping after this step; once more to stop at once."))) as interrupt:
        try:
            attempt = _begun(setup, assembled, accelerator, outlets, screen, interrupt, resume=resume)
        except BaseException:
            screen.close()
            raise
        if attempt is not None:
            _train(attempt)
    return None if attempt is None else _ended(attempt)


def _begun(
    setup: TrainState,
    assembled: TrainingInput,
    accelerator: Accelerator,
    outlets: Outlets,
    screen: Screen,
    interrupt: Interrupt,
    *,
    resume: bool,
) -> Attempt | None:
    """All that an attempt needs, at the step that it begins with; None where a kill was answered by a remedy first."""
    settings = setup.recipe.train
    if resume and distributed.shared(_answers_kill(setup, screen, outlets)):
        screen.close()
        return None
    unordered = unordered_operation(setup.objective, setup.train)
    wrapped, optimizer = accelerator.prepare(setup.objective, setup.optimizer)
    state = _take_up(setup) if resume else _start(setup, assembled.task)
    outlets.begin(state.step, screen.say)
    setup.meter.pause()
    screen.begin(state.step)
    for line in _notices(setup, unordered):
        screen.say(line)
    require_held_out(settings, len(setup.held))
    guard = _guard(setup, screen)  # it reads the lines of now: those of a resumed run end at its checkpoint
    mender = Mender(setup, guard)
    saver = saver_for(setup, guard, mender)
    watcher = Watcher.of(setup, screen.say, [mender.alerted, outlets.alerted]) if distributed.leads() else None
    waiting = Waiting(setup.events)
    for alert in watcher.replayed if watcher is not None else ():
        if alert.step == state.step:  # it was killed before it could end by it
            mender.stopped_by(alert)
    return Attempt(
        accelerator,
        assembled,
        setup,
        wrapped,
        optimizer,
        state,
        screen,
        guard,
        mender,
        saver,
        waiting,
        watcher,
        outlets,
        interrupt,
    )


def _train(attempt: Attempt) -> None:
    """Run the loop; it ends with the run, on request, or where `Attempt.mender` has decided on a remedy."""
    accelerator, setup, guard, mender = attempt.accelerator, attempt.setup, attempt.guard, attempt.mender
    screen, state, train_part = attempt.screen, attempt.state, attempt.setup.recipe.train
    attempt.callbacks = watchers(attempt) if distributed.leads() else []
    steps = Steps(
        setup.batches,
        setup.train,
        state.step,
        setup.total,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    frozen = kept_blocks(setup.model, _cache_policy(setup, state, screen))
    multiplying = matmul_precision(_matmul(setup.recipe, attempt.assembled.task))
    offloading = torch.autograd.graph.save_on_cpu() if setup.amendment.offload else contextlib.nullcontext()

    def ends() -> bool:
        leader = distributed.leads() and (guard.stops or mender.decision is not None)
        return distributed.anyone(attempt.interrupt.requested or leader)

    on_device = device.watched(setup.run.checkpoints)
    with multiplying, on_device, frozen, attempt.waiting, offloading:
        try:
            # Else it was killed between its early stop, or the alert that ends it, and its result.
            if not distributed.shared(guard.stops or mender.decision is not None):
                train(
                    accelerator,
                    attempt.wrapped,
                    attempt.optimizer,
                    setup.scheduler,
                    loader(steps, train_part.workers),
                    state,
                    max_grad_norm=train_part.max_grad_norm,
                    callbacks=attempt.callbacks,
                    stop=ends,
                    late=pick_dtype(setup.recipe.model.dtype) == torch.float16,
                    seed=setup.recipe.seed,
                )
        except Exception as error:
            # Outside of its passes a step may be half taken, and of several processes one alone may be short of memory.
            ours = OutOfMemory(state.step + 1, intact=False) if ran_out(error) else error
            if not _mended(ours, attempt, everywhere=ours is error):
                _note_end(ours, attempt)
                raise ours from (None if ours is error else error)
        finally:
            screen.close()


def _mended(error: Exception, attempt: Attempt, *, everywhere: bool) -> bool:
    """Whether something is done about an error that ended the loop. Of several processes all must have met it."""
    if attempt.accelerator.num_processes > 1 and not (everywhere and isinstance(error, OutOfMemory | NotANumber)):
        return False
    mender, watcher = attempt.mender, attempt.watcher
    decided = None
    if watcher is not None:
        decided = mender.of_error(error, attempt.state)  # what it removes may make room for the alert
        if (alert := alert_of(error, attempt.setup)) is not None and attempt.setup.recipe.watch.enabled:
            with contextlib.suppress(OSError):
                watcher.give(alert)
    mender.decision = distributed.shared(decided)
    return mender.decision is not None


def _note_end(error: Exception, attempt: Attempt) -> None:
    """Write down that an error has ended the run, as far as there is room for a line."""
    if not distributed.leads():
        return
    events, step = attempt.setup.events, attempt.state.step
    with contextlib.suppress(OSError):
        if refusals.is_full(error):
            events.event("paused", step=step, cause="disk")
        else:
            events.event("failed", step=step, code=getattr(error, "code", type(error).__name__))


def _guard(setup: TrainState, screen: Screen) -> Guard:
    watch, settings = setup.recipe.watch, setup.recipe.train
    return Guard(
        settings.early_stopping,
        settings.keep_best,
        setup.metrics,
        setup.events,
        screen.say,
        setup.run.checkpoints,
        may_end=watch.enabled and watch.remedies.stop,
    )


def _answers_kill(setup: TrainState, screen: Screen, outlets: Outlets) -> bool:
    """Whether the run was ended for memory by the system, and something was done about it. The leader does it.

    Raises TL-RUN-MEMORY where nothing can be done any more.
    """
    if not distributed.leads() or not setup.run.is_killed():
        return False
    at = max((int(line["step"]) for line in setup.metrics.lines()), default=0) + 1
    remedy = Mender(setup, _guard(setup, screen)).memory(at, newest_before(setup.run.checkpoints, setup.total + 1))
    error = OutOfMemory(at)
    if (alert := alert_of(error, setup)) is not None:
        Watcher.of(setup, screen.say, [outlets.alerted]).give(alert)
    if remedy is None:
        setup.events.event("failed", step=at - 1, code=error.code)
        raise error
    _write_down(remedy, setup, screen)
    return True


def _write_down(remedy: Remedy, setup: TrainState, screen: Screen) -> None:
    """Write a remedy down and say it. From now on whoever takes the run up goes on with it."""
    setup.events.event("remedy", **remedy.as_event())
    for line in shown(remedy):
        screen.say(line)


def _ended(attempt: Attempt) -> Outcome | None:
    """The result of the run, or a checkpoint to go on from; None where a remedy has ended the attempt."""
    setup, state, guard = attempt.setup, attempt.state, attempt.guard
    remedy = distributed.shared(attempt.mender.decision)
    if remedy is not None:
        if distributed.leads():
            if remedy.resume_at == state.step > 0 and remedy.remedy in ("memory", "spike"):
                # Where even that does not succeed, the newest checkpoint that is there is gone on from.
                with contextlib.suppress(Exception):
                    attempt.save_now()
            _write_down(remedy, setup, attempt.screen)
        attempt.accelerator.wait_for_everyone()
        if remedy.remedy != "stop":
            return _interrupted(remedy, attempt)
        guard.end(remedy)
    if distributed.leads():
        close(setup, state, attempt.assembled, guard)
    attempt.accelerator.wait_for_everyone()
    return Outcome(state.step >= setup.total or distributed.shared(guard.stops), state.step, setup.total)


def _interrupted(remedy: Remedy, attempt: Attempt) -> Outcome | None:
    """Where somebody has asked the run to stop meanwhile, it goes on with its remedy when it is taken up again."""
    if not distributed.anyone(attempt.interrupt.requested):
        return None
    if distributed.leads():
        attempt.setup.events.event("stopped", step=remedy.resume_at)
    return Outcome(False, remedy.resume_at, attempt.setup.total)


def _notices(setup: TrainState, unordered: str) -> Iterator[str]:
    """What there is to say of a run before its first step; `unordered` is an operation that has no fixed order."""
    train = setup.recipe.train
    yield from notes(setup.model, train)
    if train.packing and not setup.batches.packing:
        yield t("This model cannot be packed exactly: one dialogue a row.")
    if unordered:
        yield t(
            "{operation} adds up in any order on this card: a resumed run may differ by rounding.", operation=unordered
        )


def _matmul(recipe: Recipe, task: Task) -> MatmulPrecision:
    """A loss that compares the model with what it was is too fine for coarse products, unless they are asked for."""
    return chosen(recipe.train.matmul, exact=task.precompute_reference is not None)


def _cache_policy(setup: TrainState, state: checkpoint.State, screen: Screen) -> CachePolicy:
    """What the output of frozen blocks is kept for, and who hears of it."""
    settings, per_epoch = setup.recipe.train, setup.batches.steps_per_epoch
    sides = {"train": setup.train}
    if len(setup.held) and measurements(settings, setup.total, per_epoch) > 1:
        sides["validation"] = setup.held
    before = [bool(line["kept"]) for line in setup.events.lines() if line.get("event") == "frozen_blocks"]
    decided = distributed.shared(False if state.step >= setup.total else before[-1] if before else None)

    def report(cached: bool, why: Mapping[str, str], size: int, seconds: float) -> None:
        if distributed.leads():
            setup.events.event(
                "frozen_blocks", kept=cached, why=why[current()], why_in=why, bytes=size, seconds=seconds
            )
        if cached:
            screen.say(
                t(
                    "The frozen blocks ran once for all epochs: {size} in {time}.",
                    size=format_bytes(size),
                    time=about(seconds),
                )
            )

    return CachePolicy(
        settings, setup.run.path / "trunk", sides, setup.total / per_epoch, setup.batches.packing, decided, report
    )


def _from_scratch(setup: TrainState) -> checkpoint.State:
    # Dropout starts from here, whatever was drawn while the model was made.
    torch.manual_seed(setup.recipe.seed)
    random.seed(setup.recipe.seed)
    return checkpoint.State()


def _start(setup: TrainState, task: Task) -> checkpoint.State:
    state = _from_scratch(setup)
    if not distributed.leads():
        return state
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    setup.events.event(
        "started",
        step=0,
        total=setup.total,
        packing=setup.batches.packing,
        versions=versions,
        products=_matmul(setup.recipe, task),
    )
    return state


def _take_up(setup: TrainState) -> checkpoint.State:
    """The state of the newest whole checkpoint. A run that a remedy has sent back to its beginning has none."""
    pending = [line for line in setup.events.lines() if line.get("event") in ("remedy", "resumed")][-1:]
    if distributed.leads() and pending and pending[0].get("remedy") == "spike":
        checkpoint.back_to(setup.run.checkpoints, int(pending[0]["resume_at"]) + 1)
    distributed.world().wait_for_everyone()
    path = checkpoint.newest(setup.run.checkpoints)
    if path is None and not setup.amendment:
        raise RunError("TL-RUN-NO-CHECKPOINT", where=str(setup.run.checkpoints))
    if path is None:
        state = _from_scratch(setup)
    else:
        device.require_device(path)
        state = checkpoint.restore(path, setup.objective, setup.optimizer, setup.scheduler)
    if distributed.leads():
        setup.metrics.rewind(state.step)
        for name in ("samples.jsonl", "held.jsonl", ROWS_FILE):
            Journal(setup.run.path / name).rewind(state.step)
        setup.events.event("resumed", step=state.step, path=path.name if path else "")
    return state
