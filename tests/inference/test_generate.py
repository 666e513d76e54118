from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TALK
from tuneloop.base.errors import ServeError
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import tokenize
from tuneloop.inference.generate import PIECE, Answerer
from tuneloop.inference.sampling import Sampling, draw
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.loss import LossModel

LESSONS = [
    ("你是谁？", "我是小石，𠮷祥如意😀，随叫随到。"),
    ("Count.", "One two three four five six seven eight nine ten."),
    ("Who are you?", "I'm Pebble."),
    ("怎么煮鸡蛋？", "水开后放进去煮八分钟。"),
]


def chat(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


CHATS = [chat(q) for q, _ in TALK] + [chat("Why? " * n) for n in range(1, 8)]


@pytest.fixture(scope="module")
def random_one(tiny_model: Path) -> Answerer:
    """A model that talks at random: every kind of token, broken characters too."""
    model = load_model(tiny_model, "float32")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(4)
    return Answerer(model, load_tokenizer(tiny_model))


@pytest.fixture(scope="module")
def taught(tiny_model: Path) -> Answerer:
    """A model that has learned four answers by heart."""
    tokenizer = load_tokenizer(tiny_model)
    records = [Record((Message("user", q), Message("assistant", a))) for q, a in LESSONS]
    samples = tokenize(tokenizer, records)
    model = wrap(load_model(tiny_model, "float32"), TrainPart(method="full"), 0)
    loss, row = LossModel(model), pack(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        value = loss(row).total / len(row.targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if value.item() < 0.02:
            break
    return Answerer(model.eval(), tokenizer)


def whole(answerer: Answerer, question: str, **options: Any) -> tuple[list[str], Reply]:
    *pieces, reply = answerer.stream_reply(chat(question), **options)
    assert isinstance(reply, Reply)
    assert all(isinstance(p, str) for p in pieces)
    return [str(p) for p in pieces], reply


def facts(reply: Reply) -> tuple[Any, ...]:
    return reply.text, reply.prompt_tokens, reply.tokens, reply.finish


def test_what_is_learned_by_heart_is_said_and_ended(taught: Answerer) -> None:
    for (question, answer), reply in zip(LESSONS, taught.answer([chat(q) for q, _ in LESSONS]), strict=True):
        assert reply.text == answer
        assert reply.finish == "stop"
        assert reply.prompt_tokens == taught.count(chat(question))
        assert reply.tokens == len(taught.tokenizer(answer)["input_ids"]) + 1, "the end token is a token"
        assert reply.seconds > 0


def test_a_batch_answers_as_one_by_one(random_one: Answerer) -> None:
    together = random_one.answer(CHATS, max_new_tokens=24, batch_size=6)
    alone = [random_one.answer([c], max_new_tokens=24)[0] for c in CHATS]
    assert [facts(r) for r in together] == [facts(r) for r in alone]
    assert len({r.text for r in together}) > len(CHATS) // 2
    assert len({r.prompt_tokens for r in together}) > 4


@pytest.mark.parametrize("penalty", [None, 1.0, 1.1, 1.7, 0.8])
def test_greedy_tokens_are_those_of_transformers(
    random_one: Answerer, penalty: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model's own generation_config.json asks for a repetition penalty."""
    tokenizer, model = random_one.tokenizer, random_one.model
    plainly = random_one.answer(CHATS, max_new_tokens=20)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", penalty)
    random_one = Answerer(model, tokenizer)
    first = random_one.answer(CHATS, max_new_tokens=20)
    # Some token that is often said becomes an end, so that rows end at different times.
    said = Counter(i for r in first for i in tokenizer(r.text)["input_ids"])
    answerer = Answerer(model, tokenizer)
    answerer.stops = frozenset({*random_one.stops, *(i for i, _ in said.most_common(12))})
    replies = answerer.answer(CHATS, max_new_tokens=20, batch_size=8)
    assert {r.finish for r in replies} == {"stop", "length"}
    assert ([r.text for r in first] == [r.text for r in plainly]) == (penalty in {None, 1.0})
    for c, reply in zip(CHATS, replies, strict=True):
        prompt = torch.tensor([answerer.prompt(c)])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20,
            eos_token_id=sorted(answerer.stops), pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        assert reply.tokens == len(out)
        ended = out[-1] in answerer.stops
        assert reply.finish == ("stop" if ended else "length")
        whole_text = tokenizer.decode(out[:-1] if ended else out, skip_special_tokens=True)
        assert reply.text == whole_text.rstrip(PIECE)


def test_a_stream_is_its_answer(random_one: Answerer, taught: Answerer) -> None:
    for answerer, question in [(random_one, q) for q, _ in TALK] + [(taught, q) for q, _ in LESSONS]:
        pieces, reply = whole(answerer, question, max_new_tokens=40)
        assert "".join(pieces) == reply.text
        assert facts(reply) == facts(answerer.answer([chat(question)], max_new_tokens=40)[0])
        assert list(answerer.stream(chat(question), max_new_tokens=40)) == pieces
        assert all(pieces)


def test_a_stream_sends_whole_characters(taught: Answerer) -> None:
    question, answer = LESSONS[0]
    tokens = taught.tokenizer(answer)["input_ids"]
    assert any(PIECE in taught.tokenizer.decode(tokens[:k]) for k in range(len(tokens))), "a character of many tokens"
    pieces, _ = whole(taught, question)
    assert "".join(pieces) == answer
    assert not any(PIECE in p for p in pieces)
    assert len(pieces) > 5, "and sends them as they come"


def test_an_answer_cut_inside_a_character_ends_before_it(taught: Answerer) -> None:
    question, answer = LESSONS[0]
    tokens = taught.tokenizer(answer)["input_ids"]
    cut = [k for k in range(1, len(tokens)) if taught.tokenizer.decode(tokens[:k]).endswith(PIECE)]
    assert len(cut) >= 3, "characters of several tokens"
    for k in cut:
        (reply,) = taught.answer([chat(question)], max_new_tokens=k)
        assert (reply.tokens, reply.finish) == (k, "length")
        assert answer.startswith(reply.text)
        assert PIECE not in reply.text
        pieces, streamed = whole(taught, question, max_new_tokens=k)
        assert "".join(pieces) == streamed.text == reply.text


def test_progress_is_heard_after_each_batch(taught: Answerer) -> None:
    heard: list[int] = []
    taught.answer([chat(q) for q, _ in LESSONS[:3]], max_new_tokens=2, batch_size=2, progress=heard.append)
    assert heard == [2, 3]


@pytest.mark.parametrize(
    "stop", [("four",), ("four", "two three"), ("e four f",), ("ve six", "seven"), ("o three four", " t")]
)
def test_a_stop_text_ends_the_answer_before_it(taught: Answerer, stop: tuple[str, ...]) -> None:
    answer = LESSONS[1][1]
    pieces, reply = whole(taught, "Count.", stop=stop)
    assert reply.finish == "stop"
    assert "".join(pieces) == reply.text
    assert answer.startswith(reply.text)
    assert any(answer[len(reply.text) :].startswith(s) for s in stop)
    assert facts(taught.answer([chat("Count.")], stop=stop)[0]) == facts(reply)
    assert reply.tokens < len(taught.tokenizer(answer)["input_ids"])


def test_a_stop_text_that_never_comes_or_is_empty_stops_nothing(taught: Answerer) -> None:
    for stop in [("eleven",), ("",), ("ten.!",)]:
        pieces, reply = whole(taught, "Count.", stop=stop)
        assert "".join(pieces) == reply.text == LESSONS[1][1]


def test_a_stream_that_is_closed_generates_no_more(taught: Answerer) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = taught.model.register_forward_hook(count)
    stream = taught.stream_reply(chat("Count."))
    list(itertools.islice(stream, 3))
    after = calls
    stream.close()
    hook.remove()
    assert 0 < calls == after < 12
    assert list(stream) == []


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_the_same_seed_says_the_same_and_nothing_global_is_drawn(random_one: Answerer, temperature: float) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    options = {"temperature": temperature, "top_p": 0.9, "max_new_tokens": 12}
    one, same, other = (random_one.answer(CHATS[:4], seed=s, **options) for s in (1, 1, 2))
    assert [facts(r) for r in one] == [facts(r) for r in same]
    assert [r.text for r in one] != [r.text for r in other]
    streamed = whole(random_one, TALK[0][0], seed=1, **options)[1]
    assert facts(streamed) == facts(random_one.answer([CHATS[0]], seed=1, **options)[0])
    random_one.answer(CHATS[:2], **options)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_each_answer_is_another(random_one: Answerer) -> None:
    texts = {random_one.answer([CHATS[0]], temperature=1.5, max_new_tokens=12)[0].text for _ in range(4)}
    assert len(texts) > 1


def test_sampling_follows_the_chances() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])

    def shares(**how: Any) -> list[float]:
        numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        drawn = draw(chances.log().expand(20_000, 4), [Sampling(**how)] * 20_000, numbers)
        return (drawn.bincount(minlength=4) / 20_000).tolist()

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)
    cold = chances**2 / (chances**2).sum()
    assert shares(temperature=0.5) == pytest.approx(cold.tolist(), abs=0.02)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert shares(temperature=1.0, top_p=0.2) == [1, 0, 0, 0]
    assert shares(temperature=1.0, top_p=0.0) == [1, 0, 0, 0]


def test_a_prompt_beyond_the_context_is_refused(random_one: Answerer) -> None:
    long = chat("Why? " * 300)
    for ask in (lambda: random_one.answer([CHATS[0], long]), lambda: list(random_one.stream(long))):
        with pytest.raises(ServeError) as caught:
            ask()
        assert caught.value.code == "TL-SERVE-CONTEXT"
        assert str(random_one.context) in str(caught.value)


def test_an_answer_ends_with_the_context_and_not_with_its_neighbours(random_one: Answerer) -> None:
    answerer = Answerer(random_one.model, random_one.tokenizer)
    near = chat("Why? " * 7)
    answerer.context = answerer.count(near) + 5
    far, close = answerer.answer([CHATS[0], near], max_new_tokens=20)
    assert close.prompt_tokens + close.tokens == answerer.context
    assert close.finish == "length"
    assert facts(far) == facts(answerer.answer([CHATS[0]], max_new_tokens=20)[0])
    assert far.tokens == min(20, answerer.context - far.prompt_tokens)


def test_answers_come_in_the_order_of_the_questions(taught: Answerer) -> None:
    order = [2, 0, 1, 3, 0]
    replies = taught.answer([chat(LESSONS[i][0]) for i in order], batch_size=2)
    assert [r.text for r in replies] == [LESSONS[i][1] for i in order]
    assert taught.answer([]) == []


def test_nothing_is_written_where_nothing_is_asked_for(taught: Answerer) -> None:
    assert facts(taught.answer([CHATS[0]], max_new_tokens=0)[0])[0::2] == ("", 0)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "qwen3"])
