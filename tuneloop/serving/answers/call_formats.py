"""The forms in which models write tool calls: which one a chat template teaches, and how a call is asked for in it.

The forms are those of the published templates; a template is recognised by the texts that stand in it. It is pure text:
no tokenizer, no model.
"""

from __future__ import annotations

import re
import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.base.errors import ServeError

Form = Literal["tagged", "bare", "sections", "marked"]
"""tagged: JSON within <tool_call>. bare: the answer is JSON. sections: DeepSeek's tokens, the name apart from the
arguments. marked: JSON, or a name and JSON, behind [TOOL_CALLS]."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a family of models writes calls.

    `clues` are texts that its chat templates have, and `strange` those that tell another form with the same tokens.
    `begins` is what a call begins with; `{name}` in it is the function's, where the name stands before the JSON.
    """

    name: str
    form: Form
    clues: tuple[str, ...]
    begins: str
    markers: tuple[str, ...]
    """Texts of tokens that must stay in the answer's text, though a tokenizer may call them special."""
    strange: tuple[str, ...] = ()
    arguments: str = "arguments"
    """The key of the arguments in a call's JSON."""
    listed: bool = False
    """Whether calls stand in a JSON list."""
    short_ids: bool = False
    """Whether the template takes only ids of nine letters and digits."""

    @property
    def names_apart(self) -> bool:
        """Whether the function's name stands before the JSON, which are then the arguments alone."""
        return "{name}" in self.begins

    def new_id(self) -> str:
        """An id for a call."""
        if self.short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{uuid.uuid4().hex[:24]}"


_SECTION = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
FORMATS: tuple[CallFormat, ...] = (
    CallFormat(
        "deepseek-v3", "sections", (_SECTION[0], "```json"),
        _SECTION[0] + _SECTION[2] + "function" + _SECTION[4] + "{name}\n```json\n", _SECTION,
    ),
    CallFormat(
        "deepseek-v3.1", "sections", (_SECTION[0],), _SECTION[0] + _SECTION[2] + "{name}" + _SECTION[4], _SECTION,
    ),
    CallFormat(
        "mistral-args", "marked", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]{name}[ARGS]",
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), short_ids=True,
    ),
    CallFormat(
        "mistral", "marked", ("[TOOL_CALLS]",), "[TOOL_CALLS]", ("[TOOL_CALLS]",), listed=True, short_ids=True,
    ),
    CallFormat(
        "hermes", "tagged", ("<tool_call>",), "<tool_call>\n", ("<tool_call>", "</tool_call>"),
        strange=("<function=", "<arg_key>"),
    ),
    CallFormat(
        "llama", "bare", ('"parameters": ', '"name": '), "", ("<|python_tag|>",), strange=("<tool_call>",),
        arguments="parameters",
    ),
)  # fmt: skip
"""In the order in which they are tried: the more telling clue first."""
THOUGHT = ("<think>", "</think>")


def call_format(template: str | None) -> CallFormat | None:
    """The form in which a chat template has tools called; None where it takes no tools or writes calls in another form.

    >>> call_format("{% if tools %}<tool_call>{% endif %}").name
    'hermes'
    >>> call_format("<tool_call>"), call_format("{{ tools }}<tool_call>\\n<function="), call_format(None)
    (None, None, None)
    """
    if not template or not re.search(r"\btools\b", template):
        return None
    for one in FORMATS:
        if all(clue in template for clue in one.clues) and not any(clue in template for clue in one.strange):
            return one
    return None


def thinks(template: str | None) -> bool:
    """Whether a chat template knows thoughts: then they are taken out of the answer's text.

    >>> thinks("{{ m.content.split('</think>')[-1] }}"), thinks("{{ m.content }}"), thinks(None)
    (True, False, False)
    """
    return bool(template) and any(tag in str(template) for tag in THOUGHT)


def markers(template: str | None) -> tuple[str, ...]:
    """Texts of tokens that must not be left out when an answer's tokens become text: they are parsed.

    >>> markers("{{ tools }}<tool_call></think>")
    ('<think>', '</think>', '<tool_call>', '</tool_call>')
    """
    calls = call_format(template)
    return (THOUGHT if thinks(template) else ()) + (calls.markers if calls else ())


def forced_call(calls: CallFormat, tools: Sequence[Mapping[str, Any]], tool_choice: str) -> tuple[str, dict[str, Any]]:
    """What an answer that must call a tool begins with, and the JSON schema of the rest, after which it ends.

    `tool_choice` is "required" or a function's name. A forced answer makes one call. The text that the answer begins
    with is a part of it: it goes through the parser like what the model writes.

    Raises TL-SERVE-UNSUPPORTED where the name stands before the JSON and several tools are open: no schema says that.

    >>> hermes = call_format("{{ tools }}<tool_call>")
    >>> text, schema = forced_call(hermes, [{"type": "function", "function": {"name": "f"}}], "required")
    >>> text, list(schema["properties"])
    ('<tool_call>\\n', ['name', 'arguments'])
    """
    functions = [tool["function"] for tool in tools]
    open_to = [one for one in functions if tool_choice in ("required", one["name"])]
    if calls.names_apart:
        if len(open_to) != 1:
            raise ServeError("TL-SERVE-UNSUPPORTED", where="tool_choice", param="tool_choice", got=tool_choice)
        return calls.begins.replace("{name}", open_to[0]["name"]), _parameters(open_to[0])
    defined = {str(k): _referring(_parameters(one), f"#/$defs/{k}") for k, one in enumerate(open_to)}
    choices = [_call_schema(one["name"], f"#/$defs/{k}", calls.arguments) for k, one in enumerate(open_to)]
    schema: dict[str, Any] = choices[0] if len(choices) == 1 else {"anyOf": choices}
    if calls.listed:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return calls.begins, {**schema, "$defs": defined}


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function.get("parameters") or {"type": "object", "properties": {}})


def _call_schema(name: str, reference: str, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments: {"$ref": reference}},
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _referring(schema: Any, place: str) -> Any:
    """A schema whose references to its own parts hold at another place of a larger one.

    >>> _referring({"$ref": "#/$defs/x", "enum": ["#/"]}, "#/$defs/0")
    {'$ref': '#/$defs/0/$defs/x', 'enum': ['#/']}
    """
    if isinstance(schema, list):
        return [_referring(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + one[1:] if key == "$ref" and isinstance(one, str) and one[:1] == "#" else _referring(one, place)
        for key, one in schema.items()
    }
