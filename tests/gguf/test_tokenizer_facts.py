from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.gguf.test_tokenizer import TEXTS, pieces, sentencepiece_facts
from tests.real import load
from tuneloop.base.environment import environment
from tuneloop.base.errors import ModelError
from tuneloop.data.tokens.templates import CHATML, DEFAULTS, encode, stop_ids
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.gguf.pretokenizers import PRETOKENIZERS
from tuneloop.gguf.tokenizer import write_tokenizer
from tuneloop.gguf.tokenizer_facts import ENDS_BY_TEXT, tokenizer_facts

__all__ = ["pieces"]  # a fixture

ENGLISH = (
    "llamafactory/alpaca_en_demo.json",
    "openai_messages/drone_training.jsonl",
    "llamafactory/glaive_toolcall_en_demo.json",
)
CHINESE = ("llamafactory/alpaca_zh_demo.json", "emollm/data.json", "smilechat/dialogs.jsonl")
LONGEST = 300
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' + m['content'] if m['role'] == 'user' else "
    "'<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{% endfor %}"
)


def said(names: tuple[str, ...]) -> list[str]:
    texts = dict.fromkeys(message.content or "" for name in names for one in load(name) for message in one.messages)
    return [text for text in texts if 0 < len(text) <= LONGEST]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """1,000 real texts, half English and half Chinese."""
    out = said(ENGLISH)[:500] + said(CHINESE)[:500]
    assert len(out) == 1000
    return out


def vocabulary_file(facts: dict[str, Any], path: Path) -> Path:
    """A GGUF of a tokenizer alone."""
    writer = GGUFWriter(path, "llama")
    for key, content in facts.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(content)](key, content)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pulled(name: str) -> Path:
    """The folder of a pulled model; a test is skipped where it is not there, but fails in CI."""
    folder = environment().home / "models" / name
    if not (folder / "tokenizer.json").is_file():
        if os.environ.get("CI") == "true" and name != "gemma-3-270m":  # its terms are to be accepted first
            pytest.fail(f"{name} is missing in CI")
        pytest.skip(f"tuneloop model pull {name}")
    return folder


def same_ids(folder: Path, texts: list[str], file: Path, pre: str) -> dict[str, Any]:
    """llama.cpp makes the ids of transformers of all texts, ends where an answer ends, and begins alike."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = tokenizer_facts(folder)
    assert facts["tokenizer.ggml.pre"] == pre
    with LlamaCpp(vocabulary_file(facts, file), vocab_only=True) as llama:
        expected, got = encode(tokenizer, texts), llama.tokenize(texts)
        assert [text for text, one, other in zip(texts, expected, got, strict=True) if one != other] == []
        named = {facts.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")}
        assert {tokenizer.eos_token_id, *(stop_ids(tokenizer) if tokenizer.chat_template else ())} <= named
        assert named - {None} <= set(llama.ends())
        assert llama.facts.get("tokenizer.chat_template") == tokenizer.chat_template
    assert facts["tokenizer.ggml.add_bos_token"] == (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    return facts


@pytest.mark.parametrize(
    ("name", "pre"), [("smollm2-135m-instruct", "smollm"), ("deepseek-v3-tokenizer", "deepseek-v3")]
)
def test_ids_of_real_texts_are_those_of_transformers(name: str, pre: str, texts: list[str], tmp_path: Path) -> None:
    same_ids(
        pulled(name), [*texts, *TEXTS, "<|im_start|>user\n你好<|im_end|>\n", "<tool_call>1"], tmp_path / "v.gguf", pre
    )


def test_ids_of_qwen_and_what_llama_cpp_does_otherwise(texts: list[str], tmp_path: Path) -> None:
    """1,000 texts are the same; the two differences that are known, and that a file cannot undo, are these."""
    folder = pulled("qwen3-tokenizer")
    same_ids(
        folder, [*texts, *TEXTS, "<|im_start|>user\n你好<|im_end|>\n", "<tool_call>1"], tmp_path / "v.gguf", "qwen2"
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    apart, html = unicodedata.normalize("NFD", "café"), "a </s> b"
    with LlamaCpp(tmp_path / "v.gguf", vocab_only=True) as llama:
        ids = llama.tokenize([apart, unicodedata.normalize("NFC", apart), html])
        theirs = [tokenizer.encode(text).ids for text in (apart, apart, html)]
        assert ids[0] != theirs[0]
        assert ids[1] == theirs[1]
        assert ids[2] != theirs[2]
        assert len(set(ids[2]) & set(llama.ends())) == 1
        assert llama.detokenize(ids[2:]) == [html]


def trained(
    folder: Path,
    pre: str,
    texts: list[str],
    *,
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    merges: int = 2000,
    **named: Any,
) -> Path:
    """A folder with a byte-level BPE trained behind a family's published pre-tokenizer."""
    known = PRETOKENIZERS[pre]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE(ignore_merges=known.ignore_merges))
    steps = {"type": "Sequence", "pretokenizers": list(known.steps)}
    content = json.loads(bpe.to_str()) | {"pre_tokenizer": steps, "normalizer": known.normalizer}
    bpe = Tokenizer.from_str(json.dumps(content))
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(special) + merges, special_tokens=list(special), initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    bpe.decoder = decoders.ByteLevel()
    if named.get("bos_token"):
        bos = named["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=None, special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    template = named.pop("template", CHATML)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **{"eos_token": special[-1], **named})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pre", ["deepseek-llm", "deepseek-coder", "llama-bpe", "gpt-2"])
