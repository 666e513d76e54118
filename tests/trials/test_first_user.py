"""What a first user types wrong is answered at once, with what to type instead. The rows of cases/first-user.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import made
from tuneloop.base import language
from tuneloop.base.errors import RecipeError
from tuneloop.cli import losses, show
from tuneloop.hub.known import find
from tuneloop.planning.cautions import low_rate
from tuneloop.recipe.defaults import settled
from tuneloop.recipe.overrides import changed
from tuneloop.recipe.peers.translate import translate
from tuneloop.recipe.recipe import make_recipe


def tuneloop(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"TUNELOOP_LANG": "en", "PYTHONUTF8": "1", "TUNELOOP_OFFLINE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "tuneloop", *words], capture_output=True, text=True, encoding="utf-8", timeout=120,
        cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as a first user has it: data, a recipe, a model folder, a run."""
    here = tmp_path_factory.mktemp("first")
    made.lines(here / "data", 3)
    made.lines(here, 3, "聊天记录.jsonl")
    for folder in ("models/mine", "runs/talk-1", "elsewhere/deep"):
        (here / folder).mkdir(parents=True)
    (here / "my.yaml").write_text("data: data/chats.jsonl\n", encoding="utf-8")
    (here / "wrong.yaml").write_text("data: data/chatz.jsonl\nevaluate: {show: questions.txt}\n", encoding="utf-8")
    (here / "asks.yaml").write_text("data: data/chats.jsonl\nevaluate: {show: question.txt}\n", encoding="utf-8")
    (here / "questions.txt").write_text("Who are you?\n", encoding="utf-8")
    (here / "runs" / "talk-1" / "recipe.yaml").write_text("name: talk\n", encoding="utf-8")
    return here


RUN = ["run", "data/chats.jsonl"]
WRONG: list[tuple[str, list[str], str, list[str]]] = [
    (".", ["run", "data/chts.jsonl"], "TL-DATA-MISSING", ["near it: ", "data/chats.jsonl"]),
    (".", ["prepare", "dta/chats.jsonl"], "TL-DATA-MISSING", ["data/chats.jsonl"]),
    (".", ["plan", "chats.jsonl"], "TL-DATA-MISSING", ["data/chats.jsonl"]),
    (".", ["train", "聊天纪录.jsonl"], "TL-DATA-MISSING", ["聊天记录.jsonl"]),
    (".", ["run", "data/chats.json"], "TL-DATA-MISSING", ["data/chats.jsonl"]),
    (".", ["run", "data/chats.csv"], "TL-DATA-MISSING", ["data/chats.jsonl"]),
    (".", ["run", "聊天记录.xlsx"], "TL-DATA-MISSING", ["聊天记录.jsonl"]),
    (".", ["run", "wrong.yaml"], "TL-DATA-MISSING", ["data/chats.jsonl"]),
    (".", ["run", "asks.yaml"], "TL-DATA-MISSING", ["questions.txt"]),
    (".", ["run", "聊天记录"], "TL-RECIPE-NAME", ["聊天记录.jsonl"]),
    (".", ["run", "my.yaml", "epochs=2"], "TL-RECIPE-ASSIGN", ["--set train.epochs="]),
    (".", ["plan", "my.yaml", "train.learning_rate=1e-4"], "TL-RECIPE-ASSIGN", ["--set train.learning_rate="]),
    (".", ["run", "my.yml"], "TL-RECIPE-MISSING", ["near it: my.yaml"]),
    (".", [*RUN, "--model", "./modles/mine"], "TL-MODEL-PATH", ["models/mine"]),
    (".", [*RUN, "--model", "smolm2"], "TL-MODEL-NAME", ["smollm2"]),
    (".", [*RUN, "--model", "bert-base-uncased"], "TL-MODEL-NAME", ["google-bert/bert-base-uncased"]),
    (".", [*RUN, "--model", "bert-base-chinese"], "TL-MODEL-NAME", ["google-bert/bert-base-chinese"]),
    (".", [*RUN, "--model", "Qwen3-0.6B"], "TL-MODEL-NAME", ["Qwen/Qwen3-0.6B"]),
    (".", [*RUN, "--model", "gpt2"], "TL-MODEL-NAME", ["openai-community/gpt2"]),
    (".", [*RUN, "--epochs", "3"], "TL-RECIPE-USAGE", ["--set train.epochs=VALUE"]),
    (".", [*RUN, "--num_train_epochs", "3"], "TL-RECIPE-USAGE", ["--set train.epochs=VALUE"]),
    (".", ["train", "x.jsonl", "--learning-rate", "1e-4"], "TL-RECIPE-USAGE", ["--set train.learning_rate=VALUE"]),
    (".", ["plan", "x.jsonl", "--lr=1e-4"], "TL-RECIPE-USAGE", ["--set train.learning_rate=VALUE"]),
    (".", ["prepare", "x.jsonl", "--max-length", "9"], "TL-RECIPE-USAGE", ["--set prepare.max_length=VALUE"]),
    (".", [*RUN, "--lora_rank", "3"], "TL-RECIPE-USAGE", ["--set train.lora.rank=VALUE"]),
    (".", [*RUN, "--modl", "x"], "TL-RECIPE-USAGE", ["did you mean --model?"]),
    (".", ["chat", "talk-1", "--epochs", "3"], "TL-RECIPE-USAGE", ["there is no option --epochs."]),
    (".", ["chat", "tolk-1"], "TL-RUN-NOTHING", ["near it: talk-1"]),
    ("elsewhere", ["chat", "talk-1"], "TL-RUN-NOTHING", ["--workspace", "../runs/talk-1"]),
    ("elsewhere/deep", ["chat", "runs/talk-1"], "TL-RUN-NOTHING", ["--workspace", "../../runs/talk-1"]),
    ("elsewhere", ["chat", "talk:production"], "TL-RUN-NOTHING", ["--workspace"]),
    ("elsewhere", ["serve", "talk:v1", "--port", "0"], "TL-RUN-NOTHING", ["--workspace"]),
    ("elsewhere", ["export", "talk-1"], "TL-RUN-MISSING", ["--workspace", "../runs/talk-1"]),
    ("elsewhere", ["evaluate", "runs/talk-1"], "TL-RUN-MISSING", ["--workspace", "../runs/talk-1"]),
    ("elsewhere", ["compare", "talk-1"], "TL-RUN-MISSING", ["--workspace"]),
    ("elsewhere", ["train", "--resume", "talk-1"], "TL-RUN-MISSING", ["--workspace"]),
]


