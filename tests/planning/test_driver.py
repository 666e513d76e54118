"""Which build of torch a driver takes, from recorded answers of nvidia-smi; what doctor says then."""

from __future__ import annotations

import re

import pytest

from tuneloop.base import language
from tuneloop.cli import doctor
from tuneloop.cli.doctor import card
from tuneloop.planning.driver import BUILDS, CARDS, INDEXED, Driver, build_for, read

# Recorded tables, cut to the lines that are read.
HEAD = """+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {smi:<18}     Driver Version: {driver:<14} CUDA Version: {cuda:<9}|
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|   0  {name:<24} Off |   00000000:01:00.0  On |                  N/A |
"""


def table(driver: str, cuda: str, name: str = "NVIDIA GeForce RTX 3060", smi: str = "") -> str:
    return HEAD.format(driver=driver, cuda=cuda, name=name, smi=smi or driver)


RECORDED = [
    # (table, query, module) -> the build of torch 2.13 on Linux, on Windows
    ("RTX 3060, 12.4", table("550.54.14", "12.4"), "NVIDIA GeForce RTX 3060, 8.6", "", "cu126", "cu126"),
    ("RTX 4090 under WSL", table("551.61", "12.4", smi="550.60.01"), "NVIDIA GeForce RTX 4090, 8.9", "", "cu126", "cu126"),
    ("RTX 4090, 13.0", table("580.65.06", "13.0"), "NVIDIA GeForce RTX 4090, 8.9", "", "cu130", "cu130"),
    ("H200, 13.2", table("595.45.04", "13.2"), "NVIDIA H200, 9.0", "", "cu130", "cu130"),
    ("V100, newest driver", table("580.95.05", "13.0"), "Tesla V100-SXM2-32GB, 7.0", "", "cu126", "cu126"),
    ("GTX 1080 Ti", table("570.133.07", "12.8"), "NVIDIA GeForce GTX 1080 Ti, 6.1", "", "cu126", "cu126"),
    ("RTX 5090, 13.0", table("581.15", "13.0"), "NVIDIA GeForce RTX 5090, 12.0", "", "cu130", "cu130"),
    ("RTX 5090, old driver", table("572.16", "12.8"), "NVIDIA GeForce RTX 5090, 12.0", "", "", ""),
    ("an old and a new card", table("580.65.06", "13.0"), "Tesla V100, 7.0\nNVIDIA A100, 8.0\n", "", "cu126", "cu126"),
    ("a driver of CUDA 11", table("470.199.02", "11.4"), "Tesla T4", "", "", ""),
    ("no library of CUDA", table("535.183.01", "N/A"), "Tesla T4, 7.5", "", "cu126", "cu126"),
    ("in the newest words", "| NVIDIA-SMI 595.45.04  KMD Version: 595.45.04  CUDA UMD Version: 13.2 |", "NVIDIA L4, 8.9", "", "cu130", "cu130"),
    ("the module alone", "", "", "560.35.03\n", "cu126", "cu126"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "cards", "module", "linux", "windows"), [r[1:] for r in RECORDED], ids=[r[0] for r in RECORDED]
)
def test_the_build_that_a_driver_takes(tables: str, cards: str, module: str, linux: str, windows: str) -> None:
    driver = read(tables, cards, module)
    assert driver is not None
    for system, wanted in (("Linux", linux), ("Windows", windows)):
        build = build_for(driver, "2.13.0+cpu", system)
        assert (build.name if build else "") == wanted
        if build:
            assert re.search(rf"install torch==2\.13\.0(\+{build.name} --index-url INDEX/{build.name})?$", build.line)
            assert ("INDEX" in build.line) == build.index == (system == "Windows" or build.name != "cu130")
            assert "://" not in build.line, "no registry's address"


@pytest.mark.parametrize(
    "said",
    ["", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
     "driver is installed and running.\n", "No devices were found\n"],
)  # fmt: skip
def test_no_driver_that_answers(said: str) -> None:
    assert read(said) is None


def test_the_tables_hold_together() -> None:
    for minor, builds in BUILDS.items():
        assert list(builds) == sorted(builds)
        assert set(builds) <= CARDS.keys()
        assert INDEXED[minor] in builds


def test_an_older_torch_gets_a_build_that_it_has() -> None:
    driver = Driver("570.1", (12, 8), ("NVIDIA A10",), ((8, 6),))
    assert [build.name for v in ("2.8.0", "2.11.0+cpu", "2.12.1", "3.0.0") if (build := build_for(driver, v, "Linux"))] == [
        "cu129", "cu128", "cu126", "cu126",
    ]  # fmt: skip


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_doctor_prints_the_pip_line(tongue: str) -> None:
    language.use(tongue)
    driver = read(table("550.54.14", "12.4"), "NVIDIA GeForce RTX 3060, 8.6")
    said = card("2.13.0+cpu", (), driver)
    assert not said.fine
    assert "NVIDIA GeForce RTX 3060" in said.value
    assert "550.54.14" in said.value
    assert said.line.endswith("-m pip install torch==2.13.0+cu126 --index-url INDEX/cu126")
    assert "pytorch.org" in said.remedy
    assert "CUDA_VISIBLE_DEVICES" in card("2.13.0+cu126", (), driver).remedy, (
        "the build is right, so it is not the build"
    )
    assert "580" in card("2.13.0+cpu", (), Driver("470.1", (11, 4), ("Tesla T4",), ((7, 5),))).remedy
    assert card("2.13.0+cu130", ("NVIDIA H200",)).remedy == ""


def test_the_line_stands_whole_below_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = read(table("580.65.06", "13.0"), "NVIDIA GeForce RTX 4090, 8.9")
    monkeypatch.setattr(doctor, "_machine", lambda: [card("2.13.0+cpu", (), driver)])
    doctor.doctor(json=False, proof=False)
    build = build_for(driver, "2.13.0+cpu") if driver else None
    assert build
    assert f"  {build.line}" in capsys.readouterr().out.splitlines()
