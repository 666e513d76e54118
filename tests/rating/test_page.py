"""The rating page in a real browser: by keyboard alone, through a killed server, in both languages."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chinese_fonts, chromium
from tests.rating.made import CONTEXT, answers, run_with
from tuneloop.evaluation.evaluation import Answer
from tuneloop.rating.study import Study
from tuneloop.runs.run import Run

sync_api = pytest.importorskip("playwright.sync_api")
HARD = [
    Answer("Write a lot.", "word " * 20_000, "x" * 100_000, context=()),
    Answer("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة.", "", context=CONTEXT),
    Answer("为什么天空是蓝色的？", "因为瑞利散射。" * 40, "👩‍👩‍👧‍👦🏳️‍🌈" * 30, context=()),
    Answer(
        "<b>bold</b>", "<script>document.title = 'taken'</script>", "</script><img src=x onerror=alert(1)>", context=()
    ),
]


@contextmanager
def served(workspace: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tuneloop rate` in a process of its own, and the address it prints."""
    command = [sys.executable, "-m", "tuneloop", "rate", "demo-1", "-w", str(workspace), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield process, re.search(r"http\S+", line)[0]  # type: ignore[index]
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


def page_of(browser: Any, **more: Any) -> Any:
    """A page that fails the test for what it says on the console, and for a request to anywhere else."""
    page = browser.new_context(**more).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if re.match(r"http://127\.0\.0\.1:|data:", request.url) else page.problems.append(request.url)
        ),
    )
    return page


def rate_by_keys(page: Any, n: int) -> None:
    """One row: eight marks and a choice, then Enter."""
    before = page.evaluate("document.body.dataset.place")
    for key in ("4", "3", "2", "p", "1", "0"):
        page.keyboard.press(key)
    page.keyboard.press(str(n % 6))
    if n % 5 == 4:
        page.keyboard.press("f")
        page.keyboard.type(f"reason {n}")
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("p")
    page.keyboard.press("abtx"[n % 4])
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.body.dataset.place !== before", arg=before)


@pytest.mark.slow
def test_twenty_ratings_by_keyboard_through_a_killed_server(tmp_path: Path, browser: Any) -> None:
    run = run_with(tmp_path, answers(20))
    page = page_of(browser)
    with served(tmp_path, "--rater", "Li", "--repeats", "0") as (process, url):
        page.goto(url)
        page.wait_for_selector("#work:not([hidden])")
        for n in range(9):
            rate_by_keys(page, n)
        page.keyboard.press("5")
        page.wait_for_function("() => document.getElementById('saved').textContent === 'Saved'")
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("1")
        page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Not saved yet')")
    study = Study.read(Study.at(run, None))
    assert study is not None
    assert [rating.complete for rating in study.ratings()] == [True] * 9 + [False]
    assert study.ratings()[-1].a.scores == (5, None, None)

    with served(tmp_path, "--rater", "Li") as (process, url):
        page.goto(url)
        page.wait_for_selector("#work:not([hidden])")
        assert "10 of 20 · 11 to rate" in page.inner_text("#place")
        page.keyboard.press("ArrowUp")  # the first mark was saved: the cursor stands behind it
        for n in range(9, 20):
            rate_by_keys(page, n)
        page.wait_for_selector("#done:not([hidden])")
        page.wait_for_function("() => document.getElementById('saved').textContent === 'Saved'")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert "20 rows rated" in said
    assert "Win rate of demo-1" in said
    study = Study.read(Study.at(run, None))
    assert study is not None
    made = {(rating.pair, rating.kind): rating for rating in study.ratings()}
    for n, slot in enumerate(study.plans["Li"]):
        rating = made[slot.pair, slot.kind]
        assert rating.complete
        assert (rating.a.scores, rating.b.scores) == ((4, 3, 2), (1, 0, n % 6))
        assert rating.choice == ("A", "B", "tie", "both_bad")[n % 4]
        assert (rating.b.safe, rating.b.reason) == ((False, f"reason {n}") if n % 5 == 4 else (True, ""))
        assert (rating.model_a == "demo-1") == slot.swapped
    assert not page.problems


