"""Derived rows: what may change, what may not, and that nothing of them leaks, is lost or is paid for twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.made import characters, recipe
from tuneloop.base.errors import DataError, MachineError, RecipeError
from tuneloop.base.records import Message, Record
from tuneloop.data.augmenting.augment import Helpers, reasons
from tuneloop.data.augmenting.dialogue_growth import grown
from tuneloop.data.augmenting.substitute import groups
from tuneloop.data.dedupe.exact import contamination
from tuneloop.data.ledger import entries
from tuneloop.data.version import builder
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.lineage import trace
from tuneloop.planning.cautions import cautions
from tuneloop.recipe.paths import anchored
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe

QUESTIONS = (
    "How do I repair my bike number {}?", "Where can I purchase a good lamp for room {}?", "请问如何清洗第{}号杯子？",
    "Why is it difficult to compose letter {}?", "你好，我的第{}台电脑很慢，怎么办？",
)  # fmt: skip


def score(texts: Sequence[str]) -> list[tuple[float, int]]:
    """Half a nat a byte, and much more for the words of nonsense that the tests use."""
    return [(0.5 * len(x.encode()) + 40 * x.count("zzz"), len(x.encode())) for x in texts]


def answer(chats: Sequence[Any]) -> list[str]:
    """A model that asks and answers."""
    out = []
    for chat in chats:
        last = chat[-1]["content"]
        if "only the question" in last.lower():
            out.append(f"Sure, here it is:\n1. What about point {len(last)} of it?")
        elif "只写问题本身" in last:
            out.append(f"用户：那第{len(last)}点呢？")
        else:
            out.append(f"An answer to: {last}")
    return out


def translate(texts: Sequence[str], source: str, target: str) -> list[str]:
    """There it leaves a mark, back it says the same in a politer way."""
    if target == "zh" and source == "en":
        return [text.replace("[via]", "").replace("如何", "请告诉我怎样") for text in texts]
    return ["[via]" + text for text in texts]


ALL = Helpers(answer, score, translate)


def rows(tmp_path: Path, count: int = 60, name: str = "chats.jsonl") -> Path:
    path = tmp_path / name
    lines = [{"question": QUESTIONS[n % 5].format(n), "answer": f"The answer with number {n * 7919}, and {n * 104729}."}
             for n in range(count)]  # fmt: skip
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), encoding="utf-8")
    return path


def with_augment(
    path: Path | dict[str, Any], *more: Any, prepare: dict[str, Any] | None = None, **augment: Any
) -> Recipe:
    if "back_translation" in augment["methods"]:
        augment = {"translator": ["x"], **augment}
    return recipe(path, *more, **{"validation": 0.2, **(prepare or {}), "augment": augment})


def build(wanted: Recipe, workspace: Path, helpers: Helpers = ALL, say: Callable[[str], None] | None = None) -> Dataset:
    if say:
        helpers = Helpers(helpers.answer, helpers.score, helpers.translate, say)
    return builder.build(wanted, workspace, characters, "characters", helpers=helpers)


def children(made: Dataset) -> list[Record]:
    return [r for r in made.records("train") if r.parent]


# What is made of a dataset


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 1.0])
def test_the_share_is_kept_and_each_row_names_its_parent(tmp_path: Path, share: float) -> None:
    said: list[str] = []
    methods = ["synonyms", "back_translation", "follow_up", "branch"]
    made = build(with_augment(rows(tmp_path), methods=methods, share=share), tmp_path, say=said.append)
    new, old = children(made), [r for r in made.records("train") if not r.parent]
    assert len(new) <= share * len(old)
    assert len(new) >= 0.6 * share * len(old)
    parents = {r.id: r for r in old}
    for child in new:
        assert child.parent in parents
        assert (child.file, child.line) == (parents[child.parent].file, parents[child.parent].line)
    assert not any(r.parent for r in made.records("validation"))
    counts = made.manifest["counts"]
    assert counts["rows_in"] == 60
    assert counts["rows_in"] + counts["added"] == counts["train"] + counts["validation"] + counts["dropped"]
    assert counts["added"] == len(new)
    told = [e for e in entries(made.path / "ledger.jsonl") if e.step == "augment"]
    assert {(e.action, e.id, e.detail) for e in told} == {("added", r.id, r.parent) for r in new}
    assert {e.reason for e in told} <= set(methods)
    assert sum(made.manifest["augment"]["made"].values()) == len(new)
    # Each method says what it is about to do, and what it has done.
    assert list(dict.fromkeys(line.split(":")[0] for line in said)) == methods
    assert {line.split(":")[0]: line for line in said}.keys() == set(methods)


def test_the_share_holds_beside_repeats_and_the_samples_are_there(tmp_path: Path) -> None:
    path = {"path": rows(tmp_path), "repeat": 3}
    made = build(with_augment(path, methods=["synonyms"], share=0.2), tmp_path)
    new = children(made)
    assert 0 < len(new) <= 0.2 * 48
    assert len({r.id for r in new}) == len(new)

    def never(records: Sequence[Record]) -> Any:
        raise AssertionError

    assert len(made.samples("train", "characters", never)) == 48 * 3 + len(new)


def test_only_the_users_words_change_and_only_the_new_answer_is_trained(tmp_path: Path) -> None:
    methods = ["synonyms", "back_translation", "follow_up", "branch"]
    made = build(with_augment(rows(tmp_path), methods=methods, share=1.0), tmp_path)
    old = {r.id: r for r in made.records("train") if not r.parent}
    how = {e.id: e.reason for e in entries(made.path / "ledger.jsonl") if e.step == "augment"}
    seen = set()
    for child in children(made):
        parent, method = old[child.parent], how[child.id]
        seen.add(method)
        if method in ("synonyms", "back_translation"):
            assert child.messages[1:] == parent.messages[1:]
            assert child.messages[0].content != parent.messages[0].content
        elif method == "follow_up":
            assert [m.content for m in child.messages[:2]] == [m.content for m in parent.messages]
            assert [m.trained for m in child.messages if m.role == "assistant"] == [False, True]
            assert child.messages[2].content.startswith(("What about point", "那第"))
        else:
            assert len(child.messages) == 2
            assert child.messages[1].content == f"An answer to: {child.messages[0].content}"
    assert seen == set(methods)


def test_it_can_be_traced(tmp_path: Path) -> None:
    made = build(with_augment(rows(tmp_path), methods=["synonyms"]), tmp_path)
    child = children(made)[0]
    found = trace(made, child.id)
    assert [r.id for r in found.parents] == [child.parent]
    assert ("added", "augment", child.parent) in [
        (e.action, e.step, e.detail) for e in found.ledger if e.id == child.id
    ]


def test_nothing_leaks_across_the_split(tmp_path: Path) -> None:
    """Test rows that are what synonyms make of training rows: those derived rows go, by name."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    talk = [
        (f"How do I repair my bike number {n}?", f"Long answer {n * 7919} that both share, {n * 31}.")
        for n in range(40)
    ]
    train.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in talk), encoding="utf-8")
    told = [{"question": q.replace("repair", "fix"), "answer": a} for q, a in talk[:20]]
    test.write_text("".join(json.dumps(r) + "\n" for r in told), encoding="utf-8")
    wanted = recipe({"path": train}, {"path": test, "split": "test"}, validation=0, near=0.95,
                    augment={"methods": ["synonyms"], "share": 1.0})  # fmt: skip
    made = build(wanted, tmp_path)
    dropped = [e for e in entries(made.path / "ledger.jsonl") if e.reason == "nearly a held-out row"]
    assert len(dropped) == 20
    assert all(e.action == "dropped" and e.detail.startswith("test.jsonl:") for e in dropped)
    assert not contamination(children(made), made.records("test"), 0.95)
    assert len(children(made)) == 20
    assert made.manifest["augment"]["rejected"]["synonyms"]["nearly a held-out row"] == 20
    counts = made.manifest["counts"]
    assert (counts["rows_in"], counts["added"], counts["dropped"]) == (60, 40, 20)


