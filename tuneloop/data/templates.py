"""Render dialogues with the tokenizer's own chat template: the one renderer of training, evaluation and serving.

A base model has no template; it gets the default one, which needs no special token but the end of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.errors import DataError, ModelError

Chat = list[dict[str, Any]]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma has no system role: the system text opens the first user turn, and the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The prompt ends in a line break: a blank there would be the first half of the token that a word begins with.
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ 'Assistant:\n' + m['content'] + (eos_token or '') + '\n\n' }}{% elif m['role'] == 'user' %}"
    "{{ 'User:\n' + m['content'] + '\n\n' }}{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
DEFAULTS = {"chatml": CHATML, "gemma": GEMMA, "plain": PLAIN}
DEFAULT = "plain"
"""What a model without a template gets. A base model has the special tokens of its family's chat template in its
vocabulary, and has never seen them: its untrained rows of the head are so alike that it cannot learn to write the one
that ends a turn (tried with Gemma-3-270M: it answers, then writes some other rare token and rambles on). Every model
has seen its end-of-text token."""


def choose_template(tokenizer: Any, wanted: str | None) -> str:
    """Set the tokenizer's template where it has none or another is wanted; returns a word for the plan.

    Raises TL-MODEL-TEMPLATE for a name that is neither known nor a .jinja file.
    """
    if wanted is None and tokenizer.chat_template:
        return "own"
    name = wanted or DEFAULT
    if name in DEFAULTS:
        tokenizer.chat_template = DEFAULTS[name]
        return name
    path = Path(name)
    if path.suffix != ".jinja" or not path.is_file():
        raise ModelError("TL-MODEL-TEMPLATE", where=name, known=", ".join(DEFAULTS))
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    return path.name


def render(tokenizer: Any, chat: Chat, *, prompt: bool = False, tools: Sequence[Any] = ()) -> str:
    """The text of a chat; with `prompt` it ends where the assistant is to begin.

    Raises TL-DATA-TEMPLATE when the template refuses the chat (roles it does not know, say).
    """
    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=prompt, tools=list(tools) or None
        )
    except Exception as error:
        raise DataError("TL-DATA-TEMPLATE", error=" ".join(str(error).split())[:200]) from error
    return str(text)


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts. The template wrote the special tokens, so none are added."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: the end-of-text token, and the special token the template puts after an answer."""
    stops = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    marker = "answer"
    text = render(tokenizer, [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}])
    tail = encode(tokenizer, [text[text.rindex(marker) + len(marker) :]])[0] if marker in text else []
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    if tail and tail[0] in special:
        stops.add(tail[0])
    return frozenset(stops)
