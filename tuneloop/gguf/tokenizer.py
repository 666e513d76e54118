"""The tokenizer of a GGUF file as the files every Hugging Face tool reads: tokenizer.json, tokenizer_config.json.

A GGUF names the scheme (`tokenizer.ggml.model`, `tokenizer.ggml.pre`) and lists tokens, their kinds and merges; the
rules of the scheme are code. Three are here, each built as its model's publisher builds it: the byte-level BPE of
SmolLM, that of Qwen2, and the SentencePiece BPE of Gemma. Any other raises TL-MODEL-GGUF rather than giving tokens that
are nearly right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.gguf.pretokenizers import PRETOKENIZERS, SENTENCEPIECE_NORMALIZER, SENTENCEPIECE_STEP, Step, byte_level

Facts = dict[str, Any]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"
"""How SentencePiece writes a space: ▁."""


def write_tokenizer(facts: Facts, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if the file has a template, chat_template.jinja to `folder`.

    `facts` are the metadata of a GGUF file. Raises TL-MODEL-GGUF for a scheme that is not known here.
    """
    scheme = (str(facts.get("tokenizer.ggml.model")), str(facts.get("tokenizer.ggml.pre", "default")))
    if scheme not in SCHEMES:
        words = t("its tokenizer {scheme} is not known", scheme="/".join(scheme))
        raise ModelError("TL-MODEL-GGUF", where=str(folder), error=words)
    tokenizer, extra = SCHEMES[scheme](facts)
    _write_json(folder / "tokenizer.json", tokenizer, indent=None)
    config: Facts = {name: token_of(facts, key) for name, key in _NAMED.items()}
    config |= {
        "add_bos_token": bool(facts.get("tokenizer.ggml.add_bos_token", False)),
        "add_eos_token": bool(facts.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(facts[f"{facts['general.architecture']}.context_length"]),
        **extra,
    }
    _write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if v is not None}, indent=2)
    if template := facts.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")


_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


def token_of(facts: Facts, key: str) -> str | None:
    """The token that `tokenizer.ggml.<key>` names, or None.

    >>> token_of({"tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.bos_token_id": 0}, "bos_token_id")
    '<s>'
    """
    number = facts.get(f"tokenizer.ggml.{key}")
    return None if number is None else str(facts["tokenizer.ggml.tokens"][number])


def _added(number: int, content: str, *, special: bool) -> Facts:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **flags, "special": special}


def _smollm(facts: Facts) -> tuple[Facts, Facts]:
    """Byte-level BPE that takes digits one by one: SmolLM's and StarCoder2's pre-tokenizer.

    The digits step is what transformers' own GGUF reader leaves out: without it "a  12" becomes other tokens.
    """
    tokens = facts["tokenizer.ggml.tokens"]
    kinds = facts["tokenizer.ggml.token_type"]
    tokenizer = _byte_level_bpe(
        {t: i for i, t in enumerate(tokens)},
        facts,
        added=[_added(i, t, special=True) for i, t in enumerate(tokens) if kinds[i] == _CONTROL],
        steps=PRETOKENIZERS["smollm"].steps,
        decoder=byte_level(use_regex=True),
    )
    # Not GPT2Tokenizer: a class of its own may bring its own pre-tokenizer, this one takes the file as it is.
    return tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}


def _qwen2(facts: Facts) -> tuple[Facts, Facts]:
    """Byte-level BPE over composed characters (NFC), cut by Qwen2's own pattern: Qwen2, Qwen2.5 and their relatives.

    The numbers behind the last token are unused rows of the embedding and no tokens.
    """
    tokens = facts["tokenizer.ggml.tokens"]
    kinds = facts["tokenizer.ggml.token_type"]
    named = [i for i, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    known = PRETOKENIZERS["qwen2"]
    decoder = byte_level(use_regex=False, trim_offsets=False)
    tokenizer = _byte_level_bpe(
        {t: i for i, t in enumerate(tokens) if kinds[i] == _NORMAL},
        facts,
        added=[_added(i, tokens[i], special=kinds[i] == _CONTROL) for i in named],
        steps=known.steps,
        decoder=decoder,
    )
    # The file names a token for the beginning that no text of Qwen's begins with; its publisher names none.
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "bos_token": None}
    return tokenizer | {"normalizer": known.normalizer, "post_processor": decoder}, own


def _byte_level_bpe(
    vocab: dict[str, int], facts: Facts, *, added: list[Facts], steps: tuple[Step, ...], decoder: Step
) -> Facts:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)},
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [m.split(" ") for m in facts["tokenizer.ggml.merges"]],
        },
    }


def _gemma(facts: Facts) -> tuple[Facts, Facts]:
    """SentencePiece BPE with byte fallback, no dummy prefix, <bos> in front: Gemma's."""
    tokens = [_SPACE * len(t) if t.strip(" ") == "" else t for t in facts["tokenizer.ggml.tokens"]]
    kinds = facts["tokenizer.ggml.token_type"]
    # A run of spaces is left to the merges: an added token is sought in the raw text, where it is spelled otherwise.
    named = [
        (i, t, kinds[i])
        for i, t in enumerate(tokens)
        if kinds[i] in (_CONTROL, _UNKNOWN) or (kinds[i] == _USER_DEFINED and t.strip(_SPACE))
    ]
    bos = token_of(facts, "bos_token_id")
    number = facts["tokenizer.ggml.bos_token_id"]
    begin, first, second = ({"SpecialToken": {"id": bos, "type_id": 0}}, *(_sequence(n) for n in "AB"))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, t, special=kind != _USER_DEFINED) for i, t, kind in named],
        "normalizer": SENTENCEPIECE_NORMALIZER,
        "pre_tokenizer": SENTENCEPIECE_STEP,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": token_of(facts, "unknown_token_id"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": merges_of(tokens, kinds, facts["tokenizer.ggml.scores"]),
        },
    }
    return tokenizer, {"tokenizer_class": "GemmaTokenizer", "padding_side": "left"}


def _sequence(name: str) -> Facts:
    return {"Sequence": {"id": name, "type_id": "AB".index(name)}}


def merges_of(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies, first merge first.

    Every way to cut a token into two tokens is a merge. A better score comes first; a user-defined token is matched
    before any merge in SentencePiece, so its pieces go together before all others, and longest first, which gives a run
    of spaces the same cut from the left.

    >>> merges_of(["a", "b", "ab", "c", "abc"], [1, 1, 1, 1, 1], [-3, -4, 0, -5, -1])
    [('a', 'b'), ('ab', 'c')]
    """
    known = {t: i for i, t in enumerate(tokens) if kinds[i] in (_NORMAL, _USER_DEFINED)}
    pairs: list[tuple[float, int, int, str, str]] = []
    for token, i in known.items():
        score = 0.0 if kinds[i] == _USER_DEFINED else scores[i] - 1.0
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                pairs.append((-score, -len(left), -len(right), left, right))
    pairs.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in pairs]


SCHEMES: dict[tuple[str, str], Callable[[Facts], tuple[Facts, Facts]]] = {
    ("gpt2", "smollm"): _smollm,
    ("gpt2", "qwen2"): _qwen2,
    ("llama", "default"): _gemma,
}
"""(tokenizer.ggml.model, tokenizer.ggml.pre) -> what makes tokenizer.json and the model's own part of its config."""


def _write_json(path: Path, content: Facts, *, indent: int | None) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
