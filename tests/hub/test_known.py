from __future__ import annotations

import re

import pytest

from tuneloop.base.errors import ModelError
from tuneloop.hub.known import KNOWN, demand, find, nearest


def test_names_and_aliases_are_unique_and_short() -> None:
    names = [n for known in KNOWN.values() for n in (known.name, *known.aliases)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9.-]+", n) for n in names)
    assert all(key == known.name for key, known in KNOWN.items())


def test_everything_is_pinned() -> None:
    for known in KNOWN.values():
        assert known.licence
        assert known.disk_needed > known.size + known.download
        for wheel in known.wheels:
            assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
            assert re.fullmatch(r"[0-9.]+", wheel.version)


def test_terms_come_with_the_smallest_package() -> None:
    with_terms = [known for known in KNOWN.values() if known.terms]
    assert [known.name for known in with_terms] == ["gemma-3-270m"]
    for known in with_terms:
        assert known.wheels[0].size == min(w.size for w in known.wheels) < 1_000_000


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2-135M-Instruct", " smollm2-135m "])
def test_a_name_is_found_in_any_case(name: str) -> None:
    known = find(name)
    assert known is not None
    assert known.name == "smollm2-135m-instruct"


def test_an_unknown_name_gets_its_nearest() -> None:
    assert find("gemma3-270") is None
    assert nearest("gemma3-270")[0] == "gemma3-270m"
    assert nearest("完全不同") == nearest("qwen3") == []
    with pytest.raises(ModelError) as caught:
        demand("qwen3")
    assert "near" not in caught.value.what
    assert "tuneloop model list" in caught.value.do
    with pytest.raises(ModelError, match="gemma3-270m") as caught:
        demand("gemma3-270")
    assert caught.value.code == "TL-MODEL-NAME"
