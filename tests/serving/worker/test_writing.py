"""A model that writes, as the engine's process has it: adapters come and go by need, calls are forced, stops differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.adapter_workspace import CHAT, OWN, POISON_ID, SMALL, make_workspace, query
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.catalogue import served_key
from tuneloop.serving.engine import CallPiece, Piece, Query
from tuneloop.serving.wire import read_error, read_piece
from tuneloop.serving.worker.served_model import serving_model
from tuneloop.serving.worker.writing import Writing

HERMES = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("writing"))


def model(workspace: Path, ref: str = OWN, **settings: Any) -> Writing:
    made = serving_model(ref, workspace, ServePart(slots=8, **settings), served_key(ref, workspace))
    assert isinstance(made, Writing)
    return made


@pytest.fixture(scope="module")
def writing(workspace: Path) -> Writing:
    return model(workspace)


def compact(writing: Writing) -> Sampling:
    """Without blanks: a model that has learned nothing would write nothing but them where JSON lets it."""
    octets = writing._format.tokens.octets
    return Sampling(
        logit_bias=tuple((n, -100.0) for n in range(len(writing._format.tokens.answers)) if octets[n].isspace())
    )


def source(workspace: Path, name: str) -> dict[str, str]:
    return {"key": served_key(name, workspace), "run": str(workspace / "runs" / name)}


def ended(writing: Writing) -> dict[int, list[Piece]]:
    """The pieces of all jobs, to their ends. Raises the first error."""
    out: dict[int, list[Piece]] = {}
    while writing.busy:
        for number, frame in writing.step():
            if "error" in frame:
                raise read_error(frame["error"])
            frame.pop("cached", None)
            out.setdefault(number, []).append(read_piece(frame))
    return out


def test_adapters_stay_within_their_memory(workspace: Path) -> None:
    size = model(workspace)._store.bytes  # type: ignore[union-attr]
    writing = model(workspace, adapter_memory=2.5 * size / (1 << 30))  # its own, and one more
    store = writing._store
    assert store is not None
    own = served_key(OWN, workspace)
    for name in ("b-1", "c-1", "b-1"):
        writing.begin(writing.accept(1, query(name, max_new_tokens=2), source(workspace, name)))
        ended(writing)
        assert set(store.keys) == {own, served_key(name, workspace)}
        assert store.bytes <= 2.5 * size


def test_an_adapter_in_use_is_not_unloaded_and_others_pass_the_one_that_waits(workspace: Path) -> None:
    size = model(workspace)._store.bytes  # type: ignore[union-attr]
    writing = model(workspace, adapter_memory=2.5 * size / (1 << 30))
    jobs = [
        (1, query("b-1", max_new_tokens=30), source(workspace, "b-1")),
        (2, query("c-1", max_new_tokens=2), source(workspace, "c-1")),
        (3, query(OWN, max_new_tokens=2), None),
    ]
    for job in jobs:
        writing.begin(writing.accept(*job))
    order: list[int] = []
    assert writing._store is not None
    while writing.busy:
        for number, frame in writing.step():
            if frame.get("finish"):
                order.append(number)
        assert len(writing._store.keys) <= 2
    assert order == [3, 1, 2]


def test_an_adapter_larger_than_the_memory_is_served_alone(workspace: Path) -> None:
    writing = model(workspace, adapter_memory=1e-9)
    for number, name in enumerate(("b-1", "c-1")):
        writing.begin(writing.accept(number, query(name, max_new_tokens=3), source(workspace, name)))
    assert [pieces[-1].tokens for pieces in ended(writing).values()] == [3, 3]


def test_half_a_character_is_refused(writing: Writing) -> None:
    for wanted in (query(OWN, "a \ud800"), Query("text", OWN, prompt="\udfff b")):
        with pytest.raises(ServeError) as caught:
            writing.accept(1, wanted, None)
        assert caught.value.code == "TL-SERVE-REQUEST"
        assert caught.value.facts["param"] in ("messages", "prompt")


def test_a_call_that_is_asked_for_is_made(workspace: Path, writing: Writing) -> None:
    tokens = writing._format.tokens
    before, tokens.template, tokens.prompts.chat_template = tokens.template, HERMES, HERMES
    try:
        for choice in ("required", "get_weather"):
            wanted = Query(
                "chat", OWN, chat=CHAT, tools=TOOLS, tool_choice=choice, max_new_tokens=80, sampling=compact(writing)
            )
            assert writing.is_slow(wanted, None)
            writing.begin(writing.accept(1, wanted, None))
            pieces = ended(writing)[1]
            calls = [call for piece in pieces for call in piece.calls]
            assert isinstance(calls[0], CallPiece)
            assert calls[0].name == "get_weather"
            assert json.loads("".join(call.arguments for call in calls))["city"] in ("Rome", "Oslo")
            assert pieces[-1].finish == "tool_calls"
            assert not "".join(piece.text for piece in pieces).strip()
        plain_ = Query("chat", OWN, chat=CHAT, tools=TOOLS, tool_choice="none", max_new_tokens=4)
        assert writing.accept(1, plain_, None).prompt.parser is None
    finally:
        tokens.template = tokens.prompts.chat_template = before


def test_tools_where_the_template_takes_none(writing: Writing) -> None:
    with pytest.raises(ServeError) as caught:
        writing.accept(1, Query("chat", OWN, chat=CHAT, tools=TOOLS), None)
    assert (caught.value.code, caught.value.facts["param"]) == ("TL-SERVE-UNSUPPORTED", "tools")


def test_an_answer_that_must_be_json(writing: Writing) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    writing.begin(writing.accept(1, query(OWN, max_new_tokens=40, schema=schema, sampling=compact(writing)), None))
    pieces = ended(writing)[1]
    assert set(json.loads("".join(piece.text for piece in pieces))) == {"n"}
    assert pieces[-1].finish == "stop"


def test_a_poisoned_row_leaves_the_others_as_they_are(writing: Writing) -> None:
    wanted = query(OWN, max_new_tokens=12)
    writing.begin(writing.accept(1, wanted, None))
    expected = "".join(piece.text for piece in ended(writing)[1])
    poisoned = Query("text", OWN, prompt=(7, POISON_ID, 9), max_new_tokens=12)
    for number, one in ((1, wanted), (2, poisoned), (3, wanted)):
        writing.begin(writing.accept(number, one, None))
    texts, errors = {1: "", 3: ""}, {}
    while writing.busy:
        for number, frame in writing.step():
            if "error" in frame:
                errors[number] = frame["error"]["code"]
            else:
                texts[number] += frame.get("text", "")
    assert errors == {2: "TL-SERVE-NUMBER"}
    assert texts == {1: expected, 3: expected}


def test_a_step_that_fails_fails_what_is_under_way_and_no_more(writing: Writing, monkeypatch: Any) -> None:
    def broken() -> Any:
        raise RuntimeError("out of memory")

    for number in (1, 2):
        writing.begin(writing.accept(number, query(OWN, max_new_tokens=9), None))
    writing.step()
    monkeypatch.setattr(writing._scheduler, "step", broken)
    events = writing.step()
    assert sorted(number for number, _ in events) == [1, 2]
    assert all(frame["error"]["code"] == "TL-SERVE-FAILED" for _, frame in events)
    assert not writing.busy
    writing.begin(writing.accept(3, query(OWN, max_new_tokens=2), None))
    assert ended(writing)[3][-1].tokens == 2


def test_what_waits_is_refused_when_the_server_closes(writing: Writing) -> None:
    jobs = [writing.accept(n, query(OWN, f"{n}", max_new_tokens=6), None) for n in range(12)]
    for job in jobs:
        writing.begin(job)
    events = writing.step()
    refused = writing.refuse_waiting()
    assert [number for number, _ in refused] == [8, 9, 10, 11], "eight have slots"
    assert {frame["error"]["code"] for _, frame in refused} == {"TL-SERVE-CLOSING"}
    pieces = ended(writing)
    assert all(pieces[number][-1].finish for number in range(8)), events


def test_the_base_is_spoken_with_in_its_own_way(workspace: Path, writing: Writing) -> None:
    job = writing.accept(1, query("tiny-base"), {"key": "", "run": ""})
    assert job.adapter is None
    assert job.format is not writing._format
    same = writing.accept(2, query("b-1"), source(workspace, SMALL[1]))
    assert same.format.tokens is writing._format.tokens, "one tokenizer for adapters that bring the same"
