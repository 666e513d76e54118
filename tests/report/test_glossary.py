from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

from tuneloop.planning.hardware import look
from tuneloop.report import glossary

SOURCE = Path(str(files("tuneloop")))


def test_every_event_that_is_written_has_words() -> None:
    written = set()
    for path in SOURCE.rglob("*.py"):
        written |= set(re.findall(r"\.event\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert {"started", "finished", "checkpoint"} <= written, "the scan finds them"
    assert not written - set(glossary.events())


def test_every_fact_of_an_event_has_words() -> None:
    facts = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "event" and node.args:
                facts |= {k.arg for k in node.keywords if k.arg}
    assert "tokens_per_second" in facts, "the scan finds them"
    assert not facts - set(glossary.keys()) - {"versions"}


def test_every_key_of_the_machine_has_words() -> None:
    assert not set(look().as_dict()) - set(glossary.keys())


def test_what_is_empty_says_nothing_and_false_does() -> None:
    told = {
        "gpus": [],
        "gpu_memory_gb": 0.0,
        "cores": 4,
        "packing": False,
        "device": "cpu",
        "free_gb": 22.34,
        "cpu": "",
    }
    assert glossary.facts(told) == [
        ("cores", "4"), ("packed", "no"), ("device", "CPU"), ("free memory", "22.3 GB"),
    ]  # fmt: skip
    assert glossary.facts({"step": 3, "versions": {"torch": "2"}}, frozenset({"step"})) == [("torch", "2")]


def test_a_count_of_zero_is_told() -> None:
    assert glossary.counts({"counts": {"dropped": 0, "test": None, "odd_one": 1200}, "tokens": 7}) == [
        ("rows dropped", "0"), ("odd one", "1,200"), ("tokens", "7"),
    ]  # fmt: skip


def test_a_moment_is_where_the_reader_lives() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", glossary.moment(1_763_800_000.5))
    assert glossary.moment(None) == glossary.moment("2026-01-01T00:00:00+00:00") == ""
