"""Who is let in: keys of the store and of a key file, scopes, keys that have ended, and nobody by default."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from tests.serving.scripted import CHAT, NAME, ScriptedEngine, app_of
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import LimitsPart, ServePart
from tuneloop.registry.store import FILE, Store, open_store
from tuneloop.serving.access import key_ring, memory_limits
from tuneloop.serving.access.key_ring import KeyRing
from tuneloop.serving.access.keys import all_keys, expiry, issue, revoke
from tuneloop.serving.access.scopes import ALL, OPEN, ROUTES, SCOPES, scope_of
from tuneloop.serving.application import admission_steps

CHATS = "/v1/chat/completions"
BODY = {"model": NAME, "messages": CHAT}


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is long enough for a test on any machine: nothing comes back meanwhile."""
    monkeypatch.setattr(memory_limits, "clock", lambda: 1_000_000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / FILE


@pytest.fixture
def store(place: Path) -> Any:
    opened = open_store(place)
    yield opened
    opened.close()


def app(place: Path, key: str | None = None, limits: LimitsPart | None = None) -> Any:
    engine = ScriptedEngine(capacity=8)
    settings = ServePart(limits=limits or LimitsPart())
    return app_of(engine, steps=admission_steps(settings, engine, key, ring=KeyRing(place)))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_but_the_open_ones_wants_a_key(place: Path, store: Store) -> None:
    """All routes of the application are walked, whoever adds them. Open are those of the list alone."""
    assert {"/healthz", "/health", "/ready", "/", "/page/chat.css", "/page/chat.js"} == OPEN
    issue(store, "shop")
    locked = app(place)
    routes = [route for route in locked.routes if isinstance(route, APIRoute)]
    assert len(routes) == len(locked.routes), "a mounted application would pass by the key"
    assert {route.path for route in routes} >= OPEN
    client = TestClient(locked, raise_server_exceptions=False)
    for route in routes:
        for method in route.methods:
            reply = client.request(method, route.path.replace("{name:path}", NAME))
            assert (reply.status_code != 401) == (route.path in OPEN), (method, route.path)
            assert (reply.status_code == 200) == (route.path in OPEN), (method, route.path)


def test_each_scope_opens_its_routes_alone(place: Path, store: Store) -> None:
    keys = {scope: issue(store, f"key {number}", scopes=[scope])[1] for number, scope in enumerate((*SCOPES, ALL))}
    client = TestClient(app(place), raise_server_exceptions=False)
    for route in (route for route in client.app.routes if isinstance(route, APIRoute)):  # type: ignore[attr-defined]
        if route.path in OPEN:
            continue
        for scope, key in keys.items():
            reply = client.request(next(iter(route.methods)), route.path, headers=bearer(key), content=b"{")
            wanted = scope_of(route.path)
            allowed = wanted == "" or scope in (wanted, ALL)
            assert (reply.status_code not in (401, 403)) == allowed, (route.path, scope)
            if not allowed:
                assert (reply.status_code, reply.json()["error"]["code"]) == (403, "TL-SERVE-SCOPE")
                assert reply.json()["error"]["type"] == "permission_error"


def test_a_usual_key_does_everything_but_read_the_figures(place: Path, store: Store) -> None:
    _, key = issue(store, "shop")
    with TestClient(app(place)) as client:
        assert client.post(CHATS, json=BODY, headers=bearer(key)).status_code == 200
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
        assert client.get("/metrics", headers=bearer(key)).status_code == 403
    assert "/metrics" in ROUTES


def test_a_key_is_shown_once_and_only_its_hash_is_stored(place: Path, store: Store) -> None:
    made, key = issue(store, "shop")
    secret = key.split("-", 2)[2]
    assert len(secret) == 43, "256 bits"
    assert key.startswith(f"tl-{made.id}-")
    store.close()
    written = b"".join(path.read_bytes() for path in place.parent.iterdir())
    assert made.id.encode() in written
    for piece in (key, secret, secret[:12], secret[-12:]):
        assert piece.encode() not in written
    assert len({issue(open_store(place), f"n{k}")[1] for k in range(5)}) == 5


def test_keys_that_were_changed_are_wrong(place: Path, store: Store) -> None:
    made, key = issue(store, "shop")
    other, _ = issue(store, "else")
    with TestClient(app(place)) as client:
        wrong = [key[:-1], key + "x", key.upper(), key.replace(made.id, other.id), f"tl-{made.id}-", made.id, f"tl-{made.id}-{made.digest}",
                 made.digest, "tl-' OR 1=1 --", "tl-000000000000-x", "x" * 10_000]  # fmt: skip
        for one in wrong:
            reply = client.get("/v1/models", headers=bearer(one))
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "TL-SERVE-KEY"), one
        for header in ({"Authorization": key}, {"Authorization": f"Basic {key}"}, {"X-Api-Key": key}, {}):
            assert client.get("/v1/models", headers=header).status_code == 401
        assert client.get("/v1/models", params={"key": key}).status_code == 401
        assert client.get("/v1/models", headers=bearer(f" {key} ")).status_code == 200


