"""Whether a page of somebody else's asks a server without a key, by way of the browser of whoever sits before it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping


def foreign(headers: Mapping[str, str], server: tuple[str, int | None] | None, origins: Collection[str] = ()) -> str:
    """What tells that a page of another origin asks, "" where nothing does. `server` is the address that was asked at.

    A page may send what needs no permission (CORS) without reading the answer: its Origin says so, which must be ours
    or one of `origins`. Or its host's name is said to be 127.0.0.1 (DNS rebinding), by which it may read all: Host is
    not this machine then.

    >>> foreign({"host": "localhost:8000"}, ("127.0.0.1", 8000)), foreign({"host": "evil.example"}, ("127.0.0.1", 8000))
    ('', 'evil.example')
    >>> foreign({"host": "localhost", "origin": "https://evil.example"}, ("127.0.0.1", 80))
    'https://evil.example'
    """
    host = headers.get("host", "").lower()
    if host and server and _address(server[0]) and not _is_local(_name(host), server[0]):
        return host
    page = headers.get("origin", "")
    if not page or page in origins or "*" in origins:
        return ""
    return "" if page.lower().partition("://")[2] == host else page


def _name(host: str) -> str:
    """A host without its port.

    >>> _name("[::1]:80"), _name("localhost:80"), _name("127.0.0.1")
    ('::1', 'localhost', '127.0.0.1')
    """
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_local(name: str, server: str) -> bool:
    name = name.rstrip(".")
    address = _address(name)
    loopback = address is not None and (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return loopback or name == server.lower() or name == "localhost" or name.endswith(".localhost")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
