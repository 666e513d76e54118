"""Calls, thoughts and cuts, from the raw file to the tokens: what a template cannot say is told, no cut has an end."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.invariant.test_masks import CASES, chats, tokenizer_of
from tests.real import load
from tuneloop import pipeline
from tuneloop.base.errors import DataError
from tuneloop.base.records import Record
from tuneloop.data import ledger
from tuneloop.data.ledger import Ledger
from tuneloop.data.tokens.encode import encode_records
from tuneloop.data.tokens.samples import Sequences, open_samples
from tuneloop.data.tokens.templates import choose_template, stop_ids
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.lengths import fit_lengths
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import PreparePart
from tuneloop.training.input import tokenizer_bundle

HERE = Path(__file__).parents[1] / "cases"
NAMES = {"SmolLM2": "smollm2-135m-instruct", "Qwen3": "qwen3-tokenizer", "DeepSeek-V3": "deepseek-v3-tokenizer",
         "DeepSeek-V4": "deepseek-v4-tokenizer"}  # fmt: skip


def prepare(file: Path, case: str, folder: Path, template: str | None = None, **more: Any) -> tuple[Dataset, Any, str]:
    """The version of a file for a pulled tokenizer, that tokenizer, and the key of its tokens."""
    tokenizer_of(case)  # skips where it is not here
    model = {"name": NAMES[case], "template": template}
    recipe, _ = make_recipe({"name": "c", "model": model, "data": str(file), "prepare": {"validation": 0, **more}})
    dataset = pipeline.prepare(recipe, workspace=folder)
    words = tokenizer_bundle(recipe)
    return dataset, words.tokenizer, words.key


def trained(dataset: Dataset, tokenizer: Any, key: str) -> list[list[str]]:
    """The trained stretches of each sample, as text."""
    samples = open_samples(dataset.path / "tokens" / key / "train")
    out = []
    for sample in samples:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.trained.astype(np.int8), [0]])))
        out.append([tokenizer.decode(sample.ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)])
    return out


def told(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(e.action, e.reason, e.detail) for e in ledger.entries(dataset.path / "ledger.jsonl")]


V3 = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Rome"}\n```'
# tokenizer, template -> the trained text of the turn that calls a tool; "" where the template cannot say it
CALLS = [
    ("SmolLM2", None, ""),
    ("DeepSeek-V4", None, ""),
    ("Qwen3", None, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
    ("DeepSeek-V3", None, V3 + "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"),
    ("SmolLM2", "chatml-think", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
    ("DeepSeek-V4", "plain-think",
     '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><｜end▁of▁sentence｜>'),
]  # fmt: skip


@pytest.mark.parametrize(("case", "template", "call"), CALLS)
def test_a_call_is_trained_or_told(
    case: str, template: str | None, call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, tokenizer, key = prepare(HERE / "data" / "toolcall.jsonl", case, tmp_path, template)
    texts = [text for sample in trained(dataset, tokenizer, key) for text in sample]
    answers = ["It is 18 degrees in Rome.", "It is 11 degrees in Paris."]
    assert [any(text.startswith(answer) for text in texts) for answer in answers] == [True, True]
    better = "chatml-think" if case == "SmolLM2" else "plain-think"
    if call:
        assert call in texts
        assert len(texts) == 4
        assert not told(dataset)
    else:
        assert len(texts) == 2
        assert told(dataset) == [("marked", "call not written", f"2 / 4, model.template: {better}")] * 2
        from tuneloop.cli import losses

        losses.warn(dataset, make_recipe({"data": "x"})[0])
        panel = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "cannot write tool calls (2)" in panel
        assert f"To train them: model.template: {better}" in panel


@pytest.mark.parametrize("case", ["Qwen3", "SmolLM2"])
def test_an_open_thought_is_not_trained_and_an_inline_one_is_a_thought(case: str, tmp_path: Path) -> None:
    answers = ["<think>cut off", "<thinking>cut off", "<thinking>aha</thinking>ok", "<think>oho</think>fine", "plain"]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"instruction": f"Question {n}?", "output": a} for n, a in enumerate(answers)]))
    dataset, tokenizer, key = prepare(file, case, tmp_path)
    texts = [text for sample in trained(dataset, tokenizer, key) for text in sample]
    assert not any("cut off" in text for text in texts)
    assert [t.removesuffix("<|im_end|>").replace("\n", "") for t in sorted(texts)] == [
        "<think>aha</think>ok", "<think>oho</think>fine", "plain",
    ]  # fmt: skip
    assert [reason for _, reason, _ in told(dataset)].count("open thought") == 2
    assert sum(action == "dropped" for action, _, _ in told(dataset)) == 2


THOUGHTS = [{"Question": f"What is {n} and {n}?", "Complex_CoT": f"I add {n} to itself.", "Response": str(2 * n)}
            for n in range(30)]  # fmt: skip


def test_thoughts_that_no_answer_can_be_trained_without_name_the_template(tmp_path: Path) -> None:
    """Nothing is left to train: the error says so, and which template writes thoughts; with it they are trained."""
    file = tmp_path / "cot.json"
    file.write_text(json.dumps(THOUGHTS), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(file, "SmolLM2", tmp_path)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "a thought that the chat template cannot write" in str(caught.value)
    assert "model.template: chatml-think" in str(caught.value)
    dataset, tokenizer, key = prepare(file, "SmolLM2", tmp_path, "chatml-think")
    assert "<think>\nI add 3 to itself.\n</think>\n\n6<|im_end|>" in {
        t for s in trained(dataset, tokenizer, key) for t in s
    }
    profile = json.loads((dataset.path / "profile.json").read_text(encoding="utf-8"))
    assert profile["with"]["reasoning"] == 30


def test_the_card_counts_no_thought_that_is_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = [{"messages": [
        {"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So it is.", **({"reasoning_content": "hm"} if n % 3 else {})},
    ]} for n in range(30)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset, *_ = prepare(file, "SmolLM2", tmp_path)
    profile = json.loads((dataset.path / "profile.json").read_text(encoding="utf-8"))
    assert profile["with"]["reasoning"] == 0
    assert profile["with"]["unsaid"] == 20
    assert told(dataset) == [("marked", "thought not written", "4 / 4, model.template: chatml-think")] * 20


@pytest.mark.parametrize("asked", [False, True])
def test_an_empty_thought_is_trained_only_where_it_is_asked_for(asked: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset, tokenizer, key = prepare(file, "Qwen3", tmp_path, empty_thoughts=asked)
    empty = "<think>\n\n</think>\n\n" if asked else ""
    assert sorted(t for s in trained(dataset, tokenizer, key) for t in s) == sorted(
        f"{empty}It is {n}.<|im_end|>" for n in range(20)
    )
    recipe, _ = make_recipe({"name": "c", "model": NAMES["Qwen3"], "data": str(file),
                             "prepare": {"validation": 0, "empty_thoughts": asked}})  # fmt: skip
    foreseen, looked = pipeline.plan(recipe, dataset, workspace=tmp_path)
    (said,) = looked.warnings
    assert said.startswith("20 of 20 answers have no thought")
    assert ("not trained" in said) is not asked
    assert not foreseen.costed
    assert foreseen.data["steps"] > 0
    assert "memory and time need a model" in foreseen.warnings[0]


CUTS = [("chat.json", "cut_right"), ("think.json", "cut_right"), ("pair.json", "cut_right"), ("kto.json", "cut_right"),
        ("text.json", "cut_right"), ("text.json", "split")]  # fmt: skip


@pytest.mark.parametrize(("name", "how"), CUTS)
def test_no_end_token_stands_behind_a_cut(name: str, how: str, tmp_path: Path) -> None:
    file = HERE / "05-end-after-cut" / name
    if name == "think.json":  # a thought that is cut is dropped, and here nothing else is left
        with pytest.raises(DataError, match="TL-DATA-NOTHING-LEFT"):
            prepare(file, "Qwen3", tmp_path, max_length=80, too_long=how)
        return
    dataset, tokenizer, key = prepare(file, "Qwen3", tmp_path, max_length=80, too_long=how)
    samples = open_samples(dataset.path / "tokens" / key / "train")
    texts = [t for s in trained(dataset, tokenizer, key) for t in s]
    ended = [t.endswith(("<|im_end|>", "<|endoftext|>")) for t in texts]
    assert samples.ended.all()
    if how == "split":
        assert ended == [False] * (len(ended) - 1) + [True]
        assert len(ended) > 2
    else:
        whole = [m.content for row in load_case(file) for m in (*row.messages, *row.rejected)]
        assert ended == [any(t.startswith(text) for text in whole) for t in texts]
        assert not all(ended)
    assert all(t.count("<think>") == t.count("</think>") for t in texts)


def load_case(file: Path) -> list[Record]:
    from tuneloop.data.reading import formats
    from tuneloop.recipe.schema import DataFile

    return [item for item in formats.read(DataFile(path=str(file))) if isinstance(item, Record)]


def test_turns_leaves_out_the_oldest(tmp_path: Path) -> None:
    file = HERE / "33-too-long-turns" / "chat.json"
    dataset, *_ = prepare(file, "SmolLM2", tmp_path, max_length=160, too_long="turns")
    (made,), (raw,) = dataset.records("train"), load_case(file)
    assert made.messages[0] == raw.messages[0]
    assert 2 < len(made.messages) < len(raw.messages)
    assert made.messages[1:] == raw.messages[len(raw.messages) - len(made.messages) + 1 :]
    (entry,) = told(dataset)
    assert entry[:2] == ("changed", "oldest turns left out")
    assert entry[2].endswith(f", {len(made.messages) - len(raw.messages)}")
    pieces, *_ = prepare(file, "SmolLM2", tmp_path, max_length=160, too_long="split")
    said = [m for r in pieces.records("train") for m in r.messages[1:]]
    assert said == list(raw.messages[1:])


def test_the_length_is_left_to_the_rows(tmp_path: Path) -> None:
    """auto is the default: nothing is dropped but what the model's context has no place for."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"question": f"What is {n}?", "answer": "so " * (2000 if n == 3 else 9000 if n == 4 else n)}
        for n in range(1, 30)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset, *_ = prepare(file, "SmolLM2", tmp_path)
    (dropped,) = [entry for entry in told(dataset) if entry[0] == "dropped"]
    assert dropped[1] == "too long"
    assert dropped[2].endswith("/ 8192")
    assert 2000 < dataset.manifest["tokens"]["longest"] < 2100
    profile = json.loads((dataset.path / "profile.json").read_text(encoding="utf-8"))
    assert profile["max_length"] == dataset.manifest["tokens"]["longest"]


