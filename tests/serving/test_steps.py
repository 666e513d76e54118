"""Steps that are changed while the server serves."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.testclient import TestClient

from tests.serving.scripted import CHAT, NAME, ScriptedEngine
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.admission import Admission, Question, Submit
from tuneloop.serving.engine import AnswerStream
from tuneloop.serving.http.api import create_app
from tuneloop.serving.steps import AdmissionPath

BODY = {"model": NAME, "messages": CHAT}


class Counted(Admission):
    def __init__(self) -> None:
        self.count = 0

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        self.count += 1
        return await submit(question)

    def take_over(self, before: Admission) -> None:
        assert isinstance(before, Counted)
        self.count = before.count

    def gauges(self) -> Mapping[str, float]:
        return {"counted_total": float(self.count)}


def test_a_new_step_goes_on_with_the_count_of_its_forerunner() -> None:
    first, second = Counted(), Counted()
    first.count = 3
    steps = AdmissionPath([first, Admission()], ScriptedEngine())
    steps.use([second])
    assert steps.gauges() == {"counted_total": 3.0}


def test_figures_of_steps_refusals_and_ends_are_in_the_metrics() -> None:
    step = Counted()
    with TestClient(create_app(ScriptedEngine(), admission=[step])) as client:
        client.post("/v1/chat/completions", json=BODY)
        client.post("/v1/chat/completions", json={**BODY, "max_tokens": 1, "stream": True})
        client.post("/v1/chat/completions", json={})
        text = client.get("/metrics").text
    assert "tuneloop_counted_total 2.0" in text
    assert 'tuneloop_refusals_total{code="TL-SERVE-REQUEST"} 1.0' in text
    assert f'tuneloop_answers_total{{finish="stop",model="{NAME}"}} 1.0' in text
    assert f'tuneloop_answers_total{{finish="length",model="{NAME}"}} 1.0' in text
    assert "tuneloop_waiting 0.0" in text


def test_no_page_of_another_origin_may_ask_unless_it_is_named() -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    for cors, status, allowed in (
        ([], 405, None),
        (["https://shop.example"], 200, "https://shop.example"),
        (["https://other.example"], 400, None),
    ):
        with TestClient(create_app(ScriptedEngine(), admission=[], settings=ServePart(cors=cors))) as client:
            reply = client.options("/v1/chat/completions", headers=asked)
            assert (reply.status_code, reply.headers.get("access-control-allow-origin")) == (status, allowed)
            reply = client.post("/v1/chat/completions", json=BODY, headers={"Origin": "https://shop.example"})
            assert reply.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in reply.headers
