"""What is trained is what is to be said: over all chat data, for the templates of DeepSeek, Qwen3, SmolLM2 and R1.

Each trained stretch decodes to exactly the assistant's words with their end token, and the tokens before it are those
that the tokenizer itself makes of the template's generation prompt. Both are worked out here by hand, not by our code;
and the quick way to mask agrees with the plain one (tests/reference.py) on every row. What a template cannot say of an
answer (calls, thoughts) keeps it from being trained, by name; a thought without words is context.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.real import DATA, load, pulled_tokenizer, shared
from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import encode_records
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.tokens.templates import choose_template

FOLDERS = ("alpaca_cot_en", "emollm", "gaokao_zh", "huatuo_o1", "llamafactory", "medicalgpt", "messy/data_juicer",
           "openai_messages", "smilechat")  # fmt: skip
QUICK = 4
"""`make test` looks at every fourth row of each file, `make test-slow` at all."""

# In the manner of DeepSeek-R1: the prompt opens a thought, and what is written of an answer has none.
R1 = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role == 'user' or m.role == 'tool' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""


@cache
def chats() -> list[Record]:
    """All chat rows of the shared data, file by file."""
    shared("README.md")
    out: list[Record] = []
    for folder in FOLDERS:
        for path in sorted(p for p in (DATA / folder).rglob("*") if p.suffix in {".json", ".jsonl"}):
            try:
                out += [r for r in load(path.relative_to(DATA).as_posix()) if r.kind == "chat"]
            except DataError:
                continue  # preference pairs, labels, plain text: counted by the test below
    return out


def spoken(message: Message) -> bool:
    answer = message.content if message.reasoning else message.content.rpartition("</think>")[2]
    return bool(answer.strip() or message.tool_calls)


def test_no_chat_file_is_missing() -> None:
    files = {record.file for record in chats()}
    assert len(chats()) >= 5001
    assert len(files) >= 33
    assert sum(any(m.reasoning for m in r.messages) for r in chats()) >= 739
    assert sum(bool(r.tools) for r in chats()) >= 170
    assert max(sum(m.role == "assistant" for m in r.messages) for r in chats()) >= 10


def _content(record: Record, at: int) -> str | None:
    """SmolLM2, plain: the content; they know neither calls nor thoughts of their own."""
    message = record.messages[at]
    return None if message.tool_calls or message.reasoning else message.content


def _v3(record: Record, at: int) -> str | None:
    """DeepSeek-V3: the content, or calls without content, two at most, and once in a dialogue."""
    message = record.messages[at]
    calls = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{c['function']['name']}\n```json\n"
        f"{json.dumps(c['function']['arguments'], ensure_ascii=False)}\n```<｜tool▁call▁end｜>"
        for c in message.tool_calls
    ]
    before = any(m.tool_calls and not m.content for m in record.messages[:at])
    if message.reasoning or (calls and (message.content or before or len(calls) > 2)):
        return None
    return "<｜tool▁calls▁begin｜>" + "\n".join(calls) + "<｜tool▁calls▁end｜>" if calls else message.content


def _qwen3(record: Record, at: int) -> str | None:
    """What Qwen3's template writes of the last answer: the thought, where there is one, the answer, the calls."""
    message = record.messages[at]
    thought, content = message.reasoning, message.content
    if not thought and "</think>" in content:
        thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        content = content.split("</think>")[-1].lstrip("\n")
    thinks = f"<think>\n{thought.strip(chr(10))}\n</think>\n\n" if thought.strip() else ""
    text = thinks + content.lstrip(chr(10))
    for n, call in enumerate(message.tool_calls):
        one = call.get("function") or call
        given = (
            one["arguments"] if isinstance(one["arguments"], str) else json.dumps(one["arguments"], ensure_ascii=False)
        )
        line = "\n" if n or content else ""
        text += f'{line}<tool_call>\n{{"name": "{one["name"]}", "arguments": {given}}}\n</tool_call>'
    return text


def _r1(record: Record, at: int) -> str | None:
    """The prompt has opened the thought; the model writes it, closes it, and answers. Calls it does not know."""
    message = record.messages[at]
    thought = (message.reasoning or message.content.rpartition("</think>")[0].rpartition("<think>")[2]).strip()
    answer = message.content.split("</think>")[-1].lstrip()
    if message.tool_calls or (message.reasoning and "</think>" in message.content):
        return None  # the template takes what stands before </think> for a thought
    return f"{thought}\n</think>\n\n{answer}" if thought else answer


def served(case: str, record: Record, at: int) -> str:
    """The prompt of an answer: the template's own, and behind it the empty thought where the row has none."""
    text = reference.render(tokenizer_of(case), record.chat()[:at], True, record.tools)
    message = record.messages[at]
    if message.reasoning or "</think>" in message.content:
        return text
    return text + {"Qwen3": "<think>\n\n</think>\n\n", "R1": "\n</think>\n\n"}.get(case, "")


DEEPSEEK = "<｜end▁of▁sentence｜>"
# name -> the pulled tokenizer, its template (None: its own), what it says of a message, its end token
CASES: dict[str, tuple[str, str | None, Callable[[Record, int], str | None], str]] = {
    "DeepSeek-V3": ("deepseek-v3-tokenizer", None, _v3, DEEPSEEK),
    "DeepSeek-V4": ("deepseek-v4-tokenizer", None, _content, DEEPSEEK),  # has no template: it gets the default, plain
    "Qwen3": ("qwen3-tokenizer", None, _qwen3, "<|im_end|>"),
    "SmolLM2": ("smollm2-135m-instruct", None, _content, "<|im_end|>"),
    "R1": ("deepseek-v4-tokenizer", R1, _r1, DEEPSEEK),
}


