"""Calls of tools in written answers: taken out of the text in the forms that the families write, compared as trees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tuneloop.base.records import Record, Reply
from tuneloop.evaluation.form import visible

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
"""Qwen, Hermes and tuneloop's own templates: a JSON object in tags."""
_FENCED = re.compile(r"(?:<｜tool▁call▁begin｜>)?function(?:<｜tool▁sep｜>)?([\w.-]+)\s*```json\s*(.*?)```", re.DOTALL)
"""DeepSeek V3 and R1: the name, and the arguments in a fence. Special tokens may be gone from the text."""
_PARTED = re.compile(r"<｜tool▁call▁begin｜>([\w.-]+)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
"""DeepSeek V3.1: the name, and the arguments."""
_BARE = re.compile(r"\s*(?:<\|python_tag\|>|\[TOOL_CALLS\])?\s*([\[{].*)\Z", re.DOTALL)
"""Llama 3 and Mistral: the answer is an object, several with ; between them, or a list of objects."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call: the tool's name and its arguments as a JSON tree."""

    name: str
    arguments: Any


def written_calls(text: str) -> list[Call | None]:
    """The calls of an answer in their order; None for one that is begun and cannot be read. [] for an answer in words.

    >>> written_calls('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    [Call(name='f', arguments={'x': 1})]
    >>> written_calls('{"name": "f", "parameters": {}}'), written_calls("<tool_call>{"), written_calls("No {need}.")
    ([Call(name='f', arguments={})], [None], [])
    """
    answer = visible(text)
    if tagged := _TAGGED.findall(answer):
        return [_call(_tree(inner)) for inner in tagged]
    if parts := _FENCED.findall(answer) or _PARTED.findall(answer):
        trees = [(name, _tree(arguments)) for name, arguments in parts]
        return [None if tree is _BROKEN else Call(name, tree) for name, tree in trees]
    bare = _BARE.match(answer)
    trees = list(_trees(bare[1])) if bare else []
    found_calls = [_call(tree) for tree in trees]
    # An answer that is JSON and no call is an answer.
    return found_calls if any(found_calls) else []


_BROKEN = object()


def _tree(text: str) -> Any:
    try:
        return json.loads(text.strip())
    except (ValueError, RecursionError):
        return _BROKEN


def _trees(text: str) -> Iterator[Any]:
    """The objects of a text, one behind the other, or those of its list."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            tree, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield from tree if isinstance(tree, list) else [tree]
        at += len(text[at:]) - len(text[at:].lstrip("; \n\t\r"))


def _call(tree: Any) -> Call | None:
    """An object with a name and arguments (Llama calls them parameters), by itself or as `function`."""
    tree = tree.get("function", tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        return None
    arguments = next((tree[key] for key in ("arguments", "parameters") if key in tree), None)
    if isinstance(arguments, str):
        arguments = _tree(arguments)
    return None if arguments is None or arguments is _BROKEN else Call(tree["name"], arguments)


def wanted_calls(record: Record) -> list[Call | None]:
    """The calls of a row's last answer."""
    last = next((m for m in reversed(record.messages) if m.role == "assistant"), None)
    return [_call(call) for call in (last.tool_calls if last else ())]


def _canonical(call: Call | None) -> str:
    """A call as text that is equal where the trees are: keys sorted, 1.0 as 1."""
    return "" if call is None else json.dumps([call.name, _number_alike(call.arguments)], sort_keys=True)


def _number_alike(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _number_alike(inner) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [_number_alike(inner) for inner in tree]
    return int(tree) if isinstance(tree, float) and tree.is_integer() else tree


def right(reply: Reply, record: Record) -> float:
    """100 where an answer makes the calls that its row makes, in any order, and no other; else 0.

    Names and arguments must be equal as JSON. A row that answers in words, though it has tools, wants no call.

    >>> from tuneloop.base.records import Message
    >>> call = {"function": {"name": "f", "arguments": {"x": 1, "y": [2]}}}
    >>> row = Record((Message("user", "?"), Message("assistant", "", tool_calls=(call,))))
    >>> right(Reply('{"name": "f", "arguments": {"y": [2], "x": 1.0}}', 1, 1, "stop"), row)
    100.0
    >>> right(Reply("x is 1", 1, 1, "stop"), row)
    0.0
    """
    written = written_calls(reply.text)
    return 100.0 * (
        None not in written and sorted(map(_canonical, written)) == sorted(map(_canonical, wanted_calls(record)))
    )


def valid(reply: Reply, record: Record) -> float | None:
    """100 where every call of an answer is of an offered tool and its arguments fit the tool's JSON schema, else 0.

    None where the answer makes no call, or where the schema is none.

    >>> tool = {"function": {"name": "f", "parameters": {"type": "object", "required": ["x"]}}}
    >>> row = Record((), tools=(tool,))
    >>> [valid(Reply(x, 1, 1, "stop"), row) for x in ('{"name": "f", "arguments": {"x": 1}}', "no call",
    ...     '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {}}')]
    [100.0, None, 0.0, 0.0]
    """
    written = written_calls(reply.text)
    fits = [_fits(call, record.tools) for call in written]
    if False in fits:
        return 0.0
    return 100.0 if fits and None not in fits else None


def _fits(call: Call | None, tools: tuple[dict[str, Any], ...]) -> bool | None:
    offered = {
        tool["name"]: tool
        for one in tools
        if isinstance(tool := one.get("function", one), dict) and isinstance(tool.get("name"), str)
    }
    if call is None or call.name not in offered:
        return False
    schema = offered[call.name].get("parameters", {})
    if not isinstance(schema, dict | bool):
        return None
    jsonschema, referencing = import_module("jsonschema"), import_module("referencing")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        # With a registry of its own it follows no reference into the network.
        return bool(kind(schema, registry=referencing.Registry()).is_valid(call.arguments))
    except Exception:  # a schema that is none, or refers to what is not here
        return None
