"""Who makes and judges derived rows: the recipe's model, loaded once and only if it must be, or the endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint_server import Server, running
from tuneloop import pipeline
from tuneloop.base.errors import MachineError
from tuneloop.inference import assistants
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as one:
        yield one


def recipe(model: Path, file: Path, **augment: Any) -> Recipe:
    prepare = {"augment": augment}
    return make_recipe({"name": "far", "model": str(model), "data": str(file), "prepare": prepare})[0]


def test_an_endpoint_answers_and_the_model_is_not_loaded(
    tiny_model: Path, talk_file: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(assistants, "load_model", never)
    monkeypatch.setenv("TUNELOOP_ENDPOINT_KEY", "from-the-environment")
    said: list[str] = []
    wanted = recipe(
        tiny_model, talk_file, methods=["follow_up"], share=0.5, endpoint=f"{server.url}/v1", endpoint_model="m"
    )
    made = pipeline.prepare(wanted, workspace=tmp_path, say=said.append)
    new = [r for r in made.records("train") if r.parent]
    assert len(new) == 17, "half of 35: a question in its five wordings is held out"
    assert all(r.messages[-1].content.startswith("You said: ") for r in new)
    assert {key for _, _, key in server.seen} == {"Bearer from-the-environment"}
    assert not [line for line in said if "sent to" in line]
    assert "from-the-environment" not in "".join(
        p.read_text(encoding="utf-8", errors="replace") for p in made.path.rglob("*") if p.is_file()
    )
    asked = len(server.seen)
    pipeline.prepare(wanted, workspace=tmp_path)
    assert len(server.seen) == asked


def test_whoever_sends_rows_away_is_told_first(
    tiny_model: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")  # so nothing is sent by this test
    said: list[str] = []
    url = "https://llm.example.com/v1"
    far = recipe(tiny_model, talk_file, methods=["branch"], endpoint=url, endpoint_model="m")
    with pytest.raises(MachineError, match="TUNELOOP_OFFLINE"):
        pipeline.prepare(far, workspace=tmp_path, say=said.append)
    sentence = "Training rows are sent to llm.example.com: prepare.augment.endpoint names it."
    assert sentence in said
    dataset = pipeline.prepare(recipe(tiny_model, talk_file), workspace=tmp_path)
    assert sentence in pipeline.plan(far, dataset)[0].warnings
    near = recipe(tiny_model, talk_file, methods=["branch"], endpoint="http://localhost:1/v1", endpoint_model="m")
    assert sentence not in pipeline.plan(near, dataset)[0].warnings


def test_the_model_is_loaded_once_and_only_when_it_is_asked(
    tiny_model: Path, talk_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    load = assistants.load_model

    def counted(folder: Path, dtype: str) -> Any:
        loaded.append(folder)
        return load(folder, dtype)

    monkeypatch.setattr(assistants, "load_model", counted)
    said: list[str] = []
    wanted = recipe(tiny_model, talk_file, methods=["synonyms", "follow_up"])
    made = assistants.helpers(wanted, tiny_model, load_tokenizer(tiny_model), said.append)
    assert made.translate is None
    assert made.score is not None
    assert made.answer is not None
    assert made.score([]) == []
    assert not loaded
    assert [tokens > 0 for _, tokens in made.score(["How are you?", "Paris"])] == [True, True]
    long = [{"role": "user", "content": "word " * 2000}]
    short = [{"role": "user", "content": "Who are you?"}]
    answers = made.answer([long, short])
    assert answers[0] == ""
    assert answers == made.answer([long, short])
    assert len(loaded) == 1
    assert len(said) == 1


def test_who_translates(tiny_model: Path, talk_file: Path) -> None:
    def translator(**augment: Any) -> Any:
        wanted = recipe(tiny_model, talk_file, **augment)
        return assistants.helpers(wanted, tiny_model, None, print).translate.__self__

    back = {"methods": ["back_translation", "follow_up"]}
    url = "http://localhost:1/v1"
    assert isinstance(translator(**back, translator=["x"]), assistants._Own)
    assert isinstance(translator(**back, endpoint=url), assistants._Far)
    assert isinstance(translator(**back, endpoint=url, endpoint_model="m"), assistants._Far)
    assert isinstance(translator(**back, endpoint=url, endpoint_model="m", translator=["x"]), assistants._Own)
    assert assistants.helpers(recipe(tiny_model, talk_file), tiny_model, None, print).score is None


def test_back_translation_with_a_local_server(tiny_model: Path, tmp_path: Path, server: Server) -> None:
    """LibreTranslate's API, there and back; the words of a random model's judgement are not asked for here."""
    file = tmp_path / "talk.jsonl"
    talk = [{"question": f"How do I boil egg {n}?", "answer": "In water."} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in talk), encoding="utf-8")
    wanted = recipe(tiny_model, file, methods=["back_translation"], endpoint=server.url, share=1.0)
    made = pipeline.prepare(wanted, workspace=tmp_path)
    asked = [body for path, body, _ in server.seen if path == "/translate"]
    assert {(b["source"], b["target"]) for b in asked} == {("en", "zh"), ("zh", "en")}
    told = made.manifest["augment"]
    assert (
        told["made"]["back_translation"] + sum(told["rejected"]["back_translation"].values()) == 7
    )  # one of eight is held out
