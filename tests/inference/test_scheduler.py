"""Answers that come at any time, in chunks, from prefixes and beside poison, are those that each gets alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.test_batch import _margins, alone, model_of, prompts_of
from tests.real import load
from tuneloop.base.records import Sampling
from tuneloop.inference.batch import DecodeBatch, Generation
from tuneloop.inference.decode import Decoder
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scheduler import Scheduler
from tuneloop.inference.slots import LockstepCache
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.wrap import wrap
from tuneloop.model.backbone import has_sliding_window
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart

MOST = 12
FAMILIES = ["llama", "qwen3", "gemma3_text", "gpt_oss", "deepseek_v3"]


def text(size: int, seed: int = 1) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(3, 480) for _ in range(size)]


def scheduler_of(model: Any, stops: frozenset[int] = frozenset(), **options: Any) -> Scheduler:
    options = {"slots": 4, "cache_tokens": 4096, "chunk": 8, **options}
    return Scheduler(Decoder(model, 256), stops, **options)


def run(scheduler: Scheduler, generations: list[Generation], chance: random.Random | None = None) -> list[Generation]:
    """Add them, with `chance` at any time, and step to the end; all that the steps told of."""
    waiting, changed = list(generations), []
    while waiting or scheduler.busy:
        while waiting and (chance is None or chance.random() < 0.4 or not scheduler.busy):
            scheduler.add(waiting.pop(0))
        changed += scheduler.step()
    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_come_and_go_are_those_alone(tmp_path: Path, family: str) -> None:
    model = model_of(tmp_path, family)
    prompts = prompts_of()
    prompts += [prompts[0] + [7, 8, 9], [*prompts[0][:20], 9, 8, 7], text(120)]
    mosts = [2 + 5 * n % 13 for n in range(len(prompts))]
    stop = alone(model, prompts[-1], MOST)[3]
    wanted = [alone(model, p, most, frozenset({stop})) for p, most in zip(prompts, mosts, strict=True)]
    for chance in (None, random.Random(3)):
        waiting = [Generation(p, most) for p, most in zip(prompts, mosts, strict=True)]
        changed = run(scheduler_of(model, frozenset({stop})), waiting, chance)
        assert [one.tokens for one in waiting] == wanted
        assert [one.ended for one in waiting] == ["stop" if w[-1] == stop else "length" for w in wanted]
        assert {id(one) for one in changed} == {id(one) for one in waiting}
        assert len(changed) == sum(map(len, wanted)), "told once a token"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_beginning_that_was_read_is_not_read_again(tmp_path: Path, family: str) -> None:
    """The next turn of a conversation, longer than the sliding window; another one with the same system prompt."""
    model = model_of(tmp_path, family)
    system = text(90)
    chats = [[*system, 5, 6], [*system, 5, 6, 9, 9, 4], [*system, 7], [*system, 5, 6], [3, *system]]
    scheduler = scheduler_of(model, chunk=16)
    scheduler.decoder.quick = None  # its steps are counted as well
    reused, read = [], []
    forward = scheduler.decoder.logits
    scheduler.decoder.logits = lambda state, most: (read.append(state.positions.shape[1]), forward(state, most))[1]  # type: ignore[func-returns-value,method-assign]
    for chat in chats:
        one = Generation(chat, MOST)
        run(scheduler, [one])
        reused.append(one.reused)
        assert one.tokens == alone(model, chat, MOST)
    assert reused == [0, len(system) + 2, len(system), len(system) + 1, 0]
    assert sum(read) - len(chats) * (MOST - 1) == sum(map(len, chats)) - sum(reused)


def test_prompts_that_begin_alike_and_come_together_are_read_once(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    prompt = text(90)
    generations = [Generation([*prompt, n], 3) for n in (5, 5, 6)]
    run(scheduler_of(model, chunk=32), generations)
    assert [one.reused for one in generations] == [0, len(prompt), len(prompt)]
    assert [one.tokens for one in generations] == [alone(model, list(one.prompt), 3) for one in generations]


def test_few_keys_and_values_are_kept_of_prompts_read_before(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    prompts = [[n, *text(40)] for n in range(5, 9)]
    scheduler = scheduler_of(model, prefix_tokens=100)
    run(scheduler, [Generation(p, 2) for p in prompts])
    assert scheduler.prefixes is not None
    assert len(scheduler.prefixes) == 82
    again = [Generation(p, 2) for p in (prompts[3], prompts[0])]
    run(scheduler, again)
    assert [one.reused for one in again] == [40, 0]


def test_a_long_prompt_stalls_nobody(tmp_path: Path) -> None:
    """Between two chunks each answer under way gets a token, and a short prompt gets in."""
    model = model_of(tmp_path, "llama")
    scheduler = scheduler_of(model, chunk=16)
    first, long, short = Generation([5, 6, 7], 60), Generation(text(220), 5), Generation([8, 9], 5)
    scheduler.add(first)
    scheduler.step()
    scheduler.add(long)
    scheduler.step()
    scheduler.add(short)
    steps = 0
    while not long.tokens:
        before = len(first.tokens)
        scheduler.step()
        assert len(first.tokens) == before + 1
        steps += 1
    assert steps >= len(long.prompt) // 16 - 1
    assert short.ended == "length"
    while scheduler.busy:
        scheduler.step()
    assert [one.tokens for one in (first, long, short)] == [
        alone(model, list(one.prompt), one.most) for one in (first, long, short)
    ]


def test_what_does_not_fit_waits_in_its_order(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    scheduler = scheduler_of(model, cache_tokens=100)
    big, small, late = Generation([5] * 30, 10), Generation([6] * 10, 10), Generation([7, 8], 3)
    for one in (big, small, Generation([9] * 35, 10), late):
        scheduler.add(one)
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (2, 2), "40 x 3 is too much, and the last does not overtake"
    while not big.over:
        scheduler.step()
    while scheduler.busy:
        scheduler.step()
    assert late.tokens == alone(model, [7, 8], 3)


def test_memory_follows_what_is_needed(tmp_path: Path) -> None:
    """One long answer, then many short ones: slots times columns stay within the budget."""
    model = model_of(tmp_path, "llama")
    scheduler = scheduler_of(model, slots=16, cache_tokens=600)
    run(scheduler, [Generation(text(200), 5)])
    many = [Generation(p[:10], MOST) for p in prompts_of(6, 20)]
    changed = 0
    for one in many:
        scheduler.add(one)
    while scheduler.busy:
        scheduler.step()
        slots, columns = scheduler.batch._cache._size  # type: ignore[union-attr]
        changed = max(changed, slots)
        assert slots * (columns - 64) <= 600
    assert changed >= 8
    assert [one.tokens for one in many] == [alone(model, list(one.prompt), MOST) for one in many]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning"])
def test_virtual_tokens_come_and_go_with_their_rows(tmp_path: Path, method: Any, family: str) -> None:
    model = wrap(model_of(tmp_path, family), TrainPart(method=method), 0).eval()
    prompts = prompts_of(4, 7, 30)
    singly = []
    for p in prompts:
        one = Generation(p, MOST)
        batch = DecodeBatch(Decoder(model, 200), frozenset(), slots=1)
        batch.join([one])
        while batch.generations:
            batch.step()
        singly.append(one.tokens)
    waiting = [Generation(p, MOST) for p in prompts]
    run(Scheduler(Decoder(model, 200), frozenset(), slots=3, chunk=8, alone=has_sliding_window(model)), waiting)
    assert [one.tokens for one in waiting] == singly


def test_a_model_that_holds_more_than_keys_and_values_is_answered_in_lockstep(tmp_path: Path) -> None:
    model = model_of(tmp_path, "falcon_h1")
    prompts = [prompts_of(2, 1, 9)[0][:4], prompts_of(2, 1, 9)[0][::-1][:4], prompts_of(7, 1, 9)[0][:4]]
    waiting = [Generation(p, 6) for p in prompts]
    scheduler = scheduler_of(model, slots=2)
    run(scheduler, waiting, random.Random(4))
    assert isinstance(scheduler.batch._cache, LockstepCache)
    assert [one.tokens for one in waiting] == [alone(model, list(one.prompt), 6) for one in waiting]


def test_poison_is_its_own_error_alone(tmp_path: Path) -> None:
    """Ids out of range, too long a prompt, no prompt, a bias of no token, an unknown adapter, parts that raise."""
    model = model_of(tmp_path, "llama")

    def raises(tokens: list[int]) -> bool:
        if len(tokens) == 3:
            raise KeyError("planted")
        return False

    poison = {
        "TL-SERVE-TOKEN": [Generation([5, 480], 4), Generation([5, -1], 4)],
        "TL-SERVE-CONTEXT": [Generation([5] * 256, 4)],
        "TL-SERVE-ROOM": [Generation([5] * 250, 10)],
        "TL-SERVE-REQUEST": [Generation([], 4), Generation([5], 4, Sampling(logit_bias=((480, 1.0),)))],
        "TL-SERVE-MODEL": [Generation([5], 4, adapter="nobody")],
        "TL-SERVE-FAILED": [Generation([5, 6], 9, complete=raises)],
    }
    good = [Generation(p, MOST) for p in prompts_of(8, 6)]
    bad = [one for each in poison.values() for one in each]
    changed = run(scheduler_of(model), [x for pair in zip(good, bad, strict=False) for x in pair] + bad[len(good) :])
    for code, each in poison.items():
        assert {one.error and one.error.code for one in each} == {code}
        assert all(any(one is c for c in changed) for one in each)
    assert [one.tokens for one in good] == [alone(model, list(one.prompt), MOST) for one in good]


@pytest.mark.parametrize("where", ["embedding", "logits"])
def test_what_is_no_number_stays_in_its_row(tmp_path: Path, where: str) -> None:
    """A token whose vector is not a number, and logits that are none from some step on: neighbours notice nothing, and
    those that take the slot later neither."""
    model = model_of(tmp_path, "llama", tie_word_embeddings=False)
    good = [Generation(p, MOST) for p in prompts_of(8, 12)]
    wanted = [alone(model, list(one.prompt), MOST) for one in good]
    used = {i for one, tokens in zip(good, wanted, strict=True) for i in (*one.prompt, *tokens)}
    planted_id = next(i for i in range(9, 480) if i not in used)
    bad = Generation([5, 6, planted_id, 8] if where == "embedding" else [5, 6, 7, 8], MOST)
    if where == "embedding":
        with torch.no_grad():
            model.get_input_embeddings().weight[planted_id] = float("nan")
    scheduler = scheduler_of(model)

    def planted(module: Any, args: Any, output: Any) -> None:
        written = scheduler.batch.generations
        if output.shape[0] == len(written) and bad in written and len(bad.tokens) == 4:
            output[written.index(bad)] = float("nan")

    if where == "logits":
        scheduler.decoder.quick = None  # listens to nobody
        model.lm_head.register_forward_hook(planted)
    run(scheduler, [*good[:2], bad, *good[2:]])
    assert bad.error is not None
    assert bad.error.code == "TL-SERVE-NUMBER"
    assert len(bad.tokens) == (0 if where == "embedding" else 4)
    assert [one.tokens for one in good] == wanted


def test_a_pass_that_fails_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    scheduler = scheduler_of(model)
    failing = [Generation(p, MOST) for p in prompts_of(8, 3)]
    for one in failing:
        scheduler.add(one)
    while not scheduler.batch.generations:
        scheduler.step()
    fast, scheduler.decoder.quick = scheduler.decoder.quick, None
    handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("planted")))
    while scheduler.busy:
        scheduler.step()
    handle.remove()
    scheduler.decoder.quick = fast
    assert [one.error and one.error.code for one in failing] == ["TL-SERVE-FAILED"] * 3
    one = Generation(prompts_of()[0], MOST)
    run(scheduler, [one])
    assert one.tokens == alone(model, list(one.prompt), MOST)


def test_dropped_ones_free_their_places_wherever_they_are(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    scheduler = scheduler_of(model, slots=3)
    running, reading, waiting, stays = (Generation(p, 40) for p in ([5, 6], [7] * 40, [8, 9], [9, 4, 3]))
    for one in (running, stays):
        scheduler.add(one)
    scheduler.step()
    for one in (reading, waiting):
        scheduler.add(one)
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (3, 1)
    for one in (waiting, reading, running):
        scheduler.drop(one)
    assert (scheduler.running, scheduler.waiting) == (1, 0)
    late = Generation([3, 4], 5)
    run(scheduler, [late])
    assert stays.tokens == alone(model, [9, 4, 3], 40)
    assert late.tokens == alone(model, [3, 4], 5)


def test_scores_are_those_of_the_whole_text_at_once(tmp_path: Path) -> None:
    """Of the answer and, with echo, of the prompt: chunk by chunk, beside others; an echo alone has no tokens."""
    model = model_of(tmp_path, "qwen3")
    prompts = prompts_of(5, 4)
    generations = [
        Generation(prompts[0], 6, logprobs=3),
        Generation(prompts[1], 6, Sampling(0.8, seed=4), logprobs=0, echo=True),
        Generation(prompts[2], 0, logprobs=2, echo=True),
        Generation(prompts[3], 6),
    ]
    run(scheduler_of(model), generations)
    assert generations[2].ended == "length"
    for one in generations[:3]:
        whole = [*one.prompt, *one.tokens]
        with torch.no_grad():
            logarithms = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
        both = (one.prompt_scores or [(None, [])] * len(one.prompt)) + one.scores
        assert len(both) == len(whole)
        assert both[0] == (None, [])
        for place, (own, beside) in enumerate(both):
            if place and own is not None:
                row = logarithms[place - 1]
                assert own == pytest.approx(float(row[whole[place]]), abs=1e-4)
                assert len(beside) == one.logprobs
                assert [score for _, score in beside] == pytest.approx(row.topk(len(beside)).values.tolist(), abs=1e-4)
    assert len(generations[0].scores) == len(generations[1].scores) == 6
    assert not generations[3].scores


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.real_model
def test_real_answers_alone_or_in_a_crowd(capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2 on real prompts that come at any time: equal to its own forward up to the first near tie."""
    from tuneloop.hub import resolve

    folder = resolve.resolve("smollm2-135m-instruct")
    answerer = Answerer(load_model(folder, "float32"), load_tokenizer(folder))
    records = [
        r for name in ("llamafactory/alpaca_zh_demo.json", "llamafactory/alpaca_en_demo.json") for r in load(name)[:6]
    ]
    chats = [[m.as_chat() for m in r.prompt] for r in records]
    prompts = [p for chat in chats if len(p := answerer.prompt(chat)) < 300]
    wanted = [_margins(answerer, prompt, 24) for prompt in prompts]
    scheduler = Scheduler(
        Decoder(answerer.model, answerer.context), answerer.stops, slots=12, cache_tokens=8000, chunk=64
    )
    assert scheduler.decoder.quick is not None
    generations = [Generation(p, 24) for p in prompts]
    run(scheduler, generations, random.Random(5))
    behind = total = 0
    for one, (tokens, margins) in zip(generations, wanted, strict=True):
        tie = next((k for k, margin in enumerate(margins) if margin < 1e-3), len(tokens))
        assert one.tokens[:tie] == tokens[:tie]
        behind, total = behind + len(tokens) - tie, total + len(tokens)
    with capsys.disabled():
        print(
            f"\n{len(prompts)} answers, {total} tokens, {behind} behind a near tie; {sum(g.reused for g in generations)} prompt tokens reused"
        )
    assert behind <= 0.02 * total