@pytest.mark.parametrize(("folder", "words", "code", "said"), WRONG, ids=[" ".join(w[1]) for w in WRONG])
def test_what_is_typed_wrong_is_told_before_anything_is_loaded(
    place: Path, folder: str, words: list[str], code: str, said: list[str]
) -> None:
    done = tuneloop(place / folder, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(code)
    for text in said:
        assert text in done.stderr.replace(str(place) + os.sep, "")
    assert "Loading" not in done.stderr, "it took seconds to say so"
    assert not list(place.glob("**/datasets"))


def test_a_wrong_path_loads_no_large_library(place: Path) -> None:
    code = (
        "import sys\nfrom tuneloop.cli.main import _run\n"
        "sys.argv = ['tuneloop', *sys.argv[1:]]\n"
        "try: _run()\nexcept Exception: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    )
    for words in (["run", "chts.jsonl"], ["run", "my.yaml", "--model", "nothing"], ["chat", "tolk-1"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=place, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", words


@pytest.mark.parametrize(
    ("words", "more"), [(["--lang", "zh"], " --lang zh"), ([], "")], ids=["by the line", "by the environment"]
)
def test_the_next_command_asks_for_the_language_again(place: Path, words: list[str], more: str) -> None:
    lang = "en" if words else "zh"
    done = tuneloop(place, *words, "run", "chts.jsonl", TUNELOOP_LANG=lang)
    assert done.stderr.splitlines()[-1] == f"  详细说明：tuneloop explain TL-DATA-MISSING{more}"


def test_a_command_is_written_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_LANG", "en")
    assert show.command("chat", Path("runs/对话-1")) == f"tuneloop chat {Path('runs/对话-1')}"
    assert show.command("run", "my chats.yaml") == 'tuneloop run "my chats.yaml"'
    language.use("zh")
    assert show.command("explain", "TL-DATA-JSON") == "tuneloop explain TL-DATA-JSON --lang zh"


# --set and the items of a list


BASE = {"data": ["a.csv", {"path": "b.csv", "repeat": 2}], "evaluate": {"probes": [{"name": "n", "prompts": ["q"], "expect": "x"}]}}  # fmt: skip


@pytest.mark.parametrize(
    ("assignments", "wanted"),
    [
        (["data[0].columns={user: 问, assistant: 答}"], [({"user": "问", "assistant": "答"}, None, 1), ({}, None, 2)]),
        (
            ["data[1].columns.user=q", "data[1].columns.assistant=a"],
            [({}, None, 1), ({"user": "q", "assistant": "a"}, None, 2)],
        ),
        (["data[].rows='[:5]'"], [({}, "[:5]", 1), ({}, "[:5]", 2)]),
        (["data[0].rows='[:5]'", "data[0].repeat=3"], [({}, "[:5]", 3), ({}, None, 2)]),
        (["data=[c.csv]", "data[0].repeat=4"], [({}, None, 4)]),
    ],
)
def test_set_reaches_an_item_of_a_list(assignments: list[str], wanted: list[Any]) -> None:
    recipe = make_recipe(BASE)[0]
    found = changed(recipe, assignments).data
    assert [(d.columns, d.rows, d.repeat) for d in found] == wanted
    assert make_recipe(BASE)[0] == recipe


def test_set_reaches_a_probe_and_replaces_a_file() -> None:
    recipe = make_recipe(BASE)[0]
    assert changed(recipe, ["evaluate.probes[0].at_least=1"]).evaluate.probes[0].at_least == 1
    assert [d.path for d in changed(recipe, ["data[0]=z.csv"]).data] == ["z.csv", "b.csv"]


@pytest.mark.parametrize("assignment", ["data[2].rows='[:5]'", "evaluate.probes[1].name=x", "prepare.turns[0].x=1"])
def test_an_item_that_is_not_there_is_told(assignment: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(make_recipe(BASE)[0], [assignment])
    assert caught.value.code == "TL-RECIPE-ITEM"
    assert "[0]" in str(caught.value)


def test_a_blank_that_lacks_behind_a_colon_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        changed(make_recipe(BASE)[0], ["data[0].columns={user:问题,assistant:回答}"])
    assert "{user: 问题,assistant: 回答}" in str(caught.value)


def test_a_limit_on_the_command_line_loses_no_files() -> None:
    """`--set max_samples=5` emptied `data`."""
    assert translate({"max_samples": 5})[0].get("data") is None
    with pytest.raises(RecipeError) as caught:
        changed(make_recipe(BASE)[0], ["max_samples=5"])
    assert "data[].rows=[:5]" in str(caught.value)


# languages and rates


def dataset(folder: Path, found: list[list[Any]]) -> Any:
    from tuneloop.data.version.dataset import Dataset

    (folder / "profile.json").write_text(json.dumps({"languages": {"found": found}}), encoding="utf-8")
    (folder / "ledger.jsonl").write_text("", encoding="utf-8")
    counts = {"rows_in": 100, "train": 90, "validation": 10, "dropped": 0}
    return Dataset(folder, "x", "0" * 12, {"counts": counts, "steps": []})


@pytest.mark.parametrize(
    ("model", "found", "words"),
    [
        ("smollm2", [["zh", 95], ["en", 5]], ["95 %", "Chinese", "English model", "gemma-3-270m", "--model"]),
        ("smollm2-135m-instruct", [["han", 40], ["en", 60]], ["40 %", "Chinese"]),
        ("all-minilm-l6-v2", [["zh", 100]], ["Chinese"]),
        ("smollm2", [["ja", 90], ["latin", 10]], ["Japanese", "English model"]),
        ("smollm2", [["zh", 10], ["en", 90]], []),
        ("smollm2", [["en", 90], ["none", 10]], []),
        ("gemma-3-270m", [["zh", 100]], []),
        ("Qwen/Qwen3-0.6B", [["zh", 100]], []),
        ("./mine", [["zh", 100]], []),
    ],
)
def test_rows_in_a_language_that_the_model_hardly_has_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, found: list[list[Any]], words: list[str]
) -> None:
    told = losses.warn(dataset(tmp_path, found), make_recipe({"model": model})[0])
    assert len(told) == bool(words)
    shown = " ".join(capsys.readouterr().err.replace("│", "").split())
    for word in words:
        assert word in told[0]
        assert word in shown
    named = re.search(r"write Chinese: ([\w., -]+)\(", told[0]) if told else None
    assert named is None or all(find(name.strip()) for name in named[1].split(","))


@pytest.mark.parametrize(
    ("train", "task", "low"),
    [({"learning_rate": 2e-5}, "chat", True), ({"learning_rate": 2e-5, "method": "qlora"}, "text", True),
     ({"learning_rate": 2e-4, "method": "ptuning_v2"}, "chat", True), ({}, "chat", False), ({"learning_rate": 5e-5}, "chat", False),
     ({"learning_rate": 2e-5, "method": "full"}, "chat", False), ({"learning_rate": 5e-6}, "prefer", False),
     ({"method": "freeze"}, "classify", False), ({"learning_rate": 2e-5, "adapter": "runs/a-1"}, "chat", False)],
)  # fmt: skip
def test_a_rate_for_all_weights_is_told_to_be_low_for_adapters(train: dict[str, Any], task: str, low: bool) -> None:
    recipe = settled(make_recipe({"train": train})[0], task)[0]
    assert bool(low_rate(recipe.train, task)) == low


# versions


def test_versions_are_listed_and_named(tiny_run: Path) -> None:
    place = tiny_run.parents[1]
    from tuneloop import pipeline
    from tuneloop.runs.run import Run

    ref = pipeline.register(Run(tiny_run), workspace=place).ref
    done = tuneloop(place, "model", "versions", "--json")
    assert [v["ref"] for v in json.loads(done.stdout)] == [ref]
    named = tuneloop(place, "model", "alias", ref, ":production", "--lang", "zh")
    assert named.stdout == f"tiny:production 现在就是 {ref}。\n  tuneloop serve tiny:production --lang zh\n"
    shown = tuneloop(place, "model", "versions").stdout
    assert ref in shown
    assert ":production" in shown
    assert tuneloop(place, "model", "versions", "nothing").stderr.startswith("TL-RUN-VERSION")
    assert tuneloop(place, "model", "alias", ref, "latest").stderr.startswith("TL-RUN-ALIAS")
    assert "Nothing is registered" in tuneloop(place / "runs", "model", "versions").stderr
