"""The application for uvicorn and gunicorn: what it takes from the environment."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.serving.scripted import ScriptedEngine, serving
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.asgi import create
from tuneloop.serving.settings import FIXED


def test_it_serves_what_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    monkeypatch.setenv("TUNELOOP_SERVE_CONFIG", str(config))
    with serving(ScriptedEngine()) as upstream:
        text = (
            f"serve:\n  engine: proxy\n  upstreams: [{upstream.url}/v1]\n  log: 'off'\n  cors: [https://shop.example]\n"
        )
        config.write_text(text, encoding="utf-8")
        handlers = list(logging.getLogger("tuneloop").handlers)
        with TestClient(create()) as client:
            reply = client.get("/healthz", headers={"Origin": "https://shop.example"})
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == "https://shop.example"
        assert logging.getLogger("tuneloop").handlers == handlers


def test_it_says_when_there_is_nothing_to_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TUNELOOP_SERVE", "TUNELOOP_SERVE_CONFIG", "TUNELOOP_SERVE_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServeError) as error:
        create()
    assert error.value.code == "TL-SERVE-NOTHING"
    (tmp_path / "serve.yaml").write_text("serve: {queue: 3}\n", encoding="utf-8")
    monkeypatch.setenv("TUNELOOP_SERVE_CONFIG", str(tmp_path / "serve.yaml"))
    with pytest.raises(ServeError) as error:
        create()
    assert error.value.code == "TL-SERVE-NOTHING", "torch needs a model"


def test_settings_that_need_a_restart_are_settings() -> None:
    assert set(ServePart.model_fields) > FIXED
