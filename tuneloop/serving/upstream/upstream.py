"""HTTP client of one OpenAI-compatible server: JSON in, server-sent events out, and its failures as coded errors.

Only the URL of the configuration is asked: no redirect is followed, and nothing of an answer is a URL here. What the
server sends is trusted in nothing; how long it may be is limited.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import urllib.request
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneloop.base.environment import environment
from tuneloop.base.errors import ServeError, os_words
from tuneloop.base.language import t
from tuneloop.base.optional import need
from tuneloop.data.augmenting.endpoint import elsewhere, refusal_text, response_start, retry_seconds

if TYPE_CHECKING:
    import ssl

    import aiohttp

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
"""How long an upstream may send nothing: the prompt of a long conversation on a slow machine."""
LISTING_SECONDS = 5.0
"""How long the list of models, which is the health check, may take."""
LONGEST_LINE = 4 << 20
"""Bytes of one server-sent event at most; a tool call with a file in its arguments fits."""
LONGEST_BODY = 16 << 20
"""Bytes of a response that is no stream, at most."""
LONGEST_REFUSAL = 64 << 10
CONNECTIONS = 1024
IDLE_SECONDS = 4.0
"""How long a connection is held for another request: uvicorn and llama.cpp close theirs after five."""
LARGE_BODY = 1 << 20
"""Bytes of a request from which on it is sent in parts: nobody's stream waits for it."""
LONGEST_RETRY = 3600
_PARAM = re.compile(r"[\w.\[\]-]{1,80}")
_REFUSALS = {400: 400, 404: 404, 405: 400, 408: 400, 409: 400, 410: 404, 413: 413, 415: 400, 422: 400, 501: 400}
"""A status that blames the request -> ours. Its 401 and 403 are none: they are about our key."""


