"""Client of a model behind an HTTP endpoint: OpenAI's chat API, or LibreTranslate's for translations.

Only endpoints that a recipe names are called; training rows leave this machine when it names another one, and `notice`
says so.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from tuneloop.base.environment import environment
from tuneloop.base.errors import MachineError, os_words
from tuneloop.base.language import t

TRIES = 4
WAIT = 1.0
"""Seconds before the second try; each further one waits twice as long, or as long as the server asks."""
LONGEST_WAIT = 60.0
MOST_BYTES = 1 << 24
"""Largest response that is read, in bytes."""
_AGAIN = (408, 409, 425, 429)
_NAMES = {
    "zh": "Chinese", "en": "English", "ja": "Japanese", "ko": "Korean", "de": "German", "fr": "French", "ru": "Russian",
    "es": "Spanish", "pt": "Portuguese", "it": "Italian", "ar": "Arabic", "vi": "Vietnamese", "th": "Thai",
}  # fmt: skip


def elsewhere(url: str | None) -> str:
    """The host of a URL; "" for no URL and for this machine.

    >>> elsewhere("https://api.example.com/v1"), elsewhere("http://localhost:8000/v1"), elsewhere("http://[::1]/v1")
    ('api.example.com', '', '')
    """
    host = (urlsplit(url).hostname or "") if url else ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    return "" if here else host


def notice(url: str | None) -> str:
    """The message that training rows are sent to another host; "" where they stay on this machine."""
    host = elsewhere(url)
    return t("Training rows are sent to {host}: prepare.augment.endpoint names it.", host=host) if host else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A key must not follow to where nobody wrote it down."""
        return None


