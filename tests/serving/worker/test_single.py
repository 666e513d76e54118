"""Models that share their passes with no other: encoders, classifiers, reward models, and virtual tokens before a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import encoders
from tests.serving.adapter_workspace import CHAT, make_virtual_run, make_workspace, query
from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.wire import read_piece
from tuneloop.serving.worker.served_model import serving_model
from tuneloop.serving.worker.single import Single
from tuneloop.serving.worker.writing import Writing


def served(ref: Path | str, workspace: Path = Path()) -> Any:
    return serving_model(str(ref), workspace, ServePart(slots=4), "")


def pieces(model: Any, *queries: Query) -> dict[int, list[Piece]]:
    out: dict[int, list[Piece]] = {}
    for number, one in enumerate(queries):
        model.begin(model.accept(number, one, None))
    while model.busy:
        for number, frame in model.step():
            assert "error" not in frame, frame
            out.setdefault(number, []).append(read_piece(frame))
    return out


def refused(model: Any, wanted: Query) -> TuneloopError:
    with pytest.raises(TuneloopError) as caught:
        model.accept(1, wanted, None)
    return caught.value


def test_an_encoder_gives_vectors_of_many_texts_at_once(tmp_path: Path) -> None:
    from tuneloop.inference.embedder import load_embedder

    folder = encoders.folder(tmp_path / "encoder", "bert")
    model = served(folder)
    assert isinstance(model, Single)
    assert model.about["tasks"] == ("vector",)
    texts = [f"the film was {word} ." for word in ("good", "bad", "fine", "dull")]
    vectors = load_embedder(folder).embed(texts)
    out = pieces(model, *(Query("vector", "encoder", prompt=text) for text in texts))
    for number, vector in enumerate(vectors):
        (piece,) = out[number]
        assert np.allclose(piece.vector, vector, atol=1e-5)
        assert piece.finish == "stop"
    ids = tuple(load_embedder(folder).ids(texts[0]))
    assert np.allclose(pieces(model, Query("vector", "encoder", prompt=ids))[0][0].vector, vectors[0], atol=1e-5)
    for prompt, code in (
        (("good " * 200), "TL-SERVE-CONTEXT"),
        ((5, 9999), "TL-SERVE-TOKEN"),
        ((), "TL-SERVE-REQUEST"),
    ):
        error = refused(model, Query("vector", "encoder", prompt=prompt))
        assert (error.code, error.facts["param"]) == (code, "input")
    assert refused(model, query("encoder")).code == "TL-SERVE-UNSUPPORTED"


def test_a_classifier_names_labels_and_answers_chats(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "labels", "bert", "AutoModelForSequenceClassification")
    model = served(folder)
    assert isinstance(model, Single)
    chat = [{"role": "user", "content": "the film was good ."}]
    label, answer = pieces(model, Query("label", "labels", chat=chat), Query("chat", "labels", chat=chat)).values()
    assert label[0].labels is not None
    assert sum(label[0].labels.values()) == pytest.approx(1)
    assert label[0].text == answer[0].text == max(label[0].labels, key=label[0].labels.__getitem__)
    assert refused(model, Query("text", "labels", prompt="x")).code == "TL-SERVE-UNSUPPORTED"
    long = [{"role": "user", "content": "good " * 200}]
    assert refused(model, Query("label", "labels", chat=long)).facts["param"] == "input"


def test_one_that_fails_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(encoders.folder(tmp_path / "encoder", "bert"))
    embed = model._model.embed

    def broken(rows: list[Any]) -> Any:
        if any(len(row) == 7 for row in rows):
            raise RuntimeError("a kernel is missing")
        return embed(rows)

    monkeypatch.setattr(model._model, "embed", broken)
    texts = ["good film .", "the film was good .", "bad film ."]
    assert model.accept(0, Query("vector", "e", prompt=texts[1]), None).prompt_tokens == 7
    for number, text in enumerate(texts):
        model.begin(model.accept(number, Query("vector", "e", prompt=text), None))
    frames = dict(model.step())
    assert frames[1]["error"]["code"] == "TL-SERVE-FAILED"
    assert all(len(frames[n]["vector"]) == 32 for n in (0, 2))


def test_virtual_tokens_stand_before_each_chat(tmp_path: Path) -> None:
    from tuneloop.inference.open import answerer

    workspace = make_workspace(tmp_path)
    make_virtual_run(workspace, "prefix-1")
    model = served("prefix-1", workspace)
    assert isinstance(model, Writing)
    assert model.about["shared"] is None
    expected = answerer("prefix-1", workspace).answer([CHAT, [{"role": "user", "content": "hi"}]], max_new_tokens=12)
    out = pieces(model, query("prefix-1", max_new_tokens=12), query("prefix-1", "hi", max_new_tokens=12))
    for number, reply in enumerate(expected):
        assert "".join(piece.text for piece in out[number]) == reply.text
    base = answerer(str(workspace / "models-here" / "tiny-base")).answer([CHAT], max_new_tokens=12)[0]
    assert base.text != expected[0].text, "they matter"


def test_an_adapter_that_cannot_share_is_served_by_itself(tmp_path: Path) -> None:
    from tuneloop.inference.open import answerer

    workspace = make_workspace(tmp_path)
    model = served("dora-1", workspace)
    assert isinstance(model, Writing)
    assert model.about["shared"] is None
    expected = answerer("dora-1", workspace).answer([CHAT], max_new_tokens=12)[0]
    assert "".join(piece.text for piece in pieces(model, query("dora-1", max_new_tokens=12))[0]) == expected.text
    with pytest.raises((ServeError, TuneloopError)) as caught:
        served("wide-1", workspace)
    assert caught.value.code == "TL-MODEL-ADAPTER-BASE"
