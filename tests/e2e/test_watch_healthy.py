"""A healthy run is left in peace: no alert above a note, and no remedy."""

from __future__ import annotations

import pytest

from tests.e2e.watch_runs import MINILM, SEEDS, SETS, Ended, Ground, Job, chat, finished, recorded, sentiment
from tests.lives import events
from tests.real import pulled

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1500)]
OTHERS = [kind for kind in SETS if kind not in ("persona", "few")]


def in_peace(ended: list[Ended]) -> None:
    finished(ended)
    for one in ended:
        recorded(one, f"healthy-{one.run.name[:-2]}")
    loud = [(one.run.name, line) for one in ended for line in one.alerts()]
    assert not loud
    assert not [line for one in ended for line in one.remedies()]


def test_lora_on_our_own_rows(healthy: list[Ended]) -> None:
    in_peace(healthy)


@pytest.mark.parametrize("kind", OTHERS)
def test_lora_on_other_sets(kind: str, ground: Ground) -> None:
    in_peace(ground.train([Job("healthy", chat(kind, seed)) for seed in SEEDS]))


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_an_encoder_that_learns_labels(method: str, ground: Ground) -> None:
    pulled(MINILM)
    ended = ground.train([Job("healthy", sentiment(method, seed)) for seed in SEEDS])
    in_peace(ended)
    assert all(events(one.run, "started")[0]["total"] == 56 for one in ended)
