"""Answers in Redis, which all gateways share. Scripts do each step at once, so gateways need no locks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from tuneloop.base.environment import environment
from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.base.optional import need
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.cache.answer_store import FORGOTTEN_SECONDS, MARGIN, OVERHEAD
from tuneloop.serving.cache.key import FORMAT

PREFIX = f"{{tuneloop:cache:{FORMAT}}}:"
"""Of all keys here; the braces put them into one slot of a cluster."""
CONNECTIONS, SECONDS = 32, 2.0
"""Connections at most, and how long one of them and an answer of Redis are waited for."""

# KEYS[1] is the prefix: "a:KEY" an answer; "used", "ends" sorted sets of keys by time; "sizes" a hash of bytes by key;
# "p:PERSON" a sorted set of the keys that a person has asked for, by their end; "forgotten" one of "TENANT|PERSON".
_HEAD = """
local p = KEYS[1]
local function drop(key)
  local size = redis.call('HGET', p .. 'sizes', key)
  if size then
    redis.call('DECRBY', p .. 'size', size)
    redis.call('HDEL', p .. 'sizes', key)
    redis.call('ZREM', p .. 'used', key)
    redis.call('ZREM', p .. 'ends', key)
    redis.call('UNLINK', p .. 'a:' .. key)
    return 1
  end
  return 0
end
local function note(people, key, ends, seconds, now)
  for person in string.gmatch(people, '%x+') do
    local name = p .. 'p:' .. person
    redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
    redis.call('ZADD', name, ends, key)
    if redis.call('TTL', name) < tonumber(seconds) then
      redis.call('EXPIRE', name, math.ceil(seconds))
    end
  end
end
"""
_GET = (
    _HEAD
    + """
local key, people, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local ends = tonumber(redis.call('ZSCORE', p .. 'ends', key) or 0)
if ends <= now then return false end
local answer = redis.call('GET', p .. 'a:' .. key)
if answer then
  redis.call('ZADD', p .. 'used', now, key)
  note(people, key, ends, ends - now, now)
end
return answer
"""
)
_PUT = (
    _HEAD
    + """
local key, people, now, answer = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local size, most, seconds, began, recent = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]
redis.call('ZREMRANGEBYSCORE', p .. 'forgotten', '-inf', recent)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', p .. 'forgotten', began, '+inf')) do
  local tenant, person = string.match(one, '^(%x*)|(%x*)$')
  local meant = tenant == '' or string.sub(key, 1, #tenant + 1) == tenant .. ':'
  if meant and (person == '' or string.find(people, person, 1, true)) then return {0, 0} end
end
drop(key)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', p .. 'ends', '-inf', now, 'LIMIT', 0, 256)) do drop(old) end
while tonumber(redis.call('GET', p .. 'size') or 0) + size > most do
  local oldest = redis.call('ZRANGE', p .. 'used', 0, 0)[1]
  if not oldest then redis.call('DEL', p .. 'size') break end
  if drop(oldest) == 0 then redis.call('ZREM', p .. 'used', oldest) end
end
redis.call('SET', p .. 'a:' .. key, answer, 'PX', math.ceil(seconds * 1000))
redis.call('ZADD', p .. 'used', now, key)
redis.call('ZADD', p .. 'ends', now + seconds, key)
redis.call('HSET', p .. 'sizes', key, size)
note(people, key, now + seconds, seconds, now)
return {redis.call('INCRBY', p .. 'size', size), redis.call('HLEN', p .. 'sizes')}
"""
)
_FORGET = (
    _HEAD
    + """
local tenant, person, now = ARGV[1], ARGV[2], ARGV[3]
redis.call('ZADD', p .. 'forgotten', now, tenant .. '|' .. person)
local keys = person == '' and redis.call('HKEYS', p .. 'sizes') or redis.call('ZRANGE', p .. 'p:' .. person, 0, -1)
local removed = 0
for _, key in ipairs(keys) do
  if tenant == '' or string.sub(key, 1, #tenant + 1) == tenant .. ':' then removed = removed + drop(key) end
end
if person ~= '' and tenant == '' then redis.call('UNLINK', p .. 'p:' .. person) end
return removed
"""
)


class RedisAnswers:
    """An AnswerStore of at most `most` bytes in the Redis at `url`; nothing is asked of it before the first request.

    Raises TL-MACHINE-EXTRA, and TL-SERVE-CACHE for no address, or one that is none.
    """

    def __init__(self, url: str, most: int) -> None:
        if not url:
            raise ServeError("TL-SERVE-CACHE", where="serve.redis", error=t("no address of Redis is named"))
        client: Any = need("redis.asyncio", extra="redis")
        try:
            waits = dict.fromkeys(("timeout", "socket_timeout", "socket_connect_timeout"), SECONDS)
            pool = client.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, **waits)
        except ValueError as error:
            raise ServeError("TL-SERVE-CACHE", where="serve.redis", error=str(error)) from error
        self._client, self._most = client.Redis(connection_pool=pool), most
        scripts = (_GET, _PUT, _FORGET)
        self._get_script, self._put_script, self._forget_script = map(self._client.register_script, scripts)
        self.size = self.count = 0

    async def get(self, key: str, people: Iterable[str]) -> bytes | None:
        answer = await self._get_script(keys=[PREFIX], args=[key, " ".join(people), time.time()])
        return None if answer is None else bytes(answer)

    async def put(self, key: str, answer: bytes, people: Iterable[str], seconds: float, began: float) -> None:
        now, needed = time.time(), len(answer) + OVERHEAD
        if needed > self._most:
            return
        bounds = [needed, self._most, seconds, began - MARGIN, now - FORGOTTEN_SECONDS]
        size, count = await self._put_script(keys=[PREFIX], args=[key, " ".join(people), now, answer, *bounds])
        self.size, self.count = (int(size), int(count)) if count else (self.size, self.count)

    async def forget(self, tenant: str, person: str) -> int:
        return int(await self._forget_script(keys=[PREFIX], args=[tenant, person, time.time()]))

    async def close(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


def redis_url(settings: ServePart) -> str:
    """The address in the recipe, else in the environment; "" where there is none."""
    return settings.redis or environment().redis
