"""A model behind an address answers as one in this process does, on a good day and on a bad one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.endpoint_server import Server, running
from tuneloop.base.errors import MachineError
from tuneloop.base.records import Reply
from tuneloop.inference.endpoint import UNTOLD, EndpointAnswerer


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as one:
        yield one


def question(n: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"question {n}"}]


def far(server: Server, **more: Any) -> EndpointAnswerer:
    return EndpointAnswerer(f"{server.url}/v1", **{"model": "big", "key": "secret", "wait": 0.01, **more})


def completion(text: str | None, **more: Any) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 5}
    message = {"role": "assistant", "content": text, **more}
    return json.dumps({"choices": [{"message": message, "finish_reason": "length"}], "usage": usage}).encode()


def test_replies_come_in_order_and_say_what_they_cost(server: Server) -> None:
    model, heard, counted = far(server), dict[int, str](), list[int]()
    replies = model.answer(
        [question(n) for n in range(20)],
        max_new_tokens=9,
        batch_size=6,
        progress=counted.append,
        each=lambda n, reply: heard.update({n: reply.text}),
    )
    assert [reply.text for reply in replies] == [f"You said: question {n}" for n in range(20)]
    assert heard == {n: reply.text for n, reply in enumerate(replies)}
    assert counted == list(range(1, 21))
    _, body, key = server.seen[0]
    assert (body["max_tokens"], body["temperature"], key) == (9, 0.0, "Bearer secret")
    assert (model.usage.calls, model.usage.estimated) == (20, True)
    assert "secret" not in repr(model)


def test_tokens_are_those_the_server_counts_and_a_thought_sent_apart_stands_before_the_text(server: Server) -> None:
    server.plan = [(200, {}, completion("Yes.", reasoning_content="Hm.")), (200, {}, completion(None))]
    model = far(server)
    first, second = model.answer([question(1), question(2)], batch_size=1)
    assert (first.text, first.prompt_tokens, first.tokens, first.finish) == (
        "<think>\nHm.\n</think>\n\nYes.",
        11,
        5,
        "length",
    )
    assert second.text == ""
    assert (model.usage.prompt_tokens, model.usage.tokens, model.usage.estimated) == (22, 10, False)


def test_what_was_under_way_when_one_request_failed_is_not_lost(server: Server) -> None:
    """The third of four requests is refused: those before it are handed over, and those after it are not sent."""
    server.plan = [(200, {}, completion("a")), (200, {}, completion("b")), (400, {}, b"too long")]
    stored: dict[int, Reply] = {}
    with pytest.raises(MachineError, match="HTTP 400 too long"):
        far(server).answer([question(n) for n in range(9)], batch_size=1, each=stored.__setitem__)
    assert [stored[n].text for n in (0, 1)] == ["a", "b"]
    assert len(server.seen) < 9


@pytest.mark.parametrize(
    ("reply", "problem", "tries"),
    [
        ((429, {"Retry-After": "0"}, b"slow down"), "HTTP 429 slow down", 3),
        ((500, {}, b""), "HTTP 500", 3),
        ((200, {}, b""), "not JSON", 1),
        ((200, {}, b"{}"), "unknown form", 1),
        ((200, {}, b'{"choices": [{"message": {}}]}'), "unknown form", 1),
        ((404, {}, b"no such model"), "HTTP 404", 1),
    ],
    ids=["429", "500", "nothing", "no choices", "no text", "404"],
)
def test_a_server_that_will_not(server: Server, reply: Any, problem: str, tries: int) -> None:
    server.plan = [reply] * 9
    with pytest.raises(MachineError, match=problem) as caught:
        far(server, retries=2).answer([question(0)])
    busy = reply[0] in (429, 500)
    assert caught.value.code == ("TL-MACHINE-ENDPOINT-BUSY" if busy else "TL-MACHINE-ENDPOINT")
    assert ("retries: 2" in caught.value.what) == busy
    assert len(server.seen) == tries


def test_the_model_and_its_context_are_what_the_server_lists(server: Server) -> None:
    server.models = [{"id": "small", "max_model_len": 2048}]
    model = far(server, model="")
    assert (model.name, model.context) == ("small", 2048)
    server.models = [{"id": "small"}, {"id": "large"}]
    assert far(server, model="large").context == UNTOLD
    with pytest.raises(MachineError, match=r"2 models.*large"):
        far(server, model="").answer([question(0)])
    server.models = [{"id": "base"}, {"id": "tuned", "parent": "base"}]
    assert far(server, model="").name == "tuned"
    server.models = None
    assert far(server).context == UNTOLD
    with pytest.raises(MachineError, match="HTTP 404"):
        far(server, model="").answer([question(0)])


def test_half_a_body_is_asked_for_again(server: Server) -> None:
    whole = completion("Yes.")
    server.plan = [(200, {"Content-Length": str(len(whole))}, whole[:20]), (200, {}, whole)]
    assert far(server).answer([question(0)])[0].text == "Yes."
    assert len(server.seen) == 2


def test_no_chats_ask_nobody() -> None:
    assert EndpointAnswerer("http://127.0.0.1:1/v1", "big").answer([]) == []


def test_offline_asks_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")
    with pytest.raises(MachineError, match="TUNELOOP_OFFLINE"):
        EndpointAnswerer("https://llm.example.com/v1", "big").answer([question(0)])
