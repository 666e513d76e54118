from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tuneloop.base.errors import RecipeError, RunError
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.runs.run import FREE_ON_RESUME, Run, held_alone, new_run, open_run, resumable


def make(workspace: Path, name: str, when: float = 0) -> Run:
    run = new_run(workspace, name)
    run.recipe.write_text("name: x\n", encoding="utf-8")
    if when:
        os.utime(run.recipe, (when, when))
    return run


def test_numbers_go_on(tmp_path: Path) -> None:
    assert [new_run(tmp_path, "demo").name for _ in range(3)] == ["demo-1", "demo-2", "demo-3"]
    (tmp_path / "runs" / "demo-2").rmdir()
    assert new_run(tmp_path, "demo").name == "demo-4", "a number that a report names is not used again"
    assert new_run(tmp_path, "demo-4").name == "demo-4-1"
    assert new_run(tmp_path, "demo").name == "demo-5"
    assert new_run(tmp_path, "a.b").name == "a.b-1"
    (tmp_path / "runs" / "axb-7").mkdir()
    assert new_run(tmp_path, "a.b").name == "a.b-2"


def test_a_number_that_is_taken_is_refused(tmp_path: Path) -> None:
    assert new_run(tmp_path, "demo", 7).name == "demo-7"
    with pytest.raises(RunError) as caught:
        new_run(tmp_path, "demo", 7)
    assert caught.value.code == "TL-RUN-EXISTS"
    assert new_run(tmp_path, "demo").name == "demo-8"


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: new_run(tmp_path, "demo").name, range(24)))
    assert sorted(names) == sorted(f"demo-{n}" for n in range(1, 25))


def test_a_run_is_found_by_folder_name_and_latest(tmp_path: Path) -> None:
    first, second = make(tmp_path, "b", 2000.0), make(tmp_path, "a", 1000.0)
    assert open_run(first.path) == first
    assert open_run(str(second.path), tmp_path) == second
    assert open_run("a-1", tmp_path) == second
    assert open_run("latest", tmp_path) == first


@pytest.mark.parametrize(
    ("ref", "code"), [("demo-1", "TL-RUN-MISSING"), ("..", "TL-RUN-MISSING"), ("latest", "TL-RUN-NONE")]
)
def test_what_is_no_run_is_missing(tmp_path: Path, ref: str, code: str) -> None:
    new_run(tmp_path, "demo")  # a folder without a recipe
    with pytest.raises(RunError) as caught:
        open_run(ref, tmp_path)
    assert caught.value.code == code


def test_a_result_is_an_adapter_or_a_model(tmp_path: Path) -> None:
    run = make(tmp_path, "demo")
    assert run.trained_folder() is None
    (run.path / ".adapter.draft").mkdir()
    assert run.trained_folder() is None
    (run.path / "model").mkdir()
    assert run.trained_folder() == run.path / "model"


def test_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    run = make(tmp_path, "demo")
    assert run.read("plan.json") == {}
    run.write("plan.json", {"why": "因为", "n": 1.5})
    run.write("plan.json", {"why": "因为", "n": 2.5})
    assert run.read("plan.json") == {"why": "因为", "n": 2.5}
    assert sorted(p.name for p in run.path.iterdir()) == ["plan.json", "recipe.yaml"]
    (run.path / "plan.json").write_text('{"why": ', encoding="utf-8")
    with pytest.raises(RunError) as caught:
        run.read("plan.json")
    assert caught.value.code == "TL-RUN-DAMAGED"
    assert "plan.json" in str(caught.value)


def test_bytes_that_are_no_text_are_damage_too(tmp_path: Path) -> None:
    run = make(tmp_path, "demo")
    (run.path / "plan.json").write_bytes(b'{"why": "\xff\xfe"}')
    with pytest.raises(RunError) as caught:
        run.read("plan.json")
    assert caught.value.code == "TL-RUN-DAMAGED"


def test_a_resumed_run_may_change_what_changes_no_number() -> None:
    recipe, _ = make_recipe({"train": {"epochs": 2, "save_strategy": "steps", "save_steps": 10}})
    assert resumable(recipe, []) == recipe
    other = resumable(recipe, ["train.workers=2", "train.save_steps=5", "train.save_total_limit=1"])
    assert (other.train.workers, other.train.save_steps, other.train.save_total_limit) == (2, 5, 1)
    assert other.train.epochs == 2
    assert set(type(recipe.train).model_fields) >= FREE_ON_RESUME


@pytest.mark.parametrize(
    "setting",
    ["train.epochs=3", "seed=7", "train.batch_size=4", "model=other", "train.packing=false", "evaluate.rows=3"],
)
def test_a_resumed_run_may_change_no_number(setting: str) -> None:
    recipe, _ = make_recipe({"train": {"epochs": 2}})
    with pytest.raises(RunError) as caught:
        resumable(recipe, ["train.workers=2", setting])
    assert caught.value.code == "TL-RUN-RESUME"
    assert "workers" in str(caught.value)


def test_a_resumed_run_says_what_is_misspelt() -> None:
    recipe, _ = make_recipe({})
    with pytest.raises(RecipeError) as caught:
        resumable(recipe, ["train.worker=2"])
    assert "train.workers" in str(caught.value)


def test_a_recipe_written_out_is_the_same_recipe(tmp_path: Path) -> None:
    recipe, _ = make_recipe({"prepare": {"max_length": 4096}, "train": {"learning_rate": 2e-5, "betas": [0.9, 0.95]}})
    from tuneloop.recipe.recipe import read_recipe

    run = make(tmp_path, "demo")
    run.recipe.write_text(dump(recipe), encoding="utf-8")
    back, notes = read_recipe(run.recipe)
    assert (back, notes) == (recipe, [])
    assert resumable(back, ["train.workers=1"]).train.workers == 1


def test_two_processes_never_train_into_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "home"))
    run = new_run(tmp_path, "mine")
    script = (
        "import sys; from pathlib import Path; from tuneloop.runs.run import Run, held_alone\n"
        "with held_alone(Run(Path(sys.argv[1]))): print('in', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(RunError) as told, held_alone(run):
            pass
        assert told.value.code == "TL-RUN-BUSY"
        other.kill()
    with held_alone(run):  # the lock went with the process
        pass