@cache
def every(each: int) -> tuple[Record, ...]:
    texts = [r for name in ("llamafactory/c4_demo.jsonl", "llamafactory/wiki_demo.txt") for r in load(name)]
    pairs = [r for name in ("llamafactory/dpo_zh_demo.json", "llamafactory/kto_en_demo.json") for r in load(name)]
    return tuple([*chats()[::each], *texts[::each], *pairs[::each]])


@pytest.mark.parametrize("each", [pytest.param(150, id="thin"), pytest.param(1, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["cut_right", "cut_left", "turns", "split"])
@pytest.mark.parametrize("case", [*CASES])
def test_over_all_data_no_cut_has_an_end_and_no_answer_is_empty(case: str, how: str, each: int, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(case)
    stops = np.array(sorted(stop_ids(tokenizer)))

    def encode(records: Any) -> Sequences:
        return encode_records(tokenizer, records)

    part = PreparePart.model_validate({"max_length": 200, "too_long": how})
    with Ledger(tmp_path / "ledger.jsonl") as book:
        kept, _, samples = fit_lengths(list(every(each)), encode, part, book)
    assert len(kept) > 8
    assert samples.ended.all()
    last: dict[int, bool] = {}
    for sample, row in zip(samples, samples.row.tolist(), strict=True):
        record = kept[row]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.trained.astype(np.int8), [0]]))).reshape(-1, 2)
        if record.kind != "label":
            assert len(edges)
        for a, b in edges:
            assert set(sample.ids[a:b].tolist()) - set(stops.tolist()), "only an end token"
        last[row] = bool(sample.ids[edges[-1][1] - 1] in stops) if len(edges) else False
    for row, record in enumerate(kept):
        turns = record.rejected or record.messages
        if turns[-1].role == "assistant" and turns[-1].trained and not turns[-1].tool_calls:
            assert last[row] is not turns[-1].cut, f"{record.file}:{record.line}"


def test_the_named_templates_say_all_that_they_are_given() -> None:
    """Every thought and call of the shared data, in the templates that are offered where another cannot say them."""
    for case, name in (("SmolLM2", "chatml-think"), ("DeepSeek-V4", "plain-think")):
        tokenizer = load_tokenizer(Path(tokenizer_of(case).name_or_path))
        choose_template(tokenizer, name)
        rows = [r for r in chats()[::4] if any(m.reasoning or m.tool_calls for m in r.messages)]
        assert len(rows) > 50
        samples = encode_records(tokenizer, rows)
        assert not [u for u in samples.unsaid if u.what != "alone"]
