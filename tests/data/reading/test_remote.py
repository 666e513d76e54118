"""Data sets of a hub, by the real client against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

from tuneloop.base.errors import DataError, MachineError
from tuneloop.base.records import Record
from tuneloop.data.reading import formats, places, remote
from tuneloop.recipe.schema import DataFile

COMMIT = "c0ffee" + "0" * 34
CLOSED = "http://127.0.0.1:9"
ROW = b'{"question": "q", "answer": "a"}\n'


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
        if path == "/":
            self.reply(200)
        elif not path.startswith(("/api/datasets/org/name", "/datasets/org/name/resolve/")):
            self.reply(404, X_Error_Code="RepoNotFound")
        elif self.hub.gated:
            self.reply(403, X_Error_Code="GatedRepo")
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
            self.json({"id": "org/name", "sha": COMMIT, "siblings": siblings, "tags": []})

    def entry(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        return {"oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    do_GET = do_HEAD = serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with org/name, and an empty cache for the real client."""
    made = Hub({"data/train-00000-of-00001.jsonl": ROW * 3, "data/test-00000-of-00001.jsonl": ROW, "README.md": b"# x",
                "load.py": b"boom", "rows.pkl": b"boom"})  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": made}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY",
                 "all_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    places._fetched.cache_clear()
    yield made
    places._fetched.cache_clear()
    server.shutdown()
    server.server_close()


def fails(code: str, path: str = "hub:org/name") -> DataError:
    with pytest.raises(DataError) as caught:
        remote.fetch(path)
    assert caught.value.code == code
    assert caught.value.do
    return caught.value


def test_a_data_set_is_fetched_and_read_with_its_sides(hub: Hub) -> None:
    sources = formats.sources(DataFile(path="hub:org/name"))
    assert [(s.label, s.side) for s in sources] == [
        ("test-00000-of-00001.jsonl", "test"), ("train-00000-of-00001.jsonl", "train"),
    ]  # fmt: skip
    assert all(s.path.is_file() for s in sources)
    assert sum(isinstance(item, Record) for item in formats.read(DataFile(path="hub:org/name"), sources)) == 4
    assert hub.fetched == set(hub.files) - {"load.py", "rows.pkl"}


def test_slices_and_sides(hub: Hub) -> None:
    assert len(list(formats.read(DataFile(path="hub:org/name[1:3]")))) == 2
    items = list(formats.read(DataFile(path="hub:org/name/train[:2]")))
    assert [item.file for item in items] == ["train-00000-of-00001.jsonl"] * 2


def test_a_second_time_fetches_nothing(hub: Hub) -> None:
    first = remote.fetch("hub:org/name")
    hub.asked.clear()
    assert remote.fetch("hub:org/name") == first
    assert hub.fetched == set()


def test_the_cache_serves_while_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remote.fetch("hub:org/name")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    assert remote.fetch("hub:org/name") == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert remote.fetch("hub:org/name") == first


def test_offline_asks_nobody_and_says_so_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    begun = time.monotonic()
    fails("TL-DATA-HUB-OFFLINE")
    fails("TL-DATA-HUB-OFFLINE", "modelscope:org/name")
    assert time.monotonic() - begun < 5
    assert hub.asked == []


def test_a_hub_that_is_away_is_noticed_in_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    begun = time.monotonic()
    assert CLOSED in fails("TL-DATA-HUB").what
    assert time.monotonic() - begun < 5


def test_refusals_have_names(hub: Hub) -> None:
    fails("TL-DATA-HUB-MISSING", "hub:org/other")
    for wrong in ("hub:", "hub:a/b/c", "hub:../x", "hub:a b", "modelscope:/x"):
        fails("TL-DATA-ADDRESS", wrong)
    hub.gated = True
    assert hub.url in fails("TL-DATA-HUB-GATED").what


def test_nothing_to_read_is_told_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.base.refusals.KEEP_FREE", 10**18)
    with pytest.raises(MachineError):
        remote.fetch("hub:org/name")
    hub.files = {"load.py": b"boom", "README.md": b"# x"}
    fails("TL-DATA-HUB-EMPTY")
    assert hub.fetched == set()


CARD = b"""---
configs:
- config_name: zh
  data_files: zh/*.jsonl
- config_name: en
  default: %s
  data_files:
  - split: train
    path: en/a.jsonl
  - split: test
    path: [en/b.jsonl, "en/c/**"]
---
# A data set
"""


def test_configurations_of_the_card(hub: Hub) -> None:
    hub.files = {name: ROW for name in ("zh/x.jsonl", "en/a.jsonl", "en/b.jsonl", "en/c/d.jsonl", "more.jsonl")}
    hub.files["README.md"] = CARD % b"false"
    assert "zh, en" in fails("TL-DATA-HUB-CONFIG").what
    assert "zh, en" in fails("TL-DATA-HUB-CONFIG", "hub:org/name:fr").what
    assert [path.name for path, _ in remote.fetch("hub:org/name:zh")] == ["x.jsonl"]
    assert [(path.name, side) for path, side in remote.fetch("hub:org/name:en")] == [
        ("a.jsonl", "train"), ("b.jsonl", "test"), ("d.jsonl", "test"),
    ]  # fmt: skip


def test_the_default_configuration(hub: Hub) -> None:
    hub.files = {"zh/x.jsonl": ROW, "en/a.jsonl": ROW, "README.md": CARD % b"true"}
    assert [path.name for path, _ in remote.fetch("hub:org/name")] == ["a.jsonl"]


def test_configurations_by_folder(hub: Hub) -> None:
    hub.files = {"zh/train.jsonl": ROW, "en/train.jsonl": ROW}
    assert [path.parent.name for path, _ in remote.fetch("hub:org/name:zh")] == ["zh"]
    assert "en, zh" in fails("TL-DATA-HUB-CONFIG", "hub:org/name:fr").what


def test_a_damaged_card_is_no_card(hub: Hub) -> None:
    hub.files["README.md"] = b"---\n: [\n---\n"
    assert len(remote.fetch("hub:org/name")) == 2


def test_modelscope_that_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope.hub.api")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", CLOSED)
    begun = time.monotonic()
    assert fails("TL-DATA-HUB", "modelscope:org/name").where == "modelscope:org/name"
    assert time.monotonic() - begun < 15
