"""What a run does about its trouble: decides on a remedy, and prepares the run's folder for the attempt that follows.

A remedy is a resume with an amendment. Nothing is changed while the loop runs: a `Mender` only decides, the loop ends
after its step, and the session is begun anew from a checkpoint with the amendments that events.jsonl then holds.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.base import refusals
from tuneloop.data.batches.pack import pack_examples
from tuneloop.methods.table import METHODS, parameters
from tuneloop.model import checkpoint
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.history import finite, middle, number
from tuneloop.monitor.notices import notices, still_on
from tuneloop.monitor.remedies import Amendment, Remedy, RemedyName, Slower, amended, remedies
from tuneloop.training.finite import NotANumber
from tuneloop.training.guards import Guard
from tuneloop.training.optim import warmup_steps
from tuneloop.training.out_of_memory import OutOfMemory
from tuneloop.training.state import TrainState

LOWEST_RATE = 1e-5
"""Towards which remedies lower the learning rate."""
FAR_WORSE = 1.5
"""Times the loss of the model as it came that a state which is gone back to must not lose."""
KNOWN = 30
"""Lines from which on a run knows what is usual in it."""
GENTLE = 0.8
"""What is left of the rate of a run that was healthy, the first time; then its batch is more likely at fault."""
LEAST_WARMUP = 0.1
"""Share of all steps over which the rate rises again."""
ENDING = ("overfit", "plateau")
"""Rules that end a run where they are more than a note."""
RUNAWAY = ("rebound", "exploding")
"""Rules whose bad alerts mean that the run has diverged."""


@dataclass(slots=True)
class Mender:
    """Decides what is done about alerts and errors, each as often as `watch.remedies.limit` allows.

    It has no memory of its own: what was done before stands in events.jsonl, what the run was like in metrics.jsonl.
    """

    setup: TrainState
    guard: Guard
    decision: Remedy | None = field(default=None, init=False)

    def alerted(self, alert: Alert) -> None:
        """An alert was raised while the loop ran; after this step it ends if something is to be done about it."""
        if self.decision is not None:
            return
        if alert.rule in RUNAWAY and alert.level == "bad":
            standing = still_on(notices(self.setup.events.lines()))
            began = [one.since for one in standing if one.name in RUNAWAY and one.tone in ("watch", "bad")]
            self.decision = self.spike(alert.step, max(1, min([alert.since, *began])), alert.rule)
        else:
            self.stopped_by(alert)

    def stopped_by(self, alert: Alert) -> None:
        """End the run if that is what an alert is answered by."""
        if alert.rule in ENDING and alert.level in ("watch", "bad"):
            self.decision = self.stop(alert.step)

    @property
    def goes_back(self) -> bool:
        """Whether the state of now is to be given up: it must not be saved."""
        return self.decision is not None and self.decision.remedy == "spike"

    def of_error(self, error: BaseException, state: checkpoint.State) -> Remedy | None:
        """What is done about an error that ended the loop; None where it is to be raised."""
        if isinstance(error, OutOfMemory):
            done = state.step if error.intact else newest_before(self.setup.run.checkpoints, state.step + 1)
            return self.memory(error.number, done)
        if isinstance(error, NotANumber):
            return self.not_a_number(error.number, state.step)
        if refusals.is_full(error):
            return self.disk(state.step)
        return None

    def _may(self, name: RemedyName, limit: int | None = None, resumed_from: int = 0) -> bool:
        """Whether a remedy is on, and was not taken too often already, counted from the step `resumed_from` on."""
        watch = self.setup.recipe.watch
        done = remedies(self.setup.events.lines())
        before = [one for one in done if one.remedy == name and one.resume_at >= resumed_from]
        most = watch.remedies.limit if limit is None else limit
        return watch.enabled and bool(getattr(watch.remedies, name)) and len(before) < most

    def memory(self, at: int, done: int) -> Remedy | None:
        """Smaller micro-batches, then activations recomputed, then (on a card) offloaded to CPU; None at the end.

        `at` is the step (from 1) that did not find the memory, `done` the steps that are behind the run.
        """
        if not self._may("memory", 64):
            return None
        train, batches = self.setup.recipe.train, self.setup.batches
        most = max(len(rows) for rows in batches.step(min(at, self.setup.total) - 1))
        now = amended(self.setup.events.lines())
        on_card = next(self.setup.objective.parameters()).device.type != "cpu"
        if batches.packing and most > 1:
            change = Amendment(micro_batch_size=most // 2)
            setting = f"train.micro_batch_size: {most // 2}"
        elif METHODS[train.method].checkpointing and not train.checkpointing:
            change, setting = Amendment(checkpointing=True), "train.checkpointing: true"
        elif on_card and not now.offload:
            change, setting = Amendment(offload=True), "train.token_budget"
        else:
            return None
        return Remedy("memory", at, done, change, {"at": at, "setting": setting})

    def not_a_number(self, at: int, done: int) -> Remedy | None:
        """Without the batch of step `at`: from the step before where the run was healthy until then, else from before
        it ran away."""
        losses = [float(m["loss"]) for m in self.setup.metrics.lines() if isinstance(m.get("loss"), int | float)]
        ran_away = len(losses) >= 3 and not sum(losses[-3:]) / 3 <= 1.1 * sum(losses[:3]) / 3
        here = not ran_away and done == at - 1  # else a card has counted steps that it did not take
        remedy = self.spike(at, at, "nan", here=here, gently=not ran_away)
        broken = self._broken(at) if remedy is not None else ()
        if remedy is None or not broken:
            return remedy
        names = [name for k in broken for name in self._names(k)]
        change = replace(remedy.amendment, drop=broken)
        return replace(remedy, amendment=change, facts={**remedy.facts, "rows": names[:10]})

    def _broken(self, step: int) -> tuple[int, ...]:
        """The examples of the batch of a step whose loss is no number by themselves: they would spoil each epoch."""
        objective, examples = self.setup.objective, self.setup.train
        device = next(objective.parameters()).device
        broken = []
        for k in sorted(k for rows in self.setup.batches.step(step - 1) for k in rows):
            with contextlib.suppress(Exception):  # what cannot be tried is not known to be broken
                if not objective(pack_examples(examples, [k]).to(device)).total.isfinite():
                    broken.append(k)
        return tuple(broken)

    def _names(self, example: int) -> list[str]:
        """The ids of the rows of an example."""
        samples = self.setup.train.samples
        return [samples.names[k].decode() for k in self.setup.train.members[example].tolist()]

    def spike(self, step: int, since: int, cause: str, *, here: bool = False, gently: bool = False) -> Remedy | None:
        """Back to before step `since`, without its batch, at a lower rate that rises anew; None where it was done too
        often, or where the rate is the lowest already and no batch was at fault."""
        if not self._may("spike"):
            return None
        setup = self.setup
        past = amended(setup.events.lines())
        peak = setup.recipe.train.learning_rate * math.prod(one.rate for one in past.slower)
        far = math.sqrt(peak * LOWEST_RATE)  # half of the way, on a logarithmic scale
        lower = max(min(peak, LOWEST_RATE), GENTLE * peak if gently and not past.slower else far)
        warmup = max(math.ceil(LEAST_WARMUP * setup.total), warmup_steps(setup.recipe.train, setup.total))
        back = (
            since - 1
            if here
            else newest_before(setup.run.checkpoints, since, lambda saved: self._is_sound(saved, since))
        )
        batch = setup.batches.batch(since - 1)
        facts: dict[str, Any] = {
            "at": since,
            "cause": cause,
            "rate": lower,
            "warmup": warmup,
            "rows": self._rows(since),
        }
        return Remedy(
            "spike", step, back, Amendment(skip=(batch,), slower=(Slower(back, lower / peak, warmup),)), facts
        )

    def _is_sound(self, step: int, since: int) -> bool:
        """Whether the model was not far worse after `step` steps than it came, by the line before and by the held-out
        loss, where that was measured then: else the run had begun to diverge. A run of many lines before step `since`
        goes by what was usual in them where that is more: its first batch may have been an easy one."""
        lines = [line for line in self.setup.metrics.lines() if int(line["step"]) < since]
        losses = [(int(line["step"]), number(line["loss"])) for line in lines if "loss" in line]
        if not losses:
            return True
        usual = middle(finite(loss for _, loss in losses)) if len(losses) >= KNOWN else 0.0
        limit = FAR_WORSE * max(losses[0][1], math.log(2), usual)
        last = [loss for at, loss in losses if at <= step][-1:]
        measured = [number(line["eval_loss"]) for line in lines if "eval_loss" in line and line["step"] == step]
        return all(one <= limit for one in [*last, *measured])

    def _rows(self, step: int) -> list[str]:
        """The ids of the rows of a step's batch, ten at most."""
        chosen = [k for rows in self.setup.batches.step(step - 1) for k in rows]
        return [name for k in chosen for name in self._names(k)][:10]

    def stop(self, step: int) -> Remedy | None:
        """End at the best checkpoint or at the state of now, which is saved as the loop ends; None where neither was
        measured."""
        states = [best] if (best := self.guard.best_saved()) is not None else []
        states += [(at, loss) for at, loss in self.guard.measurements() if at == step]
        if not states or not self._may("stop", 1):
            return None
        at, loss = min(states, key=lambda one: one[1])
        return Remedy("stop", step, step, facts={"at": step, "best": at, "loss": loss})

    def disk(self, step: int) -> Remedy | None:
        """Old checkpoints removed; None where nothing could be, or where the run has not come further by it."""
        back = newest_before(self.setup.run.checkpoints, step + 1)
        if not self._may("disk", resumed_from=back):
            return None
        n, size = checkpoint.thin(self.setup.run.checkpoints, self.guard.spare)
        return Remedy("disk", step, back, facts={"at": step, "n": n, "bytes": size}) if n else None


