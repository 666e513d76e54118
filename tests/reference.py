"""The plain way to mask, written for the eye and not for speed: what tuneloop/data/tokens/encode.py must agree with.

Every turn is rendered twice by the tokenizer's own method and every text is tokenised by the tokenizer's own call, once
in pieces and once joined. No code is shared with what it proves. An answer of which something is missing in its text is
not trained, and a thought without words before it is context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record

Masked = tuple[list[int], list[bool], bool]
"""Ids, which are trained, whether each trained turn has its end token."""
Piece = tuple[str, bool]
"""Text, and whether it is an answer."""


def render(tokenizer: Any, chat: list[dict[str, Any]], prompt: bool, tools: Sequence[Any]) -> str:
    if "['content'] is none" in str(tokenizer.chat_template):  # DeepSeek-V3: transformers' own method leaves null out
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), _ = render_jinja_template(
            [[_null(m) for m in chat]], tools=list(tools) or None, chat_template=tokenizer.chat_template,
            add_generation_prompt=prompt, **tokenizer.special_tokens_map,
        )  # fmt: skip
        return str(text)
    return str(
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt, tools=list(tools) or None)
    )


def _null(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)}}
        for c in message["tool_calls"]
    ]
    return {**message, "content": message["content"] or None, "tool_calls": calls}


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]


def stops(tokenizer: Any) -> set[int]:
    found = {tokenizer.eos_token_id} - {None}
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = render(tokenizer, chat, False, ())
    tail = encode(tokenizer, [text.rpartition("answer")[2]])[0]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return found | (set(tail[:1]) & special)


def turn(tokenizer: Any, record: Record, at: int) -> tuple[str, str] | None:
    """Context and whole text; None for an answer that is not trained."""
    chat, message = record.chat(), record.messages[at]
    context = render(tokenizer, chat[:at], True, record.tools)
    full = render(tokenizer, chat[: at + 1], False, record.tools)
    if full[: len(context)] != context:
        full = closed(context, full, message)
    if not full and message.tool_calls:
        return None
    if not full:
        raise DataError("TL-DATA-MASK", turn=1 + at, where=":".join((record.file, str(record.line))))
    ends = [end for end in tokenizer.convert_ids_to_tokens(sorted(stops(tokenizer))) if end]
    said = re.split("|".join(map(re.escape, ends)) or "(?!)", full[len(context) :])[0]
    if message.tool_calls and ends and len(context) + len(said) == len(full):
        twice = {**chat[at], "tool_calls": chat[at]["tool_calls"] * 2}
        two = render(tokenizer, [*chat[:at], twice], False, record.tools)
        full += two[two.rindex(full[-16:]) + 16 :]
        if not any(end in full[len(context) :] for end in ends):
            return None
    *thoughts, answer = [message.content] if message.reasoning else message.content.split("</think>")
    if not (answer.strip() or message.tool_calls) or not said.strip():
        return None
    words = [message.reasoning.strip(), *(part.rpartition("<think>")[2].strip() for part in thoughts)]
    words += [answer.strip()] if message.tool_calls or "</think>" in message.content or message.reasoning else []
    if any(word not in said for word in words):
        return None
    rest = said
    for word in words:
        rest = rest.replace(word, "", 1)
    if any(all(way not in rest for way in ways(word)) for word in called(message)):
        return None
    blank = re.match(r"\s*(<think>\s*)?</think>\s*", said)
    if blank and "<think>" in str(tokenizer.chat_template) and "</think>" not in message.content:
        context += blank[0]
    elif not message.reasoning and "</think>" not in message.content:
        none = without_thought(tokenizer)
        context, full = context + none, context + none + full[len(context) :]
    return context, full


def without_thought(tokenizer: Any) -> str:
    """What the template itself writes between a prompt and an answer without a thought: an empty thought, or nothing."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "answer"}]
    context, full = render(tokenizer, chat[:1], True, ()), render(tokenizer, chat, False, ())
    between = full[len(context) :].partition("answer")[0] if full.startswith(context) else ""
    return between if "<think>" in str(tokenizer.chat_template) and "</think>" in between else ""


def called(message: Message) -> Iterator[str]:
    """The names and arguments of an answer's calls."""
    for call in message.tool_calls:
        yield call["function"]["name"]
        yield from leaves(call["function"]["arguments"])


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *leaves(one))
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def ways(word: str) -> set[str]:
    return {word.strip(), json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]}


def closed(context: str, full: str, message: Message) -> str:
    """Where the prompt opens a thought and the history has none: the thought, its end, and the answer; else ""."""
    opening = re.search(r"<think>\s*\Z", context)
    if opening is None or full[: opening.start()] != context[: opening.start()]:
        return ""
    rest = full[opening.start() :]
    if "<think>" in rest:
        return ""
    inline = re.search(r"(?s)\A(?:.*<think>)?(.*)</think>", message.content)
    thought = message.reasoning or (inline[1] if inline else "")
    pieces = [context, thought.strip(), "\n</think>\n\n", rest.lstrip()]
    if not context.endswith("\n"):
        pieces.insert(1, "\n")
    return "".join(pieces)


def masked(tokenizer: Any, record: Record) -> list[Masked]:
    """The samples of a dialogue."""
    chains: list[list[Piece]] = []
    done = ""
    for at, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        if (found := turn(tokenizer, record, at)) is None:
            continue
        context, full = found
        if not chains or not context.startswith(done):
            chains.append([])
            done = ""
        chains[-1] += [(context[len(done) :], False), (full[len(context) :], True)]
        done = full
    ends = stops(tokenizer)
    return [sample for chain in chains for sample in _samples(tokenizer, chain, ends)]


def _samples(tokenizer: Any, chain: list[Piece], ends: set[int]) -> list[Masked]:
    texts = [text for text, _ in chain]
    parts = encode(tokenizer, texts)
    whole = encode(tokenizer, ["".join(texts)])[0]
    if whole == [token for part in parts for token in part]:
        return [_sample(chain, parts, ends)]
    if cut := _cut(tokenizer, chain, whole):
        return [_sample(chain, cut, ends)]
    out = []
    for k in range(1, len(chain), 2):
        own = [("".join(texts[:k]), False), chain[k]]
        whole = encode(tokenizer, [own[0][0] + own[1][0]])[0]
        out.append(_sample(own, _cut(tokenizer, own, whole) or encode(tokenizer, [text for text, _ in own]), ends))
    return out


def _cut(tokenizer: Any, chain: list[Piece], whole: list[int]) -> list[list[int]] | None:
    edges = [0]
    for ids in encode(tokenizer, ["".join(text for text, _ in chain[: k + 1]) for k in range(len(chain))]):
        if whole[: len(ids)] != ids:
            return None
        edges.append(len(ids))
    return [whole[a:b] for a, b in pairwise(edges)]


def _sample(chain: list[Piece], ids: list[list[int]], ends: set[int]) -> Masked:
    tokens: list[int] = []
    trained: list[bool] = []
    ended = True
    for (_, answer), part in zip(chain, ids, strict=True):
        tokens += part
        end = next((k + 1 for k, token in enumerate(part) if token in ends), None) if answer else 0
        ended = ended and end is not None
        length = len(part) if end is None else end
        trained += [True] * length + [False] * (len(part) - length)
    return tokens, trained, ended
