from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.close()