def alert_of(error: BaseException, setup: TrainState) -> Alert | None:
    """The alert of an error that ends a step before any line of it is written."""
    if isinstance(error, NotANumber):
        name = "loss" if error.facts["loss"] in ("nan", "inf", "-inf") else "grad_norm"
        return Alert("nan", "bad", error.number, error.number, {"name": name})
    if isinstance(error, OutOfMemory):
        return Alert("memory", "bad", error.number, error.number, {"failed": True, "step": error.number})
    if refusals.is_full(error):
        at = max((int(line["step"]) for line in setup.metrics.lines()), default=0) + 1
        needed = 12 * parameters(setup.model)[1] / 1e9
        return Alert("disk", "bad", at, at, {"free": shutil.disk_usage(setup.run.path).free / 1e9, "needed": needed})
    return None


def newest_before(folder: Path, step: int, wanted: Callable[[int], bool] = lambda step: True) -> int:
    """The newest whole checkpoint of fewer than `step` steps that is `wanted`, by its steps; 0 where there is none."""
    earlier = sorted(k for p in folder.glob("step-*") if p.name[5:].isdigit() and (k := checkpoint.step_of(p)) < step)
    return next((k for k in reversed(earlier) if wanted(k) and checkpoint.verified(folder / f"step-{k}")), 0)
