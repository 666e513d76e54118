"""What a server goes by: the recipe of the run, or the defaults; and the file with the key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.settings import open_to_others, read_key, serve_settings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "shop-1"
    folder.mkdir(parents=True)
    return folder


def write(run: Path, serve: str) -> Path:
    (run / "recipe.yaml").write_text(f"name: shop\ndata: []\n{serve}", encoding="utf-8")
    return run


def test_the_recipe_of_a_run_says_how_it_is_served(run: Path, tmp_path: Path) -> None:
    write(run, "serve: {queue: 3, max_new_tokens: 50, key_file: key.txt}\n")
    for ref in (run, "shop-1"):
        assert serve_settings(ref, tmp_path) == ServePart(queue=3, max_new_tokens=50, key_file=str(run / "key.txt"))


def test_a_run_of_before_and_a_model_are_served_by_the_defaults(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    defaults = ServePart(engine="torch", queue=32, max_new_tokens=1024, key_file=None)
    assert serve_settings(write(run, ""), tmp_path) == defaults
    assert serve_settings(write(run, "serve:\n"), tmp_path) == defaults
    assert serve_settings(tiny_model, tmp_path) == defaults


def test_a_key_file_that_moved_with_its_workspace_is_found(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.txt").write_text("k", encoding="utf-8")
    write(run, f"serve: {{key_file: {tmp_path / 'was-here' / 'secrets' / 'key.txt'}}}\n")
    assert serve_settings(run, tmp_path).key_file == str(tmp_path / "secrets" / "key.txt")


@pytest.mark.parametrize("content", [None, "", "  \n", "two words", b"\xff\xfe"])
def test_key_files_that_hold_no_key(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ServeError, match="TL-SERVE-KEY-FILE"):
        read_key(path)


def test_the_key_of_a_file_stands_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("\ufeff a-key \n", encoding="utf-8")
    assert read_key(path) == "a-key"


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_key_file_that_others_may_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k", encoding="utf-8")
    for mode, others in ((0o600, False), (0o640, False), (0o644, True)):
        path.chmod(mode)
        assert open_to_others(path) is others


@pytest.mark.parametrize(
    ("given", "key", "other"),
    [
        (None, "of-the-file", "of-the-caller"),
        pytest.param("of-the-caller", "of-the-caller", "of-the-file", marks=pytest.mark.slow),
    ],
)
def test_the_server_of_a_run_wants_the_key_of_its_recipe(
    given: str | None, key: str, other: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key file stops the server; it is never served without one instead. A key that is given wins."""
    from fastapi.testclient import TestClient

    from tuneloop import pipeline
    from tuneloop.serving import settings

    path = tmp_path / "key"
    part = ServePart(queue=0, max_new_tokens=3, key_file=str(path))
    monkeypatch.setattr(settings, "serve_settings", lambda ref, workspace: part)
    if given:  # a model of its own is loaded, and let go, for this; below without one
        with pytest.raises(ServeError, match="TL-SERVE-KEY-FILE"):
            pipeline.serve(tiny_run)
    body: dict[str, Any] = {"model": tiny_run.name, "messages": [{"role": "user", "content": "Hi"}]}
    path.write_text("of-the-file\n", encoding="utf-8")
    with TestClient(pipeline.serve(tiny_run, api_key=given)) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        wrong = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {other}"})
        assert wrong.status_code == 401
        reply = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == 200
        assert reply.json()["usage"]["completion_tokens"] <= 3


def test_a_key_that_is_given_wins_over_the_key_file(tmp_path: Path) -> None:
    """And a key file that is missing stops the server."""
    from fastapi.testclient import TestClient

    from tuneloop.serving.application import application

    path = tmp_path / "key"
    part = ServePart(engine="proxy", upstreams=["http://127.0.0.1:9/v1"], key_file=str(path))
    with pytest.raises(ServeError, match="TL-SERVE-KEY-FILE"):
        application("", workspace=tmp_path, settings=part)
    path.write_text("of-the-file\n", encoding="utf-8")
    with TestClient(application("", workspace=tmp_path, settings=part, api_key="of-the-caller")) as client:
        found = {
            key: client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("of-the-file", "of-the-caller")
        }
    assert found == {"of-the-file": 401, "of-the-caller": 503}, "let in, though nothing behind it answers"
