from __future__ import annotations

import re
from pathlib import Path

import pytest

from tuneloop.base.errors import RecipeError
from tuneloop.cli.target import keep_recipe, packaged, recipe_of
from tuneloop.recipe.recipe import read_recipe


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_recipe_file_is_read_and_settings_go_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my.yaml").write_text(
        "name: mine\nmodel: ./base\ndata: chats.jsonl\nnum_train_epochs: 2\n", encoding="utf-8"
    )
    recipe = recipe_of(["sub/my.yaml"], settings=["train.batch_size=4", "train.learning_rate=1e-3"], name="other")
    assert (recipe.name, recipe.train.epochs, recipe.train.batch_size, recipe.train.learning_rate) == (
        "other",
        2,
        4,
        1e-3,
    )
    assert recipe.data[0].path == str(tmp_path / "sub" / "chats.jsonl")
    assert recipe.model.name == str(tmp_path / "sub" / "base")
    assert "num_train_epochs" in capsys.readouterr().err, "a translated key is told"
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize("name", sorted(packaged()))
def test_a_packaged_recipe_has_a_name(name: str) -> None:
    recipe = recipe_of([name])
    assert recipe.data
    assert all(Path(d.path).is_file() or d.path.startswith("hub:") for d in recipe.data)
    assert recipe_of([name], accept=True).model.accept_terms


def test_raw_files_get_a_recipe_to_look_at_and_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("chats.jsonl", "faq.csv"):
        (tmp_path / file).touch()
    recipe = recipe_of(["chats.jsonl", "faq.csv"], model="smollm2", settings=["train.epochs=1"])
    assert [d.path for d in recipe.data] == [str(tmp_path / "chats.jsonl"), str(tmp_path / "faq.csv")]
    assert (recipe.name, recipe.model.name, recipe.train.epochs) == ("chats", "smollm2", 1)
    assert not (tmp_path / "chats.yaml").exists(), "nothing is written before the data could be read"
    keep_recipe(["chats.jsonl", "faq.csv"], recipe)
    assert "tuneloop run chats.yaml" in capsys.readouterr().err
    assert read_recipe(tmp_path / "chats.yaml")[0] == recipe
    assert "path: chats.jsonl" in (tmp_path / "chats.yaml").read_text(encoding="utf-8")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    keep_recipe(["chats.jsonl", "faq.csv"], recipe)
    assert capsys.readouterr().err == "", "the same recipe a second time is no news"

    (tmp_path / "chats.yaml").write_text("name: mine\n", encoding="utf-8")
    keep_recipe(["chats.jsonl", "faq.csv"], recipe)
    assert capsys.readouterr().err.count("holds another recipe") == 1
    assert (tmp_path / "chats.yaml").read_text(encoding="utf-8") == "name: mine\n", (
        "what a user wrote is never replaced"
    )


def test_no_recipe_is_written_for_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: other\ndata: chats.jsonl\n", encoding="utf-8")
    for targets in (["my.yaml"], ["demo"]):
        keep_recipe(targets, recipe_of(targets))
    assert [p.name for p in tmp_path.iterdir()] == ["my.yaml"]


def test_files_behind_a_recipe_stand_in_place_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: mine\ndata: [a.jsonl, b.jsonl]\ntrain: {epochs: 2}\n", encoding="utf-8")
    for targets in (["my.yaml", "mine.json", "hub:org/talk"], ["emollm", "mine.json", "hub:org/talk"]):
        recipe, own = recipe_of(targets), recipe_of(targets[:1])
        assert [d.path for d in recipe.data] == [str(tmp_path / "mine.json"), "hub:org/talk"]
        assert (recipe.name, recipe.train, recipe.evaluate) == (own.name, own.train, own.evaluate)
        keep_recipe(targets, recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["my.yaml"]
    assert recipe_of(["my.yaml", "a.json"], settings=["data=[c.json]"]).data[0].path == str(tmp_path / "c.json")


def test_data_from_elsewhere_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    targets = [str(tmp_path / "sub" / "a.jsonl"), "hub:org/talk", "-", "/elsewhere/b.jsonl"]
    recipe = recipe_of(targets)
    assert [d.path for d in recipe.data] == targets
    keep_recipe(targets, recipe)
    written = (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert re.findall(r"path: (.*)", written) == ["sub/a.jsonl", "hub:org/talk", "'-'", "/elsewhere/b.jsonl"]
    assert read_recipe(tmp_path / "a.yaml")[0] == recipe


def test_a_setting_without_effect_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yaml").write_text("data: chats.jsonl\ntrain: {max_steps: 3}\n", encoding="utf-8")
    recipe_of(["my.yaml"], settings=["train.epochs=5"])
    assert "train.epochs has no effect beside train.max_steps: 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("聊天记录.jsonl", "聊天记录"),
        ("my chats (1).json", "my-chats--1"),
        ("_.csv", "run"),
        ("a" * 80 + ".csv", "a" * 64),
    ],
)
def test_a_run_is_called_as_its_file(file: str, name: str) -> None:
    assert recipe_of([file]).name == name
    assert recipe_of([file], name="二号").name == "二号"


def test_a_glob_stays_a_glob(tmp_path: Path) -> None:
    recipe = recipe_of(["data/*.jsonl"])
    assert recipe.data[0].path == str(tmp_path / "data" / "*.jsonl")


@pytest.mark.parametrize("value", ["2024", "1e5", "null", "true", "a: b", "~/models/x", "C:\\models\\x", "#1", "[x]"])
def test_a_model_or_name_is_a_text_whatever_it_looks_like(value: str) -> None:
    assert recipe_of(["chats.jsonl"], model=value).model.name == value
    if value in {"2024", "1e5", "null", "true"}:
        assert recipe_of(["chats.jsonl"], name=value).name == value


def test_a_word_that_is_nothing_names_the_near_one() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(["demmo"])
    assert caught.value.code == "TL-RECIPE-NAME"
    assert "demo" in str(caught.value)


def test_a_missing_recipe_or_a_wrong_setting_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(["missing.yaml"])
    assert caught.value.code == "TL-RECIPE-MISSING"
    with pytest.raises(RecipeError) as caught:
        recipe_of(["demo"], settings=["train.epoch=2"])
    assert "train.epochs" in str(caught.value)
    with pytest.raises(RecipeError):
        recipe_of(["demo"], settings=["epochs"])