def test_nonsense_is_rejected(tmp_path: Path) -> None:
    table = tmp_path / "nonsense.txt"
    table.write_text("repair > zzz\npurchase > zzz\ndifficult > zzz\n如何 > zzz\n电脑 > zzz\n", encoding="utf-8")
    made = build(with_augment(rows(tmp_path), methods=["synonyms"], synonyms_file=str(table)), tmp_path)
    assert not children(made)
    told = made.manifest["augment"]
    assert told == {"made": {"synonyms": 0}, "rejected": {"synonyms": {"nonsense": 48}}}
    more = with_augment(rows(tmp_path), methods=["synonyms"], synonyms_file=str(table), nonsense=1e9)
    assert children(build(more, tmp_path))


def test_a_model_that_does_not_know_the_language_judges_nothing(tmp_path: Path) -> None:
    def english(texts: Sequence[str]) -> list[tuple[float, int]]:
        return [((0.9 if x.isascii() else 1.9) * len(x.encode()), len(x)) for x in texts]

    made = build(with_augment(rows(tmp_path), methods=["synonyms"], share=1.0), tmp_path, Helpers(score=english))
    assert children(made)
    assert all(r.messages[0].content.isascii() for r in children(made))
    assert made.manifest["augment"]["rejected"]["synonyms"]["language unknown to the model"] > 10


