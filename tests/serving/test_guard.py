"""The guard at the server: what of questions and answers passes, over HTTP, streamed and whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import encoders
from tests.serving.scripted import CHAT, NAME, ScriptedEngine, app_of, score, serving
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import CachePart, SafetyPart, ServePart
from tuneloop.safety.guard import TextGuard
from tuneloop.safety.policy import ModelGuardPart, read_policy
from tuneloop.serving.application import admission_steps
from tuneloop.serving.engine import CallPiece, Piece, Query
from tuneloop.serving.guard import AuditLog, GuardStep, policy_version
from tuneloop.serving.guard_model import FAILED, EndpointJudge, EngineJudge, ModelGuard

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
SECRET = "13812345678"


def answers(*pieces: Piece) -> Any:
    return lambda query: iter(pieces)


def words(text: str, choice: int = 0) -> list[Piece]:
    return [*(Piece(choice, char) for char in text), Piece(choice, finish="stop", tokens=len(text))]


class Guarded:
    """A guarded application, its engine and its audit records."""

    def __init__(self, tmp_path: Path, script: Any, policy: str = "default", model: ModelGuard | None = None) -> None:
        self.engine, self.path = ScriptedEngine(script), tmp_path / "audit.jsonl"
        self.step = GuardStep(TextGuard.load(policy), AuditLog(self.path), model)
        self.client = TestClient(app_of(self.engine, steps=[self.step]))

    def chat(self, text: str, **fields: Any) -> Any:
        body = {"model": NAME, "messages": [{"role": "user", "content": text}], **fields}
        return self.client.post(CHATS, json=body)

    def events(self, text: str, **fields: Any) -> list[Any]:
        lines = self.chat(text, stream=True, **fields).text.split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]

    def records(self) -> list[Any]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def said(events: list[Any], field: str = "content") -> str:
    return "".join(c["delta"].get(field) or "" for event in events for c in event["choices"])


def finishes(events: list[Any]) -> list[str]:
    return [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]


def test_a_blocked_question_reaches_no_model(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, answers(*words("fine")))
    reply = guarded.chat("专业代 开 发 票，价格从优", n=2)
    assert reply.status_code == 200
    assert [(c["finish_reason"], c["message"]["content"]) for c in reply.json()["choices"]] == [
        ("content_filter", "")
    ] * 2
    assert reply.json()["usage"]["total_tokens"] == 0
    assert finishes(guarded.events("专业代*开*发*票")) == ["content_filter"]
    assert guarded.engine.queries == []
    assert {r["blocked"] for r in guarded.records()} == {True}
    [first, _] = guarded.records()
    assert first["side"] == "input"
    assert first["model"] == NAME
    assert first["policy"] == guarded.step.version
    assert first["findings"] == [{"category": "ads", "action": "block", "count": 1}]
    assert "发票" not in guarded.path.read_text()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_before_a_blocked_word(tmp_path: Path, stream: bool) -> None:
    text = f"电话{SECRET}，我们代\u200b开发票，快来 more"
    guarded = Guarded(tmp_path, answers(*words(text)))
    if stream:
        events = guarded.events("hello")
        shown, finish = said(events), finishes(events)
    else:
        [choice] = guarded.chat("hello").json()["choices"]
        shown, finish = choice["message"]["content"], [choice["finish_reason"]]
    assert shown == "电话[MOBILE]，我们"
    assert finish == ["content_filter"]
    assert [stream.closed for stream in guarded.engine.streams] == [True]
    [record] = guarded.records()
    assert (record["side"], record["blocked"]) == ("output", True)
    assert {f["category"] for f in record["findings"]} == {"ads", "mobile"}
    assert SECRET not in guarded.path.read_text()


def test_one_of_several_answers_is_blocked_alone(tmp_path: Path) -> None:
    pieces = [p for pair in zip(words("say 代开发票 now"), words("all is fine,", 1), strict=True) for p in pair]
    reply = Guarded(tmp_path, answers(*pieces)).chat("hello", n=2).json()
    assert [(c["message"]["content"], c["finish_reason"]) for c in reply["choices"]] == [
        ("say ", "content_filter"),
        ("all is fine,", "stop"),
    ]


def test_thoughts_and_calls_are_looked_at(tmp_path: Path) -> None:
    thought = [
        Piece(thought="write to li@exam"),
        Piece(thought="ple.com"),
        Piece(text="done"),
        Piece(finish="stop", tokens=3),
    ]
    message = Guarded(tmp_path, answers(*thought)).chat("hi").json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("write to [EMAIL]", "done")
    hidden = json.dumps({"a": "f\u0443ck u", "to": "li@example.com"})
    call = [
        Piece(calls=(CallPiece(0, "c1", "send"), CallPiece(0, arguments=hidden[:9]))),
        Piece(calls=(CallPiece(0, arguments=hidden[9:]),)),
        Piece(finish="tool_calls", tokens=9),
    ]
    reply = Guarded(tmp_path, answers(*call)).chat(
        "hi", tools=[{"type": "function", "function": {"name": "send", "parameters": {}}}]
    )
    [made] = reply.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"])["to"] == "[EMAIL]"
    bad = [Piece(calls=(CallPiece(0, "c1", "send", '{"a": "\\u4ee3开发票"}'),)), Piece(finish="tool_calls", tokens=9)]
    reply = Guarded(tmp_path, answers(*bad)).chat(
        "hi", tools=[{"type": "function", "function": {"name": "send", "parameters": {}}}]
    )
    [choice] = reply.json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities_spell_nothing_that_was_masked(tmp_path: Path, stream: bool) -> None:
    def pieces(*texts: str) -> Any:
        return answers(
            *(Piece(0, text, scores=(score(text, -0.5, 2),)) for text in texts), Piece(finish="stop", tokens=2)
        )

    dirty = Guarded(tmp_path, pieces("oh ", "fuck", " you"))
    answered = dirty.chat("hi", logprobs=True, top_logprobs=2, stream=stream).text
    assert "fuck" not in answered
    assert "***" in answered
    clean = Guarded(tmp_path, pieces("oh ", "dear"))
    if stream:
        scored = [
            c["logprobs"] for event in clean.events("hi", logprobs=True, top_logprobs=2) for c in event["choices"]
        ]
        assert ["".join(one["token"] for one in part["content"]) for part in scored if part] == ["oh dear"]
    else:
        [choice] = clean.chat("hi", logprobs=True, top_logprobs=2).json()["choices"]
        assert [one["token"] for one in choice["logprobs"]["content"]] == ["oh ", "dear"]


def test_what_a_question_may_not_hold_is_masked_where_the_policy_says_so(tmp_path: Path) -> None:
    policy = tmp_path / "own.yaml"
    policy.write_text(
        "name: own\nversion: 3\npersonal_data: {input: mask, output: off}\nwords:\n  rivals: [Acme Corp]\nactions:\n  rivals: mask\n"
    )
    guarded = Guarded(tmp_path, answers(*words(f"Acme  Corp, {SECRET}")), str(policy))
    reply = guarded.chat(f"my number is {SECRET}; ＡＣＭＥ Corp?").json()
    assert guarded.engine.queries[0].chat == [{"role": "user", "content": "my number is [MOBILE]; ***?"}]
    assert reply["choices"][0]["message"]["content"] == f"***, {SECRET}"
    assert guarded.step.version.startswith("own:3:")


def test_completions_labels_and_token_ids(tmp_path: Path) -> None:
    guarded = Guarded(
        tmp_path,
        lambda query: iter(
            [Piece(labels={"good": 1.0}, text="good", finish="stop")] if query.purpose == "label" else words("ok")
        ),
    )
    blocked = guarded.client.post(TEXTS, json={"model": NAME, "prompt": ["fine", "代开发票"]}).json()
    assert [(c["text"], c["finish_reason"]) for c in blocked["choices"]] == [("ok", "stop"), ("", "content_filter")]
    ids = guarded.client.post(TEXTS, json={"model": NAME, "prompt": [1, 2]})
    assert (ids.status_code, ids.json()["error"]["code"]) == (400, "TL-SERVE-GUARD-TOKENS")
    label = guarded.client.post("/v1/classify", json={"model": "sorter", "input": "代开发票"})
    assert (label.status_code, label.json()["error"]["code"]) == (400, "TL-SERVE-GUARD")
    assert guarded.client.post("/v1/classify", json={"model": "sorter", "input": "hello"}).json()["label"] == "good"


class Judge:
    """Finds a word bad, and may be down."""

    def __init__(self, down: bool = False) -> None:
        self.down, self.seen = down, []  # type: ignore[var-annotated]

    async def scores(self, text: str) -> Mapping[str, float]:
        self.seen.append(text)
        if self.down:
            raise ServeError("TL-SERVE-DOWN")
        return {"bad": 0.9 if "evil" in text else 0.1}

    async def aclose(self) -> None: ...

    def shut(self) -> None: ...


def test_a_model_judges_whole_texts_before_anything_passes(tmp_path: Path) -> None:
    part = ModelGuardPart(url="http://127.0.0.1:9/v1", labels=["bad"], sides=["input", "output"])
    judge = Judge()
    guarded = Guarded(tmp_path, answers(*words("an evil plan")), model=ModelGuard(part, judge))
    assert finishes(guarded.events("evil")) == ["content_filter"]
    assert guarded.engine.queries == []
    events = guarded.events("good")
    assert (said(events), finishes(events)) == ("", ["content_filter"])
    assert judge.seen == ["evil", "good", "an evil plan"]
    passing = Guarded(tmp_path, answers(*words("a good plan")), model=ModelGuard(part, judge))
    assert said(passing.events("good")) == "a good plan"


@pytest.mark.parametrize(("policy", "finish"), [("open", "stop"), ("closed", "content_filter")])
def test_a_judge_that_is_down(tmp_path: Path, policy: Any, finish: str) -> None:
    part = ModelGuardPart(url="http://127.0.0.1:9/v1", labels=["bad"], on_failure=policy)
    guarded = Guarded(tmp_path, answers(*words("a plan")), model=ModelGuard(part, Judge(down=True)))
    assert finishes(guarded.events("good")) == [finish]


def test_an_endpoint_judges() -> None:
    """A real server of ours as the judge, by /v1/classify; and one that is not there."""
    with serving(
        ScriptedEngine(lambda query: iter([Piece(text="bad", labels={"good": 0.1, "bad": 0.9}, finish="stop")]))
    ) as judge:
        part = ModelGuardPart(url=f"{judge.url}/v1", name="sorter", labels=["bad"])
        assert asyncio.run(ModelGuard(part, EndpointJudge(part)).refused("some text")) == "bad"
        mild = part.model_copy(update={"labels": ["good"]})
        assert asyncio.run(ModelGuard(mild, EndpointJudge(mild)).refused("some text")) == ""
    assert asyncio.run(ModelGuard(part, EndpointJudge(part)).refused("some text")) == FAILED


def test_a_run_judges_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "labels", "bert", "AutoModelForSequenceClassification")
    part = ModelGuardPart(run=str(folder), labels=["LABEL_0", "LABEL_1"], threshold=1e-6, seconds=120)

    async def main() -> None:
        guard = ModelGuard.load(part, tmp_path)
        try:
            assert await guard.refused("the film was good .") == "LABEL_0"
        finally:
            await guard.aclose()

    asyncio.run(main())


def test_an_engine_judges() -> None:
    engine = ScriptedEngine()
    part = ModelGuardPart(run="runs/sorter-1", labels=["good"])
    assert asyncio.run(ModelGuard(part, EngineJudge(engine, "sorter")).refused("some text")) == "good"
    [query] = engine.queries
    assert query == Query("label", "sorter", chat=[{"role": "user", "content": "some text"}])


def test_the_section_of_the_recipe_makes_the_step(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    assert GuardStep not in [type(step) for step in admission_steps(ServePart(), engine, "k")]
    part = SafetyPart(policy="default", audit=str(tmp_path / "a.jsonl"))
    steps = admission_steps(ServePart(safety=part), engine, "k")
    assert [type(step).__name__ for step in steps] == ["Access", "KeyLimits", "GuardStep", "Queue"]
    assert policy_version(part).startswith("default:1:")
    assert policy_version(SafetyPart()) == ""
    own = tmp_path / "own.yaml"
    own.write_text("words: {rivals: [Acme]}\n")
    assert read_policy(own)[2] != read_policy()[2]


@pytest.mark.parametrize(
    "text", ["actions: {porn: forbid}", "acttions: {}", "- a", "a: [", "model: {run: x}", "model: {}"]
)
def test_a_policy_that_cannot_be_used_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ServeError) as caught:
        read_policy(path)
    assert caught.value.code == "TL-SERVE-POLICY"
    assert str(path) in str(caught.value)
    with pytest.raises(ServeError, match="TL-SERVE-POLICY"):
        read_policy(tmp_path / "none.yaml")


BLOCKED = "代开发票"


def earlier_call(arguments: Any = "{}", call: str = "c1", answered: str = "c1") -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": call, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": answered, "content": "ok"},
    ]


def described(text: str) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {"id": {"type": "string", "description": text}}}
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


PLACES: dict[str, dict[str, Any]] = {
    "an argument called id": {"messages": earlier_call(json.dumps({"id": BLOCKED}))},
    "an argument called type": {"messages": earlier_call({"of": [{"type": BLOCKED}]})},
    "an argument's name": {"messages": earlier_call({BLOCKED: 1})},
    "an argument given twice": {"messages": earlier_call(f'{{"a": "{BLOCKED}", "a": "x"}}')},
    "the id of a call": {"messages": earlier_call(call=BLOCKED)},
    "the call that a tool answers": {"messages": earlier_call(answered=BLOCKED)},
    "a name": {"messages": [{"role": "user", "name": BLOCKED, "content": "x"}]},
    "a tool's argument called id": {"tools": described(BLOCKED)},
    "a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": BLOCKED}}}
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_request_is_passed_over(place: str, tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, answers(*words("fine")))
    reply = guarded.chat("Hi", **PLACES[place])
    assert reply.json()["choices"][0]["finish_reason"] == "content_filter", reply.text
    assert guarded.engine.queries == []


def test_harmless_calls_and_schemas_pass_as_they_are(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, answers(*words("fine")))
    messages = earlier_call({"id": "7", "type": "object", "call": SECRET}, "call_9", "call_9")
    assert guarded.chat("", messages=messages, tools=described("an id")).status_code == 200
    [query] = guarded.engine.queries
    assert query.chat[1]["tool_calls"][0]["function"]["arguments"]["call"] == SECRET
    assert query.chat[2]["tool_call_id"] == "call_9"
    assert query.tools[0] == described("an id")[0]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (json.dumps({"id": BLOCKED}), None),
        (json.dumps({"type": BLOCKED}), None),
        (f'{{"a": "{BLOCKED}", "a": "x"}}', '{"a": "x"}'),
        (f'{{"phone": {SECRET}}}', '{"phone": "[MOBILE]"}'),
        (json.dumps({"id": SECRET}), '{"id": "[MOBILE]"}'),
        ('{"n": 7, "b": true}', '{"n": 7, "b": true}'),
        ("[" * 900 + "]" * 900, "[" * 900 + "]" * 900),
    ],
)
def test_no_argument_of_a_call_is_passed_over(arguments: str, shown: str | None, tmp_path: Path) -> None:
    pieces = [Piece(calls=(CallPiece(0, "c", "f", arguments),)), Piece(finish="tool_calls", tokens=3)]
    [choice] = Guarded(tmp_path, answers(*pieces)).chat("Hi").json()["choices"]
    if shown is None:
        assert choice["finish_reason"] == "content_filter"
        assert not choice["message"].get("tool_calls")
    else:
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == shown


@pytest.mark.parametrize("depth", [100, 600, 900, 100_000])
def test_arguments_nested_without_end_are_text(depth: int, tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, answers(*words("fine")))
    assert guarded.chat("", messages=earlier_call("[" * depth + f'"{SECRET}"' + "]" * depth)).status_code == 200
    assert isinstance(guarded.engine.queries[0].chat[1]["tool_calls"][0]["function"]["arguments"], str)


def test_a_model_judges_calls_thoughts_and_tools_too(tmp_path: Path) -> None:
    part = ModelGuardPart(url="http://127.0.0.1:9/v1", labels=["bad"], sides=["input", "output"])
    guarded = Guarded(tmp_path, answers(*words("fine")), model=ModelGuard(part, Judge()))
    thought = {"role": "assistant", "content": "y", "reasoning_content": "evil"}
    for fields in (
        {"messages": earlier_call({"a": "evil"})},
        {"messages": [thought, *CHAT]},
        {"tools": described("evil")},
    ):
        assert guarded.chat("Hi", **fields).json()["choices"][0]["finish_reason"] == "content_filter"
    assert guarded.engine.queries == []
    called = [Piece(calls=(CallPiece(0, "c", "f", '{"a": "evil"}'),)), Piece(finish="tool_calls", tokens=3)]
    calling = Guarded(tmp_path, answers(*called), model=ModelGuard(part, Judge()))
    assert calling.chat("Hi").json()["choices"][0]["finish_reason"] == "content_filter"


def test_what_stands_before_a_blocked_word_is_judged_too(tmp_path: Path) -> None:
    part = ModelGuardPart(url="http://127.0.0.1:9/v1", labels=["bad"], sides=["output"])
    for text, shown in (("an evil plan, " + BLOCKED, ""), ("a good plan, " + BLOCKED, "a good plan, ")):
        events = Guarded(tmp_path, answers(*words(text)), model=ModelGuard(part, Judge())).events("Hi")
        assert (said(events), finishes(events)) == (shown, ["content_filter"])


def test_a_model_that_is_not_served_gets_into_no_record_and_no_figure(tmp_path: Path) -> None:
    """A blocked question reaches no engine, which would have refused the name: any text may be one."""
    engine, path = ScriptedEngine(answers(*words("fine"))), tmp_path / "audit.jsonl"
    step = GuardStep(TextGuard.load(), AuditLog(path), engine=engine)
    client = TestClient(app_of(engine, steps=[step]))
    for name, content in (("a secret name", BLOCKED), ("a secret name", SECRET), (NAME, BLOCKED)):
        client.post(CHATS, json={"model": name, "messages": [{"role": "user", "content": content}]})
    prompts = {"model": "a secret name", "prompt": [BLOCKED] * 9}
    assert client.post(TEXTS, json=prompts).status_code == 200
    assert "a secret name" not in path.read_text()
    figures = client.get("/metrics").text
    assert "a secret name" not in figures
    assert f'tuneloop_answers_total{{finish="content_filter",model="{NAME}"}} 1.0' in figures


def test_settings_that_are_wrong_leave_no_judge_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload that fails is tried again and again; the judge may be a process with a model."""
    closed = list[bool]()
    judge = EngineJudge(ScriptedEngine(), "sorter")
    monkeypatch.setattr(judge, "shut", lambda: closed.append(True))
    monkeypatch.setattr(ModelGuard, "load", lambda part, workspace: ModelGuard(part, judge))
    policy = tmp_path / "guard.yaml"
    policy.write_text("model: {run: runs/sorter-1, labels: [bad]}\n", encoding="utf-8")
    settings = ServePart(safety=SafetyPart(policy=str(policy)), cache=CachePart(backend="redis"))
    monkeypatch.delenv("TUNELOOP_REDIS", raising=False)
    with pytest.raises(ServeError, match="TL-SERVE-CACHE"):
        admission_steps(settings, ScriptedEngine(), None, tmp_path)
    assert closed == [True]
