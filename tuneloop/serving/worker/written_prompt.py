"""A query's prompt in tokens, with what its answers must be and how they are taken apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.data.tokens.templates import encode, text_ids
from tuneloop.inference import grammar
from tuneloop.inference.grammar import Grammar
from tuneloop.model.vocabulary import require_rows
from tuneloop.serving.answers.parsing import AnswerParser, answer_parser, call_format, forced_call, thinks
from tuneloop.serving.engine import Query
from tuneloop.serving.worker.chat_format import ChatFormat


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """`ids` are the tokens, `text` what is echoed, `most` the tokens that an answer may have; `begun` is the text that
    stands at the end of the prompt and is a part of the answer."""

    ids: list[int]
    text: str
    most: int
    begun: str = ""
    grammar: Grammar | None = None
    parser: Callable[[], AnswerParser] | None = None


def written_prompt(query: Query, chat_format: ChatFormat, model: nn.Module, usual: int) -> WrittenPrompt:
    """The prompt of a query; `usual` is the length of an answer that names none.

    Raises TL-DATA-TEMPLATE, TL-SERVE-CONTEXT, TL-SERVE-ROOM, TL-SERVE-TOKEN, TL-SERVE-UNSUPPORTED, TL-SERVE-SCHEMA.
    """
    if query.tool_choice == "none":
        query = replace(query, tools=())
    _require_text(query)
    tokenizer, param = chat_format.tokens.prompts, "messages" if query.purpose == "chat" else "prompt"
    with chat_format.tokens.lock:
        ids, text = _ids(query, chat_format)
        parser = _parser(query, chat_format, ids) if query.purpose == "chat" else None
        begun, schema = "", query.schema
        if query.tools and query.tool_choice != "auto":
            calls = call_format(chat_format.tokens.template)
            assert calls is not None  # `_parser` has refused tools without
            begun, schema = forced_call(calls, query.tools, query.tool_choice)
            ids = ids + encode(tokenizer, [begun])[0]
        compiled = grammar.compile(schema, tokenizer) if schema is not None else None
    if not ids:
        raise ServeError("TL-SERVE-REQUEST", where=param, param=param, error=t("it is empty"))
    _require_rows(ids, param, chat_format, model)
    _require_rows([token for token, _ in query.sampling.logit_bias], "logit_bias", chat_format, model)
    most = _most(query, len(ids), chat_format.prompts.context, usual, param)
    return WrittenPrompt(ids, text, most, begun, compiled, parser)


def _ids(query: Query, chat_format: ChatFormat) -> tuple[list[int], str]:
    """The query's prompt in tokens and, where it may be echoed, as text."""
    if query.purpose == "chat":
        return chat_format.prompts.prompt(query.chat, query.tools, query.thinking), ""
    if isinstance(query.prompt, str):
        return [*chat_format.tokens.before_texts, *text_ids(chat_format.tokens.prompts, query.prompt)], query.prompt
    ids = list(query.prompt)
    return ids, chat_format.tokens.decoding_prompt()(ids) if query.echo else ""


def _parser(query: Query, chat_format: ChatFormat, ids: list[int]) -> Callable[[], AnswerParser] | None:
    """What makes a parser for each answer; None where there is nothing to take apart."""
    template = chat_format.tokens.template
    if not query.tools and not thinks(template):
        return None
    tail = chat_format.tail(ids)
    answer_parser(template, tail, query)  # its error is the request's, now
    return lambda: answer_parser(template, tail, query)


def _require_text(query: Query) -> None:
    """Raise TL-SERVE-REQUEST for half of a pair of UTF-16, which no tokenizer takes."""
    param = "messages" if query.purpose == "chat" else "prompt"
    for name, content in ((param, query.chat or query.prompt), ("tools", query.tools)):
        try:
            json.dumps(content, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            reason = t("it has half of a character (a lone surrogate)")
            raise ServeError("TL-SERVE-REQUEST", where=name, param=name, error=reason) from error


def _require_rows(ids: Sequence[int], param: str, chat_format: ChatFormat, model: nn.Module) -> None:
    try:
        if min(ids, default=0) < 0:
            raise ServeError("TL-SERVE-REQUEST", error=t("a token id is negative"))
        require_rows(model, chat_format.tokens.prompts, [ids])
    except ServeError as error:
        error.where = error.facts["param"] = param
        raise


def _most(query: Query, tokens: int, context: int, usual: int, param: str) -> int:
    """Tokens that an answer may have."""
    left, wanted = context - tokens, query.max_new_tokens
    if left < 0 or (left == 0 and wanted != 0):
        raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=tokens, context=context)
    if wanted is None:
        return min(left, usual)
    if wanted > left:
        param = "max_tokens"
        raise ServeError(
            "TL-SERVE-ROOM", where=param, param=param, tokens=tokens, wanted=wanted, left=left, context=context
        )
    return wanted
