"""Render dialogues with the tokenizer's own chat template: the one renderer of training, evaluation and serving.

A base model has no template; it gets the default one, which needs no special token but the end of text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, ModelError
from tuneloop.base.language import listed
from tuneloop.data.tokens.compiled import MARK, compiled, constants, marked
from tuneloop.data.tokens.control_tokens import GUARD, control_tokens, cut_at_guards
from tuneloop.data.tokens.named_templates import CHATML, DEFAULT, DEFAULTS, GEMMA, PLAIN
from tuneloop.data.tokens.ordinary import ordinary, stretches

__all__ = ["CHATML", "DEFAULT", "DEFAULTS", "GEMMA", "PLAIN", "Chat", "Renderer", "choose_template", "encode",
           "encode_guarded", "prompt_ids", "render", "stop_ids", "stop_texts", "switches_thoughts", "template_file",
           "template_of", "text_ids"]  # fmt: skip

Chat = list[dict[str, Any]]


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
        raise ModelError("TL-MODEL-TEMPLATE", where=name, known=listed(DEFAULTS))
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    return path.name


def template_of(folder: Path) -> str | None:
    """The chat template that lies in a model folder, None where there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):  # several, each with a name
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return str(template) if template else None


def template_file(folder: Path) -> Path:
    """The file of a model folder that holds its chat template; the folder where there is none."""
    names = ("chat_template.jinja", "tokenizer_config.json")
    return next((folder / name for name in names if (folder / name).is_file()), folder)


@lru_cache(maxsize=1)
def _transformers() -> Any:
    """transformers' own module of chat templates, where it has the parts that are used here."""
    from transformers.utils import chat_template_utils as own

    parts = ("_compile_jinja_template", "_plain_template_data", "_alias_reasoning_fields")
    return own if all(hasattr(own, part) for part in parts) else None


