"""The tokenizer of a model folder as the `tokenizer.…` facts of a GGUF, such that llama.cpp makes the same ids.

What is written is what transformers makes of the folder (a class may bring a pre-tokenizer of its own), not what a file
or a name says. What llama.cpp cannot do alike is refused with TL-MODEL-GGUF-TOKENIZER. Known, and not refused:
llama.cpp composes no characters (NFC), so a text with combining marks becomes other tokens under Qwen's tokenizers; and
it ends an answer at more tokens than the template does (`<|endoftext|>`, Qwen's `<|fim_pad|>`), never at fewer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from tuneloop.base.errors import ModelError
from tuneloop.base.language import listed, t
from tuneloop.gguf import pretokenizers
from tuneloop.gguf.pretokenizers import PRETOKENIZERS

Facts = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_LEAST = -1e6
"""The score of a SentencePiece token that no merge makes."""
_QUESTION, _ANSWER = "question", "answer"
_DECIDING = frozenset({".json", ".jinja", ".model", ".txt"})
"""Endings of the files that a tokenizer is read from."""
ENDS_BY_TEXT = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
    "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""Tokens at which llama.cpp ends whatever the file says; others have to be named, and there are three places."""


def tokenizer_facts(folder: Path) -> Facts:
    """All `tokenizer.…` facts for the model in `folder`, in the order in which they are written.

    Raises TL-MODEL-GGUF-TOKENIZER for what llama.cpp would not do as transformers does.
    """
    files = sorted(one for one in folder.glob("*") if one.suffix in _DECIDING)
    return dict(_facts(folder, tuple((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files)))


@lru_cache(maxsize=2)
def _facts(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Facts:
    """Read once as long as the files are the same: an export writes the same words into each of its GGUF files."""
    tokenizer = _load(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    facts = _scheme(content, tokenizer, folder)
    tokens = _tokens(content, int(_configured(folder, "vocab_size") or 0), folder)
    facts["tokenizer.ggml.tokens"] = tokens
    facts["tokenizer.ggml.token_type"] = _kinds(content, tokens)
    if facts["tokenizer.ggml.model"] == "llama":
        if lost := _unmerged(content["model"]["merges"], tokens, facts["tokenizer.ggml.token_type"]):
            _refuse(folder, t("SentencePiece would merge {pair}, and it does not", pair=listed(lost)))
        facts["tokenizer.ggml.scores"] = _scores(content["model"]["merges"], tokens)
        facts["tokenizer.ggml.add_space_prefix"] = False
    else:
        facts["tokenizer.ggml.merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    facts |= _named(tokenizer, folder, tokens)
    return facts | _templates(tokenizer)


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no other class
        raise ModelError("TL-MODEL-TOKENIZER", where=str(folder), error=" ".join(str(error).split())[:200]) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        _refuse(folder, t("it is a {kind}, and has no tokenizer.json", kind=type(tokenizer).__name__))
    return tokenizer


def _refuse(folder: Path, words: str) -> NoReturn:
    raise ModelError("TL-MODEL-GGUF-TOKENIZER", where=str(folder), error=words)


def _scheme(content: Facts, tokenizer: Any, folder: Path) -> Facts:
    """tokenizer.ggml.model and .pre. Raises TL-MODEL-GGUF-TOKENIZER for another scheme."""
    model = content["model"]
    if model.get("type") != "BPE":
        _refuse(folder, t("its model is {kind}, and only BPE is known", kind=model.get("type")))
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    odd += [
        f"{one['content']!r} {flag}"
        for one in content["added_tokens"]
        for flag in ("lstrip", "rstrip", "single_word")
        if one[flag]
    ]
    if odd:
        _refuse(folder, t("llama.cpp has no {what}", what=listed(odd[:3])))
    if _is_sentencepiece(content):
        return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    pre = pretokenizers.recognised(content)
    if pre is None or model.get("byte_fallback") or model.get("unk_token"):
        given = pretokenizers.canonical(content.get("normalizer"), content.get("pre_tokenizer"))
        words = t("its pre-tokenizer is none of {known} but {steps}", known=listed(PRETOKENIZERS), steps=given[:300])
        _refuse(folder, words)
    if pre == "qwen2" and _adds(tokenizer, folder)[0]:
        pre = "deepseek-r1-qwen"  # the name llama.cpp has for it; it cuts as qwen2 does
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}


def _is_sentencepiece(content: Facts) -> bool:
    normalizer, steps = (pretokenizers.canonical(content.get(key)) for key in ("normalizer", "pre_tokenizer"))
    return (
        normalizer == pretokenizers.canonical(pretokenizers.SENTENCEPIECE_NORMALIZER)
        and steps in (pretokenizers.canonical(pretokenizers.SENTENCEPIECE_STEP), pretokenizers.canonical(None))
        and bool(content["model"].get("byte_fallback"))
        and not content["model"].get("ignore_merges")
    )


def _json(path: Path) -> Facts:
    """A JSON file's object, empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _configured(folder: Path, key: str) -> Any:
    """What config.json says of the text model, None where it says nothing."""
    config = _json(folder / "config.json")
    return (config.get("text_config") or {}).get(key, config.get(key))


def _tokens(content: Facts, rows: int, folder: Path) -> list[str]:
    """The tokens by number; a number without one, up to the embedding's rows, gets a name that no token has."""
    names = {number: token for token, number in content["model"]["vocab"].items()}
    if rows and max(names) >= rows:
        words = t("it has {tokens:,} tokens and the model {rows:,} rows", tokens=max(names) + 1, rows=rows)
        _refuse(folder, words)
    added = {one["id"]: one["content"] for one in content["added_tokens"]}
    # One behind the last row, as Gemma 3 has for images, is a token that the model cannot read.
    names |= {number: token for number, token in added.items() if not rows or number < rows}
    length = max(names) + 1
    taken = set(names.values())
    if len(taken) < len(names):
        _refuse(folder, t("two of its tokens have one text"))
    return [names.get(n) or _free(f"[PAD{n}]", taken) for n in range(max(length, rows))]


def _free(name: str, taken: set[str]) -> str:
    """`name`, in brackets until no token has it.

    >>> _free("[PAD3]", {"[PAD3]"})
    '[[PAD3]]'
    """
    return _free(f"[{name}]", taken) if name in taken else name


def _kinds(content: Facts, tokens: list[str]) -> list[int]:
    """The kind of each token: added ones are control (special) or user-defined, numbers without a token unused."""
    model = content["model"]
    known = set(model["vocab"].values())
    added = {one["id"]: CONTROL if one["special"] else USER_DEFINED for one in content["added_tokens"]}
    unknown = model["vocab"].get(model.get("unk_token"))
    bytes_of = {f"<0x{n:02X}>" for n in range(256)} if model.get("byte_fallback") else set()
    out = []
    for n, token in enumerate(tokens):
        kind = added.get(n, NORMAL if n in known else UNUSED)
        out.append(UNKNOWN if n == unknown else BYTE if kind == NORMAL and token in bytes_of else kind)
    return out


def _scores(merges: Iterable[Any], tokens: list[str]) -> list[float]:
    """Scores that merge in SentencePiece's way (the best whole token first) as the list of merges does.

    >>> _scores([["a", "b"], ["ab", "c"], ["b", "c"]], ["a", "b", "c", "ab", "abc"])
    [-1000000.0, -1000000.0, -1000000.0, -0.0, -1.0]
    """
    first: dict[str, float] = {}
    for pair in merges:
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        first.setdefault(left + right, -float(len(first)))
    return [first.get(token, _LEAST) for token in tokens]


def _unmerged(merges: Iterable[Any], tokens: list[str], kinds: list[int]) -> list[str]:
    """A pair that SentencePiece would merge and the list does not, [] where there is none: every two pieces that are a
    token together merge there; and `bytes` where a byte has no token, since it has no other way to write a character.

    >>> _unmerged([["a", "b"]], ["a", "b", "ab"], [1, 1, 1])
    ['bytes']
    """
    listed_pairs = {tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges}
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (NORMAL, USER_DEFINED)}
    for token, kind in zip(tokens, kinds, strict=True):
        for cut in range(1, len(token) if kind == NORMAL else 1):
            left, right = token[:cut], token[cut:]
            if left in known and right in known and (left, right) not in listed_pairs:
                return [left, right]
    return [] if kinds.count(BYTE) == 256 else ["bytes"]


def _adds(tokenizer: Any, folder: Path) -> tuple[bool, bool]:
    """Whether a text gets the beginning token in front, and the end token behind."""
    ids, inner = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    start = next((n for n in range(len(ids)) if ids[n : n + len(inner)] == inner), 0)
    before, behind = ids[:start], ids[start + len(inner) :]
    if before not in ([], [tokenizer.bos_token_id]) or behind not in ([], [tokenizer.eos_token_id]):
        _refuse(folder, t("it puts {tokens} around a text", tokens=tokenizer.convert_ids_to_tokens([*before, *behind])))
    return bool(before), bool(behind)


def _named(tokenizer: Any, folder: Path, tokens: list[str]) -> Facts:
    """The ids of tokens with a meaning. llama.cpp takes number 11 for what is not named, so what it has is named."""
    ends = _ends(tokenizer, folder)
    if not ends:
        _refuse(folder, t("it has no end token"))
    bos = _configured(folder, "bos_token_id") if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    adds_bos, adds_eos = _adds(tokenizer, folder)
    adds_bos = adds_bos and _opens(tokenizer)  # what serves a chat would put it before a text that has none in training
    others = [n for n in ends[1:] if tokens[n] not in ENDS_BY_TEXT]
    ids = {
        "bos_token_id": ends[0] if bos is None else int(bos),
        "eos_token_id": ends[0],
        "eot_token_id": _end_of_answer(tokenizer),
        "eom_token_id": next((n for n in others if n != _end_of_answer(tokenizer)), None),
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    lost = [tokens[n] for n in others if n not in ids.values()]
    if lost:
        _refuse(folder, t("an answer ends at {count} tokens, more than it can name", count=len(ends)))
    facts = {f"tokenizer.ggml.{key}": number for key, number in ids.items() if number is not None}
    return facts | {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.ggml.add_eos_token": adds_eos}


def _ends(tokenizer: Any, folder: Path) -> list[int]:
    """Where an answer ends: at the tokenizer's end token, at the template's, and at those of generation_config.json."""
    given = _json(folder / "generation_config.json").get("eos_token_id")
    more = given if isinstance(given, list) else [given]
    ends = [tokenizer.eos_token_id, _end_of_answer(tokenizer), *more]
    return list(dict.fromkeys(int(n) for n in ends if n is not None))


def _opens(tokenizer: Any) -> bool:
    """Whether the chat template writes the beginning token; True where there is no template to say otherwise."""
    if not _template(tokenizer):
        return True
    try:
        text = str(tokenizer.apply_chat_template([{"role": "user", "content": _QUESTION}], tokenize=False))
    except Exception:  # whatever a template raises: it then says nothing of a beginning
        return True
    return text.startswith(str(tokenizer.bos_token))


def _end_of_answer(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind an answer, None where there is no template or none."""
    if not _template(tokenizer):
        return None
    chat = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception:  # whatever a template raises: it then says nothing of an end
        return None
    ids = tokenizer(text.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"] if _ANSWER in text else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return int(ids[0]) if ids and ids[0] in special else None


def with_bos(template: str, bos: str | None) -> str:
    """The chat template as llama.cpp renders it alike: there every model has a beginning token, so where the tokenizer
    has none the template says so itself.

    >>> with_bos("{{ bos_token }}Hi", None), with_bos("{{ bos_token }}Hi", "<s>"), with_bos("Hi", None)
    ("{% set bos_token = '' %}{{ bos_token }}Hi", '{{ bos_token }}Hi', 'Hi')
    """
    return template if bos or "bos_token" not in template else "{% set bos_token = '' %}" + template


def _template(tokenizer: Any) -> str | None:
    return _templates(tokenizer).get("tokenizer.chat_template")


def _templates(tokenizer: Any) -> Facts:
    """The chat template, and where there are several, those with a name (tool_use, rag) beside it."""
    given = tokenizer.chat_template or {}
    named = given if isinstance(given, dict) else {"default": given}
    named = {name: with_bos(text, tokenizer.bos_token) for name, text in named.items()}
    facts = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    if facts:
        facts["tokenizer.chat_templates"] = [name for name in named if name != "default"]
    return facts | ({"tokenizer.chat_template": named["default"]} if "default" in named else {})
