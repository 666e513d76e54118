"""What the official client receives, byte by byte, held to /openapi.json."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema

from tuneloop.serving.http.openapi import document

DOCUMENT = document()


@dataclass
class Exchange:
    """A request's place in the description, and its answer."""

    method: str
    path: str
    status: int
    kind: str
    body: bytearray = field(default_factory=bytearray)

    def check(self) -> None:
        """The answer is what /openapi.json says of it: the body, or each event."""
        path = "/v1/models/{name}" if self.path.startswith("/v1/models/") else self.path
        content = DOCUMENT["paths"][path][self.method.lower()]["responses"][str(self.status)]["content"]
        schema = {**content[self.kind]["schema"], "components": DOCUMENT["components"]}
        validator = jsonschema.Draft202012Validator(schema)
        if self.kind != "text/event-stream":
            validator.validate(json.loads(self.body))
            return
        events = self.body.decode("utf-8").split("\n\n")
        if events[-1] == "":  # read to its end, which a client that hangs up has not
            assert events[-2] == "data: [DONE]"
        for event in events[:-2]:
            validator.validate(json.loads(event.removeprefix("data: ")))


class _Tee(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner, self._exchange = inner, exchange

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._exchange.body += chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._exchange.body += chunk
            yield chunk

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class WireLog:
    """Transports for the official client that keep what they carry."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def keep(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        kind = response.headers.get("content-type", "").partition(";")[0]
        self.exchanges.append(Exchange(request.method, request.url.path, response.status_code, kind))
        response.stream = _Tee(response.stream, self.exchanges[-1])
        return response

    def check(self) -> None:
        for exchange in self.exchanges:
            exchange.check()

    def client(self) -> httpx.Client:
        return httpx.Client(transport=_Transport(self), timeout=60)

    def async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=_AsyncTransport(self), timeout=60)


class _Transport(httpx.BaseTransport):
    def __init__(self, log: WireLog) -> None:
        self._log, self._inner = log, httpx.HTTPTransport(verify=False)  # certificates take long to read

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._log.keep(request, self._inner.handle_request(request))

    def close(self) -> None:
        self._inner.close()


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, log: WireLog) -> None:
        self._log, self._inner = log, httpx.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._log.keep(request, await self._inner.handle_async_request(request))

    async def aclose(self) -> None:
        await self._inner.aclose()
