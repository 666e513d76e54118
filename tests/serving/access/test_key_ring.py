"""Keys that are read again while requests wait for them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.serving.access.key_ring import KeyRing
from tuneloop.serving.access.keys import ApiKey


class Counted(KeyRing):
    """A ring of which each reading takes its time; `away`: its store does not answer."""

    readings, away = 0, False

    def _load(self) -> list[ApiKey]:
        self.readings += 1
        if self.readings > 1:
            time.sleep(0.05)
        if self.away:
            raise ServeError("TL-SERVE-KEYS")
        return []


@pytest.mark.parametrize("away", [False, True])
def test_who_waits_for_the_keys_waits_for_one_reading_of_them(tmp_path: Path, away: bool) -> None:
    ring = Counted(tmp_path / "none.db")
    ring.away, ring._read_at = away, float("-inf")

    async def all_at_once() -> list[object]:
        waiting = [asyncio.ensure_future(ring.refresh()) for _ in range(100)]
        await asyncio.sleep(0.01)
        waiting.pop(0).cancel()  # who began it takes it from nobody
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    outcomes = asyncio.run(all_at_once())
    assert ring.readings == 2
    assert all(isinstance(one, ServeError) == away for one in outcomes)