def test_a_running_server_learns_of_new_and_revoked_keys(place: Path) -> None:
    with TestClient(app(place)) as client:
        assert client.get("/v1/models").status_code == 200, "no key yet, and a client of this machine"
        store = open_store(place)
        made, key = issue(store, "shop")
        time.sleep(key_ring.FRESH + 0.05)
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
        second, more = issue(store, "shop", another=True)
        time.sleep(key_ring.SOON + 0.05)
        assert client.get("/v1/models", headers=bearer(more)).status_code == 200, "a new key works at once"
        assert revoke(store, made.id)[0].state == "revoked"
        time.sleep(key_ring.FRESH + 0.05)
        reply = client.get("/v1/models", headers=bearer(key))
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "TL-SERVE-KEY-ENDED")
        assert client.get("/v1/models", headers=bearer(more)).status_code == 200
        revoke(store, "shop")
        time.sleep(key_ring.FRESH + 0.05)
        assert client.get("/v1/models", headers=bearer(more)).status_code == 401
        assert client.get("/v1/models").status_code == 401, "a server whose keys have all ended is not open"
        assert [one.id for one in all_keys(store)] == [made.id, second.id] or len(all_keys(store)) == 2
        store.close()
    with TestClient(app(place)) as restarted:
        assert restarted.get("/v1/models").status_code == 401


def test_a_key_that_has_expired(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, key = issue(store, "shop", expires="2001-01-01T00:00:00Z")
    assert made.state == "expired"
    with TestClient(app(place)) as client:
        reply = client.get("/v1/models", headers=bearer(key))
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "TL-SERVE-KEY-ENDED")
    assert issue(store, "shop", expires=expiry("12h"))[0].state == "live", "a name whose keys have ended is free"


@pytest.mark.parametrize("text", ["", "soon", "0d", "-1d", "1y", "2001-01-01", "2027-13-01", "99999w9", "1e3d"])
def test_times_at_which_no_key_ends(text: str) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-KEY-EXPIRY"):
        expiry(text)


@pytest.mark.parametrize("name", ["", " a", "-a", "a\nb", "a" * 65, "(key file)", "a/b", "a;b"])
def test_names_of_no_key(store: Store, name: str) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-KEY-NAME"):
        issue(store, name)


def test_refusals_of_the_keys(store: Store) -> None:
    issue(store, "商店")
    with pytest.raises(ServeError, match="TL-SERVE-KEY-TAKEN"):
        issue(store, "商店")
    with pytest.raises(ServeError, match="TL-SERVE-KEY-SCOPE"):
        issue(store, "b", scopes=["chat", "root"])
    with pytest.raises(ServeError, match="TL-SERVE-KEY-UNKNOWN"):
        revoke(store, "nobody")
    assert [one.name for one in all_keys(store)] == ["商店"]


def test_the_key_of_a_file_works_beside_those_of_the_store(place: Path, store: Store) -> None:
    _, key = issue(store, "shop")
    with TestClient(app(place, "of-the-file")) as client:
        for one in (key, "of-the-file"):
            assert client.get("/v1/models", headers=bearer(one)).status_code == 200
        assert client.get("/metrics", headers=bearer("of-the-file")).status_code == 200, "it has all scopes"
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("server", "status"), [("127.0.0.1", 200), ("[::1]", 200), ("10.1.2.3", 401), ("[2001:db8::1]", 401)]
)
def test_without_a_key_only_this_machine_is_answered(place: Path, server: str, status: int) -> None:
    """Whatever program serves the application, and whatever the request calls its host."""
    import asyncio

    import httpx

    async def main() -> None:
        transport = httpx.ASGITransport(app(place))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{server}:80") as client:
            reply = await client.post(CHATS, json=BODY, headers={"Host": "localhost"})
            assert reply.status_code == status
            if status == 401:
                assert reply.json()["error"]["code"] == "TL-SERVE-OPEN"

    asyncio.run(main())