class Renderer:
    """Renders chats with a tokenizer's template, compiled once: the text that `apply_chat_template` gives, sooner.

    A tokenizer that brings a method of its own is asked by that method. `guarded` texts are those for `encode_guarded`:
    with guards in what a message spells of control tokens.
    """

    def __init__(self, tokenizer: Any, guarded: bool = False) -> None:
        from transformers import PreTrainedTokenizerBase

        self._tokenizer = tokenizer
        own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        self._parts: Any = None if own else _transformers()
        self._named = dict(tokenizer.special_tokens_map)
        self._prompts: dict[str, str] = {}
        self._control = control_tokens(tokenizer) if guarded else None
        self._opened: dict[str, bool] = {}
        self._forms: dict[str, _Form] = {}

    def text(self, chat: Chat, *, prompt: bool = False, tools: Sequence[Any] = (), thinking: bool | None = None) -> str:
        """The text of a chat; with `prompt` it ends where the assistant is to begin. `thinking` is the switch
        enable_thinking that some templates have (`switches_thoughts`); None leaves it as it is.

        Raises TL-DATA-TEMPLATE when the template refuses the chat (roles it does not know, say).
        """
        with _coded_errors():
            safe, safe_tools = self._guarded(chat, tools)
            if self._parts is None or not chat:
                text = str(
                    self._tokenizer.apply_chat_template(
                        safe,
                        tokenize=False,
                        add_generation_prompt=prompt,
                        tools=list(safe_tools) or None,
                        **_switch(thinking),
                    )
                )
            else:
                source = self._source(tools)
                messages = self._template_data(self._formed(safe, source))
                text = self._render(source, messages, prompt, self._tool_data(safe_tools), thinking)
            return text if safe is chat and safe_tools is tools else _unescaped(text)

    def turns(self, chat: Chat, answers: Sequence[int], tools: Sequence[Any] = ()) -> list[tuple[str, str]]:
        """For each answer, at its place in the chat: the text in which it is served, and the text up to its end.

        Raises TL-DATA-TEMPLATE.
        """
        if self._parts is None or not answers or answers[0] == 0:
            return [
                (self.text(chat[:at], prompt=True, tools=tools), self.text(chat[: at + 1], tools=tools))
                for at in answers
            ]
        with _coded_errors():
            safe, safe_tools = self._guarded(chat, tools)
            source, offered = self._source(tools), self._tool_data(safe_tools)
            messages = self._template_data(self._formed(safe, source))
            rendered = self._at_once(source, messages[: answers[-1] + 1], answers, offered)
            if rendered is None:
                rendered = [
                    (
                        self._render(source, messages[:at], True, offered),
                        self._render(source, messages[: at + 1], False, offered),
                    )
                    for at in answers
                ]
            if safe is chat and safe_tools is tools:
                return rendered
            return [(_unescaped(context), _unescaped(full)) for context, full in rendered]

    def _guarded(self, chat: Chat, tools: Sequence[Any]) -> tuple[Chat, Sequence[Any]]:
        """The chat and the tools with guards in their texts, each the same object where there are none."""
        if self._control is None:
            return chat, tools
        opened = self._parts is not None and bool(chat) and self._opens(self._source(tools))
        messages = [self._control.message(message, opened) for message in chat]
        same = all(safe is message for safe, message in zip(messages, chat, strict=True))
        offered = tools if self._control.needs_none(tools, opened) else self._control.deep(list(tools), opened)
        return chat if same else [dict(message) for message in messages], tools if offered == list(tools) else offered

    def _opens(self, source: str) -> bool:
        """Whether a template writes the beginning of a control token that a text could complete: `'<' + name`."""
        if source not in self._opened:
            texts = constants(self._parts._compile_jinja_template, source)
            self._opened[source] = self._control is not None and any(map(self._control.begins, texts))
        return self._opened[source]

    def _source(self, tools: Sequence[Any]) -> str:
        return str(self._tokenizer.get_chat_template(None, tools=list(tools) or None))

    def _formed(self, chat: Chat, source: str) -> Chat:
        """The chat with its calls in the form that this template reads."""
        if not any(message.get("tool_calls") for message in chat):
            return chat
        if source not in self._forms:
            self._forms[source] = next(filter(self._reads(source), _FORMS), _FORMS[0])
        return [self._forms[source].given(message) for message in chat]

    def _reads(self, source: str) -> Callable[[_Form], bool]:
        """Whether a template writes a call that it is given in a form: its name, and its arguments as JSON or apart."""

        def is_written(form: _Form) -> bool:
            try:
                text = self._render(source, self._template_data([_ASKED, form.given(_CALLED)]), False, None)
            except Exception:  # whatever a template raises at a form that it does not know
                return False
            return all(word in text for word in _WORDS) and "'city'" not in text

        return is_written

    def _template_data(self, chat: Chat) -> Chat:
        messages = [
            {
                k: content
                for k, content in message.items()
                if content is not None or (k == "content" and _calls(message))
            }
            for message in chat
        ]
        if any(type(content) is not str for message in messages for content in message.values()):
            messages = self._parts._plain_template_data(messages)
        out: Chat = self._parts._alias_reasoning_fields(messages)
        return out

    def _tool_data(self, tools: Sequence[Any]) -> Any:
        return self._parts._plain_template_data(list(tools)) if tools else None

    def _render(self, source: str, chat: Chat, prompt: bool, tools: Any, thinking: bool | None = None) -> str:
        return str(self._filled(compiled(self._parts._compile_jinja_template, source), chat, prompt, tools, thinking))

    def _filled(self, template: Any, chat: Chat, prompt: bool, tools: Any, thinking: bool | None = None) -> Any:
        named = {**self._named, **_switch(thinking)}
        template.environment.globals["range"].begin()
        return template.render(messages=chat, tools=tools, documents=None, add_generation_prompt=prompt, **named)

    def _at_once(self, source: str, chat: Chat, answers: Sequence[int], tools: Any) -> list[tuple[str, str]] | None:
        """`turns` from one rendering, for a template of which that is proven; None for any other."""
        history = marked(self._parts._compile_jinja_template, source)
        if history is None:
            return None
        *parts, end = self._filled(history[0], chat, False, tools).split(MARK)
        if len(parts) != len(chat):  # the chat has the mark in its text
            return None
        if source not in self._prompts:  # nothing of a chat is in it
            self._prompts[source] = self._filled(history[1], chat, True, tools)
        generation_prompt = self._prompts[source]
        text = "".join(parts)
        ends = [0, *accumulate(len(part) for part in parts)]
        return [(text[: ends[at]] + generation_prompt, text[: ends[at + 1]] + end) for at in answers]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a turn that calls tools is given to a template: an empty content as null, arguments as JSON text."""

    null: bool
    text: bool

    def given(self, message: dict[str, Any]) -> dict[str, Any]:
        if not _calls(message):
            return message
        out = dict(message)
        if not out.get("content"):
            out["content"] = None if self.null else ""
        if self.text:
            out["tool_calls"] = [_written(call) for call in out["tool_calls"]]
        return out


_FORMS = [_Form(null, text) for text in (False, True) for null in (False, True)]
"""In the order in which they are tried; where a template reads none of them, the first."""
_ASKED = {"role": "user", "content": "question"}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}},
]}  # fmt: skip
_WORDS = ("get_weather", "city", "Rome")


def _calls(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) and message.get("role") == "assistant"


def _written(call: Any) -> Any:
    """A call whose arguments are JSON text."""
    inner = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inner, dict) or isinstance(inner.get("arguments"), str):
        return call
    return {**call, "function": {**inner, "arguments": json.dumps(inner.get("arguments"), ensure_ascii=False)}}


@contextmanager
def _coded_errors() -> Iterator[None]:
    """Whatever a template raises, as an error with a code."""
    try:
        yield
    except Exception as error:
        raise DataError("TL-DATA-TEMPLATE", error=" ".join(str(error).split())[:200]) from error


def _unescaped(text: str) -> str:
    """A rendered text with its guards as they are, where a template has written some as JSON or Python spell them."""
    return text.replace(_ESCAPED, GUARD)


_ESCAPED = ascii(GUARD)[1:-1]


def render(
    tokenizer: Any, chat: Chat, *, prompt: bool = False, tools: Sequence[Any] = (), thinking: bool | None = None
) -> str:
    """The text of a chat; with `prompt` it ends where the assistant is to begin; `thinking` as `Renderer.text` has it.

    Raises TL-DATA-TEMPLATE when the template refuses the chat (roles it does not know, say).
    """
    return Renderer(tokenizer).text(chat, prompt=prompt, tools=tools, thinking=thinking)


def switches_thoughts(tokenizer: Any) -> bool:
    """Whether the tokenizer's template has the switch enable_thinking (Qwen3 and relatives)."""
    return "enable_thinking" in str(getattr(tokenizer, "chat_template", "") or "")


