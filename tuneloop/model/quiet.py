"""transformers and PEFT without their advice: they warn about each other's names, nothing that a user could act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from tuneloop.base.environment import quiet_libraries


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers tells errors only and draws no progress bars; afterwards all is as it was."""
    quiet_libraries()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
