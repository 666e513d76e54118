"""Ids and masks: trained is what is to be said, in the context it is said in.

Over 400 lines: the mirror of one module; each family of templates has its own cases.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import reference
from tests.conftest import TALK, byte_tokenizer
from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens import encode as tokens
from tuneloop.data.tokens.encode import Sample, encode_parts, encode_records, lengths, marked, tokenize
from tuneloop.data.tokens.samples import write
from tuneloop.data.tokens.templates import CHATML, GEMMA, PLAIN, encode, render, stop_ids

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Drops the thought of every answer but the last, as DeepSeek-R1 and Qwen3 do.
FORGETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% else %}"
    "{{ '<|Assistant|>' }}{% set c = m['content'] %}"
    "{% if loop.last %}{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{% elif '</think>' in c %}{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
    "{{ c + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
# Opens a thought in the prompt, and writes none of any answer, as the template of the R1 distills does.
OPENS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% else %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] | trim + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


def pieced(template: str) -> Any:
    """A tokenizer in the manner of Llama 2: pieces with ▁, and one put in front of every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = sorted({c for pair in TALK for text in pair for c in text} | set("▁\n[]/INST<|>:"))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *bytes_], initial_alphabet=alphabet, show_progress=False,
    )  # fmt: skip
    words = [w.replace(" ", "▁") for pair in TALK for text in pair for w in f"▁{text} User: Assistant:".split("  ")]
    bpe.train_from_iterator([w for line in words for w in line.replace("▁", " ▁").split()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def tokenizers() -> dict[str, Any]:
    gemma = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    llama = ("<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    return {
        "chatml": byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        "chatml, pad is eos": byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"),
        "chatml, base": byte_tokenizer(CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
        "gemma": byte_tokenizer(GEMMA, special=gemma, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"),
        "plain": byte_tokenizer(PLAIN, special=("<s>", "</s>"), bos_token="<s>", eos_token="</s>", pad_token="</s>"),
        "llama3": byte_tokenizer(LLAMA3, special=llama, bos_token="<|begin|>", eos_token="<|eot_id|>"),
        "mistral": byte_tokenizer(MISTRAL, special=("<s>", "</s>"), bos_token="<s>", eos_token="</s>"),
        "pieces, mistral": pieced(MISTRAL),
        "pieces, zephyr": pieced(ZEPHYR),
        "pieces, plain": pieced(PLAIN),
    }


@pytest.fixture(scope="module")
def all_tokenizers() -> dict[str, Any]:
    return tokenizers()


def dialogue(turns: int, *, system: bool = False) -> Record:
    messages = [Message("system", "Be brief.")] if system else []
    for n in range(turns):
        question, answer = TALK[(n + turns) % len(TALK)]
        messages += [Message("user", question), Message("assistant", answer)]
    return Record(tuple(messages), "talk.jsonl", turns)


def spans(sample: Sample) -> list[tuple[int, int]]:
    """(first, last + 1) of each run of trained tokens."""
    out: list[tuple[int, int]] = []
    for i, trained in enumerate(sample.trained.tolist()):
        if trained and out and out[-1][1] == i:
            out[-1] = (out[-1][0], i + 1)
        elif trained:
            out.append((i, i + 1))
    return out


def taught(tokenizer: Any, samples: Sequence[Sample]) -> list[tuple[list[int], list[int]]]:
    """(context ids, answer ids) of each trained turn."""
    return [(s.ids[:a].tolist(), s.ids[a:b].tolist()) for s in samples for a, b in spans(s)]


NAMES = list(tokenizers())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_each_answer_is_trained_whole_in_the_context_it_is_served_in(
    all_tokenizers: dict[str, Any], name: str, turns: int
) -> None:
    tokenizer = all_tokenizers[name]
    record = dialogue(turns)
    chat, stops = record.chat(), stop_ids(tokenizer)
    found = taught(tokenizer, tokenize(tokenizer, [record]))
    assert len(found) == turns
    for n, (context, answer) in enumerate(found):
        before, message = chat[: 2 * n + 1], chat[2 * n + 1]
        assert context == encode(tokenizer, [render(tokenizer, before, prompt=True)])[0]
        assert answer[-1] in stops
        assert not stops & set(answer[:-1])
        assert tokenizer.decode(answer[:-1]).strip() == message["content"]
        # Nothing stands between the prompt and the answer that the template did not write there.
        written = encode(tokenizer, [render(tokenizer, chat[: 2 * n + 2])])[0]
        assert written[: len(context + answer)] == context + answer


def test_a_dialogue_is_one_sample_where_the_template_leaves_history_alone(all_tokenizers: dict[str, Any]) -> None:
    for name, tokenizer in all_tokenizers.items():
        samples = tokenize(tokenizer, [dialogue(3)])
        assert len(samples) == 1, name
        assert samples[0].ids.tolist() == encode(tokenizer, [render(tokenizer, dialogue(3).chat())])[0], name
        assert all(s.ended for s in samples)


@pytest.mark.parametrize("name", [n for n in NAMES if "mistral" not in n])
def test_a_system_prompt_is_context(all_tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = all_tokenizers[name]
    samples = tokenize(tokenizer, [dialogue(2, system=True)])
    assert len(taught(tokenizer, samples)) == 2
    first, _ = taught(tokenizer, samples)[0]
    assert "Be brief." in tokenizer.decode(first)


def test_labels_count_what_is_predicted(all_tokenizers: dict[str, Any]) -> None:
    for sample in tokenize(all_tokenizers["chatml"], [dialogue(2)]):
        assert sample.labels == sample.trained.sum() > 0
    everything = byte_tokenizer(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        eos_token="<|im_end|>",
    )
    sample = tokenize(everything, [dialogue(1)])[0]
    assert sample.trained.all()
    assert sample.labels == len(sample.ids) - 1


def thinking() -> Any:
    special = ("<bos>", "<|User|>", "<|Assistant|>", "<|end|>")
    return byte_tokenizer(FORGETS, special=special, bos_token="<bos>", eos_token="<|end|>")


@pytest.mark.parametrize("inside", [True, False], ids=["<think> in the answer", "reasoning apart"])
def test_a_template_that_forgets_thoughts_gives_each_turn_its_own_context(inside: bool) -> None:
    tokenizer = thinking()
    messages = []
    for question, answer in TALK[:3]:
        thought = f"Let me see: {question}"
        said = (
            Message("assistant", f"<think>\n{thought}\n</think>\n\n{answer}")
            if inside
            else Message("assistant", answer, thought)
        )
        messages += [Message("user", question), said]
    record = Record(tuple(messages))
    samples = tokenize(tokenizer, [record])
    found = taught(tokenizer, samples)
    assert len(samples) == len(found) == 3
    for n, (context, answer) in enumerate(found):
        served = render(tokenizer, record.chat()[: 2 * n + 1], prompt=True)
        assert context == encode(tokenizer, [served])[0]
        assert "<think>" not in served
        question, said = TALK[n]
        assert tokenizer.decode(answer) == f"<think>\nLet me see: {question}\n</think>\n\n{said}<|end|>"


def test_a_thoughtless_dialogue_stays_one_sample_there() -> None:
    assert len(tokenize(thinking(), [dialogue(3)])) == 1


def test_the_length_of_a_dialogue_is_that_of_its_longest_sample() -> None:
    """A long thought that later turns do not see is still trained, so it counts."""
    tokenizer = thinking()
    record = Record(
        (
            Message("user", "a"),
            Message("assistant", "b", "deep " * 200),
            Message("user", "c"),
            Message("assistant", "d"),
        )
    )
    samples = tokenize(tokenizer, [record])
    assert lengths(tokenizer, [record, dialogue(1)]) == [
        max(len(s.ids) for s in samples),
        len(tokenize(tokenizer, [dialogue(1)])[0].ids),
    ]
    assert lengths(tokenizer, [record])[0] > 200


def test_lengths_are_those_of_the_samples(all_tokenizers: dict[str, Any]) -> None:
    records = [dialogue(n) for n in (1, 2, 3)]
    for name, tokenizer in all_tokenizers.items():
        expected = [max(len(s.ids) for s in tokenize(tokenizer, [r])) for r in records]
        assert lengths(tokenizer, records) == expected, name


def test_an_answer_that_does_not_begin_with_its_prompt_cannot_be_masked() -> None:
    tokenizer = byte_tokenizer(
        CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>bot\n' }}{% endif"), eos_token="<|im_end|>"
    )
    record = Record((Message("user", "a"), Message("assistant", "b")), "talk.jsonl", 17)
    with pytest.raises(DataError) as caught:
        tokenize(tokenizer, [record])
    assert caught.value.code == "TL-DATA-MASK"
    assert caught.value.where == "talk.jsonl:17"
    with pytest.raises(DataError):
        lengths(tokenizer, [record])


@pytest.mark.parametrize(
    "template", [OPENS, OPENS.replace("<think>\n' }}{% endif", "<think>' }}{% endif")], ids=["line", "no line"]
)
@pytest.mark.parametrize("kind", ["apart", "inside", "none"])
def test_a_prompt_that_opens_a_thought_is_answered_with_its_end(
    template: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """DeepSeek-R1 and its distills: the prompt ends in <think>, and the template writes no thought of any answer."""
    tokenizer = thinking()
    tokenizer.chat_template = template
    messages = []
    for question, answer in TALK[:3]:
        inside = f"<think>\nAsked: {question}\n</think>\n\n{answer}"
        messages += [
            Message("user", question),
            {"apart": Message("assistant", answer, f"Asked: {question}"), "inside": Message("assistant", inside),
             "none": Message("assistant", answer)}[kind],
        ]  # fmt: skip
    record = Record(tuple(messages))
    found = taught(tokenizer, tokenize(tokenizer, [record]))
    assert len(found) == 3
    for n, (context, answer) in enumerate(found):
        served = render(tokenizer, record.chat()[: 2 * n + 1], prompt=True)
        assert served.count("<think>") == 1
        # A thought that the row does not have is context and not learned: the model need not unlearn to think.
        line = "\n" if "no line" in request.node.name else ""
        assert context == encode(tokenizer, [served + (f"{line}\n</think>\n\n" if kind == "none" else "")])[0]
        thought = "" if kind == "none" else f"Asked: {TALK[n][0]}"
        whole = tokenizer.decode(context + answer)
        assert whole.endswith(f"<think>\n{thought}\n</think>\n\n{TALK[n][1]}<|end|>")
        assert whole.count("</think>") == 1


def test_text_that_melts_over_the_end_of_the_prompt_is_trained_as_it_is_served() -> None:
    """The prompt ends in letters that form a token with the answer's first ones; serving can never see that token."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} Peb{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}{% endfor %}"
    )
    tokenizer = byte_tokenizer(template, words=["Pebble"] * 50, eos_token="<|im_end|>")
    record = Record(
        (
            Message("user", "Who?"),
            Message("assistant", "ble."),
            Message("user", "Who?"),
            Message("assistant", "ble, I said."),
        )
    )
    melted = encode(tokenizer, [" Pebble."])[0]
    assert melted[: len(encode(tokenizer, [" Peb"])[0])] != encode(tokenizer, [" Peb"])[0]
    found = taught(tokenizer, tokenize(tokenizer, [record]))
    assert len(found) == 2
    for n, (context, answer) in enumerate(found):
        assert context == encode(tokenizer, [render(tokenizer, record.chat()[: 2 * n + 1], prompt=True)])[0]
        assert tokenizer.decode(answer) == record.messages[2 * n + 1].content + "<|im_end|>"


def test_a_template_without_an_end_is_seen() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        eos_token="<|im_end|>",
    )
    samples = tokenize(tokenizer, [dialogue(2)])
    assert not any(s.ended for s in samples)
    assert sum(len(spans(s)) for s in samples) == 2


def test_tools_are_part_of_the_context() -> None:
    template = "{% if tools %}{{ tools[0].name }}\n{% endif %}" + CHATML
    tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
    record = Record(dialogue(1).messages, tools=({"name": "weather"},))
    assert tokenizer.decode(tokenize(tokenizer, [record])[0].ids).startswith("weather\n<|im_start|>user")


def test_samples_come_in_the_order_of_the_records(all_tokenizers: dict[str, Any]) -> None:
    records = [dialogue(n) for n in (3, 1, 2, 1)]
    samples = tokenize(all_tokenizers["chatml"], records)
    assert [s.record for s in samples] == [r.id for r in records]
    for record, sample in zip(records, samples, strict=True):
        alone = tokenize(all_tokenizers["chatml"], [record])[0]
        assert alone.ids.tolist() == sample.ids.tolist()
        assert alone.trained.tolist() == sample.trained.tolist()
    assert list(tokenize(all_tokenizers["chatml"], [])) == []
    assert lengths(all_tokenizers["chatml"], []) == []


def test_what_is_marked_is_what_is_trained(all_tokenizers: dict[str, Any]) -> None:
    tokenizer = all_tokenizers["chatml"]
    record = dialogue(2)
    sample = tokenize(tokenizer, [record])[0]
    runs = marked(tokenizer, sample)
    assert "".join(text for text, _ in runs) == tokenizer.decode(sample.ids.tolist())
    assert [text for text, trained in runs if trained] == [m.content + "<|im_end|>" for m in record.messages[1::2]]
    assert [trained for _, trained in runs] == [False, True, False, True, False]


def agrees(tokenizer: Any, records: list[Record]) -> None:
    """The samples are those of the plain way, token by token."""
    expected = [
        (record.id, ids, trained, ended)
        for record in records
        for ids, trained, ended in reference.masked(tokenizer, record)
    ]
    found = [(s.record, s.ids.tolist(), s.trained.tolist(), s.ended) for s in tokenize(tokenizer, records)]
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_way_is_the_plain_way(all_tokenizers: dict[str, Any], name: str) -> None:
    systems = [] if "mistral" in name else [dialogue(n, system=True) for n in (1, 2, 5)]
    agrees(all_tokenizers[name], [*(dialogue(n) for n in (1, 2, 3, 6)), *systems])


ODD = [
    "",
    " ",
    "\n",
    "\n\nx",
    "x\n",
    " x ",
    "<|im_end|>",
    "a<|im_end|>b",
    "<|im_start|>user\nx",
    "</s>",
    "[INST]",
    "é",
    "👍🏽",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_texts_are_masked_the_plain_way(all_tokenizers: dict[str, Any], name: str) -> None:
    """Blanks at the edges, where a token can reach over the end of the prompt."""
    tokenizer = all_tokenizers[name]
    plain = [text for text in ODD if not spells(tokenizer, text)]
    pairs = [(q, a) for q in ("hi", *ODD[1:6]) for a in plain]
    records = [Record((Message("user", q), Message("assistant", a), Message("user", a + "?"), Message("assistant", q)))
               for q, a in pairs]  # fmt: skip
    agrees(tokenizer, records)


def spells(tokenizer: Any, text: str) -> bool:
    return any(str(token) in text for token in tokenizer.added_tokens_decoder.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_control_token_spelled_in_a_text_is_text(all_tokenizers: dict[str, Any], name: str) -> None:
    """It begins and ends nothing: ids of added tokens are those of the same dialogue without it, each answer is trained
    to its own end, and what is read back is what was there."""
    tokenizer = all_tokenizers[name]
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if not str(token).startswith("<0x")}
    control -= {tokenizer.unk_token_id} if "pieces" in name else set()
    words = [str(token) for token in tokenizer.added_tokens_decoder.values()][:5]
    spelling = [text for word in words for text in (word, f"a{word}b", f"{word}user\nx", word + word)]

    def turns(text: str) -> Record:
        pairs = [("user", text + "?"), ("assistant", text), ("user", "hi"), ("assistant", "x" + text)]
        return Record(tuple(Message(role, content) for role, content in pairs))

    expected = tokenize(tokenizer, [turns("Ab")])
    for text in spelling:
        samples = tokenize(tokenizer, [turns(text)])
        assert [(one.row, one.turn, one.what) for one in samples.unsaid] == [(0, n, "spelled") for n in (1, 2, 4)]
        assert len(samples) == len(expected)
        for sample, like in zip(samples, expected, strict=True):
            assert [i for i in sample.ids.tolist() if i in control] == [i for i in like.ids.tolist() if i in control]
            assert sample.ended == like.ended
            texts, others = ([run for run, _ in marked(tokenizer, one)] for one in (sample, like))
            assert len(texts) == len(others)
            assert "".join(texts) == "".join(others).replace("Ab", text)


def test_a_tokenizer_without_a_short_cut_masks_alike() -> None:
    """split_special_tokens: <|im_end|> in a text is text; nothing may be cut there."""
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    records = [dialogue(n) for n in (1, 2, 3)]
    quick = tokenize(tokenizer, records)
    tokenizer.split_special_tokens = True
    agrees(tokenizer, records)
    assert tokenize(tokenizer, records).tokens > quick.tokens


def test_batches_change_nothing(
    all_tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    records = [dialogue(n % 4 + 1) for n in range(11)]
    for name in ("chatml", "pieces, plain"):
        whole = encode_records(all_tokenizers[name], records)
        monkeypatch.setattr(tokens, "BATCH", 3)
        parts = list(encode_parts(all_tokenizers[name], iter(records)))
        stored = write(tmp_path / name, encode_parts(all_tokenizers[name], records))
        assert lengths(all_tokenizers[name], records) == whole.lengths.tolist()
        monkeypatch.undo()
        assert [p.records for p in parts] == [3, 3, 3, 2]
        for other in (encode_records(all_tokenizers[name], records), stored):
            for column in ("ids", "trained", "starts", "labels", "ended", "row", "names"):
                assert getattr(other, column).tolist() == getattr(whole, column).tolist(), column


def test_an_answer_that_is_not_to_be_trained_is_context(all_tokenizers: dict[str, Any]) -> None:
    for name, tokenizer in all_tokenizers.items():
        every = dialogue(3)
        messages = tuple(
            Message(m.role, m.content, trained=False) if n == 3 else m for n, m in enumerate(every.messages)
        )
        whole, part = tokenize(tokenizer, [every])[0], tokenize(tokenizer, [every.with_messages(messages)])[0]
        assert part.ids.tolist() == whole.ids.tolist(), name
        first, _, third = spans(whole)
        assert spans(part) == [first, third], name
        assert part.ended
    none = every.with_messages(tuple(Message(m.role, m.content, trained=False) for m in every.messages))
    assert len(tokenize(tokenizer, [none])) == 0
    assert lengths(tokenizer, [none]) == [0]


def framed(**named: str) -> Any:
    """A tokenizer that puts tokens of its own around a text, as Gemma (<bos>) and BERT ([CLS], [SEP]) do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(CHATML, special=("<eos>", "<b>", "<e>"), eos_token="<eos>")
    ids = [("<b>", tokenizer.convert_tokens_to_ids("<b>")), ("<e>", tokenizer.convert_tokens_to_ids("<e>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=named["frame"], special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("frame", ["$A", "<b> $A", "<b> $A <e>", "$A <e>"])
def test_a_text_is_trained_whole_and_ends(frame: str) -> None:
    """It begins as the tokenizer begins a text, and ends with the end token in place of what the tokenizer puts there."""
    tokenizer = framed(frame=frame)
    texts = ["Once upon a time.", "", "a<e>b", "从前有座山。\n"]
    records = [Record((Message("assistant", text),), kind="text") for text in texts]
    samples = tokenize(tokenizer, records)
    assert len(samples) == len(texts)
    begin = [tokenizer.convert_tokens_to_ids("<b>")] if frame.startswith("<b>") else []
    for text, sample in zip(texts, samples, strict=True):
        ids = sample.ids.tolist()
        if "<e>" in text:  # which is no token there
            assert ids[: len(begin)] == begin
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(ids[len(begin) : -1]) == text
            assert tokenizer.convert_tokens_to_ids("<e>") not in ids
        else:
            assert ids == [*begin, *encode(tokenizer, [text])[0], tokenizer.eos_token_id]
        assert sample.trained.all()
        assert sample.ended
    assert lengths(tokenizer, records) == [len(s.ids) for s in samples]


def test_a_text_of_a_model_without_an_end_has_none() -> None:
    tokenizer = byte_tokenizer(PLAIN, special=("<s>",))
    assert not tokenize(tokenizer, [Record((Message("assistant", "Once."),), kind="text")])[0].ended


@pytest.mark.parametrize("frame", ["$A", "<b> $A", "<b> $A <e>", "$A <e>"])
def test_a_labelled_text_is_what_the_tokenizer_makes_of_it(frame: str) -> None:
    tokenizer = framed(frame=frame)
    records = [Record((Message("user", text),), kind="label", label="good") for text in ("A fine hotel.", "差。", "")]
    samples = tokenize(tokenizer, records)
    for record, sample in zip(records, samples, strict=True):
        assert sample.ids.tolist() == tokenizer(record.messages[0].content)["input_ids"]
        assert not sample.trained.any()
        assert sample.ended
    assert samples.labels.tolist() == [0, 0, 0]


def pair(turns: int, rejected: str) -> Record:
    return Record(dialogue(turns).messages, kind="preference", rejected=(Message("assistant", rejected),))


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_two_samples_the_better_first(all_tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = all_tokenizers[name]
    records = [pair(1, "No."), pair(3, "I do not know.")]
    samples = tokenize(tokenizer, records)
    assert samples.row.tolist() == [0, 0, 1, 1]
    for record, better, worse in zip(records, samples[::2], samples[1::2], strict=True):
        for sample, said in ((better, record.messages[-1].content), (worse, record.rejected[0].content)):
            ((context, answer),) = taught(tokenizer, [sample])
            served = render(tokenizer, [m.as_chat() for m in record.prompt], prompt=True)
            assert context == encode(tokenizer, [served])[0]
            assert tokenizer.decode(answer[:-1]).strip() == said
            assert sample.record == record.id
            assert sample.ended


def test_a_judged_dialogue_is_a_dialogue(all_tokenizers: dict[str, Any]) -> None:
    plain = dialogue(2)
    judged = Record(plain.messages, kind="judged", label="bad")
    one, other = tokenize(all_tokenizers["chatml"], [plain, judged])
    assert one.ids.tolist() == other.ids.tolist()
    assert one.trained.tolist() == other.trained.tolist()


def test_a_search_for_cycles_that_was_off_stays_off(all_tokenizers: dict[str, Any]) -> None:
    assert gc.isenabled()
    tokenize(all_tokenizers["chatml"], [dialogue(1)])
    assert gc.isenabled()
    gc.disable()
    try:
        tokenize(all_tokenizers["chatml"], [dialogue(1)])
        assert not gc.isenabled()
    finally:
        gc.enable()
