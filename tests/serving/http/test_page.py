"""The chat page in a real browser: it streams, compares, votes, in both languages, and takes no text for markup."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import select

from tests.browser import chinese_fonts, chromium
from tests.serving.scripted import NAME, ScriptedEngine, app_of
from tuneloop.registry.store import FILE, feedback, open_store
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.http import api
from tuneloop.serving.http.page_words import page_words

sync_api = pytest.importorskip("playwright.sync_api")
KEY = "page-key"
ATTACK = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>[a](javascript:alert(1))"
ANSWER = {
    NAME: ["我是", "一个语言模型，", "可以回答问题。"],
    "tiny:adapter": ["我是小石，", "随 tuneloop ", "一起来的助手。", "先走一小步。"],
}


def script(query: Query) -> Iterator[Piece]:
    """What each model says; `attack` and `long` are asked for by the last message."""
    asked = query.chat[-1]["content"]
    if asked == "attack":
        yield Piece(thought=ATTACK)
        yield Piece(text=ATTACK, tokens=1)
    elif asked == "filter":
        yield Piece(text="Well, ", tokens=1)
        yield Piece(finish="content_filter")
        return
    elif asked == "long":
        for n in range(400):
            yield Piece(text=f"word{n} " if n % 50 else "x" * 300 + " ", tokens=1)
    else:
        for word in ANSWER[query.model]:
            yield Piece(text=word, tokens=1)
    yield Piece(finish="stop")


@contextmanager
def page_server(engine: ScriptedEngine, key: str | None = None, workspace: Path | None = None) -> Iterator[str]:
    """A real server with the page, in a thread."""
    app = app_of(engine, key, workspace=workspace)
    bound = api.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def opened(browser: Any, url: str, **more: Any) -> Iterator[Any]:
    """A page that fails the test for an error of its script, and for a request to anywhere else."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", **more})
    context.set_default_timeout(120_000)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith((url, "data:")) else problems.append(one.url))
    page.goto(url)
    yield page
    assert not problems
    context.close()


def ask(page: Any, question: str) -> None:
    page.wait_for_selector("#ask:not([hidden])")
    page.fill("#question", question)
    page.press("#question", "Enter")


def all_written(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('.answer').length === count && !document.querySelector('.writing')",
        arg=count,
    )


def test_it_streams_compares_and_votes_in_both_languages(browser: Any, tmp_path: Path) -> None:
    chinese_fonts()
    engine = ScriptedEngine(script)
    engine.seconds = 0.3
    with page_server(engine, workspace=tmp_path) as url, opened(browser, url) as page:
        votes: list[dict[str, Any]] = []
        ids: list[str] = []
        page.on("request", lambda one: votes.append(one.post_data_json) if "feedback" in one.url else None)
        page.on("response", lambda one: ids.extend(re.findall(r"chatcmpl-[\w-]+", one.text()))
                if "completions" in one.url else None)  # fmt: skip
        assert page.title() == "Chat"
        ask(page, "你是谁？")
        # Both columns fill while the answers are written.
        page.wait_for_function(
            "() => [...document.querySelectorAll('.writing .text')].filter(e => e.innerText).length === 2"
        )
        assert page.is_visible("#stop")
        all_written(page, 2)
        assert page.locator(".answer h2").all_inner_texts() == [NAME, "tiny:adapter"]
        assert page.locator(".answer .text").all_inner_texts() == [
            "".join(ANSWER[NAME]),
            "".join(ANSWER["tiny:adapter"]),
        ]
        left, right = (page.locator(".answer").nth(n).bounding_box() for n in (0, 1))
        assert left["x"] + left["width"] <= right["x"]
        assert abs(left["y"] - right["y"]) < 1
        page.locator(".answer").nth(1).locator("[data-thumb=up]").click()
        page.locator(".answer").nth(0).locator("[data-thumb=down]").click()
        page.wait_for_function("() => document.querySelectorAll('[aria-pressed=true]').length === 2")
        assert [vote["thumb"] for vote in votes] == ["up", "down"]
        assert {vote["id"] for vote in votes} == set(ids)
        assert len(set(ids)) == 2
        store = open_store(tmp_path / FILE)
        with store.read() as connection:
            rows = connection.execute(select(feedback.c.reply, feedback.c.thumb)).all()
        store.close()
        assert {tuple(row) for row in rows} == {(vote["id"], vote["thumb"]) for vote in votes}
        assert page.locator(".note").all_inner_texts() == ["Thank you, noted."] * 2
        page.screenshot(path=tmp_path / "chat-en.png")
        page.click("#language")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.locator(".note").all_inner_texts() == ["已记录，谢谢。"] * 2
        # Each model goes on with its own answers.
        ask(page, "再说一次")
        all_written(page, 4)
        chats = {query.model: query.chat for query in engine.queries[-2:]}
        for model, chat in chats.items():
            assert [turn["content"] for turn in chat] == ["你是谁？", "".join(ANSWER[model]), "再说一次"]
        page.screenshot(path=tmp_path / "chat-zh.png", full_page=True)
        page.reload()
        page.wait_for_selector("#ask:not([hidden])")
        assert page.evaluate("document.documentElement.lang") == "zh-CN", "the language is remembered"