def _switch(thinking: bool | None) -> dict[str, bool]:
    return {} if thinking is None else {"enable_thinking": thinking}


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts. The template wrote the special tokens, so none are added."""
    if not texts:
        return []
    backend = _backend(tokenizer)
    if backend is None:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def encode_guarded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts whose messages were guarded: what they spell of control tokens is ordinary text."""
    touched = [n for n, text in enumerate(texts) if GUARD in text]
    if not touched:
        return encode(tokenizer, texts)
    backend, control = _backend(tokenizer), control_tokens(tokenizer)
    if backend is None:  # it is all that is known: each half of a spelling has other ids than the whole
        parts = [cut_at_guards(text) for text in texts]
        ids = iter(encode(tokenizer, [part for own in parts for part in own]))
        return [[i for _ in own for i in next(ids)] for own in parts]
    cut = {n: stretches(texts[n], control) for n in touched}
    read = iter(
        encode(
            tokenizer,
            [part for n, text in enumerate(texts) for part, bare, _ in cut.get(n, [(text, False, False)]) if not bare],
        )
    )
    written = iter(
        ordinary(tokenizer, backend, len(tokenizer)).encode(
            [(part, behind) for own in cut.values() for part, bare, behind in own if bare]
        )
    )
    return [
        [i for _, bare, _ in cut.get(n, [(text, False, False)]) for i in next(written if bare else read)]
        for n, text in enumerate(texts)
    ]


def prompt_ids(
    tokenizer: Any, chat: Chat, *, tools: Sequence[Any] = (), thinking: bool | None = None, answer_prefix: str = ""
) -> list[int]:
    """Token ids of a chat with its generation prompt, and `answer_prefix` behind it: no text of a message, a tool or a
    call is a control token among them.

    Raises TL-DATA-TEMPLATE.
    """
    text = Renderer(tokenizer, guarded=True).text(chat, prompt=True, tools=tools, thinking=thinking)
    return encode_guarded(tokenizer, [text + answer_prefix])[0]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that is to be continued, without those that the tokenizer puts around it: what it spells of
    control tokens is ordinary text."""
    return encode_guarded(tokenizer, [control_tokens(tokenizer).guarded(text)])[0]


def _backend(tokenizer: Any) -> Any:
    """The library's tokenizer inside one of transformers, set as that sets it; None where it does more than ask it."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    ):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


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


def stop_texts(tokenizer: Any) -> tuple[str, ...]:
    """The tokens that end an answer, as they stand in a rendered text."""
    return tuple(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(stop_ids(tokenizer))))
