"""The registry: numbers, aliases, bytes that lie once, and damage that is found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuneloop.base.errors import RunError
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.registry import versions as registry
from tuneloop.registry.store import open_store
from tuneloop.registry.versions import find, locate, materialise, promote, register, versions


def make_run(workspace: Path, name: str = "demo", number: int = 1, value: float = 1.0, result: str = "adapter") -> Path:
    """A finished run folder with real files, too small to be a model."""
    run = workspace / "runs" / f"{name}-{number}"
    (run / result).mkdir(parents=True)
    recipe, _ = make_recipe({"name": name, "model": {"name": "org/base", "revision": "abc"}})
    (run / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    (run / "dataset.json").write_text(json.dumps({"hash": "0123456789ab"}), encoding="utf-8")
    (run / "evaluation.json").write_text('{"before": {"loss": 3.0}, "after": {"loss": 2.0}}', encoding="utf-8")
    save_file({"w": np.full((4, 4), value, np.float32)}, run / result / f"{result}_model.safetensors")
    (run / result / "tokenizer.json").write_text('{"same": "in all runs"}', encoding="utf-8")
    return run


def blobs(workspace: Path) -> list[Path]:
    return sorted((workspace / "models" / "blobs" / "sha256").iterdir())


def test_a_version_says_where_it_is_from(tmp_path: Path) -> None:
    version = register(make_run(tmp_path), tmp_path)
    assert (version.name, version.number, version.ref) == ("demo", 1, "demo:v1")
    assert (version.run, version.method, version.dataset_hash) == ("runs/demo-1", "lora", "0123456789ab")
    assert (version.base_model, version.base_revision) == ("org/base", "abc")
    assert version.metrics == {"before": {"loss": 3.0}, "after": {"loss": 2.0}}
    assert version.created.endswith("Z")
    assert "adapter/adapter_model.safetensors" in version.files
    assert "recipe.yaml" in version.files
    json.dumps(version.as_dict())


def test_blobs_are_named_by_their_content(tmp_path: Path) -> None:
    version = register(make_run(tmp_path), tmp_path)
    for blob in blobs(tmp_path):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert {b.name for b in blobs(tmp_path)} == set(version.files.values())


def test_the_same_run_keeps_its_version_and_gets_its_new_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = register(run, tmp_path)
    (run / "evaluation.json").write_text(json.dumps({"after": {"loss": 1.5}}), encoding="utf-8")
    again = register(run, tmp_path)
    assert (again.id, again.number) == (first.id, 1)
    assert again.metrics == {"after": {"loss": 1.5}}
    assert len(versions(tmp_path)) == 1


def test_a_run_trained_on_is_the_next_version(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    register(run, tmp_path)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    save_file({"w": np.full((4, 4), 9, np.float32)}, run / "adapter" / "adapter_model.safetensors")
    assert register(run, tmp_path).number == 2


def test_equal_files_lie_once(tmp_path: Path) -> None:
    one = register(make_run(tmp_path, number=1), tmp_path)
    two = register(make_run(tmp_path, number=2, value=2), tmp_path)
    assert two.number == 2
    assert one.files["adapter/tokenizer.json"] == two.files["adapter/tokenizer.json"]
    different = len(set(one.files.values()) | set(two.files.values()))
    assert len(blobs(tmp_path)) == different < len(one.files) + len(two.files)


def test_the_blob_is_a_copy_that_no_editor_reaches(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    version = register(run, tmp_path)
    with (run / "recipe.yaml").open("a", encoding="utf-8") as file:  # as an editor writes: into the same file
        file.write("# tried something\n")
    assert not [b for b in blobs(tmp_path) if b.name.startswith(".")]
    again = materialise(version, tmp_path / "again")
    assert "# tried" not in (again / "recipe.yaml").read_text(encoding="utf-8")


def test_materialise_gives_the_folder_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    version = register(run, tmp_path)
    target = materialise(version, tmp_path / "out" / "copy")
    for name in version.files:
        assert (target / name).read_bytes() == (run / name).read_bytes()
    assert load_file(target / "adapter" / "adapter_model.safetensors")["w"][0, 0] == 1
    # Whoever edits the copy does not edit the registry.
    (target / "adapter" / "tokenizer.json").write_text("edited", encoding="utf-8")
    materialise(version, tmp_path / "out" / "second")
    with pytest.raises(RunError, match="TL-RUN-EXISTS"):
        materialise(version, tmp_path / "out" / "copy")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["edit", "delete"])
def test_damage_is_found_and_mended_by_registering_again(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path)
    version = register(run, tmp_path)
    blob = tmp_path / "models" / "blobs" / "sha256" / version.files["adapter/adapter_model.safetensors"]
    content = blob.read_bytes()
    blob.unlink()
    if damage == "edit":
        blob.write_bytes(content[:-1] + b"!")
    with pytest.raises(RunError) as caught:
        materialise(version, tmp_path / "copy")
    assert caught.value.code == "TL-RUN-BLOB"
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))
    register(run, tmp_path)
    materialise(version, tmp_path / "copy")


def test_stored_names_stay_below_the_folder(tmp_path: Path) -> None:
    import dataclasses

    version = register(make_run(tmp_path), tmp_path)
    digest = version.files["recipe.yaml"]
    for name in ("../escape", "/tmp/escape", "a/../../escape", "C:\\escape"):
        bad = dataclasses.replace(version, files={name: digest})
        with pytest.raises(RunError, match="TL-RUN-BLOB"):
            materialise(bad, tmp_path / "deep" / "copy")
    bad = dataclasses.replace(version, files={"recipe.yaml": "../../tuneloop.db"})
    with pytest.raises(RunError, match="TL-RUN-BLOB"):
        materialise(bad, tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep" / "escape").exists()


def test_find_by_name_number_and_alias(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        register(make_run(tmp_path, number=n, value=n), tmp_path)
    register(make_run(tmp_path, name="other"), tmp_path)
    assert find(tmp_path, "demo").number == 3
    assert find(tmp_path, "demo:latest").number == 3
    assert find(tmp_path, "demo:v2").number == 2
    assert promote(tmp_path, "demo:v1", "production").aliases == ("production",)
    assert find(tmp_path, "demo:production").number == 1
    assert promote(tmp_path, "demo", "production").number == 3
    assert find(tmp_path, "demo:production").number == 3
    assert find(tmp_path, "demo:v1").aliases == ()
    assert [v.ref for v in versions(tmp_path, "demo")] == ["demo:v1", "demo:v2", "demo:v3"]
    assert [v.ref for v in versions(tmp_path)] == ["demo:v1", "demo:v2", "demo:v3", "other:v1"]


@pytest.mark.parametrize("ref", ["demo:v9", "demo:prod", "dmeo", "demo:v0", "demo:V1", ""])
def test_unknown_versions_are_answered_with_known_ones(tmp_path: Path, ref: str) -> None:
    register(make_run(tmp_path), tmp_path)
    promote(tmp_path, "demo:v1", "production")
    with pytest.raises(RunError) as caught:
        find(tmp_path, ref)
    assert caught.value.code == "TL-RUN-VERSION"
    assert "demo" in str(caught.value.facts["known"])


@pytest.mark.parametrize("alias", ["v3", "latest", "", "a b", "a:b", "1st", "x" * 65])
def test_words_that_cannot_be_an_alias(tmp_path: Path, alias: str) -> None:
    register(make_run(tmp_path), tmp_path)
    with pytest.raises(RunError, match="TL-RUN-ALIAS"):
        promote(tmp_path, "demo:v1", alias)


def test_looking_makes_no_store(tmp_path: Path) -> None:
    assert versions(tmp_path) == []
    with pytest.raises(RunError, match="TL-RUN-VERSION"):
        find(tmp_path, "demo")
    assert locate(tmp_path, "demo") is None
    assert list(tmp_path.iterdir()) == []


def test_unfinished_runs_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="TL-RUN-MISSING"):
        register(tmp_path, tmp_path)
    run = make_run(tmp_path)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="TL-RUN-UNFINISHED"):
        register(run, tmp_path)
    assert versions(tmp_path) == []


def test_a_whole_model_is_a_version_too(tmp_path: Path) -> None:
    version = register(make_run(tmp_path, result="model"), tmp_path)
    assert "model/model_model.safetensors" in version.files


def test_locate_finds_runs_and_lays_versions_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    version = register(run, tmp_path)
    assert locate(tmp_path, str(run)) == run
    assert locate(tmp_path, "demo-1") == run
    assert locate(tmp_path, "smollm2-135m-instruct") is None
    folder = locate(tmp_path, "demo:v1")
    assert folder is not None
    assert (folder / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    changed = folder / "adapter" / "adapter_model.safetensors"
    good = changed.read_bytes()
    changed.write_bytes(b"someone was here")
    assert locate(tmp_path, "demo") == folder
    assert changed.read_bytes() == good
    assert hashlib.sha256(good).hexdigest() == version.files["adapter/adapter_model.safetensors"]
    with pytest.raises(RunError, match="TL-RUN-VERSION"):
        locate(tmp_path, "demo:v7")


def test_processes_that_register_at_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, number=n, value=n % 3) for n in range(1, 7)]
    code = (
        "import sys; from pathlib import Path; from tuneloop.registry.versions import register\n"
        "print(register(Path(sys.argv[1]), Path(sys.argv[2])).number)"
    )
    # The last one registers the first one's run: together they must get one number.
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(run), str(tmp_path)], stdout=subprocess.PIPE)
        for run in [*runs, runs[0]]
    ]
    numbers = [int(p.communicate(timeout=120)[0]) for p in processes]
    assert sorted(numbers[:6]) == [1, 2, 3, 4, 5, 6]
    assert numbers[6] == numbers[0]
    for version in versions(tmp_path):
        materialise(version, tmp_path / "all" / str(version.number))


def test_another_store_than_the_workspace(tmp_path: Path) -> None:
    url = os.environ.get("TUNELOOP_TEST_POSTGRES")
    store = open_store(url or tmp_path / "elsewhere" / "team.db")
    name = f"team{os.urandom(4).hex()}"
    version = register(make_run(tmp_path, name=name), tmp_path, store=store)
    assert promote(tmp_path, f"{name}:v1", "production", store=store).aliases == ("production",)
    assert find(tmp_path, f"{name}:production", store=store).id == version.id
    assert not (tmp_path / "tuneloop.db").exists()
    store.close()


def test_a_damaged_evaluation_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="TL-RUN-DAMAGED"):
        register(run, tmp_path)


def test_the_disk_is_asked_before_a_version_is_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = register(make_run(tmp_path), tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(registry.refusals, "require_space", lambda path, size: asked.append(size))
    materialise(version, tmp_path / "copy")
    assert asked[0] == sum((tmp_path / "copy" / n).stat().st_size for n in version.files)
