"""Names of the package are the field's terms: none of the retired ones is left, and no two public classes share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuneloop

PACKAGE = Path(str(tuneloop.__file__)).parent
RETIRED = frozenset({
    "told", "said", "found", "made", "asked", "looked", "result", "value", "data", "item", "tmp",
    "Side", "Part", "_Parts", "Parts", "Items", "Samples", "Rows", "Setting", "Words", "Material",
    "informed", "asks", "writes", "kept", "keeping", "KEPT", "trunk", "plain", "whole", "entry", "opening",
    "turns_alike", "slides", "products", "fast", "both", "voice", "heat", "mark", "trial", "origin", "room",
    "fit", "cutter", "tongues", "grow", "ranks", "stamps",
})  # fmt: skip
"""What a name must not be: private words, and fillers that say nothing of what they hold."""
EXCEPTIONS = {
    ("recipe/schema", "data"): "a key of the recipe",
    ("planning/planner", "data"): "a key of plan.json",
    ("planning/choices", "value"): "a key of plan.json",
    ("cli/doctor", "value"): "a key of `doctor --json`",
    ("cli/data", "data"): "the verb `tuneloop data`",
    ("model/precision", "data"): "torch's own attribute of a parameter",
    ("model/kernels", "value"): "query, key and value of attention",
}
"""(file or folder, name) -> why it stays. At most ten."""
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module defines: functions, classes, parameters, attributes and variables, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno


def is_excepted(file: str, name: str) -> bool:
    return (file, name) in EXCEPTIONS or (str(Path(file).parent.as_posix()), name) in EXCEPTIONS


@pytest.mark.parametrize("file", FILES)
def test_no_retired_name_is_left(file: str) -> None:
    defined = [(Path(file).name, 1), *names(ast.parse(FILES[file].read_text(encoding="utf-8")))]
    retired = [(name, line) for name, line in defined if name.lstrip("_") in RETIRED and not is_excepted(file, name)]
    assert not retired, f"{file}.py"


def test_each_exception_is_needed() -> None:
    assert len(EXCEPTIONS) <= 10
    for place, name in EXCEPTIONS:
        files = [file for file in FILES if place in (file, Path(file).parent.as_posix())]
        defined = {one for file in files for one, _ in names(ast.parse(FILES[file].read_text(encoding="utf-8")))}
        assert name in defined or Path(place).name == name, (place, name)


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for file, path in FILES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def is_literal(value: ast.expr | None) -> bool:
    """Whether an expression is a table written out: a dict, list, tuple or set, or several joined."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in {"frozenset", "set", "dict", "tuple"} and bool(value.args) and is_literal(value.args[0])
    if isinstance(value, ast.BinOp):
        return is_literal(value.left) and is_literal(value.right)
    return isinstance(value, ast.Dict | ast.List | ast.Tuple | ast.Set)


@pytest.mark.parametrize("file", FILES)
def test_only_tables_are_laid_out_by_hand(file: str) -> None:
    text = FILES[file].read_text(encoding="utf-8")
    by_hand = {n for n, line in enumerate(text.split("\n"), 1) if "# fmt: skip" in line}
    if by_hand:
        assigned = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assign | ast.AnnAssign)]
        assert by_hand <= {node.end_lineno for node in assigned if is_literal(node.value)}
