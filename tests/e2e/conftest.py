"""What several files of slow tests share: a ground for watched runs, and the healthy ones that others are held against."""

from __future__ import annotations

import pytest

from tests.e2e.watch_runs import SEEDS, SMOLLM, Ended, Ground, Job, chat, finished
from tests.real import pulled


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    pulled(SMOLLM)
    return Ground(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="session")
def healthy(ground: Ground) -> list[Ended]:
    """One run a seed on our own rows, with nothing planted."""
    ended = ground.train([Job("healthy", chat("persona", seed)) for seed in SEEDS])
    finished(ended)
    return ended