def test_hard_answers_fit_in_both_languages(tmp_path: Path, browser: Any) -> None:
    chinese_fonts()
    run_with(tmp_path, HARD)
    with served(tmp_path, "--repeats", "0") as (_, url):
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = page_of(browser, viewport={"width": width, "height": 844}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_selector("#rater")
            page.keyboard.type(f"Rater Ü 李 {width}")
            page.keyboard.press("Enter")
            for _ in HARD:
                page.wait_for_selector("#work:not([hidden])")
                for tongue in ("zh-CN", "en"):
                    page.click("#language")
                    assert page.evaluate("document.documentElement.lang") == tongue
                    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                    assert wide <= inner
                    text = page.inner_text("#work")
                    assert ("相关性" in text) == (tongue == "zh-CN")
                    assert not re.search(r"undefined|NaN|\{\w+\}", text)
                rate_by_keys_from_the_first_field(page)
            page.wait_for_selector("#done:not([hidden])")
            assert page.title() == "Rate answers"  # no answer is read as HTML
            assert not page.problems


def rate_by_keys_from_the_first_field(page: Any) -> None:
    before = page.evaluate("document.body.dataset.place")
    page.focus("fieldset input")
    for key in "543p210p":
        page.keyboard.press(key)
    page.keyboard.press("t")
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.body.dataset.place !== before", arg=before)


def test_enter_names_what_is_still_to_be_rated(tmp_path: Path, browser: Any) -> None:
    run_with(tmp_path, answers(2))
    page = page_of(browser)
    with served(tmp_path, "--rater", "Li") as (_, url):
        page.goto(url)
        page.wait_for_selector("#work:not([hidden])")
        page.keyboard.press("a")
        page.keyboard.press("Enter")
        assert page.inner_text("#missing") == "Still to be rated: A: Relevance"
        for key in ("5", "5", "5", "f", "Enter", "5", "5", "5", "p", "Enter"):
            page.keyboard.press(key)
        assert page.inner_text("#missing") == "Still to be rated: A: Safety"  # failed, and no reason


def test_nothing_that_is_sent_tells_whose_an_answer_is(tmp_path: Path) -> None:
    run_with(tmp_path, answers(12))
    with served(tmp_path, "--rater", "Li", "--repeats", "0.5") as (_, url):
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"rater": "Li"}).encode()
        joined = json.loads(urllib.request.urlopen(urllib.request.Request(f"{url}join", body, headers)).read())
        assert joined["total"] == 18
        sent = [json.loads(urllib.request.urlopen(f"{url}slot?rater=Li&n={n}").read()) for n in range(18)]
    for one in sent:
        assert set(one) == {"context", "prompt", "answer_a", "answer_b", "cut_a", "cut_b", "rating"}
        assert "demo-1" not in json.dumps(one)
        assert not {"pair", "kind", "model_a", "model_b"} & set(one["rating"])
    left = [one["answer_a"].startswith("before") for one in sent]
    assert 6 <= sum(left) <= 12


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        (lambda url: re.sub(r"(:\d+)/[^/]+/", r"\1/wrong/", url), {}),
        (lambda url: re.sub(r"(:\d+)/.*", r"\1/", url), {}),
        (lambda url: url, {"Host": "evil.example"}),
        (lambda url: url, {"Host": "192.168.1.5:80"}),
        (lambda url: url, {"Origin": "http://evil.example"}),
        (lambda url: url, {"Origin": "null"}),
        (lambda url: url, {"Sec-Fetch-Site": "cross-site"}),
    ],
    ids=["token", "no token", "host", "other address", "origin", "no origin", "cross-site"],
)
def test_nobody_else_gets_in(address: str, change: Any, headers: dict[str, str]) -> None:
    request = urllib.request.Request(change(address), headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 404
    join = urllib.request.Request(
        f"{change(address)}join", b'{"rater": "Eve"}', {"Content-Type": "application/json", **headers}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(join)
    assert caught.value.code == 404


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("served")
    run_with(place, answers(3))
    with served(place, "--rater", "Li") as (_, url):
        yield url
    study = Study.read(Study.at(Run(place / "runs" / "demo-1"), None))
    assert study is not None
    assert not study.ratings()
    assert "Eve" not in study.plans


@pytest.mark.parametrize(
    ("path", "body", "kind", "code"),
    [
        ("join", b"rater=Eve", "application/x-www-form-urlencoded", 415),
        ("join", b'{"rater": "Eve"}', "text/plain", 415),
        ("join", b"nonsense", "application/json", 400),
        ("join", b"[" * 60_000, "application/json", 400),
        ("join", b'{"rater": "\\u0000"}', "application/json", 400),
        ("slot", b'{"rater": "nobody", "n": 0, "rating": {}}', "application/json", 404),
        ("slot", b'{"rater": "Li", "n": 99, "rating": {}}', "application/json", 404),
        ("slot", b'{"rater": "Li", "n": 0, "rating": {"relevance_a": 6}}', "application/json", 400),
        ("slot", b'{"rater": "Li", "n": 0, "rating": {"choice": "C"}}', "application/json", 400),
        ("slot", b'{"rater": "Li", "n": 0, "rating": []}', "application/json", 400),
        ("slot", b'{"x": "' + b"x" * 70_000 + b'"}', "application/json", 413),
    ],
)
def test_what_is_no_rating_is_refused(address: str, path: str, body: bytes, kind: str, code: int) -> None:
    join = urllib.request.Request(f"{address}join", b'{"rater": "Li"}', {"Content-Type": "application/json"})
    urllib.request.urlopen(join)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{address}{path}", body, {"Content-Type": kind}))
    assert caught.value.code == code


def test_the_page_forbids_all_that_is_not_its_own(address: str) -> None:
    with urllib.request.urlopen(address) as reply:
        policy, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)


def test_a_store_that_is_away_loses_no_rating(tmp_path: Path) -> None:
    from tests.rating.made import rating, study_of
    from tuneloop.base.errors import RunError
    from tuneloop.rating.server import Desk

    def away() -> None:
        raise RunError("TL-RUN-STORE-BUSY", where="x", error="locked")

    study = study_of(run_with(tmp_path, answers(3)), repeats=0)
    desk = Desk(study, away)
    joined = desk.join(" Li ")
    assert joined == {"rater": "Li", "total": 3, "place": 0, "left": 3}
    columns = rating(study, "Li", 0, "first").as_dict()
    assert desk.rate("Li", 0, columns) == {"left": 2}
    again = Study.read(study.folder)
    assert again is not None
    assert Desk(again).join("Li") == {"rater": "Li", "total": 3, "place": 1, "left": 2}


def test_a_page_cannot_say_who_stood_where(tmp_path: Path) -> None:
    from tests.rating.made import study_of
    from tuneloop.rating.server import Desk

    study = study_of(run_with(tmp_path, answers(2)), repeats=0)
    desk = Desk(study)
    desk.join("Li")
    forged = {"choice": "A", "model_a": "me", "pair": "x", "rater": "Ana", "kind": "gold"}
    desk.rate("Li", 0, forged)
    (made,) = study.ratings()
    slot = study.plans["Li"][0]
    assert (made.pair, made.rater, made.kind) == (slot.pair, "Li", "row")
    assert {made.model_a, made.model_b} == set(study.models)
