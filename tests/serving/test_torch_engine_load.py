"""Many clients of the torch engine at once: 200 streams, half of them cut off, and readers that take their time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.adapter_workspace import (
    POISON_ID,
    SMALL,
    Answered,
    answered,
    behind_tie,
    make_workspace,
    query,
    run,
    until,
)
from tuneloop.base.records import Sampling
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.worker.torch_engine import TorchEngine

STREAMS, LENGTH = 200, 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEngine]:
    workspace: Path = make_workspace(tmp_path_factory.mktemp("load"))
    made = TorchEngine(SMALL[0], ServePart(slots=STREAMS), workspace)
    yield made
    made.close()


def wanted(n: int) -> Query:
    draw = random.Random(n)
    text = " ".join(
        draw.choices(["why", "sky", "egg", "blue", "step", "study", "Paris", "水"], k=draw.randrange(3, 30))
    )
    never = Sampling(logit_bias=((POISON_ID, -100.0),))  # written, it would poison its own row
    return query((*SMALL, "tiny-base")[n % 6], f"{n}: {text}?", max_new_tokens=LENGTH, sampling=never)


@pytest.mark.slow
def test_200_streams_say_what_each_says_alone(engine: TorchEngine) -> None:
    async def work(cut: bool) -> tuple[int, int]:
        lone = [await answered(engine, wanted(n)) for n in range(STREAMS)]
        draw = random.Random(1)
        leaving = set(draw.sample(range(STREAMS), STREAMS // 2)) if cut else set()

        async def one(n: int) -> Answered | None:
            if n not in leaving:
                return await answered(engine, wanted(n))
            stream, most = await engine.submit(wanted(n)), draw.randrange(LENGTH)
            async for _ in stream:
                most -= 1
                if most <= 0:
                    break
            await stream.aclose()
            return None

        out = await asyncio.gather(*(one(n) for n in range(STREAMS)))
        tied = [behind_tie(mine, lone[n]) for n, mine in enumerate(out) if mine is not None]
        await until(lambda: engine.pending == 0 and not engine.gauges()["answers_running"])
        return sum(tied), len(tied) * LENGTH

    for cut in (False, True):
        tied, tokens = run(work(cut), 500)
        print(f"{tied} of {tokens} tokens behind a near tie")
        assert tied <= 0.02 * tokens


@pytest.mark.slow
def test_slow_readers_hold_nobody(engine: TorchEngine) -> None:
    """Their answers are written and their slots free long before they have read them, and the others have all."""
    slow, quick = 20, 20

    async def dawdle(n: int) -> tuple[Answered, float]:
        stream = await engine.submit(wanted(n))
        pieces = []
        async for piece in stream:
            pieces.append(piece)
            await asyncio.sleep(0.3)
        scores = tuple(score for piece in pieces for score in piece.scores)
        text = "".join(piece.text for piece in pieces)
        return Answered(text, str(pieces[-1].finish), pieces[-1].tokens, stream.prompt_tokens, scores), time.monotonic()

    async def work() -> None:
        lone = [await answered(engine, wanted(n)) for n in range(slow + quick)]
        late = [asyncio.ensure_future(dawdle(n)) for n in range(slow)]
        others = await asyncio.gather(*(answered(engine, wanted(n)) for n in range(slow, slow + quick)))
        ended = time.monotonic()
        await until(lambda: engine.pending == 0 and not engine.gauges()["answers_running"])
        assert not any(task.done() for task in late)
        for (mine, at), alone in zip(await asyncio.gather(*late), lone[:slow], strict=True):
            assert at > ended
            behind_tie(mine, alone)
        for mine, alone in zip(others, lone[slow:], strict=True):
            behind_tie(mine, alone)

    run(work())