@pytest.mark.parametrize(
    ("back", "reason"),
    [("", "not translated"), ("{}", "nothing new"), ("Something quite different in English about this and that.", "other language"),
     ("{}请", None), ("{}7", "other numbers"), ("{0}，{0}，{0}".replace("0", ""), "other length")],
)  # fmt: skip
def test_what_comes_back_from_a_translation(tmp_path: Path, back: str, reason: str | None) -> None:
    path = tmp_path / "zh.jsonl"
    talk = [
        {"question": f"请问如何清洗{'杯碗锅盘桌'[n % 5]}子里的{'茶咖油水'[n // 5]}渍呢？", "answer": f"答{n}。"}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in talk), encoding="utf-8")

    def there_and_back(texts: Sequence[str], source: str, target: str) -> list[str]:
        return ["via" + x for x in texts] if target == "en" else [back.format(*[x[3:]] * 3) for x in texts]

    wanted = with_augment(path, methods=["back_translation"], share=0.5)
    made = build(wanted, tmp_path, Helpers(score=score, translate=there_and_back))
    rejected = made.manifest["augment"]["rejected"]["back_translation"]
    assert (rejected == {}) if reason is None else (rejected == {reason: 16})
    assert bool(children(made)) == (reason is None)


def test_rows_that_may_not_change(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"q": "repair"}'}}
    tooled = {"messages": [{"role": "user", "content": "How do I repair it?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
                           {"role": "tool", "content": "ok", "tool_call_id": "1"}, {"role": "assistant", "content": "So."}]}  # fmt: skip
    path.write_text(json.dumps(tooled) + "\n", encoding="utf-8")
    methods = ["synonyms", "follow_up"]
    made = build(with_augment(path, methods=methods, share=1.0, prepare={"validation": 0}), tmp_path)
    assert made.manifest["augment"]["made"] == {"synonyms": 0, "follow_up": 0}
    words_of = reasons()
    for rejected in made.manifest["augment"]["rejected"].values():
        assert set(rejected) <= set(words_of)


def test_what_a_model_writes_is_cleaned_and_may_be_too_long(tmp_path: Path) -> None:
    def odd(chats: Sequence[Any]) -> list[str]:
        return [
            ("x" * 5000 if n % 2 else "no no no no no no no no no no no no no no no no no no no no no no no no. " * 9)
            if "?" in chat[-1]["content"][-1] or "？" in chat[-1]["content"][-1] else text
            for n, (chat, text) in enumerate(zip(chats, answer(chats), strict=True))
        ]  # fmt: skip

    wanted = with_augment(rows(tmp_path), methods=["follow_up"], share=0.5, prepare={"max_length": 2048})
    made = build(wanted, tmp_path, Helpers(odd))
    assert not children(made)
    counts = made.manifest["counts"]
    assert counts["added"] == counts["dropped"] == 24
    assert {"repeats itself", "too long"} == {s["reason"] for s in made.manifest["steps"] if s["dropped"]}
    assert made.manifest["augment"]["made"] == {"follow_up": 0}


# Money and time


def test_what_was_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[Any] = []

    def failing(chats: Sequence[Any]) -> list[str]:
        if len(asked) >= 90:
            raise MachineError("TL-MACHINE-ENDPOINT", where="http://x", error="HTTP 429")
        asked.extend(chats)
        return answer(chats)

    wanted = with_augment(rows(tmp_path, 200), methods=["follow_up"], share=0.5)
    with pytest.raises(MachineError):
        build(wanted, tmp_path, Helpers(failing))
    paid = len(asked)
    assert paid >= 64
    again: list[Any] = []

    def counting(chats: Sequence[Any]) -> list[str]:
        again.extend(chats)
        return answer(chats)

    made = build(wanted, tmp_path, Helpers(counting))
    assert len(children(made)) == 80
    assert len(again) + paid == 160  # a question and an answer each; every one that came back is remembered
    (tmp_path / "other").mkdir()
    whole = build(wanted, tmp_path / "other", Helpers(answer))
    assert whole.hash == made.hash

    def never(chats: Sequence[Any]) -> list[str]:
        raise AssertionError

    assert build(wanted, tmp_path, Helpers(never)).hash == made.hash


def test_a_finished_part_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = with_augment(rows(tmp_path), methods=["follow_up"])

    def crash(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(builder, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            build(wanted, tmp_path)

    def never(chats: Sequence[Any]) -> list[str]:
        raise AssertionError

    assert children(build(wanted, tmp_path, Helpers(never)))


def test_other_words_make_another_version(tmp_path: Path) -> None:
    table = tmp_path / "mine.txt"
    table.write_text("repair > mend\n", encoding="utf-8")
    wanted = with_augment(rows(tmp_path), methods=["synonyms"], synonyms_file=str(table))
    first = build(wanted, tmp_path)
    table.write_text("repair > service\n", encoding="utf-8")
    groups.cache_clear()
    assert build(wanted, tmp_path).hash != first.hash


def test_without_methods_nothing_is_derived_and_nobody_is_asked(tmp_path: Path) -> None:
    made = builder.build(recipe(rows(tmp_path), augment={"share": 0.5}), tmp_path, characters, "characters")
    assert "augment" not in made.manifest
    assert not children(made)


@pytest.mark.parametrize(
    ("method", "helpers", "lacks"),
    [("synonyms", Helpers(answer), "score"), ("follow_up", Helpers(score=score), "answer"),
     ("back_translation", Helpers(answer), "score, translate")],
)  # fmt: skip
def test_a_method_that_lacks_its_helper(tmp_path: Path, method: str, helpers: Helpers, lacks: str) -> None:
    wanted = with_augment(rows(tmp_path), methods=[method])
    with pytest.raises(DataError) as caught:
        build(wanted, tmp_path, helpers)
    assert (caught.value.code, caught.value.facts["lacks"]) == ("TL-DATA-AUGMENT", lacks)
    assert not (tmp_path / "datasets").exists()


# Dialogues that grow


def test_only_questions_are_asked() -> None:
    parent = Record((Message("user", "How tall is it?"), Message("assistant", "Very.")), "f", 1)
    for text, reason in (
        ("", "no question"), ("How tall is it?", "nothing new"), ("Sure, I can help with that.", "no question"),
        ("为什么它这么高呢，你知道吗？", "other language"), ("y" * 500, "no question"),
    ):  # fmt: skip
        got = list(grown([parent], ["en"], lambda chats, text=text: [text] * len(chats), other=False))
        assert got == [(None, reason)]
    ((made, why),) = grown([parent], ["en"], lambda chats: ["Why is it so tall?" if "only" in chats[0][-1]["content"] else ""]
                           * len(chats), other=False)  # fmt: skip
    assert (made, why) == (None, "no answer, or one that breaks off")


# The recipe


@pytest.mark.parametrize(
    ("augment", "where"),
    [
        ({"methods": ["back_translation"]}, "prepare.augment.methods"),
        ({"methods": ["synonyms"], "endpoint": "http://localhost/v1", "endpoint_model": "m"}, "prepare.augment.endpoint"),
        ({"methods": ["follow_up"], "endpoint": "http://localhost:5000"}, "prepare.augment.endpoint"),
        ({"methods": ["follow_up"], "endpoint_model": "m"}, "prepare.augment.endpoint_model"),
        ({"methods": ["follow_up"], "synonyms_file": "x"}, "prepare.augment.synonyms_file"),
        ({"methods": ["synonyms"], "translator": ["x"]}, "prepare.augment.translator"),
        ({"methods": ["back_translation"], "translator": ["x"], "endpoint": "http://localhost"}, "prepare.augment.translator"),
        ({"methods": ["back_translation"], "translator": ["x", "y", "z"]}, "prepare.augment.translator"),
        ({"methods": ["follow_up"], "nonsense": 2}, "prepare.augment.nonsense"),
        ({"methods": ["follow_up"], "share": 1.1}, "prepare.augment.share"),
        ({"methods": ["paraphrase"]}, "prepare.augment.methods.0"),
        ({"methods": ["follow_up"], "endpoint": "ftp://x/v1", "endpoint_model": "m"}, "prepare.augment.endpoint"),
        ({"methods": ["follow_up"], "endpoint": "http://me:secret@x/v1", "endpoint_model": "m"}, "prepare.augment.endpoint"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(augment: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"prepare": {"augment": augment}})
    assert [c.where for c in caught.value.causes] == [where]


def test_paths_are_anchored_and_short_forms_read() -> None:
    part = {"methods": ["synonyms", "back_translation"], "synonyms_file": "my/words.txt", "translator": "./m2m"}
    got = anchored(make_recipe({"prepare": {"augment": part}})[0], Path("/x")).prepare.augment
    assert got.synonyms_file == str(Path("/x/my/words.txt"))
    assert got.translator == [str(Path("/x/m2m").resolve())]
    assert make_recipe({"prepare": {"augment": {"methods": "synonyms"}}})[0].prepare.augment.methods == ["synonyms"]


def test_many_derived_rows_are_no_loss(tmp_path: Path) -> None:
    made = build(with_augment(rows(tmp_path), methods=["follow_up"], share=1.0), tmp_path)
    assert not [w for w in cautions(made.manifest["counts"], made.manifest["steps"], "l") if "dropped" in w]
