"""The limits of many processes, in a Redis: one script does all of a request in one step, by Redis' own clock."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.optional import need
from tuneloop.serving.access.gcra import DEEPEST, LEASE, MINUTE, RateLimits, RateVerdict, Refused

SECONDS = 2.0
"""How long a Redis may take to answer."""
PAUSE = 0.5
"""Seconds for which one that failed is left alone."""
REFUSED: tuple[Refused, ...] = ("", "requests", "tokens", "streams")
SCRIPT = f"""
-- The arithmetic of gcra.py. Every number is whole and below 2^53, where doubles are exact.
local op, now = ARGV[1], tonumber(ARGV[2])
local limits = {{tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])}}
local amounts = {{tonumber(ARGV[6]), tonumber(ARGV[7])}}
local lease = ARGV[8]
local MINUTE, DEEPEST, LEASE = {MINUTE}, {DEEPEST}, {LEASE}
if now == 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
local function up(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b + (rest > 0 and 1 or 0)
end
local function hold()
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + LEASE), lease)
  redis.call('PEXPIRE', KEYS[2], LEASE)
end
if op == 'renew' then
  hold()
  return {{0}}
end
local saved = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
local elapsed = math.max(0, now - (tonumber(saved[1]) or now))
local levels = {{tonumber(saved[2]) or 0, tonumber(saved[3]) or 0}}
for i = 1, 2 do
  levels[i] = limits[i] > 0 and math.max(0, levels[i] - elapsed * limits[i]) or 0
end
local refused, wait = 0, 0
if op == 'take' then
  for i = 1, 2 do
    if limits[i] > 0 and amounts[i] > 0 then
      local over = levels[i] + amounts[i] * MINUTE - limits[i] * MINUTE
      if over > 0 then
        if refused == 0 then refused = i end
        wait = math.max(wait, up(over, limits[i]))
      end
    end
  end
  if refused == 0 and lease ~= '' and limits[3] > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
    if redis.call('ZCARD', KEYS[2]) >= limits[3] then refused = 3 end
  end
elseif lease ~= '' then
  redis.call('ZREM', KEYS[2], lease)
end
if refused == 0 then
  for i = 1, 2 do
    if limits[i] > 0 then levels[i] = math.min(DEEPEST, math.max(0, levels[i] + amounts[i] * MINUTE)) end
  end
end
local out = {{refused, wait}}
local idle = 0
for i = 1, 2 do
  local level, limit = levels[i], limits[i]
  local free = math.max(0, limit * MINUTE - level)
  out[2 * i + 1] = (free - math.fmod(free, MINUTE)) / MINUTE
  out[2 * i + 2] = limit > 0 and up(level, limit) or 0
  idle = math.max(idle, out[2 * i + 2])
end
if refused == 0 then
  if op == 'take' and lease ~= '' then hold() end
  if limits[1] > 0 or limits[2] > 0 then
    redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'requests', string.format('%.0f', levels[1]),
      'tokens', string.format('%.0f', levels[2]))
    redis.call('PEXPIRE', KEYS[1], idle + 1000)
  end
end
return out
"""


def redis_client(url: str, seconds: float = SECONDS) -> Any:
    """An asynchronous client of the Redis at `url`, its connections bounded and shared; none is made yet.

    Raises TL-MACHINE-EXTRA, TL-SERVE-REDIS for an address that is none.
    """
    redis = need("redis.asyncio", extra="redis")
    backoff, errors = import_module("redis.backoff"), import_module("redis.exceptions")
    # Once more at a connection that was cut, which after a restart of Redis all idle ones are; never after a time-out,
    # when the first one may have been carried out.
    again = import_module("redis.asyncio.retry").Retry(backoff.NoBackoff(), 1, (errors.ConnectionError,))
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=seconds,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=again,
        )
    except ValueError as error:
        raise ServeError("TL-SERVE-REDIS", where="serve.redis", error=str(error)) from error
    return redis.Redis(connection_pool=pool)


class RedisDown(Exception):
    """The Redis did not answer, or not as it should."""


class RedisLimits:
    """A Limiter over a Redis. Raises RedisDown; for `PAUSE` after a failure it does so at once."""

    def __init__(self, client: Any, prefix: str = "tuneloop:limits", *, url: str = "") -> None:
        self.url, self._client = url, client
        self._script = client.register_script(SCRIPT)
        self._prefix = prefix
        self._errors: tuple[type[Exception], ...] = (import_module("redis.exceptions").RedisError, OSError)
        self._left_alone_until = 0.0

    async def take(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        return _verdict(await self._run("take", caller, limits, requests, tokens, lease, now))

    async def settle(
        self, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int = 0
    ) -> RateVerdict:
        return _verdict(await self._run("settle", caller, limits, requests, tokens, lease, now))

    async def renew(self, caller: str, lease: str, now: int = 0) -> None:
        await self._run("renew", caller, RateLimits(), 0, 0, lease, now)

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(
        self, op: str, caller: str, limits: RateLimits, requests: int, tokens: int, lease: str, now: int
    ) -> list[int]:
        if time.monotonic() < self._left_alone_until:
            raise RedisDown("it failed a moment ago")
        # In braces what a cluster goes by: both keys of a caller lie on one machine.
        keys = [f"{self._prefix}:{{key {caller}}}:{kind}" for kind in ("levels", "streams")]
        arguments = [op, now, limits.requests, limits.tokens, limits.streams, requests, tokens, lease]
        try:
            return [int(number) for number in await self._script(keys=keys, args=arguments)]
        except self._errors as error:
            self._left_alone_until = time.monotonic() + PAUSE
            raise RedisDown(str(error)) from error


def _verdict(numbers: list[int]) -> RateVerdict:
    return RateVerdict(REFUSED[numbers[0]], *numbers[1:])