def test_ids_behind_a_published_pretokenizer(pre: str, texts: list[str], tmp_path: Path) -> None:
    folder = trained(tmp_path / "m", pre, texts)
    facts = same_ids(folder, [*texts, *TEXTS], tmp_path / "v.gguf", pre)
    assert len(facts["tokenizer.ggml.merges"]) == 2000
    assert facts["tokenizer.ggml.add_bos_token"] is False


def test_ids_behind_the_pretokenizer_of_the_r1_distills(texts: list[str], tmp_path: Path) -> None:
    folder = trained(tmp_path / "m", "qwen2", texts, special=R1, template=R1_TEMPLATE, bos_token=R1[0], eos_token=R1[1])
    more = ["<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜><think>\n"]
    facts = same_ids(folder, [*texts, *TEXTS, *more], tmp_path / "v.gguf", "deepseek-r1-qwen")
    assert len(facts["tokenizer.ggml.merges"]) == 2000
    assert facts["tokenizer.ggml.add_bos_token"] is True
    assert facts["tokenizer.ggml.eot_token_id"] == facts["tokenizer.ggml.eos_token_id"] == 1


def test_ids_of_sentencepiece(pieces: sentencepiece.SentencePieceProcessor, texts: list[str], tmp_path: Path) -> None:
    given = sentencepiece_facts(pieces)
    write_tokenizer(given, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "vocab_size": 600}))
    runs = [f"x{c * n}y" for n in range(1, 70) for c in " \n▁"] + [
        "<start_of_turn>user\n<b>1</b><end_of_turn>",
        "<0x41>",
    ]
    facts = same_ids(tmp_path, [*texts, *TEXTS, *runs], tmp_path / "v.gguf", "default")
    assert facts["tokenizer.ggml.model"] == "llama"
    assert facts["tokenizer.ggml.add_bos_token"] is True
    assert facts["tokenizer.ggml.add_space_prefix"] is False
    kinds = facts["tokenizer.ggml.token_type"]
    assert facts["tokenizer.ggml.tokens"][: len(given["tokenizer.ggml.tokens"])] == [
        token.replace(" ", "▁") if kind == 4 else token
        for token, kind in zip(given["tokenizer.ggml.tokens"], given["tokenizer.ggml.token_type"], strict=True)
    ]
    assert set(kinds[len(given["tokenizer.ggml.tokens"]) + 1 :]) == {5}  # transformers adds <mask>
    (tmp_path / "back").mkdir()
    write_tokenizer({"general.architecture": "gemma3", "gemma3.context_length": 64, **facts}, tmp_path / "back")
    back, own = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path / "back", tmp_path))
    for text in [*texts, *TEXTS, *runs]:
        assert back.encode(text).ids == own.encode(text).ids
    assert [kinds[n] for n in (0, 1, 2, 3)] == [3, 3, 3, 2]
    assert kinds.count(6) == 256


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pre"), [("qwen2.5-coder-0.5b-instruct", "qwen2"), ("gemma-3-270m", "default")])
def test_ids_of_every_shared_text(name: str, pre: str, tmp_path: Path) -> None:
    every = [text for names in (ENGLISH, CHINESE) for text in said(names)]
    assert len(every) > 2000
    same_ids(pulled(name), every, tmp_path / "v.gguf", pre)


def test_reading_back_gives_the_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    for name, pre in (("a", "smollm"), ("b", "qwen2")):
        folder = trained(tmp_path / name, pre, texts[::5], merges=300)
        facts = tokenizer_facts(folder)
        (tmp_path / f"{name}-back").mkdir()
        write_tokenizer(
            {"general.architecture": "llama", "llama.context_length": 64, **facts}, tmp_path / f"{name}-back"
        )
        tokenizer, back = (AutoTokenizer.from_pretrained(tmp_path / f) for f in (name, f"{name}-back"))
        assert encode(back, [*texts, *TEXTS]) == encode(tokenizer, [*texts, *TEXTS])
        assert tokenizer_facts(tmp_path / f"{name}-back")["tokenizer.ggml.merges"] == facts["tokenizer.ggml.merges"]


def test_numbers_without_a_token_are_named_up_to_the_rows(tmp_path: Path) -> None:
    folder = trained(tmp_path, "smollm", list(TEXTS), merges=20, extra_special_tokens=["[PAD290]"])
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    facts = tokenizer_facts(folder)
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == 300
    assert tokens.index("[PAD290]") == 279
    assert tokens[289:291] == ["[PAD289]", "[[PAD290]]"]
    assert kinds[:3] == [3, 3, 3]
    assert set(kinds[280:]) == {5}


