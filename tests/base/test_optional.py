from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tuneloop.base import optional
from tuneloop.base.errors import MachineError
from tuneloop.base.optional import install, need


def test_what_is_there_is_imported() -> None:
    import json.decoder

    assert need("json.decoder", extra="serve") is json.decoder


def test_what_is_missing_names_the_extra() -> None:
    with pytest.raises(MachineError) as caught:
        need("no_such_package", extra="serve")
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert "no_such_package" in str(caught.value)
    assert install("serve") in caught.value.do


def test_a_checkout_is_installed_again_with_the_extra() -> None:
    """The shell words are a command that pip understands, and name a folder and a file that are there."""
    words = shlex.split(install("serve"))
    assert words[1:4] == ["-m", "pip", "install"]
    assert Path(words[5]).is_file()
    assert (Path(words[7].removesuffix("[serve]")) / "pyproject.toml").is_file()
    assert "[" not in install()


def test_elsewhere_the_packages_of_the_extra_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "tuneloop-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tuneloop\nVersion: 9\nRequires-Dist: torch>=2\n"
        'Requires-Dist: fastapi>=0.1; extra == "serve"\nRequires-Dist: psycopg; extra == "postgres"\n'
        'Requires-Dist: uvloop>=0.22; sys_platform != "win32" and extra == "loop"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optional, "__file__", str(tmp_path / "site" / "tuneloop" / "base/optional.py"))
    assert install("serve").endswith('-m pip install "fastapi>=0.1"')
    assert install().endswith('-m pip install "torch>=2"')
    assert install("loop").endswith("-m pip install \"uvloop>=0.22; sys_platform != 'win32'\"")


def test_a_package_that_is_there_and_breaks_is_told_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MachineError) as caught:
        need("half_there", extra="serve")
    assert "no_such_package" in str(caught.value.facts["error"])
    assert "half_there" not in sys.modules