class Upstream:
    """The server at `url`, which ends before /chat/completions (…/v1); a `key` is sent as a bearer token, never shown.

    `silence` is how many seconds the server may send nothing. `held`: its connections are used again, as any HTTP
    server's may be. Bound to the event loop of its first request.

    Raises TL-SERVE-UPSTREAM-URL for what is no address of a server, or may not be asked (TUNELOOP_OFFLINE).
    """

    def __init__(self, url: str, key: str = "", *, silence: float = SILENCE_SECONDS, held: bool = True) -> None:
        need("aiohttp", extra="serve")
        self.url = checked_url(url)
        self._key, self._silence, self._held = key, silence, held
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """By whether connections are used again."""

    def __repr__(self) -> str:
        return f"Upstream({self.url!r})"

    async def listed(self) -> list[dict[str, Any]]:
        """Its models as /v1/models has them, each with a text `id`; also what its health is known by."""
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                reply = await self._json("GET", "/models", None)
        except TimeoutError:
            raise self.fault(t("no answer in time"), status=504) from None
        models = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(models, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), str) for one in models
        ):
            raise self.odd(json.dumps(reply).encode())
        return models

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that it answers to a body. Raises what `stream` raises."""
        return await self._json("POST", path, body)

    async def stream(self, path: str, body: dict[str, Any]) -> EventReader:
        """The events that it answers with; the status has come when this returns, so it was accepted.

        Raises TL-SERVE-UPSTREAM-REFUSED for what it has against the request, TL-SERVE-UPSTREAM-BUSY with the seconds of
        its Retry-After, TL-SERVE-UPSTREAM for all else. `again` among an error's facts: nothing was done, so
        another server may be asked; `unreachable`: nobody listens there.
        """
        response = await self._send("POST", path, body)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream" or response.headers.get("content-encoding", "identity") != "identity":
            raise self.odd(await self._content(response, 1000, cut=True))
        return EventReader(self, response)

    async def aclose(self) -> None:
        """Close its connections."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def fault(self, problem: str, *, status: int = 502, **facts: Any) -> ServeError:
        """The error for whatever is its fault: TL-SERVE-UPSTREAM."""
        return ServeError("TL-SERVE-UPSTREAM", where=self.url, status=status, error=problem, **facts)

    def odd(self, content: bytes) -> ServeError:
        """The error for an answer that is not what the API says."""
        return self.fault(t("an answer of unknown form: {got}", got=self._shown(response_start(content))))

    def broken(self, error: Exception) -> ServeError:
        """The error for a connection that ended in the middle."""
        if "Timeout" in type(error).__name__:
            return self.fault(t("no answer in time"), status=504)
        return self.fault(t("the connection was cut"))

    def in_stream(self, refusal: object) -> ServeError:
        """The error that an event holds: there is no status any more."""
        return self.fault(self._shown(refusal_text(json.dumps({"error": refusal}).encode())))

    def _shown(self, words: str) -> str:
        """Words of the server, without our key: some servers repeat it."""
        return words.replace(self._key, "***") if self._key else words

    def _session(self, held: bool) -> aiohttp.ClientSession:
        import aiohttp

        if held not in self._sessions:
            reuse: dict[str, Any] = {"keepalive_timeout": IDLE_SECONDS} if held else {"force_close": True}
            if self.url.startswith("https:"):
                reuse["ssl"] = _trust()
            watch = aiohttp.TraceConfig()
            watch.on_connection_reuseconn.append(_is_reused)
            self._sessions[held] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, **reuse),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._silence),
                headers={"Accept-Encoding": "identity", "User-Agent": "tuneloop"},
                auto_decompress=False,
                proxy=_proxy(self.url),
                trace_configs=[watch],
            )
        return self._sessions[held]

    async def _json(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        response = await self._send(method, path, body)
        content = await self._content(response, LONGEST_BODY)
        try:
            return json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self.odd(content) from None

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> aiohttp.ClientResponse:
        """The response to a request that was accepted; its body has not been read."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        content: bytes | None = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        response = await self._sent(method, path, content, headers)
        if response.status != 200:
            raise await self._refused(response)
        return response

    async def _sent(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], *, lost: bool = False
    ) -> aiohttp.ClientResponse:
        """`lost`: once more, on a connection of its own. If nobody listens there now, this request may have done it."""
        import aiohttp

        once = SimpleNamespace(reused=False)
        large = content is not None and len(content) > LARGE_BODY
        try:
            return await self._session(self._held and not lost).request(
                method,
                self.url + path,
                data=io.BytesIO(content or b"") if large else content,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=once,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise self.fault(_reason(error), status=503, again=not lost, unreachable=True) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # A server may close a connection that is idle at any time, llama.cpp does after each stream without a word
            # of it; a request that was on its way then is lost, and no answer to it has begun.
            if not once.reused:
                raise self.broken(error) from error
        except (aiohttp.ClientError, ValueError, RuntimeError, OSError) as error:
            raise self.broken(error) from error
        return await self._sent(method, path, content, headers, lost=True)

    async def _content(self, response: aiohttp.ClientResponse, most: int, *, cut: bool = False) -> bytes:
        """The body of a response; one that is longer than `most` bytes is `cut` there, or refused."""
        import aiohttp

        content = bytearray()
        try:
            while piece := await response.content.readany():
                content += piece
                if len(content) > most:
                    if cut:
                        break
                    raise self.fault(t("an answer of more than {n} bytes", n=most))
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            raise self.broken(error) from error
        finally:
            response.close()
        return bytes(content[:most])

    async def _refused(self, response: aiohttp.ClientResponse) -> ServeError:
        """What a status other than 200 means."""
        status = response.status
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                content = await self._content(response, LONGEST_REFUSAL, cut=True)
        except (ServeError, TimeoutError):
            content = b""
        words = self._shown(f"HTTP {status} {refusal_text(content)}".strip())
        if 300 <= status < 400:
            return self.fault(t("it redirects (HTTP {status}), and no redirect is followed", status=status))
        if status in {401, 403}:  # its words may repeat the key, and the client has nothing to do with it
            return self.fault(t("it does not take the key (HTTP {status})", status=status))
        if status in {429, 503}:
            seconds = retry_seconds(response.headers.get("retry-after", ""))
            seconds = min(LONGEST_RETRY, max(1, round(seconds)))
            return ServeError(
                "TL-SERVE-UPSTREAM-BUSY", where=self.url, status=status, seconds=seconds, error=words, again=True
            )
        if status in _REFUSALS:
            param = _param(content)
            return ServeError(
                "TL-SERVE-UPSTREAM-REFUSED", where=self.url, status=_REFUSALS[status], param=param, error=words
            )
        return self.fault(words, again=status == 502)


class EventReader:
    """The server-sent events of a response, as JSON objects (the HTML standard, 9.2). `aclose` hangs up, which ends the
    answer at the server as well."""

    def __init__(self, upstream: Upstream, response: aiohttp.ClientResponse) -> None:
        self.upstream = upstream
        self._response = response
        self._buffer, self._events = bytearray(), deque[bytes]()
        self._lines, self._held = list[bytes](), 0
        self.done = False
        """Whether the server has said that this was all ("[DONE]")."""

    @property
    def at_hand(self) -> bool:
        """Whether another event has come already."""
        return bool(self._events) and self._events[0] != b"[DONE]"

    async def next(self) -> dict[str, Any] | None:
        """The next event, None at the end. Raises TL-SERVE-UPSTREAM for what is none."""
        while not self._events:
            piece = await self._piece()
            if not piece:
                await self.aclose()
                return None
            self._take(piece)
        content = self._events.popleft()
        if content == b"[DONE]":
            self.done = True
            await self._drain()
            return None
        try:
            event = _DECODER.decode(content.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise self.upstream.odd(content)
        return event

    async def aclose(self) -> None:
        """Hang up. May be repeated."""
        self._response.close()

    async def _piece(self) -> bytes:
        """What has come, b"" at the end."""
        import aiohttp

        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            raise self.upstream.broken(error) from error

    def _take(self, piece: bytes) -> None:
        self._buffer += piece
        if len(self._buffer) + self._held > LONGEST_LINE:
            raise self.upstream.fault(t("an answer of more than {n} bytes", n=LONGEST_LINE))
        if b"\n" not in piece:
            return
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._lines.append(line[5:].removeprefix(b" "))
                self._held += len(line)
            elif not line and self._lines:
                self._events.append(b"\n".join(self._lines))
                self._lines, self._held = [], 0

    async def _drain(self) -> None:
        """Read the end of the body, so that the connection may be used again; whoever goes on sending is hung up on."""
        try:
            async with asyncio.timeout(0.2):
                while piece := await self._piece():
                    if len(piece) > 1000:
                        break
        except Exception:  # it has said all: how the connection ends is no fault
            pass
        finally:
            await self.aclose()


def checked_url(url: str) -> str:
    """The address without a slash at its end. Raises TL-SERVE-UPSTREAM-URL where it is none.

    >>> checked_url("http://127.0.0.1:8080/v1/")
    'http://127.0.0.1:8080/v1'
    """
    problem, host = "", ""
    try:
        split = urlsplit(url.strip())
        host, _ = split.hostname or "", split.port
    except ValueError as error:
        problem, split = str(error), urlsplit("")
    if not problem and (split.scheme not in {"http", "https"} or not host or re.search(r"[\s\x00-\x1f]", url.strip())):
        problem = t("it is no address of a server, as http://127.0.0.1:8080/v1 is one")
    elif split.username is not None or split.password is not None:
        problem, url = t("a key stands in it; put that into a file"), f"{split.scheme}://…@{host}"
    elif split.query or split.fragment:
        problem = t("it has a ? or # in it")
    elif environment().offline and elsewhere(url):
        problem = t("the network may not be used (TUNELOOP_OFFLINE)")
    if problem:
        raise ServeError("TL-SERVE-UPSTREAM-URL", where=url[:200], error=problem)
    return url.strip().rstrip("/")


def _reason(error: Exception) -> str:
    """Why nobody could be reached: the system's error lies below those of the HTTP libraries."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os_words(cause)
        cause = cause.__cause__ or cause.__context__
    return t("no answer in time") if "Timeout" in type(error).__name__ else t("the connection was refused")


def _param(content: bytes) -> str | None:
    """The field that a refusal in OpenAI's form names.

    >>> _param(b'{"error": {"message": "no", "param": "top_p"}}'), _param(b'{"error": 1}'), _param(b"")
    ('top_p', None, None)
    """
    try:
        body = json.loads(content)
        error = body["error"] if isinstance(body.get("error"), dict) else body
        param = error.get("param")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    return param if isinstance(param, str) and _PARAM.fullmatch(param) else None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


async def _is_reused(session: Any, context: Any, parameters: Any) -> None:
    """A request goes out on a connection that another one was on."""
    context.trace_request_ctx.reused = True


def _trust() -> ssl.SSLContext:
    """The certificates that this machine trusts, as the downloads from hubs have them."""
    import httpx2

    return httpx2.create_ssl_context()


def _proxy(url: str) -> str | None:
    """The proxy that the environment has for an address; none for this machine's own."""
    host, proxies = elsewhere(url), urllib.request.getproxies()
    if not host or urllib.request.proxy_bypass(host):
        return None
    return proxies.get(urlsplit(url).scheme) or proxies.get("all")
