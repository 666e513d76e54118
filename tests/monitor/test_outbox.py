from __future__ import annotations

import threading

from tuneloop.monitor.outbox import Outbox


def ignored(error: Exception) -> None:
    raise AssertionError from error


def test_all_is_done_in_order_and_elsewhere() -> None:
    done: list[int] = []
    threads: set[int] = set()

    def note(k: int) -> None:
        done.append(k)
        threads.add(threading.get_ident())

    outbox = Outbox("t", ignored)
    for k in range(50):
        assert outbox.put(lambda k=k: note(k))  # type: ignore[misc]
    assert outbox.close(10)
    assert done == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_fails_is_told_and_the_next_is_done() -> None:
    failed: list[str] = []
    done: list[int] = []
    outbox = Outbox("t", lambda error: failed.append(str(error)))
    outbox.put(lambda: [][0])
    outbox.put(lambda: done.append(1))
    assert outbox.wait(10)
    assert (failed, done) == (["list index out of range"], [1])
    assert outbox.close(10)


def test_what_is_slow_delays_nobody() -> None:
    free, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        free.wait(60)

    outbox = Outbox("t", ignored, limit=1)
    assert outbox.put(slow)
    assert begun.wait(10)
    assert outbox.put(slow)
    assert not outbox.put(slow), "more than the limit is dropped"
    assert not outbox.wait(0.0)
    assert not outbox.close(0.0)
    free.set()
