"""How a byte-level BPE cuts a text before its merges: the pre-tokenizers that a GGUF can name, as their publishers have
them in tokenizer.json. One table for both directions.

llama.cpp has each of them in code, under a name (`tokenizer.ggml.pre`). A name says nothing of a tokenizer: two models
of one family may cut differently, and a tokenizer may have been changed. So one is recognised by what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
"""English endings."""
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_ENDINGS}{_WORDS}\p{{N}}{_REST}"
"""Words with what stands before them, digits one by one."""
_LLAMA3 = rf"{_ENDINGS}{_WORDS}\p{{N}}{{1,3}}{_REST}"
"""The same with up to three digits together."""
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531"
    "-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Letters with a case, as DeepSeek lists them."""


def split(pattern: str) -> Step:
    """A step that sets apart whatever `pattern` matches."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool, trim_offsets: bool = True) -> Step:
    """The step that writes bytes as letters; with `use_regex` it cuts by GPT-2's pattern as well."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A pre-tokenizer's `steps`, its publisher's `normalizer` (llama.cpp has none), and whether a piece that is a token
    is taken without any merge (`ignore_merges`), which in llama.cpp hangs on the name too."""

    steps: tuple[Step, ...]
    normalizer: Step | None = None
    ignore_merges: bool = False


PRETOKENIZERS = {
    "gpt-2": PreTokenizer((byte_level(use_regex=True),)),
    "smollm": PreTokenizer((_DIGITS, byte_level(use_regex=True))),
    "qwen2": PreTokenizer((split(_QWEN2), byte_level(use_regex=False, trim_offsets=False)), {"type": "NFC"}),
    "llama-bpe": PreTokenizer((split(_LLAMA3), byte_level(use_regex=False)), ignore_merges=True),
    "deepseek-llm": PreTokenizer((
        split("[\r\n]"), split(rf"\s?[{_CASED}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
        split("[一-龥ࠀ-一가-퟿]+"), _DIGITS, byte_level(use_regex=False),
    )),
    "deepseek-coder": PreTokenizer((
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), _DIGITS,
        byte_level(use_regex=False),
    )),
    "deepseek-v3": PreTokenizer((
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(_DEEPSEEK_V3), byte_level(use_regex=False),
    )),
}  # fmt: skip
"""`tokenizer.ggml.pre` -> what it is: GPT-2; SmolLM 1 and 2; Qwen2, 2.5 and 3; Llama 3; DeepSeek LLM, Coder and V3."""
SENTENCEPIECE_NORMALIZER: Step = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
SENTENCEPIECE_STEP: Step = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
"""Gemma's two, which GGUF calls `llama`/`default`."""


def recognised(tokenizer: Step) -> str | None:
    """The name in `PRETOKENIZERS` of what a tokenizer.json has, or None.

    The normalizer may be NFC or none, whatever the steps: llama.cpp composes no characters.

    >>> recognised({"pre_tokenizer": {"type": "Whitespace"}, "normalizer": None, "model": {}}) is None
    True
    >>> steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}]
    >>> recognised({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "normalizer": None, "model": {}})
    'smollm'
    """
    if canonical(tokenizer.get("normalizer")) not in _NORMALIZERS:
        return None
    given = (canonical(tokenizer.get("pre_tokenizer")), bool(tokenizer["model"].get("ignore_merges")))
    known = {(canonical(*one.steps), one.ignore_merges): name for name, one in PRETOKENIZERS.items()}
    return known.get(given)


def canonical(*steps: Step | None) -> str:
    """Steps as one text: sequences opened, defaults written out, what changes no token (trim_offsets) left out.

    >>> canonical({"type": "Sequence", "normalizers": []}) == canonical(None) == "[]"
    True
    >>> canonical({"type": "Sequence", "normalizers": [{"type": "NFC"}]})
    '[{"type": "NFC"}]'
    """
    out = []
    pending = list(steps)
    while pending:
        step = pending.pop(0)
        if step is None:
            continue
        if step.get("type") == "Sequence":
            pending[:0] = step.get("pretokenizers") or step.get("normalizers") or []
            continue
        filled = {**_DEFAULTS.get(str(step.get("type")), {}), **step}
        filled.pop("trim_offsets", None)
        out.append(filled)
    return json.dumps(out, sort_keys=True, ensure_ascii=False)


_DEFAULTS: dict[str, Step] = {"ByteLevel": {"add_prefix_space": True, "use_regex": True}, "Split": {"invert": False}}
_NORMALIZERS = (canonical(), canonical({"type": "NFC"}))