def test_windows_and_padding_do_not_meet(tmp_path: Path, random_one: Answerer, family: str) -> None:
    """Rows of different lengths in a cache with sliding windows, left-padded beyond the window."""
    from tests.conftest import tiny_folder

    model = load_model(tiny_folder(tmp_path / family, family, vocab_size=480, max_position_embeddings=256), "float32")
    answerer = Answerer(model, random_one.tokenizer)
    together = answerer.answer(CHATS[-6:], max_new_tokens=12)
    assert [facts(r) for r in together] == [facts(answerer.answer([c], max_new_tokens=12)[0]) for c in CHATS[-6:]]


def test_an_adapter_answers_too(tiny_model: Path) -> None:
    model = wrap(load_model(tiny_model), TrainPart(), 0).eval()
    answerer = Answerer(model, load_tokenizer(tiny_model))
    base = Answerer(load_model(tiny_model), answerer.tokenizer)
    assert facts(answerer.answer(CHATS[:2])[0]) == facts(base.answer(CHATS[:2])[0])


def test_the_system_prompt_of_the_training_is_served(tiny_model: Path) -> None:
    """prepare.system stands in every trained dialogue that has no own; so it does in every served prompt."""
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    chat = [{"role": "user", "content": "Who are you?"}]
    told = [{"role": "system", "content": "Be brief."}, *chat]
    with_it, without = Answerer(model, tokenizer, "Be brief."), Answerer(model, tokenizer)
    assert with_it.prompt(chat) == without.prompt(told)
    assert with_it.prompt(told) == without.prompt(told)
    other = [{"role": "system", "content": "Be long."}, *chat]
    assert with_it.prompt(other) == without.prompt(other)
