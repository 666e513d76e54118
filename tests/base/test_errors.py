from __future__ import annotations

import ast
import errno
import pickle
import re
import string
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tuneloop.base import language
from tuneloop.base.errors import FAMILIES, NOTICES, DataError, RecipeError, RunError, TuneloopError, catalogue, os_words

SOURCE = Path(str(files("tuneloop")))
CLASSES = {c.__name__: c.family for c in FAMILIES.values()}


def raised() -> Iterator[tuple[str, str, str, set[str] | None]]:
    """(where, family, code, names of the facts or None where they are passed on) of each error made in the code."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES):
                continue
            where = f"{path.relative_to(SOURCE)}:{node.lineno}"
            names = {k.arg for k in node.keywords}
            facts = None if None in names else {n for n in names if n} | {"where"}
            codes = [
                n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            for code in codes:
                if code.startswith("TL-"):
                    yield where, CLASSES[node.func.id], code, facts


def mentioned() -> set[str]:
    text = "\n".join(p.read_text(encoding="utf-8") for p in SOURCE.rglob("*.py"))
    return set(re.findall(r'"(TL-[A-Z]+-[A-Z0-9-]+)"', text))


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_code_has_its_words_in_both_languages() -> None:
    for tongue in language.LANGUAGES:
        known = {code for family in (*FAMILIES, *NOTICES) for code in catalogue(family, tongue)}
        assert not sorted(mentioned() - known), tongue
        wrong = sorted({(where, code) for where, family, code, _ in raised() if code not in catalogue(family, tongue)})
        assert not wrong, tongue


def test_no_words_are_left_over() -> None:
    known = {code for family in FAMILIES for code in catalogue(family, "en")}
    assert not sorted(known - mentioned())


@pytest.mark.parametrize("family", [*FAMILIES, *NOTICES])
def test_both_languages_say_the_same(family: str) -> None:
    english, chinese = catalogue(family, "en"), catalogue(family, "zh")
    assert set(english) == set(chinese)
    for code, entry in english.items():
        other = chinese[code]
        assert code.startswith(f"TL-{family.upper()}-")
        for part in ("what", "do", "more"):
            assert entry[part].strip(), (code, part)
            assert re.search(r"[\u4e00-\u9fff]", other[part]), (code, part)
        for part in ("what", "do"):
            assert placeholders(entry[part]) == placeholders(other[part]), (code, part)
        sentences = len(re.findall(r"[.!?:](?:\s|$)", entry["more"]))
        assert sentences >= 3, code


def test_every_placeholder_gets_its_fact() -> None:
    for where, family, code, facts in raised():
        entry = catalogue(family, "en").get(code, {})
        if facts is not None:
            wanted = placeholders(entry.get("what", "")) | placeholders(entry.get("do", ""))
            assert wanted <= facts, f"{where}: {code}"


def test_an_error_says_where_what_and_what_to_do() -> None:
    error = DataError("TL-DATA-JSON", where="chats.jsonl:3:9", error="Expecting value")
    head, do = str(error).split("\n")
    assert head.startswith("TL-DATA-JSON  chats.jsonl:3:9: ")
    assert "Expecting value" in head
    assert do == f"  -> {error.do}"
    assert error.as_dict() == {
        "code": "TL-DATA-JSON", "where": "chats.jsonl:3:9", "what": error.what, "do": error.do, "causes": []
    }  # fmt: skip
    language.use("zh")
    assert re.search(r"[\u4e00-\u9fff]", error.what)


def test_causes_are_told_with_it() -> None:
    causes = [
        RecipeError("TL-RECIPE-KEY", where=f"train.{k}", key=k, guess="train.epochs") for k in ("epoch", "epochz")
    ]
    error = RecipeError("TL-RECIPE-INVALID", where="a.yaml", causes=causes, n=2)
    lines = str(error).splitlines()
    assert next(line for line in lines if line.startswith("  - ")).startswith("  - train.epoch: ")
    assert len([line for line in lines if line.startswith("  - ")]) == 2
    assert [c["where"] for c in error.as_dict()["causes"]] == ["train.epoch", "train.epochz"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (folder / "none").read_text(), "there is no such file or folder"),
        (lambda folder: folder.read_text(), "it is a folder"),
        (lambda folder: (folder / ("x" * 300)).write_text(""), "the name is too long"),
        (lambda folder: folder.mkdir(), "it exists already"),
    ],
)
def test_the_operating_systems_words_are_ours(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        make(tmp_path)
    assert os_words(caught.value) == words


def test_rare_words_of_the_operating_system_are_its_own() -> None:
    assert os_words(OSError(errno.EXDEV, "a rare one")) == "a rare one"
    assert os_words(ValueError("no file at all")) == "no file at all"
    assert os_words(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")) == "it is not UTF-8"


def test_a_missing_fact_or_code_never_hides_the_error() -> None:
    assert "?" in DataError("TL-DATA-JSON").what
    error = RunError("TL-RUN-NO-SUCH-CODE", where="x", a=1)
    assert str(error) == "TL-RUN-NO-SUCH-CODE  x: a=1"


def test_facts_with_braces_are_printed_as_they_are() -> None:
    assert "{x}" in DataError("TL-DATA-JSON", error="near {x}").what


def test_an_error_crosses_to_another_process() -> None:
    error = RunError("TL-RUN-EXISTS", where="runs/a-1", causes=[DataError("TL-DATA-EMPTY", where="b")], path="runs/a-1")
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, RunError)
    assert str(back) == str(error)
    assert isinstance(back, TuneloopError)
