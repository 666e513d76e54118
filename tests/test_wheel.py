"""tuneloop installed as a wheel, far from its sources: everything it reads is inside, and a recipe runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources with what is installed here: no network, and no build/ is left."""
    place = tmp_path_factory.mktemp("wheel")
    sources = place / "sources"
    shutil.copytree(ROOT / "tuneloop", sources / "tuneloop", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
               "--disable-pip-version-check", "--wheel-dir", str(place), str(sources)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    (made,) = place.glob("tuneloop-*.whl")
    return made


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        inside = {name for name in opened.namelist() if name.startswith("tuneloop/")}
    there = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "tuneloop").rglob("*") if p.is_file() and p.suffix != ".pyc"
    }
    assert inside == there
    assert {"tuneloop/recipes/demo.yaml", "tuneloop/messages/zh/console.json", "tuneloop/py.typed"} <= inside


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The Python of an environment of its own that has the wheel, and sees the packages installed here but no checkout."""
    place = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    names = {"base": str(place), "platbase": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv" if "venv" in sysconfig.get_scheme_names() else None, vars=names))
    # A line of a .pth file adds a folder, but does not read the .pth files in it: an editable tuneloop stays unseen.
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check",
               "--target", str(site), str(wheel)]  # fmt: skip
    subprocess.run(command, check=True)
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(python: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment |= {"TUNELOOP_HOME": str(cwd / "home"), "TUNELOOP_OFFLINE": "1", "PYTHONUTF8": "1"}
    return subprocess.run([str(python), *words], capture_output=True, text=True, encoding="utf-8", cwd=cwd,
                          env=environment, timeout=300)  # fmt: skip


def test_it_is_the_wheel_that_runs(python: Path, tmp_path: Path) -> None:
    done = run(
        python,
        tmp_path,
        "-c",
        "import tuneloop, tuneloop.base.optional as o; print(tuneloop.__file__); print(o.install('serve'))",
    )
    assert done.returncode == 0, done.stderr
    file, command = done.stdout.splitlines()
    assert Path(file).is_relative_to(python.parents[1])
    assert "fastapi" in command, "an extra is named by its packages: tuneloop is on no index"
    assert "-e" not in command.split()
    assert "TL-DATA-JSON" in run(python, tmp_path, "-m", "tuneloop", "explain", "TL-DATA-JSON", "--lang", "zh").stdout
    wrong = run(python, tmp_path, "-m", "tuneloop", "run", "demmo")
    assert "demo" in wrong.stderr, "it knows the recipes inside"


def test_a_recipe_runs_from_the_wheel(python: Path, tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        f"name: talk\nmodel: {tiny_model}\ndata: {talk_file}\ntrain: {{max_steps: 2, learning_rate: 0.01}}\n"
        "evaluate: {rows: 2, max_new_tokens: 8, show: [你是谁？]}\n", encoding="utf-8",
    )  # fmt: skip
    done = run(python, tmp_path, "-m", "tuneloop", "--lang", "zh", "run", "my.yaml")
    assert done.returncode == 0, done.stderr
    assert "tuneloop chat runs/talk-1 --lang zh" in done.stdout.replace("\\", "/")
    assert (tmp_path / "runs" / "talk-1" / "report.html").stat().st_size > 10_000
    assert list((tmp_path / "datasets" / "talk").glob("*/card.html"))
