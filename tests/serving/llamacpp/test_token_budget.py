from __future__ import annotations

import asyncio

from tests.serving.upstreams import on_loop
from tuneloop.serving.llamacpp.token_budget import TokenBudget


@on_loop
async def test_who_came_first_is_served_first_and_nothing_is_lent_twice() -> None:
    budget, order = TokenBudget(2, 100), list[str]()

    async def take(name: str, places: int, tokens: int) -> None:
        await budget.take(places, tokens)
        order.append(name)

    await take("a", 1, 60)
    tasks = [asyncio.ensure_future(take(*one)) for one in (("large", 1, 80), ("small", 1, 10), ("both", 2, 100))]
    await asyncio.sleep(0)
    assert order == ["a"]  # the small one does not overtake the large one
    budget.give(1, 60)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["a", "large", "small"]
    assert (budget.free_places, budget.free_tokens) == (0, 10)
    budget.give(1, 80)
    await asyncio.sleep(0)
    assert order[-1] == "small"
    budget.give(1, 10)
    await asyncio.gather(*tasks)
    budget.give(2, 100)
    assert (budget.free_places, budget.free_tokens) == (2, 100)


@on_loop
async def test_who_goes_away_while_waiting_takes_nothing() -> None:
    budget = TokenBudget(1, 10)
    await budget.take(1, 10)
    gone, served = (asyncio.ensure_future(budget.take(1, 5)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    budget.give(1, 10)
    await served
    late = asyncio.ensure_future(budget.take(1, 5))
    await asyncio.sleep(0)
    budget.give(1, 5)  # lent to it already, and it goes away before it runs
    late.cancel()
    await asyncio.gather(gone, late, return_exceptions=True)
    assert (budget.free_places, budget.free_tokens) == (1, 10)