class _Again(Exception):
    """An error worth a retry; `wait` is the server's Retry-After in seconds, 0 for none; `busy`: a server said so."""

    def __init__(self, problem: str, wait: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(problem)
        self.wait, self.busy = wait, busy


@dataclass(frozen=True, slots=True)
class Completion:
    """An assistant's turn as a server sent it: text, thought beside it, why it ended, tokens (None: it did not say)."""

    text: str
    thought: str
    finish: str | None
    prompt_tokens: int | None
    tokens: int | None


@dataclass(frozen=True)
class Endpoint:
    """`url` ends before /chat/completions (…/v1) or before /translate; a `key` is sent as a bearer token."""

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    parallel: int = 4
    timeout: float = 120.0
    wait: float = WAIT
    tries: int = TRIES

    def answer(self, chats: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
        """The assistant's next turn of each chat, in order; "" where the server wrote none or broke off.

        Raises TL-MACHINE-ENDPOINT when the server cannot be reached or will not, TL-MACHINE-ENDPOINT-BUSY when it is
        busy.
        """
        return self._each(self._answer, chats)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Translations of the texts: by a prompt where there is a model, else by LibreTranslate's API."""
        if not self.model:
            return self._each(lambda text: self._translated(text, source, target), texts)
        ask = f"Translate this text to {_NAMES.get(target, target)}. Write the translation only.\n\n"
        return self.answer([[{"role": "user", "content": ask + text}] for text in texts])

    def require_allowed(self) -> None:
        """Raises TL-MACHINE-ENDPOINT where the network may not be used and the endpoint is not on this machine."""
        if environment().offline and elsewhere(self.url):
            raise self._error(t("the network may not be used (TUNELOOP_OFFLINE)"))

    def complete(self, chat: Sequence[dict[str, Any]], **options: Any) -> Completion:
        """The next turn of one chat; `options` are fields of the request. Raises TL-MACHINE-ENDPOINT."""
        reply = self._post("/chat/completions", {"model": self.model, "messages": list(chat), **options})
        try:
            choice = reply["choices"][0]
            message, usage = choice["message"], reply.get("usage") or {}
            text, thought = message["content"] or "", message.get("reasoning_content") or message.get("reasoning") or ""
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if not isinstance(text, str) or not isinstance(thought, str):
                raise TypeError(type(text).__name__)
            return Completion(text, thought, choice.get("finish_reason"), *map(_count, counts))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._odd(reply) from error

    def models(self) -> list[dict[str, Any]]:
        """The models that the server lists, each with its `id`. Raises TL-MACHINE-ENDPOINT."""
        reply = self._post("/models", None)
        listed = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(listed, list) or not all(
            isinstance(m, dict) and isinstance(m.get("id"), str) for m in listed
        ):
            raise self._odd(reply)
        return listed

    def _each(self, work: Callable[[Any], str], items: Sequence[Any]) -> list[str]:
        self.require_allowed()
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(work, items))

    def _answer(self, chat: Sequence[dict[str, Any]]) -> str:
        reply = self.complete(chat, temperature=0.7, max_tokens=1024)
        ended = reply.finish in (None, "stop")
        return re.sub(r"^\s*<think>.*?</think>", "", reply.text, flags=re.DOTALL).strip() if ended else ""

    def _translated(self, text: str, source: str, target: str) -> str:
        body = {"q": text, "source": source, "target": target, "format": "text"}
        reply = self._post("/translate", body | ({"api_key": self.key} if self.key else {}))
        if not isinstance(reply, dict) or not isinstance(reply.get("translatedText"), str):
            raise self._odd(reply)
        return str(reply["translatedText"])

    def _error(self, detail: str, **facts: Any) -> MachineError:
        return MachineError("TL-MACHINE-ENDPOINT", where=self.url, error=detail, **facts)

    def _given_up(self, problem: _Again) -> MachineError:
        """The error after the last try: a busy server needs time, any other problem another address."""
        if not problem.busy:
            return self._error(str(problem))
        facts: dict[str, Any] = {"error": str(problem), "retries": self.tries - 1}
        return MachineError("TL-MACHINE-ENDPOINT-BUSY", where=self.url, **facts)

    def _odd(self, reply: object) -> MachineError:
        return self._error(t("an answer of unknown form: {got}", got=response_start(json.dumps(reply).encode())))

    def _post(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON response; retries with backoff where the server is busy or cannot be reached. No body: GET."""
        for attempt in range(self.tries):
            try:
                return self._once(path, None if body is None else json.dumps(body).encode())
            except _Again as problem:
                if attempt == self.tries - 1:
                    raise self._given_up(problem) from problem
                time.sleep(min(problem.wait or self.wait * 2**attempt, LONGEST_WAIT))

    def _once(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "tuneloop"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(self.url.rstrip("/") + path, body, headers)
        # A proxy is for other machines.
        proxies = [] if elsewhere(self.url) else [urllib.request.ProxyHandler({})]
        try:
            with urllib.request.build_opener(_NoRedirects, *proxies).open(request, timeout=self.timeout) as reply:
                content = reply.read(MOST_BYTES)
                announced = str(reply.headers.get("content-length") or "")
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise _Again(t("no answer in time")) from error
            raise _Again(os_words(reason) if isinstance(reason, Exception) else str(reason)) from error
        if announced.isdecimal() and len(content) < min(int(announced), MOST_BYTES):
            raise _Again(t("the connection was cut"))
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._error(t("its answer is not JSON: {got}", got=response_start(content))) from error

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            message = refusal_text(error.read(4000))
        except (OSError, HTTPException):
            message = ""
        problem = f"HTTP {error.code} {message}".strip()
        if error.code not in _AGAIN and error.code < 500:
            return self._error(problem, status=error.code)
        return _Again(problem, retry_seconds(str(error.headers.get("retry-after") or "")), busy=True)


def retry_seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 where it is neither.

    >>> retry_seconds("7"), retry_seconds("soon"), retry_seconds("Fri, 31 Dec 1999 23:59:59 GMT")
    (7.0, 0.0, 0.0)
    """
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _count(tokens: object) -> int | None:
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0 else None


def refusal_text(content: bytes) -> str:
    """What a refusal says: the message of OpenAI's form of errors, else the start of the response.

    >>> refusal_text(b'{"error": {"message": "too long"}}'), refusal_text(b"slow down")
    ('too long', 'slow down')
    """
    try:
        error = json.loads(content)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        message = None
    return (
        response_start(message.encode("utf-8", "replace"), 300) if isinstance(message, str) else response_start(content)
    )


def response_start(content: bytes, most: int = 100) -> str:
    """The start of a response on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in content[:most].decode("utf-8", "replace")).split())
