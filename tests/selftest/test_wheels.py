"""Wheels for a machine without a network: chosen, thinned, unpacked; and the proof that runs on top of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tuneloop.selftest import wheels
from tuneloop.selftest.wheels import RequiredWheel

CHECKOUT = Path(__file__).parents[2]
BARE = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "sqlalchemy", "gguf", "bitsandbytes",
        "datasets", "jieba", "trl", "ftfy", "py3langid", "ahocorasick_rs", "openpyxl", "sacrebleu", "rouge_score",
        "tuneloop", "modelscope", "modelscope_hub")  # fmt: skip
"""What the image that is known to exist has not, and what else tuneloop alone brings."""
BROUGHT = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "SQLAlchemy", "gguf")


def wheel_file(folder: Path, name: str, version: str, needs: tuple[str, ...] = (), tag: str = "py3-none-any") -> Path:
    """A tiny wheel with one module."""
    stem = name.replace("-", "_")
    path = folder / f"{stem}-{version}-{tag}.whl"
    info = f"{stem}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}_made/__init__.py", f"version = {version!r}\n")
        lines = [f"Requires-Dist: {need}" for need in needs]
        archive.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
                                                         *lines, "", ""]))  # fmt: skip
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def installed_as_wheel(folder: Path, name: str) -> None:
    """What is installed of a package, as the wheel it came as."""
    found = importlib.metadata.distribution(name)
    path = folder / f"{found.name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(str(file.locate()), str(file))


def test_only_what_is_lacking_or_older_is_unpacked(tmp_path: Path) -> None:
    torch = importlib.metadata.version("torch").partition("+")[0]
    wheel_file(tmp_path, "torch", "0.1")
    wheel_file(tmp_path, "numpy", "99.0")
    wheel_file(tmp_path, "not-on-any-index", "1.0")
    wheel_file(tmp_path, "other", "1.0", tag="cp36-cp36m-manylinux1_x86_64")
    wheel_file(tmp_path, "windows", "1.0", tag="py3-none-win_amd64")
    taken = wheels.unpack(tmp_path, tmp_path / "site")
    assert [w.name for w in taken] == ["not-on-any-index", "numpy"]
    assert (tmp_path / "site" / "numpy_made" / "__init__.py").is_file()
    assert torch != "0.1"


@pytest.mark.parametrize(
    ("tag", "minors"),
    [
        ("py3-none-any", {11, 12}),
        ("py2.py3-none-any", {11, 12}),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", {12}),
        ("cp311-cp311-manylinux_2_28_x86_64", {11}),
        ("cp38-abi3-manylinux2014_x86_64", {11, 12}),
        ("cp312-abi3-manylinux2014_x86_64", {12}),
        ("py3-none-manylinux_2_24_x86_64", {11, 12}),
        ("cp311-cp311-macosx_11_0_arm64", set()),
    ],
)  # fmt: skip
def test_which_python_a_wheel_is_for(tag: str, minors: set[int]) -> None:
    wheel = RequiredWheel.of(Path(f"some_name-1.2.3-{tag}.whl"))
    assert (wheel.name, wheel.version) == ("some-name", "1.2.3")
    assert {minor for minor in (11, 12) if wheel.fits(minor)} == minors


def test_thinning_takes_the_newest_libraries_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl"
    sizes = {"cpu": 100, "cuda118": 5000, "cuda128": 3000, "cuda130": 2000, "cuda132": 2000, "rocm70": 10}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("bitsandbytes/__init__.py", "x = 1\n")
        for name, size in sizes.items():
            archive.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", os.urandom(size))
        archive.writestr("bitsandbytes-0.50.2.dist-info/RECORD", "old,,\n")
    (tmp_path / "out").mkdir()
    thin, left = wheels.thinned(path, tmp_path / "out", 4500)
    with zipfile.ZipFile(thin) as archive:
        held = set(archive.namelist())
        record = archive.read("bitsandbytes-0.50.2.dist-info/RECORD").decode()
    kept = {n.removeprefix("bitsandbytes/libbitsandbytes_").removesuffix(".so") for n in held if n.endswith(".so")}
    assert kept == {"cpu", "cuda130", "cuda132"}
    assert left == ["libbitsandbytes_cuda118.so", "libbitsandbytes_cuda128.so", "libbitsandbytes_rocm70.so"]
    assert {row.partition(",")[0] for row in record.split()} == held


def test_gathering_takes_what_is_wanted_and_all_it_needs_but_never_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With pip itself, from a folder in place of an index."""
    index, pins = tmp_path / "index", wheels._pins()
    index.mkdir()
    for name in wheels.WANTED:
        needs = {"transformers": ("torch>=2", "needed-by-it>=1", 'old-python; python_version < "3"', "numpy"),
                 "bitsandbytes": ("torch<3", 'extra-only; extra == "test"')}.get(name, ())  # fmt: skip
        wheel_file(index, name, pins[wheels.canonical(name)], needs)
    wheel_file(index, "needed-by-it", "1.5", ("needed-deeper",))
    for python in ("311", "312"):
        wheel_file(index, "needed-deeper", "2.0", tag=f"cp{python}-cp{python}-manylinux2014_x86_64")
    big = wheel_file(index, "numpy", pins["numpy"])
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("numpy_made/large", os.urandom(wheels.MOST))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    wheels.gather(tmp_path / "wheels")
    taken = [RequiredWheel.of(p).name for p in (tmp_path / "wheels").glob("*.whl")]
    assert sorted(taken) == sorted(
        [*map(wheels.canonical, wheels.WANTED), "needed-by-it", "needed-deeper", "needed-deeper"]
    )
    told = capsys.readouterr().out
    assert f"did not fit: {big.name}" in told
    assert "with the checkout" in told


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the Python of a machine that has torch, transformers and peft, and nothing of tuneloop's own; a folder of wheels)."""
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder / "venv", with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "venv" / "lib" / version / "site-packages"
    source = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    for path in source.iterdir():
        if path.name.lower().split("-")[0].split(".")[0] not in BARE and "tuneloop" not in path.name:
            (site / path.name).symlink_to(path)
    (folder / "wheels").mkdir()
    for package in BROUGHT:
        installed_as_wheel(folder / "wheels", package)
    return folder / "venv" / "bin" / "python", folder / "wheels"


