"""Figures for Prometheus: what is counted, under which names, and that no client can make new ones."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving.scripted import CHAT, NAME, ScriptedEngine, app_of

BODY = {"model": NAME, "messages": CHAT}
CHATS = "/v1/chat/completions"


def figures(text: str) -> dict[str, float]:
    """Sample -> its value; fails where a family is given twice."""
    parser = pytest.importorskip("prometheus_client.parser", reason="pip install prometheus-client")
    families = list(parser.text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {
        sample.name + "".join(f"|{v}" for _, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_tokens_times_and_the_engines_own_figures() -> None:
    pytest.importorskip("prometheus_client", reason="pip install prometheus-client")
    engine = ScriptedEngine()
    with TestClient(app_of(engine)) as client:
        for body in ({**BODY, "n": 2}, {**BODY, "stream": True}, {**BODY, "model": "nobody"}, {}):
            client.post(CHATS, json=body)
        for path in ("/v1/models/nobody-1", "/x/1", "/x/2"):
            client.get(path)
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    got = figures(reply.text)
    assert got["tuneloop_requests_total|chat_completions|200"] == 2
    assert got["tuneloop_requests_total|chat_completions|404"] == 1
    assert got["tuneloop_requests_total|chat_completions|400"] == 1
    assert got["tuneloop_requests_total|model|404"] == 1
    assert got["tuneloop_requests_total|other|404"] == 2, "paths that nobody serves are one"
    assert got[f"tuneloop_prompt_tokens_total|{NAME}"] == 14
    assert got[f"tuneloop_cached_tokens_total|{NAME}"] == 6
    assert got[f"tuneloop_answer_tokens_total|{NAME}"] == 9
    assert got[f"tuneloop_first_token_seconds_count|{NAME}"] == 2
    assert got[f"tuneloop_between_tokens_seconds_count|{NAME}"] == 7 + 3
    assert got["tuneloop_request_seconds_count|chat_completions"] == 4
    assert (got["tuneloop_pending"], got["tuneloop_capacity"], got["tuneloop_ready"]) == (0, 2, 1)
    assert (got["tuneloop_engine_steps_total"], got["tuneloop_engine_cache_tokens"]) == (3, 5)
    assert not [name for name in got if "nobody" in name]


def test_two_servers_in_one_process_do_not_mix() -> None:
    pytest.importorskip("prometheus_client", reason="pip install prometheus-client")
    with TestClient(app_of(ScriptedEngine())) as one, TestClient(app_of(ScriptedEngine())) as two:
        one.post(CHATS, json=BODY)
        assert f"tuneloop_answer_tokens_total|{NAME}" in figures(one.get("/metrics").text)
        assert f"tuneloop_answer_tokens_total|{NAME}" not in figures(two.get("/metrics").text)


def test_without_the_package_the_server_serves_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import tuneloop.serving.http.metrics as module

    def missing(name: str, *_: Any) -> Any:
        raise ImportError(name) if name.startswith("prometheus") else AssertionError(name)

    monkeypatch.setattr(module, "import_module", missing)
    real = builtins.__import__
    monkeypatch.setattr(
        "importlib.import_module", lambda name, *a: missing(name) if name.startswith("prometheus") else real(name)
    )
    with TestClient(app_of(ScriptedEngine())) as client:
        assert client.post(CHATS, json=BODY).status_code == 200
        reply = client.get("/metrics")
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "TL-MACHINE-EXTRA"
    assert "prometheus" in reply.json()["error"]["message"]
