"""Templates as they are compiled: in transformers' sandbox, made quick; and those that write history only once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

_OF_DICT = frozenset(dir(dict))
_OF_STR = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}
_PLAIN = (str, int, bool, type(None))
MOST_NUMBERS = 5_000_000
"""What all ranges of one rendering may count together, a second or so: the sandbox bounds each alone, at 100,000, and
one in another would count for hours."""


class Ranges(threading.local):
    """A template's `range`, with what is left to count in this rendering."""

    def __init__(self, single: Callable[..., range]) -> None:
        self.single, self.left = single, MOST_NUMBERS

    def begin(self) -> None:
        """A rendering begins."""
        self.left = MOST_NUMBERS

    def __call__(self, *bounds: int) -> range:
        numbers = self.single(*bounds)
        self.left -= len(numbers)
        if self.left < 0:
            raise OverflowError(f"ranges of more than {MOST_NUMBERS:,} numbers")
        return numbers


@lru_cache(maxsize=8)
def environment_of(compile_: Callable[[str], Any], source: str) -> Any:
    """transformers' sandbox for templates, with a shortcut to what it always allows.

    It looks for an attribute before it looks for a key: `message.role` costs it an exception. Some things it gives in
    any case: a key of a plain dict that is the name of no attribute, a method of a plain str that is neither private
    nor `format`, and what a loop or a namespace holds as plain text or number. Everything else goes its own way.
    """
    from jinja2.runtime import LoopContext

    environment = compile_(source).environment.overlay()
    sandboxed = environment.getattr
    holders = (LoopContext, environment.globals["namespace"])

    def quick(of: Any, name: str) -> Any:
        kind = type(of)
        if kind is dict and name in of and name not in _OF_DICT:
            return of[name]
        if kind is str and name in _OF_STR:
            return getattr(of, name)
        if kind in holders and name[:1] != "_" and type(attribute := getattr(of, name, sandboxed)) in _PLAIN:
            return attribute
        return sandboxed(of, name)

    environment.getattr = quick
    environment.globals = {**environment.globals, "range": Ranges(environment.globals["range"])}
    return environment


@lru_cache(maxsize=8)
def compiled(compile_: Callable[[str], Any], source: str) -> Any:
    return environment_of(compile_, source).from_string(source)


@lru_cache(maxsize=8)
def constants(compile_: Callable[[str], Any], source: str) -> tuple[str, ...]:
    """The texts that stand in a template as they are written."""
    from jinja2 import nodes

    tree = environment_of(compile_, source).parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return (*texts, *(str(node.value) for node in tree.find_all(nodes.Const)))


MARK = "\x00turn\x00"
_EARLIER = {"first", "index", "index0", "previtem"}
"""What a loop over the messages may ask of itself without looking ahead."""


@lru_cache(maxsize=8)
def marked(compile_: Callable[[str], Any], source: str) -> tuple[Any, Any] | None:
    """The template with a mark behind each message, and what follows its messages; None where that proves nothing.

    Rendering each beginning of a dialogue costs the square of its turns. For a template that writes its messages one
    after the other, once, and looks neither ahead nor at their number, the text of a beginning is the beginning of the
    text: one rendering gives all. The template's syntax tree shows whether it is such a one (ChatML, Llama 2, Gemma and
    Zephyr are; Qwen3 and DeepSeek, which rewrite what came before, are not).
    """
    from jinja2 import nodes

    environment = environment_of(compile_, source)
    tree = environment.parse(source)
    loops = [n for n in tree.body if isinstance(n, nodes.For) and _is_name(n.iter, "messages")]
    if len(loops) != 1 or loops[0].test or loops[0].else_ or loops[0].recursive:
        return None
    at = tree.body.index(loops[0])
    before, after = tree.body[:at], tree.body[at + 1 :]
    known = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock, nodes.ExprStmt, nodes.Scope)
    if any(not isinstance(n, known) for n in _statements(tree.body)):
        return None
    if _looks_ahead(before) or _looks_ahead(loops[0].body, loop=True) or _depends(after, tree):
        return None
    place: dict[str, Any] = {"lineno": 1, "environment": environment}
    loops[0].body.append(nodes.Output([nodes.TemplateData(MARK, **place)], **place))
    return environment.from_string(tree), environment.from_string(nodes.Template(after, **place))


def _statements(tree: Sequence[Any]) -> Iterator[Any]:
    """Every statement in the statements of a template."""
    from jinja2 import nodes

    for node in tree:
        yield node
        yield from node.find_all(nodes.Stmt)


def _is_name(node: Any, name: str) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.Name) and node.name == name


def _looks_ahead(tree: Sequence[Any], *, loop: bool = False) -> bool:
    """Whether statements may read more of the messages than the first one, or what comes after them.

    Of `messages`, nothing but messages[0] may be named; of `loop`, what it knows of earlier rounds.
    """
    from jinja2 import nodes

    allowed = set()
    for statement in tree:
        for node in (statement, *statement.find_all((nodes.Getitem, nodes.Getattr))):
            if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
                if _is_name(node.node, "messages") and repr(node.arg.value) == "0":
                    allowed.add(id(node.node))
                if loop and _is_name(node.node, "loop") and node.arg.value in _EARLIER:
                    allowed.add(id(node.node))
            if loop and isinstance(node, nodes.Getattr) and _is_name(node.node, "loop") and node.attr in _EARLIER:
                allowed.add(id(node.node))
    names = (name for statement in tree for name in statement.find_all(nodes.Name))
    closed = {"messages", "loop", "add_generation_prompt", "self"}
    return any(name.name in closed and id(name) not in allowed for name in names)


def _depends(after: Sequence[Any], tree: Any) -> bool:
    """Whether what a template writes behind its messages depends on them: it may name special tokens and the prompt."""
    from jinja2 import nodes

    free = {"add_generation_prompt", "bos_token", "eos_token"} - {
        name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"
    }
    return not {name.name for statement in after for name in statement.find_all(nodes.Name)} <= free
