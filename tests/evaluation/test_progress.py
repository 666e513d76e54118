from __future__ import annotations

from pathlib import Path

from tuneloop.evaluation.progress import Counted
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model

CHATS = [[{"role": "user", "content": f"Count to {n}."}] for n in range(5)]


def test_it_answers_as_the_answerer_and_says_how_far_it_is(tiny_model: Path) -> None:
    answerer = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    said: list[str] = []
    counted = Counted(answerer, 7, said.append, interval=0)
    replies = counted.answer(CHATS, max_new_tokens=3, batch_size=2)
    assert [r.text for r in replies] == [r.text for r in answerer.answer(CHATS, max_new_tokens=3, batch_size=2)]
    counted.answer(CHATS[:2], max_new_tokens=3, batch_size=2)
    assert said == [f"  {n} of 7 answers" for n in (2, 4, 5, 7)]
    assert (counted.context, counted.count(CHATS[0])) == (answerer.context, answerer.count(CHATS[0]))


def test_a_quick_evaluation_is_not_talked_over(tiny_model: Path) -> None:
    answerer = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    said: list[str] = []
    Counted(answerer, 5, said.append, interval=3600).answer(CHATS, max_new_tokens=2, batch_size=1)
    assert said == []