@cache
def tokenizer_of(case: str) -> Any:
    name, template, _, _ = CASES[case]
    tokenizer = pulled_tokenizer(name)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


@cache
def made(case: str, each: int) -> Sequences:
    return encode_records(tokenizer_of(case), chats()[::each])


def runs(samples: Sequences) -> list[tuple[int, int, int, int]]:
    """(record, start of its sample, begin, end) of each trained stretch, in tokens of all samples."""
    edge = np.zeros(samples.tokens + 1, np.int8)
    edge[:-1] = samples.trained
    change = np.diff(np.concatenate([[0], edge]))
    begins, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    of = np.searchsorted(samples.starts, begins, side="right") - 1
    rows = zip(samples.row[of].tolist(), samples.starts[of].tolist(), begins.tolist(), ends.tolist(), strict=True)
    return list(rows)


EVERY = [pytest.param(QUICK, id="quick"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("each", EVERY)
@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_what_the_assistant_says(case: str, each: int) -> None:
    """Answer by answer, in order: its words, and its first end token; what would be said behind it, no one hears."""
    tokenizer, (_, _, says, end) = tokenizer_of(case), CASES[case]
    records, samples = chats()[::each], made(case, each)
    every = [(n, at) for n, record in enumerate(records) for at, m in enumerate(record.messages)
             if m.role == "assistant" and m.trained]  # fmt: skip
    answers = [(n, at) for n, at in every if says(records[n], at) is not None and spoken(records[n].messages[at])]
    found = runs(samples)
    assert {(u.row, u.turn - 1) for u in samples.unsaid} == set(every) - set(answers)
    assert [row for row, *_ in found] == [n for n, _ in answers]
    texts = tokenizer.batch_decode(
        [samples.ids[a:b].tolist() for _, _, a, b in found],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    for (n, at), text in zip(answers, texts, strict=True):
        expected = (str(says(records[n], at)) + end).partition(end)[0] + end
        assert text.removesuffix(end).strip(), "no trained span is empty or only an end token"
        if not any(m.role == "user" for m in records[n].messages):
            continue  # Qwen3 looks for the user's last turn; its own words are compared where there is one
        assert text == unicodedata.normalize("NFC", expected), f"{records[n].file}:{records[n].line}"


@pytest.mark.parametrize("each", EVERY)
@pytest.mark.parametrize("case", CASES)
def test_what_is_before_an_answer_is_what_serving_makes_of_the_prompt(case: str, each: int) -> None:
    """The tokenizer's own rendering of the dialogue so far with a generation prompt, in the tokenizer's own tokens."""
    tokenizer = tokenizer_of(case)
    records, samples = chats()[::each], made(case, each)
    lost = {(u.row, u.turn - 1) for u in samples.unsaid}
    prompts = [
        served(case, record, at)
        for n, record in enumerate(records)
        for at, m in enumerate(record.messages)
        if m.role == "assistant" and m.trained and (n, at) not in lost
    ]
    found = runs(samples)
    assert len(found) == len(prompts) > 1300
    edges = [*range(0, len(prompts), 500), len(prompts)]
    for first, last in pairwise(edges):
        asked = tokenizer(prompts[first:last], add_special_tokens=False, verbose=False)["input_ids"]
        for (row, start, begin, _), ids in zip(found[first:last], asked, strict=True):
            assert samples.ids[start:begin].tolist() == ids, f"{records[row].file}:{records[row].line}"


@pytest.mark.parametrize("case", ["Qwen3", "R1", "SmolLM2"])
def test_a_dialogue_without_a_user_is_trained_as_it_is_served(case: str) -> None:
    """Qwen3's template leaves the empty thought out where no user has spoken; serving begins the answer behind it."""
    record = Record((Message("system", "Be kind."), Message("assistant", "You're great!")))
    (sample,) = encode_records(tokenizer_of(case), [record])
    prompt = tokenizer_of(case)(served(case, record, 1), add_special_tokens=False)["input_ids"]
    assert sample.ids[: len(prompt)].tolist() == prompt
    assert sample.trained.tolist().index(True) == len(prompt)


@pytest.mark.parametrize("each", [pytest.param(40, id="quick"), pytest.param(1, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("template", ["own", "chatml", "gemma", "plain"])
@pytest.mark.parametrize("case", ["DeepSeek-V3", "Qwen3", "SmolLM2", "R1"])
def test_the_quick_way_is_the_plain_way(case: str, template: str, each: int) -> None:
    """Token by token, mask by mask, whatever template the tokenizer has, those not made for it included."""
    tokenizer = tokenizer_of(case)
    own = tokenizer.chat_template
    try:
        if template != "own":
            choose_template(tokenizer, template)
        records = chats()[::each]
        samples = encode_records(tokenizer, records)
        found = iter(samples)
        for record in records:
            for ids, trained, ended in reference.masked(tokenizer, record):
                sample = next(found)
                assert (sample.record, sample.ended) == (record.id, ended)
                assert sample.ids.tolist() == ids
                assert sample.trained.tolist() == trained
        assert next(found, None) is None
    finally:
        tokenizer.chat_template = own


def test_the_oracle_shares_no_line_with_what_it_proves() -> None:
    """But imports, and lines that say nothing by themselves."""

    def lines(path: Path) -> set[str]:
        stripped = map(str.strip, path.read_text(encoding="utf-8").splitlines())
        return {line for line in stripped if len(line) > 30 and not line.startswith(("from ", "import ", "def ", "#"))}

    here = Path(__file__).parents[1] / "reference.py"
    room = Path(__file__).parents[2] / "tuneloop" / "data" / "tokens"
    assert not [(path.name, same) for path in room.glob("*.py") for same in lines(here) & lines(path)]
