from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.hub.hubs import from_hub, from_modelscope, is_reachable, is_wanted

COMMIT = "c0ffee" + "0" * 34
CLOSED = "http://127.0.0.1:9"


@dataclass
class Hub:
    """A hub on this machine that speaks enough of the protocol for the real client."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    gated: bool = False
    url: str = ""

    @property
    def fetched(self) -> set[str]:
        return {path.split(f"/{COMMIT}/")[1] for path in self.asked if path.startswith("GET ") and "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        revision = path.split("/revision/")[-1] if "/revision/" in path else "main"
        if path == "/":
            self.reply(200)
        elif not path.startswith(("/api/models/org/name", "/org/name/resolve/")):
            self.reply(404, X_Error_Code="RepoNotFound")
        elif self.hub.gated:
            self.reply(403, X_Error_Code="GatedRepo")
        elif revision not in ("main", "v1", COMMIT):
            self.reply(404, X_Error_Code="RevisionNotFound")
        else:
            self.content(path)

    def content(self, path: str) -> None:
        names = self.hub.files
        if "/resolve/" in path:
            name = path.split(f"/{COMMIT}/")[1]
            self.reply(200, names[name], ETag=f'"{self.entry(name)["oid"]}"', X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            self.json([self.entry(name) | {"type": "file", "path": name} for name in names])
        else:
            siblings = [self.entry(name) | {"rfilename": name, "blobId": self.entry(name)["oid"]} for name in names]
            self.json({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings})

    def entry(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        return {"oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    do_GET = do_HEAD = serve


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny model as org/name, and an empty cache for the real client."""
    made = Hub({p.name: p.read_bytes() for p in tiny_model.iterdir()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": made}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield made
    server.shutdown()
    server.server_close()


def fails(code: str, name: str = "org/name", revision: str | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        from_hub(name, revision)
    assert caught.value.code == code
    assert caught.value.do
    return caught.value


def test_a_model_is_fetched_and_checked(hub: Hub, tiny_model: Path) -> None:
    folder = from_hub("org/name")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()


def test_no_pickle_no_code_and_no_second_copy_is_fetched(hub: Hub) -> None:
    unwanted = ("pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "onnx/model.onnx", "onnx/config.json")
    hub.files |= {name: b"unwanted" for name in unwanted}
    from_hub("org/name")
    assert "model.safetensors" in hub.fetched
    assert hub.fetched.isdisjoint(unwanted)


def test_a_second_time_fetches_nothing(hub: Hub) -> None:
    from_hub("org/name")
    hub.asked.clear()
    from_hub("org/name")
    assert hub.fetched == set()


def test_a_commit_in_the_cache_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = from_hub("org/name", COMMIT)
    hub.asked.clear()
    assert from_hub("org/name", COMMIT) == folder
    assert hub.asked == []
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    assert from_hub("org/name", COMMIT) == folder


def test_what_is_in_the_cache_serves_while_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = from_hub("org/name")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    assert from_hub("org/name") == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert from_hub("org/name") == folder


def test_half_a_snapshot_does_not_serve(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = from_hub("org/name")
    (folder / "chat_template.jinja").unlink()
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    fails("TL-MODEL-HUB")


def test_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    fails("TL-MODEL-OFFLINE")
    assert hub.asked == []


def test_pickles_alone_are_refused_before_the_download(hub: Hub) -> None:
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    error = fails("TL-MODEL-PICKLE")
    assert "pytorch_model.bin" in error.what
    assert hub.fetched == set()


def test_no_room_is_told_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.base.refusals.KEEP_FREE", 10**18)
    with pytest.raises(MachineError) as caught:
        from_hub("org/name")
    assert caught.value.code == "TL-MACHINE-DISK"
    assert hub.fetched == set()


def test_truncated_weights_of_a_hub_are_noticed(hub: Hub) -> None:
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-1]
    fails("TL-MODEL-TRUNCATED")


def test_refusals_have_names(hub: Hub) -> None:
    fails("TL-MODEL-NOT-FOUND", "org/other")
    assert "v9" in fails("TL-MODEL-REVISION", revision="v9").what
    hub.gated = True
    assert hub.url in fails("TL-MODEL-GATED").what


def test_a_closed_port_is_told_within_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    begun = time.monotonic()
    error = fails("TL-MODEL-HUB")
    assert time.monotonic() - begun < 5
    assert CLOSED in error.what
    assert "HF_ENDPOINT" in error.do
    assert "tuneloop model pull" in error.do


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_server_is_told_within_seconds(hub: Hub, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", silent)
    for revision in (None, COMMIT):
        begun = time.monotonic()
        fails("TL-MODEL-HUB", revision=revision)
        assert time.monotonic() - begun < 5


def test_reachable(hub: Hub, silent: str) -> None:
    assert is_reachable(hub.url)
    assert is_reachable(hub.url + "/no/such/page")
    assert not is_reachable(CLOSED)
    assert not is_reachable("no address")
    begun = time.monotonic()
    assert not is_reachable(silent, 0.3)
    assert time.monotonic() - begun < 2


def test_a_proxy_counts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert is_reachable("http://hub.invalid/")


def test_wanted_files() -> None:
    names = ["a.safetensors", "model.safetensors.index.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    assert all(is_wanted(name) for name in names)
    assert not any(
        is_wanted(name) for name in ("a.bin", "x.py", "tokenizer.pkl", "adapter_model.safetensors", "a.gguf")
    )


def test_modelscope_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", CLOSED)
    begun = time.monotonic()
    if importlib.util.find_spec("modelscope") is None:
        with pytest.raises(MachineError, match=r"pip install .*modelscope"):
            from_modelscope("org/name")
        return
    import modelscope.hub.api  # noqa: F401  (slow to import, and not what is timed)

    begun = time.monotonic()
    with pytest.raises(ModelError) as caught:
        from_modelscope("org/name")
    assert caught.value.code == "TL-MODEL-HUB"
    assert time.monotonic() - begun < 15
