from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.records import Message, Record, Reply
from tuneloop.evaluation import metrics, suite
from tuneloop.evaluation.evaluation import Scores


def talk(question: str, answer: str, file: str = "a.jsonl", line: int = 1, **more: Any) -> Record:
    return Record((Message("user", question), Message("assistant", answer)), file, line, **more)


class Echo:
    """Answers with the last user turn; counts a token a word."""

    context = 50

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []

    def count(self, chat: list[dict[str, Any]]) -> int:
        return sum(len(m["content"].split()) for m in chat)

    def answer(
        self, chats: Sequence[list[dict[str, Any]]], *, max_new_tokens: int = 8, batch_size: int = 8
    ) -> list[Reply]:
        self.asked += chats
        return [Reply(chat[-1]["content"], self.count(chat), 1, "stop") for chat in chats]


def losses(records: list[Record]) -> tuple[float, int]:
    """2 nats a word of each answer."""
    words = sum(len(suite.reference(r).split()) for r in records)
    return 2.0 * words, words


def test_scores_of_an_echo() -> None:
    records = [talk("the cat sat on the mat", "the cat sat on the mat"), talk("a b c", "x y z", "b.csv")]
    scores, replies = suite.score(Echo(), records, losses, rows=2, max_new_tokens=8, batch_size=4)
    answers = [reply.text for reply in replies]
    assert answers == ["the cat sat on the mat", "a b c"]
    assert (scores.rows, scores.label_tokens, scores["loss"]) == (2, 9, 2.0)
    assert scores["perplexity"] == pytest.approx(metrics.perplexity(2.0))
    assert scores["rouge1"] == scores["rougeL"] == 50
    assert scores["bleu"] == pytest.approx(metrics.bleu(answers, ["the cat sat on the mat", "x y z"]))
    assert scores.by_source == {
        "a.jsonl": Scores({"loss": 2.0}, label_tokens=6), "b.csv": Scores({"loss": 2.0}, label_tokens=3)
    }  # fmt: skip


def test_the_loss_weighs_tokens_not_files_and_is_asked_once_a_file() -> None:
    asked: list[int] = []

    def uneven(records: list[Record]) -> tuple[float, int]:
        asked.append(len(records))
        return (10.0, 10) if records[0].file == "a.jsonl" else (90.0, 30)

    records = [talk("q", "a", line=n) for n in range(3)] + [talk("q", "a", "b.csv")]
    scores, _ = suite.score(Echo(), records, uneven, rows=0, max_new_tokens=8, batch_size=4)
    assert scores["loss"] == 100 / 40
    assert asked == [3, 1]
    assert suite.loss_by_source(records, uneven) == {"a.jsonl": (10.0, 10), "b.csv": (90.0, 30)}


def test_no_held_out_dialogue_is_not_measured() -> None:
    answerer = Echo()
    scores, answers = suite.score(answerer, [], losses, rows=16, max_new_tokens=8, batch_size=4)
    names = [name for name, metric in metrics.METRICS.items() if metric.needs in metrics.ALWAYS]
    assert {"loss", "perplexity", "bleu", "rouge1", "rouge2", "rougeL"} <= set(names)
    assert scores == Scores(dict.fromkeys(names), rows=0, label_tokens=0)
    assert answers == answerer.asked == []


def test_dialogues_without_labels_have_no_loss() -> None:
    scores, _ = suite.score(Echo(), [talk("q", "a")], lambda r: (0.0, 0), rows=1, max_new_tokens=8, batch_size=1)
    assert scores["loss"] is None
    assert scores["perplexity"] is None
    assert scores.rows == 1


def test_pick_takes_files_in_turn_and_is_the_same_every_time() -> None:
    records = [talk("q", "a", "a", n) for n in range(5)] + [talk("q", "a", "b", n) for n in range(2)]
    picked = [(r.file, r.line) for r in suite.pick(records, 6)]
    assert picked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("a", 3)]
    assert len(suite.pick(records, 100)) == 7
    assert suite.pick(records, 0) == []


def test_pick_leaves_out_what_cannot_be_compared() -> None:
    assistant_first = Record((Message("assistant", "hello"),), "a", 1)
    only_system = Record((Message("system", "be kind"), Message("assistant", "hello")), "a", 2)
    silent = talk("q", " ", "a", 3)
    with_tools = talk("q", "a", "a", 4, tools=({"name": "weather"},))
    unanswered = Record((Message("user", "q"),), "a", 5)
    good = talk("q", "a", "a", 6)
    assert suite.pick([assistant_first, only_system, silent, with_tools, unanswered, good], 9) == [good]


def test_a_prompt_too_long_for_the_context_is_passed_over() -> None:
    long, short = talk("word " * 45, "a"), talk("word", "a", line=2)
    assert suite.pick([long, short], 2, suite.fitting(Echo(), 8)) == [short]
    assert suite.pick([long, short], 2, suite.fitting(Echo(), 5)) == [long, short]
    scores, answers = suite.score(Echo(), [long, short], losses, rows=2, max_new_tokens=8, batch_size=1)
    assert (scores.rows, [a.text for a in answers]) == (1, ["word"])


def test_the_context_is_all_that_comes_before_the_last_answer() -> None:
    turns = (Message("system", "s"), Message("user", "one"), Message("assistant", "1"), Message("user", "two"),
             Message("assistant", "2"), Message("user", "thanks"))  # fmt: skip
    answerer = Echo()
    suite.score(answerer, [Record(turns, "a", 1)], losses, rows=1, max_new_tokens=8, batch_size=1)
    assert [m["content"] for m in answerer.asked[0]] == ["s", "one", "1", "two"]
    assert suite.reference(Record(turns)) == "2"


def test_a_thought_is_not_compared_but_is_kept_in_the_answer() -> None:
    records = [talk("<think>hm</think>the cat", "the cat")]
    scores, answers = suite.score(Echo(), records, losses, rows=1, max_new_tokens=8, batch_size=1)
    assert scores["rouge1"] == pytest.approx(100)
    assert [a.text for a in answers] == ["<think>hm</think>the cat"]


def test_a_real_model_is_measured(tiny_model: Path) -> None:
    from tuneloop.evaluation.before_after import held_out_loss
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.model.load import load_model

    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    model.eval()
    records = [talk("Who are you?", "I'm Pebble."), talk("你是谁？", "我是小石。", "zh.jsonl")]
    loss = held_out_loss(model, tokenizer, 512)
    scores, answers = suite.score(Answerer(model, tokenizer), records, loss, rows=2, max_new_tokens=4, batch_size=2)
    assert len(answers) == scores.rows == 2
    assert scores["loss"] == pytest.approx(loss(records)[0] / loss(records)[1], rel=1e-5)
    assert scores.label_tokens == loss(records)[1] > 0
    assert scores["bleu"] is not None
    assert set(scores.by_source) == {"a.jsonl", "zh.jsonl"}