def test_it_takes_nothing_for_markup_and_fits_a_small_dark_screen(browser: Any, tmp_path: Path) -> None:
    small = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "locale": "zh-CN"}
    with page_server(ScriptedEngine(script)) as url, opened(browser, url, **small) as page:
        assert page.title() == "对话"
        for count, question in enumerate(("attack", ATTACK, "filter", "long"), 1):
            if question == ATTACK:
                continue
            ask(page, question)
            page.wait_for_function(
                "() => !document.querySelector('.writing') && document.querySelector('#stop').hidden"
            )
            assert page.locator(".turn").count() >= count - 1
        assert page.title() == "对话"
        assert page.locator(".answer img, .answer script, .answer a").count() == 0
        assert page.locator(".answer .text").all_inner_texts()[:2] == [ATTACK, ATTACK]
        assert "已被服务器的安全策略拦截。" in page.locator(".answer .warning").all_inner_texts()
        wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=tmp_path / "chat-small.png")


def test_a_key_is_asked_for_and_a_stream_is_stopped(browser: Any) -> None:
    engine = ScriptedEngine(script)
    engine.seconds = 0.3
    with page_server(engine, KEY) as url, opened(browser, url) as page:
        page.wait_for_selector("#key_form:not([hidden])")
        assert not page.is_visible("#ask")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_function("() => document.querySelector('#trouble').textContent")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        ask(page, "long")
        page.wait_for_function("() => document.querySelector('.writing .text').innerText")
        page.click("#stop")
        all_written(page, 2)
        assert page.locator(".answer .warning").all_inner_texts() == ["Stopped.", "Stopped."]
        page.wait_for_timeout(1500)
        assert all(stream.closed for stream in engine.streams), "the server goes on writing"


def test_its_files_are_open_and_hold_no_data() -> None:
    with TestClient(app_of(ScriptedEngine(), KEY)) as client:
        for path, kind in (("/", "text/html"), ("/page/chat.css", "text/css"), ("/page/chat.js", "text/javascript")):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (200, kind)
            assert NAME not in reply.text
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert not re.search(r"""(src|href)=["'](https?:)?//""", reply.text)
        assert client.get("/page/other.js").status_code == 404
        assert client.get("/v1/models").status_code == 401


def test_every_word_of_the_page_is_there_in_both_languages() -> None:
    words, folder = page_words(), Path(api.__file__).parents[1] / "page"
    text = (folder / "index.html").read_text(encoding="utf-8") + (folder / "chat.js").read_text(encoding="utf-8")
    used = set(re.findall(r'data-(?:word|hint)="(\w+)"', text)) | set(re.findall(r'say\("(\w+)"\)', text))
    assert used <= set(words["en"]) == set(words["zh"])
    assert {word for word in words["en"] if words["en"][word] == words["zh"][word]} <= set()
    assert json.dumps(words)
