"""The torch engine as its server has it: answers as alone, slots freed, faults that stay with their request, a child that
is watched."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.adapter_workspace import (
    CHAT,
    OWN,
    POISON,
    POISON_ID,
    SMALL,
    Answered,
    answered,
    behind_tie,
    copied_run,
    make_workspace,
    outcome,
    query,
    run,
    until,
)  # fmt: skip
from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.records import Sampling
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.worker.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def heard() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engine(workspace: Path, heard: list[str]) -> Iterator[TorchEngine]:
    made = TorchEngine(OWN, ServePart(slots=64), workspace, heard.append)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _idle(engine: TorchEngine) -> Iterator[None]:
    """Whatever a test does, all slots are free after it."""
    yield
    run(until(lambda: engine.pending == 0 and not engine.gauges()["answers_running"]))


def alone(engine: TorchEngine, wanted: Query) -> Answered:
    out = run(answered(engine, wanted))
    assert isinstance(out, Answered)
    return out


def together(engine: TorchEngine, queries: list[Query]) -> list[Any]:
    async def work() -> list[Any]:
        return await asyncio.gather(*(outcome(engine, one) for one in queries))

    return list(run(work()))


def test_it_says_what_the_model_says(engine: TorchEngine, workspace: Path) -> None:
    from tuneloop.inference.open import answerer

    expected = answerer(OWN, workspace).answer([CHAT], max_new_tokens=24)[0]
    own = alone(engine, query(OWN))
    assert (own.text, own.tokens, own.finish) == (expected.text, 24, "length")
    assert own.prompt_tokens == expected.prompt_tokens


def test_what_may_be_asked_for(engine: TorchEngine) -> None:
    entries = run(engine.models())
    assert entries[0].name == OWN
    assert {entry.name for entry in entries} == {"tiny-base", *SMALL, "wide-1", "dora-1"}
    assert {entry.base for entry in entries if entry.name != "tiny-base"} == {"tiny-base"}
    assert next(entry for entry in entries if entry.name == "tiny-base").base is None
    assert all(entry.context == 512 and entry.tasks == ("chat", "text") for entry in entries)


def test_each_name_has_an_identity_of_its_own(engine: TorchEngine, workspace: Path) -> None:
    names = (*SMALL, "tiny-base")
    known = [run(engine.identity(name)) for name in names]
    assert len({*known}) == len(names)
    assert known == [run(engine.identity(name)) for name in names]
    with pytest.raises(ServeError, match="TL-SERVE-MODEL"):
        run(engine.identity("nobody"))
    copied_run(workspace, "b-1", "b-9")
    assert run(engine.identity("b-9")) == known[1]
    changed = workspace / "runs" / "b-9" / "adapter" / "adapter_model.safetensors"
    octets = bytearray(changed.read_bytes())
    octets[-1] ^= 1
    changed.write_bytes(octets)
    time.sleep(1.1)  # as old as a list of names may be
    assert run(engine.identity("b-9")) not in known
    shutil.rmtree(changed.parents[1])


def test_requests_for_four_adapters_and_the_base_in_one_batch(engine: TorchEngine) -> None:
    models = (*SMALL[:4], "tiny-base")
    texts = [f"Question {n}: {'why ' * n}?" for n in range(4)]
    queries = [query(model, text) for text in texts for model in models]
    lone = [alone(engine, one) for one in queries]
    assert len({one.text for one in lone[: len(models)]}) == len(models), "the adapters matter"
    tied = sum(behind_tie(one, other) for one, other in zip(together(engine, queries), lone, strict=True))
    assert tied <= 0.02 * 24 * len(queries)


def test_one_bad_request_fails_alone(engine: TorchEngine) -> None:
    good = [query(model, f"question {n}") for n, model in enumerate((*SMALL[:3], OWN, OWN))]
    lone = [alone(engine, one) for one in good]
    too_long = "word " * 600
    bad = {
        "TL-SERVE-CONTEXT": query(OWN, too_long),
        "TL-SERVE-ROOM": query(OWN, max_new_tokens=5000),
        "TL-SERVE-NUMBER": Query("text", OWN, prompt=(5, POISON_ID, 6), max_new_tokens=24),
        "TL-SERVE-TOKEN": Query("text", OWN, prompt=(5, 100_000), max_new_tokens=4),
        "TL-SERVE-REQUEST": Query("text", OWN, prompt=(5, -1), max_new_tokens=4),
        "TL-SERVE-ADAPTER": query("wide-1"),
        "TL-SERVE-MODEL": query("../../etc/passwd"),
        "TL-DATA-TEMPLATE": Query("chat", OWN, chat=[{"role": "user"}], max_new_tokens=4),
        "TL-SERVE-NO-LABELS": Query("label", OWN, chat=CHAT),
        "TL-SERVE-UNSUPPORTED": Query("vector", OWN, prompt="text"),
    }
    mixed = together(engine, [*good[:3], *bad.values(), *good[3:]])
    for error, code in zip(mixed[3:-2], bad, strict=True):
        assert isinstance(error, TuneloopError), code
        assert error.code == code
    for one, other in zip([*mixed[:3], *mixed[-2:]], lone, strict=True):
        assert behind_tie(one, other) == 0


def test_an_adapter_that_cannot_share_says_so(engine: TorchEngine) -> None:
    (error,) = together(engine, [query("dora-1")])
    assert (error.code, error.facts["param"], error.facts["status"]) == ("TL-SERVE-ADAPTER", "model", 400)


def test_an_unknown_name_lists_the_nearest(engine: TorchEngine) -> None:
    (error,) = together(engine, [query("tiny-bsae")])
    assert (error.code, error.facts["param"]) == ("TL-SERVE-MODEL", "model")
    assert error.facts["known"].startswith("tiny-base")


def test_names_appear_and_move_while_it_serves(engine: TorchEngine, workspace: Path) -> None:
    from tuneloop.registry import versions

    for name in ("b", "c"):
        first = versions.register(workspace / "runs" / f"{name}-1", workspace)
        assert alone(engine, query(first.ref)).text == alone(engine, query(f"{name}-1")).text
    versions.promote(workspace, "b:v1", "production")
    assert alone(engine, query("b:production")).text == alone(engine, query("b-1")).text
    assert "b:production" in {entry.name for entry in run(engine.models())}


def test_several_answers_and_seeds(engine: TorchEngine) -> None:
    how = Sampling(temperature=1.0, seed=7)

    async def texts(n: int, seed: int) -> list[str]:
        wanted = query(OWN, n=n, sampling=Sampling(temperature=1.0, seed=seed))
        out = [""] * n
        async for piece in await engine.submit(wanted):
            out[piece.choice] += piece.text
        return out

    three = run(texts(3, 7))
    assert len(set(three)) == 3
    assert [run(texts(1, 7 + k))[0] for k in range(3)] == three
    assert alone(engine, query(OWN, sampling=how)).text == three[0]


def test_stop_texts_end_an_answer_and_are_no_part_of_it(engine: TorchEngine) -> None:
    full = alone(engine, query(OWN))
    stop = full.text[6:9]
    cut = alone(engine, query(OWN, stop=(stop, "never written")))
    assert (cut.text, cut.finish) == (full.text[: full.text.index(stop)], "stop")
    assert "".join(s.text for s in cut.scores) == cut.text or "\ufffd" in full.text
    assert cut.tokens < full.tokens


def test_scores_are_those_of_the_text(engine: TorchEngine) -> None:
    own = alone(engine, query(OWN, max_new_tokens=40, logprobs=3))
    assert len(own.scores) == 40
    written = b"".join(score.octets for score in own.scores)
    assert written.decode(errors="replace").rstrip("\ufffd") == own.text
    for score in own.scores:
        assert len(score.likeliest) == 3
        assert score.logprob == score.likeliest[0].logprob  # greedy
        assert score.token == score.likeliest[0].token


def test_an_echo_is_the_prompt_with_its_scores(engine: TorchEngine) -> None:
    wanted = Query("text", OWN, prompt="The sky is", max_new_tokens=2, logprobs=0, echo=True)
    both = alone(engine, wanted)
    assert both.text.startswith("The sky is")
    assert both.scores[0].logprob is None
    assert len(both.scores) == both.prompt_tokens + 2
    prompt_alone = alone(engine, Query("text", OWN, prompt="The sky is", max_new_tokens=0, logprobs=0, echo=True))
    assert [s.logprob for s in prompt_alone.scores] == pytest.approx(
        [s.logprob for s in both.scores[:-2]], abs=1e-5
    ) or (prompt_alone.scores[0].logprob is None)
    assert (prompt_alone.text, prompt_alone.tokens, prompt_alone.finish) == ("The sky is", 0, "length")


def test_text_of_a_request_is_no_control_token(engine: TorchEngine) -> None:
    spelled = alone(engine, query(OWN, f"say {POISON}"))
    assert spelled.tokens == 24, "its row would be poisoned"
    assert alone(engine, Query("text", OWN, prompt=f"say {POISON}", max_new_tokens=4)).tokens == 4


def test_the_prompt_that_was_read_before_is_not_read_again(engine: TorchEngine) -> None:
    text = "the same long question " * 8

    async def cached() -> int:
        stream = await engine.submit(query("d-1", text))
        [piece async for piece in stream]
        return int(stream.cached_tokens)

    run(cached())
    assert run(cached()) > 20


def test_clients_that_leave_free_their_slots(engine: TorchEngine) -> None:
    """Half of the clients are cut off at random places; the others do not notice."""
    draw = random.Random(0)
    queries = [query(SMALL[n % 3], f"question {n}", max_new_tokens=32) for n in range(40)]
    lone = [alone(engine, one) for one in queries[1::2]]

    async def leave(wanted: Query, tokens: int) -> None:
        stream = await engine.submit(wanted)
        if tokens:
            async for _ in stream:
                tokens -= 1
                if tokens <= 0:
                    break
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def work() -> list[Any]:
        stay = [asyncio.ensure_future(answered(engine, one)) for one in queries[1::2]]
        go = [asyncio.ensure_future(leave(one, draw.randrange(12))) for one in queries[::2]]
        cancelled = asyncio.ensure_future(answered(engine, queries[0]))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(*go)
        return await asyncio.gather(*stay)

    tied = sum(behind_tie(one, other) for one, other in zip(run(work()), lone, strict=True))
    assert tied <= 0.02 * 32 * len(lone)


def test_a_refusal_does_not_wait_for_answers(engine: TorchEngine) -> None:
    async def work() -> None:
        streams = [await engine.submit(query(OWN, f"{n}", max_new_tokens=400)) for n in range(8)]
        with pytest.raises(ServeError, match="TL-SERVE-ROOM"):
            await engine.submit(query(OWN, max_new_tokens=5000))
        assert engine.pending == 8
        for stream in streams:
            await stream.aclose()

    run(work())


def test_an_adapter_is_loaded_while_others_are_answered(workspace: Path, engine: TorchEngine) -> None:
    """No token waits for it longer than 2 s: ten times what is promised."""
    copied_run(workspace, "e-1", "fifth-1")
    gaps: list[float] = []

    async def watch(wanted: Query) -> None:
        last = time.monotonic()
        async for _ in await engine.submit(wanted):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def work() -> Answered:
        tasks = [asyncio.ensure_future(watch(query(name, max_new_tokens=300))) for name in SMALL[:4]]
        await until(lambda: len(gaps) > 40)
        del gaps[:]
        fifth = await answered(engine, query("fifth-1"))
        assert not all(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        return fifth

    assert run(work()).text == alone(engine, query("e-1")).text
    print(f"longest wait for a token while an adapter is loaded: {max(gaps) * 1000:.0f} ms")
    assert max(gaps) < 2.0


def test_loops_in_other_threads_and_loops_that_ended(engine: TorchEngine) -> None:
    async def leave() -> None:
        await engine.submit(query(OWN, max_new_tokens=400))

    asyncio.run(leave())
    texts: list[str] = []

    def work() -> None:
        texts.append(run(answered(engine, query(OWN))).text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_a_killed_child_fails_its_requests_and_the_next_one_works(engine: TorchEngine, heard: list[str]) -> None:
    expected = alone(engine, query(OWN))
    me = psutil.Process()
    running = engine._supervisor.child
    assert running is not None
    child, children = psutil.Process(running.pid), len(me.children())
    files, threads = me.num_fds(), me.num_threads()

    async def work() -> list[Any]:
        tasks = [asyncio.ensure_future(outcome(engine, query(OWN, f"{n}", max_new_tokens=400))) for n in range(4)]
        await until(lambda: engine.gauges()["answers_running"] == 4)
        os.kill(child.pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)

    for error in run(work()):
        assert isinstance(error, ServeError)
        assert (error.code, error.facts["status"]) == ("TL-SERVE-DOWN", 503)
        assert error.facts["seconds"] >= 1
        assert "SIGKILL" in str(error)
    assert alone(engine, query(OWN)).text == expected.text
    assert engine.ready
    assert engine.gauges()["engine_restarts_total"] == 1
    assert [words for words in heard if "SIGKILL" in words and "started again" in words]
    assert not psutil.pid_exists(child.pid), "it was waited for"
    assert len(me.children()) == children
    assert me.num_fds() <= files
    assert me.num_threads() <= threads + 1  # the executor of asyncio.to_thread may have grown


@pytest.mark.slow
def test_a_child_that_stands_still_is_started_again(engine: TorchEngine) -> None:
    running = engine._supervisor.child
    assert running is not None
    settings, child = engine._settings, psutil.Process(running.pid)
    engine._settings = settings.model_copy(update={"watchdog": 2.0})
    try:
        child.suspend()
        (error,) = together(engine, [query(OWN)])
        assert error.code == "TL-SERVE-DOWN"
        assert "stood still" in str(error)
        engine._settings = settings
        assert alone(engine, query(OWN)).tokens == 24
    finally:
        engine._settings = settings


def test_the_server_side_imports_no_torch() -> None:
    code = (
        "import sys; import tuneloop.serving.worker.torch_engine, tuneloop.serving.table;"
        "sys.exit([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules] != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_loaded_is_said_before_it_serves(tmp_path: Path) -> None:
    children = len(psutil.Process().children())
    with pytest.raises(TuneloopError) as caught:
        TorchEngine(str(tmp_path / "nothing"), ServePart(), tmp_path)
    assert caught.value.code.startswith(("TL-MODEL-", "TL-RUN-"))
    assert len(psutil.Process().children()) == children


@pytest.mark.slow
def test_the_child_ends_with_its_parent_in_the_middle_of_an_answer(workspace: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from tests.serving.adapter_workspace import query, until\n"
        "from tuneloop.serving.worker.torch_engine import TorchEngine\n"
        "engine = TorchEngine('a-1', None, Path(sys.argv[1]))\n"
        "async def work():\n"
        "    stream = await engine.submit(query('a-1', max_new_tokens=400))\n"
        "    await anext(stream)\n"
        "    print(engine._supervisor.child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(work())\n"
    )
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, "-c", code, str(workspace)], stdout=subprocess.PIPE, cwd=root)
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    assert psutil.wait_procs([child], timeout=20)[0]
