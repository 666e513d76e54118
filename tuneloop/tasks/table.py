"""The tasks: one visible dict, the code of the rows in `recipe/choices.TASK_CHOICES`; and which of them rows teach."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.base.errors import DataError
from tuneloop.base.language import listed
from tuneloop.recipe.choices import USUAL, USUAL_TASK
from tuneloop.tasks.chat import CHAT, TEXT
from tuneloop.tasks.classify import CLASSIFY
from tuneloop.tasks.prefer import PREFER
from tuneloop.tasks.reward import REWARD
from tuneloop.tasks.task import Task
from tuneloop.tasks.verbalize import CLASSIFY_PROMPT

TASKS: dict[str, Task] = {
    "chat": CHAT, "text": TEXT, "classify": CLASSIFY, "classify_prompt": CLASSIFY_PROMPT, "prefer": PREFER,
    "reward": REWARD,
}  # fmt: skip


def task_name(wanted: str, kinds: Sequence[str], where: str = "train.task") -> str:
    """The task of a recipe on rows of these kinds.

    Raises TL-DATA-TASK where the rows cannot teach it.

    >>> task_name("auto", ["chat", "text"])
    'chat'
    """
    name = wanted if wanted != "auto" else USUAL[kinds[0]] if kinds else USUAL_TASK
    task = TASKS.get(name)
    if task is None or not set(kinds) <= task.kinds:
        raise DataError("TL-DATA-TASK", where=where, task=name, kinds=listed(kinds))
    return name