def test_a_users_token_is_no_control_token(tmp_path: Path) -> None:
    folder = trained(tmp_path, "smollm", list(TEXTS), merges=20)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.save_pretrained(folder)
    facts = tokenizer_facts(folder)
    assert facts["tokenizer.ggml.token_type"][facts["tokenizer.ggml.tokens"].index("<tool_call>")] == 4


def test_an_answer_ends_at_all_its_ends(tmp_path: Path) -> None:
    special = ("<a>", "<b>", "<c>", "<d>", "<|im_start|>", "<|im_end|>", "<e>")
    folder = trained(tmp_path / "m", "smollm", list(TEXTS), special=special, merges=20)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 6]}))
    facts = tokenizer_facts(folder)
    assert [facts[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [6, 5, 0]
    with LlamaCpp(vocabulary_file(facts, tmp_path / "v.gguf"), vocab_only=True) as llama:
        assert llama.ends() == [0, 5, 6]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1, 6]}))
    with pytest.raises(ModelError, match="an answer ends at 4 tokens"):
        tokenizer_facts(folder)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_llama_cpp_ends_where_the_template_does(name: str, tmp_path: Path) -> None:
    special = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<end>")
    folder = trained(tmp_path / "m", "smollm", list(TEXTS), special=special, merges=20, template=DEFAULTS[name])
    tokenizer, facts = AutoTokenizer.from_pretrained(folder), tokenizer_facts(folder)
    named = {facts.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")} - {None}
    assert stop_ids(tokenizer) == named
    with LlamaCpp(vocabulary_file(facts, tmp_path / "v.gguf"), vocab_only=True) as llama:
        assert named <= set(llama.ends())


def test_the_ends_that_llama_cpp_knows_by_their_text(tmp_path: Path) -> None:
    known = sorted(ENDS_BY_TEXT)
    folder = trained(tmp_path / "m", "smollm", list(TEXTS), special=(*known, "<x>", "<y>"), merges=20, template=None)
    facts = tokenizer_facts(folder)
    with LlamaCpp(vocabulary_file(facts, tmp_path / "v.gguf"), vocab_only=True) as llama:
        assert llama.ends() == [*range(len(known)), len(known) + 1]


def test_templates_with_names_are_there_too(tmp_path: Path) -> None:
    folder = trained(
        tmp_path / "m", "smollm", list(TEXTS), merges=20, template={"default": CHATML, "tool_use": "{{ 1 }}"}
    )
    facts = tokenizer_facts(folder)
    assert facts["tokenizer.chat_template"] == CHATML
    assert facts["tokenizer.chat_template.tool_use"] == "{{ 1 }}"
    assert facts["tokenizer.chat_templates"] == ["tool_use"]


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """What writes tokenizer.json with one thing changed."""

    def write(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return write


def one_row_too_few(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 278}))


def without_an_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    (folder / "chat_template.jinja").unlink()


def around(content: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<|im_start|>", "$A"], pair=None, special_tokens=[("<|im_start|>", 1)]
    )
    content |= json.loads(tokenizer.to_str())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (changed(lambda c: c["pre_tokenizer"]["pretokenizers"].pop(0)), None),  # that is GPT-2's
        (changed(lambda c: c.update(pre_tokenizer={"type": "Whitespace"})), "Whitespace"),
        (changed(lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False)), "its pre-tokenizer"),
        (changed(lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)), "its pre-tokenizer"),
        (changed(lambda c: c.update(normalizer={"type": "Lowercase"})), "Lowercase"),
        (changed(lambda c: c["model"].update(ignore_merges=True)), "its pre-tokenizer"),
        (changed(lambda c: c["added_tokens"][1].update(rstrip=True)), "rstrip"),
        (changed(lambda c: c["model"].update(end_of_word_suffix="</w>")), "end_of_word_suffix"),
        (changed(around), "im_start"),
        (one_row_too_few, "279 tokens and the model 278 rows"),
        (without_an_end, "no end token"),
    ],
)  # fmt: skip
def test_another_tokenizer_is_refused(harm: Callable[[Path], None], words: str | None, tmp_path: Path) -> None:
    folder = trained(tmp_path, "smollm", list(TEXTS), merges=20)
    assert tokenizer_facts(folder)["tokenizer.ggml.pre"] == "smollm"
    harm(folder)
    if words is None:
        assert tokenizer_facts(folder)["tokenizer.ggml.pre"] == "gpt-2"
        return
    with pytest.raises(ModelError, match=words) as caught:
        tokenizer_facts(folder)
    assert caught.value.code == "TL-MODEL-GGUF-TOKENIZER"


def test_a_regex_that_is_off_by_one_sign_is_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path, "deepseek-v3", list(TEXTS), merges=20)
    assert tokenizer_facts(folder)["tokenizer.ggml.pre"] == "deepseek-v3"
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("{1,3}", "{1,4}"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"1,4"):
        tokenizer_facts(folder)


def test_another_model_is_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "removed")
    words.normalizer = normalizers.NFC()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="WordLevel"):
        tokenizer_facts(tmp_path)
    with pytest.raises(ModelError) as caught:
        tokenizer_facts(tmp_path / "nothing")
    assert caught.value.code == "TL-MODEL-TOKENIZER"
