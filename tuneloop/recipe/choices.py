"""The methods, tasks and preference losses of a recipe: their sections, usual learning rates, and other tools' names.

No torch here: `methods/table.py` and `tasks/table.py` extend these rows with code, and a test holds the names equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuneloop.base.records import Kind

MethodName = Literal["lora", "qlora", "full", "freeze", "ptuning_v2", "prompt_tuning"]
TaskName = Literal["auto", "chat", "text", "classify", "classify_prompt", "reward", "prefer"]
LossName = Literal["auto", "dpo", "ipo", "orpo", "simpo", "kto"]

USUAL_METHOD: MethodName = "lora"
USUAL_TASK = "chat"
"""What `auto` is where no rows say otherwise."""
USUAL_RATE = 2e-4


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """One value of `train.method`. `methods/table.Method` adds the code."""

    sections: tuple[str, ...] = ()
    """Sections of `train` that belong to it."""
    without: tuple[str, ...] = ()
    """Keys of these sections that it cannot use, by their dotted name in `train`."""
    rate: float = USUAL_RATE
    """Usual peak learning rate."""
    preference_rate: float | None = None
    """The same with a preference loss; None: `rate`."""
    head_rate: float | None = None
    """The same where a new head alone is trained (train.freeze.layers: 0); None: `rate`."""
    adapter: bool = False
    """The result is an adapter folder; otherwise a whole model."""
    quantize: bool = False
    """The frozen weights are held in 4 or 8 bits."""
    quantized: str = ""
    """The method that does the same on weights in 4 or 8 bits; "" where there is none."""
    aliases: tuple[str, ...] = ()
    """Its names in other tools."""


METHOD_CHOICES: dict[str, MethodChoice] = {
    "lora": MethodChoice(("lora",), preference_rate=5e-6, adapter=True, quantized="qlora"),
    "qlora": MethodChoice(("lora", "qlora"), preference_rate=5e-6, adapter=True, quantize=True, quantized="qlora"),
    "full": MethodChoice(rate=3e-5, preference_rate=1e-6),
    "freeze": MethodChoice(("freeze",), rate=3e-5, preference_rate=1e-6, head_rate=1e-3),
    "ptuning_v2": MethodChoice(("virtual",), rate=5e-3, adapter=True,
                               aliases=("prefix", "prefix_tuning", "p_tuning_v2")),
    "prompt_tuning": MethodChoice(("virtual",), ("virtual.projection",), rate=3e-2, adapter=True, aliases=("prompt",)),
}  # fmt: skip
"""Virtual tokens begin at random and are few: Liu et al. 2022 (arXiv:2110.07602) go by 5e-3 to 1e-2, PEFT's own
examples by 3e-2 for prompts at the input. Preference losses pull at a model that can answer already: a fortieth of the
rate, as DPO's own recipes have it."""


@dataclass(frozen=True, slots=True)
class LossChoice:
    """One value of `train.prefer.loss`. `tasks/prefer.py` has the code."""

    smoothing: bool = False
    """It takes train.prefer.smoothing."""
    verdicts: bool = False
    """It learns from single answers that are known to be good or bad."""
    aliases: tuple[str, ...] = ()
    """Its names in other tools."""


LOSS_CHOICES: dict[str, LossChoice] = {
    "dpo": LossChoice(smoothing=True, aliases=("sigmoid",)),
    "ipo": LossChoice(),
    "orpo": LossChoice(),
    "simpo": LossChoice(),
    "kto": LossChoice(verdicts=True),
}


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """One value of `train.task`. `tasks/task.Task` is the code."""

    usual_for: tuple[Kind, ...] = ()
    """Kinds of row that `train.task: auto` teaches this task."""
    reads: Kind | None = None
    """The kind that its rows are read as, whatever they look like; None: as they look."""
    sections: tuple[str, ...] = ()
    """Sections of `train` that belong to it."""
    head: Literal["", "labels", "score"] = ""
    """What the model's new head gives a text; "" where the language head stays."""
    preference: bool = False
    """It goes by the preference rates."""
    verdicts: bool = False
    """It can learn from answers that are known to be good or bad."""
    losses: Mapping[str, LossChoice] = field(default_factory=dict)
    """Its losses, each of which is a stage of training in other tools."""
    aliases: tuple[str, ...] = ()
    """Its names in other tools."""


TASK_CHOICES: dict[str, TaskChoice] = {
    "chat": TaskChoice(("chat",), sections=("sft",)),
    "text": TaskChoice(("text",), sections=("sft",), aliases=("pt",)),
    "classify": TaskChoice(("label",), "label", ("classify",), head="labels", aliases=("seq_cls",)),
    "classify_prompt": TaskChoice(reads="label", sections=("classify",)),
    "reward": TaskChoice(head="score", aliases=("rm",)),
    "prefer": TaskChoice(("preference", "judged"), sections=("prefer",), preference=True, verdicts=True,
                         losses=LOSS_CHOICES, aliases=("dpo",)),
}  # fmt: skip
USUAL: dict[str, str] = {kind: name for name, row in TASK_CHOICES.items() for kind in row.usual_for}
"""Kind of row -> the task it is mostly for: what `train.task: auto` means."""


def _sections(rows: Iterable[MethodChoice | TaskChoice]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(section for row in rows for section in row.sections))


METHOD_SECTIONS, TASK_SECTIONS = _sections(METHOD_CHOICES.values()), _sections(TASK_CHOICES.values())
"""Sections of `train` that belong to some methods, and to some tasks."""
TRAIN_SECTIONS = (*METHOD_SECTIONS, *TASK_SECTIONS)


def task_choice(task: Any) -> TaskChoice:
    """The row of a task; an empty one for `auto`, and for what is no task."""
    return TASK_CHOICES.get(str(task), TaskChoice())


def usual_rate(method: Any, task: Any = "auto", layers: Any = None) -> float:
    """The peak learning rate where none is given. `layers` is train.freeze.layers; 0 trains a head alone.

    >>> usual_rate("lora"), usual_rate("full"), usual_rate("lora", "prefer"), usual_rate("freeze", "classify", 0)
    (0.0002, 3e-05, 5e-06, 0.001)
    """
    row, learned = METHOD_CHOICES.get(str(method), MethodChoice()), task_choice(task)
    if learned.head and layers == 0 and row.head_rate is not None:
        return row.head_rate
    if learned.preference and row.preference_rate is not None:
        return row.preference_rate
    return row.rate


def learns_verdicts(task: str, loss: str) -> bool:
    """Whether a column of true and false beside answers says which of them are good, for this task or this loss.

    >>> learns_verdicts("prefer", "auto"), learns_verdicts("auto", "kto"), learns_verdicts("chat", "dpo")
    (True, True, False)
    """
    return task_choice(task).verdicts or LOSS_CHOICES.get(loss, LossChoice()).verdicts