ORIGINS = [
    ({"Host": "localhost:8000"}, 200),
    ({"Host": "app.localhost"}, 200),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80"}, 200),
    ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
    ({"Origin": "https://shop.example"}, 200),
    ({"Host": "evil.example"}, 403),
    ({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
    ({"Host": "localhost", "Origin": "http://localhost:3000"}, 403),
    ({"Host": "localhost", "Origin": "null"}, 403),
    ({"Origin": "https://shop.example.evil.example"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), ORIGINS)
def test_no_page_asks_a_server_without_a_key_through_a_browser(
    place: Path, headers: dict[str, str], status: int
) -> None:
    """Neither by a name that was bound to this machine, nor by a request that needs no leave (a body without a type)."""
    import asyncio

    import httpx

    engine = ScriptedEngine()
    settings = ServePart(cors=["https://shop.example"])
    open_app = app_of(engine, steps=admission_steps(settings, engine, None, ring=KeyRing(place)))

    async def main() -> None:
        transport = httpx.ASGITransport(open_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:80") as client:
            reply = await client.post(CHATS, content=json.dumps(BODY), headers=headers)
            assert reply.status_code == status, reply.text
            assert (len(engine.queries) == 1) == (status == 200)
            assert (await client.get("/v1/models", headers=headers)).status_code == status

    asyncio.run(main())


def test_with_a_key_names_and_origins_are_nobodys_business(place: Path, store: Store) -> None:
    _, key = issue(store, "shop")
    with TestClient(app(place), base_url="http://127.0.0.1") as client:
        headers = bearer(key) | {"Host": "api.example", "Origin": "https://shop.example"}
        assert client.post(CHATS, json=BODY, headers=headers).status_code == 200


def test_a_keys_own_limits_go_before_those_of_the_recipe(place: Path, store: Store) -> None:
    _, usual = issue(store, "usual")
    _, small = issue(store, "small", own=(1, None, None))
    _, free = issue(store, "free", own=(0, None, 0))
    with TestClient(app(place, limits=LimitsPart(requests=2))) as client:
        for key, statuses in ((usual, [200, 200, 429]), (small, [200, 429, 429]), (free, [200] * 3)):
            assert [client.post(CHATS, json=BODY, headers=bearer(key)).status_code for _ in range(3)] == statuses


def test_a_store_that_goes_away_lets_nobody_new_in(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.base.errors import RunError

    _, key = issue(store, "shop")
    ring = KeyRing(place)

    def gone() -> Any:
        raise RunError("TL-RUN-STORE", where="x", error="gone")

    monkeypatch.setattr(ring, "_load", gone)
    engine = ScriptedEngine()
    with TestClient(app_of(engine, steps=admission_steps(ServePart(), engine, None, ring=ring))) as client:
        ring._read_at -= 10
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200, "for a while by what was read last"
        ring._read_at -= key_ring.STALE
        reply = client.get("/v1/models", headers=bearer(key))
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "TL-SERVE-KEYS")


def test_keys_in_a_real_postgresql(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TUNELOOP_STORE: what one machine issues and revokes, the server of another goes by."""
    from tests.postgres_server import postgres_server
    from tuneloop.improvement.archive import store_place

    with postgres_server() as server:
        monkeypatch.setenv("TUNELOOP_STORE", server.url)
        there = store_place(tmp_path)
        store = open_store(there)
        made, key = issue(store, "商店", scopes=["chat"], own=(5, None, 0))
        engine = ScriptedEngine()
        ring = KeyRing(there)
        with TestClient(app_of(engine, steps=admission_steps(ServePart(), engine, None, ring=ring))) as client:
            assert client.post(CHATS, json=BODY, headers=bearer(key)).headers["x-ratelimit-limit-requests"] == "5"
            assert client.get("/metrics", headers=bearer(key)).status_code == 403
            revoke(store, "商店")
            time.sleep(key_ring.FRESH + 0.05)
            assert client.post(CHATS, json=BODY, headers=bearer(key)).status_code == 401
        assert [(one.id, one.state, one.requests, one.streams) for one in all_keys(store)] == [
            (made.id, "revoked", 5, 0)
        ]
        ring.close()
        store.close()
        assert list(tmp_path.iterdir()) == []