def proving(image: tuple[Path, Path], out: Path, words: str = "") -> subprocess.Popen[bytes]:
    python, folder = image
    plain = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL"}}
    environment = {**plain, "HOME": "/proc/nowhere", "TUNELOOP_LANG": "en"}
    command = ["make", "gpu-proof", f"WHEELS={folder}", f"OUT={out}", f"PYTHON={python}", f"PROOF_ARGS={words}"]
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, start_new_session=True)


def entries(out: Path) -> list[dict[str, object]]:
    file = out / "proof.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


@pytest.mark.slow
def test_a_bare_python_proves_and_a_stop_leaves_a_report(image: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed as nothing can be caught; what stood is in both files, and no process is left."""
    run = proving(image, tmp_path, "--only attention,merging")
    try:
        until = time.monotonic() + 300
        while sum("verdict" in e for e in entries(tmp_path)) < 13:
            assert run.poll() is None, "it ended early"
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    page = (tmp_path / "proof.md").read_text(encoding="utf-8")
    assert "It was stopped before its end" in page
    assert page.count("| passed | attention: ") == 6
    facts = next(dict(e["facts"]) for e in entries(tmp_path) if "facts" in e)  # type: ignore[call-overload]
    assert facts["torch"] == importlib.metadata.version("torch")
    assert {e["verdict"] for e in entries(tmp_path) if "verdict" in e} <= {"passed", "not run"}
    until = time.monotonic() + 60
    while any(str(tmp_path).encode() in command for command in commands()):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.1)


def commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found


def test_what_is_missing_is_named(image: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a single wheel: each section says which package it lacks, and the proof ends by itself."""
    (tmp_path / "none").mkdir()
    run = proving((image[0], tmp_path / "none"), tmp_path, "--only merging")
    assert run.wait(300) == 0
    lines = [e for e in entries(tmp_path) if "verdict" in e]
    assert [(e["section"], e["verdict"]) for e in lines] == [("facts", "not run"), ("merging", "not run")]
    assert all("is not installed" in str(e["detail"]) for e in lines)


@pytest.mark.slow
def test_the_whole_proof_of_a_bare_python_ends_in_time(image: tuple[Path, Path], tmp_path: Path) -> None:
    began = time.monotonic()
    assert proving(image, tmp_path).wait(600) == 0, (tmp_path / "proof.md").read_text(encoding="utf-8")
    assert time.monotonic() - began < 480
    assert "end" in entries(tmp_path)[-1]
    page = (tmp_path / "proof.md").read_text(encoding="utf-8")
    assert "FAILED" not in page
    assert "bitsandbytes is not installed" in page
