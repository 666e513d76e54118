"""Clients of a server that speaks OpenAI's chat API: so many streams at once, how fast they are answered, what a slow
reader or a crowd costs another. Nothing here knows which server it is."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

Chat = list[dict[str, Any]]
WAIT = 600.0
"""Seconds that an answer may take."""
CROWD = 8
"""Streams that run while the first token of another is waited for, or while others read slowly."""


class Clients:
    """All requests go to `base` (an address ending in /v1) for one model, greedy, of `length` tokens at most."""

    def __init__(self, base: str, model: str, length: int, more: dict[str, Any] | None = None) -> None:
        self.base, self.model, self.length, self.more = base, model, length, more or {}

    def _client(self) -> Any:
        import httpx

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(timeout=WAIT, limits=limits, trust_env=False)

    def _body(self, chat: Chat, length: int, **more: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": chat, "max_tokens": length, "temperature": 0, **self.more, **more}

    async def _whole(self, client: Any, chat: Chat) -> int:
        """The tokens of one answer."""
        reply = await client.post(f"{self.base}/chat/completions", json=self._body(chat, self.length))
        if reply.status_code != 200:
            raise SystemExit(f"{self.base}: {reply.status_code} {reply.text[:500]}")
        return int(reply.json()["usage"]["completion_tokens"])

    async def _streamed(self, client: Any, chat: Chat, length: int, rest: float = 0.0) -> tuple[float, float]:
        """Seconds to the first text of an answer, and to its end; a reader rests so long before each line."""
        began, first = time.perf_counter(), 0.0
        body = self._body(chat, length, stream=True)
        async with client.stream("POST", f"{self.base}/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise SystemExit(f"{self.base}: {reply.status_code} {(await reply.aread())[:500]!r}")
            async for line in reply.aiter_lines():
                if not first and line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                    first = time.perf_counter() - began if choices[0]["delta"].get("content") else 0.0
                if rest:
                    await asyncio.sleep(rest)
        return first, time.perf_counter() - began

    def rate(self, chats: Sequence[Chat], streams: int) -> float:
        """Tokens a second of `streams` clients that send the chats one after another, whole answers."""

        async def work() -> float:
            queue = list(reversed(chats))
            async with self._client() as client:

                async def one() -> int:
                    tokens = 0
                    while queue:
                        tokens += await self._whole(client, queue.pop())
                    return tokens

                began = time.perf_counter()
                tokens = sum(await asyncio.gather(*(one() for _ in range(min(streams, len(chats))))))
                return tokens / (time.perf_counter() - began)

        return asyncio.run(work())

    def writing(self, chats: Sequence[Chat], length: int) -> float:
        """Tokens a second while all of these chats are being answered at once: from the last first text to the first
        end. Events are counted, and the tokens that an event has on average."""

        async def events(client: Any, chat: Chat) -> tuple[list[float], int]:
            at, tokens = list[float](), 0
            body = self._body(chat, length, stream=True, stream_options={"include_usage": True})
            async with client.stream("POST", f"{self.base}/chat/completions", json=body) as reply:
                async for line in reply.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    content = json.loads(line[6:])
                    if any(choice["delta"].get("content") for choice in content.get("choices", [])):
                        at.append(time.perf_counter())
                    tokens = (content.get("usage") or {}).get("completion_tokens", tokens)
            return at, tokens

        async def work() -> float:
            async with self._client() as client:
                every = await asyncio.gather(*(events(client, chat) for chat in chats))
            begin, end = max(at[0] for at, _ in every), min(at[-1] for at, _ in every)
            if end - begin < 1:
                raise SystemExit(f"all wrote at once for {end - begin:.1f} s only: longer answers are needed")
            a_time = sum(tokens for _, tokens in every) / sum(len(at) for at, _ in every)
            return a_time * sum(begin < moment <= end for at, _ in every for moment in at) / (end - begin)

        return asyncio.run(work())

    def first_token(self, prompt: Chat, others: Sequence[Chat], times: int) -> tuple[float, float]:
        """Median seconds to the first text of a prompt: alone, and while `CROWD` others are answered."""

        async def work() -> tuple[float, float]:
            async with self._client() as client:
                await self._streamed(client, prompt, 2)
                idle = [(await self._streamed(client, _again(prompt, n), 2))[0] for n in range(times)]
                running = True

                async def crowd(k: int) -> None:
                    while running:
                        await self._streamed(client, others[k % len(others)], 4 * self.length)

                tasks = [asyncio.create_task(crowd(k)) for k in range(CROWD)]
                await asyncio.sleep(max(1.0, 4 * statistics.median(idle)))
                busy = [(await self._streamed(client, _again(prompt, times + n), 2))[0] for n in range(times)]
                running = False
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                return statistics.median(idle), statistics.median(busy)

        return asyncio.run(work())

    def slow_readers(self, chats: Sequence[Chat]) -> tuple[float, float]:
        """Seconds that half a crowd takes for its streams: beside another half that reads as fast, and that is slow."""

        async def work() -> tuple[float, float]:
            half, took = CROWD // 2, []
            async with self._client() as client:
                for rest in (0.0, 0.5):
                    slow = [
                        asyncio.create_task(self._streamed(client, chat, self.length, rest)) for chat in chats[:half]
                    ]
                    began = time.perf_counter()
                    await asyncio.gather(*(self._streamed(client, chat, self.length) for chat in chats[half:CROWD]))
                    took.append(time.perf_counter() - began)
                    for task in slow:
                        if rest:
                            task.cancel()
                    await asyncio.gather(*slow, return_exceptions=True)
            return took[0], took[1]

        return asyncio.run(work())


def _again(chat: Chat, n: int) -> Chat:
    """The chat with other words at its beginning, so that nothing of the question is remembered."""
    return [*chat[:-1], {"role": "user", "content": f"{n}. {chat[-1]['content']}"}]
