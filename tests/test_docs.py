"""The documents say what is there: keys, defaults, settings, commands, files; their examples run."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

import tuneloop
from tuneloop.base import language
from tuneloop.data import ledger
from tuneloop.recipe.peers.translate import ALIASES
from tuneloop.recipe.recipe import keys, make_recipe
from tuneloop.recipe.yaml import loads

ROOT = Path(__file__).parents[1]
SOURCE = Path(str(files("tuneloop")))
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("en", "zh")
NOTHING = {"none": None, "无": None}
REQUIRED = ("required", "必填")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str, tongue: str) -> str:
    return (ROOT / "docs" / tongue / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(path: Path, kind: str) -> list[str]:
    return [code for word, code in FENCE.findall(path.read_text(encoding="utf-8")) if word == kind]


# recipe.md


def documented(tongue: str) -> dict[str, list[str]]:
    """Key -> the other cells of its row: default, values, meaning."""
    return {
        quoted(first)[0]: rest for first, *rest in rows(page("recipe.md", tongue)) if len(rest) == 3 and quoted(first)
    }


def leaves() -> dict[str, Any]:
    """Key -> field, of the keys that hold a value and no section."""
    every = dict(keys())
    sections = {k.removesuffix("[]") for key in every for k in [key.rpartition(".")[0]]}
    return {k: s.model_fields[k.rpartition(".")[2]] for k, s in every.items() if k not in sections}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_key_is_documented_with_its_default(tongue: str) -> None:
    table, fields = documented(tongue), leaves()
    assert list(table) == [k for k in table if k in fields]
    assert not sorted(fields.keys() - table.keys())
    for key, field in fields.items():
        default = table[key][0]
        if field.is_required():
            assert default in REQUIRED, key
        else:
            value = NOTHING[default] if default in NOTHING else loads(quoted(default)[0], key)
            value = "off" if value is False and field.annotation is not bool else value  # YAML reads a bare off so
            assert value == plain(field.get_default(call_default_factory=True)), key


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_choice_and_limit_is_documented(tongue: str) -> None:
    for key, field in leaves().items():
        cell = documented(tongue)[key][1]
        kinds = [field.annotation, *get_args(field.annotation)]
        choices = [str(c) for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
        choices += ["true", "false"] if field.annotation is bool else []
        if "`role" not in cell and "`角色" not in cell:
            assert quoted(cell) == choices, key
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        limits = {f"{s} {getattr(m, a)}" for m in field.metadata for a, s in signs.items() if hasattr(m, a)}
        found = {f"{sign} {number}" for sign, number in re.findall(r"([≥>≤<]) (\S+?)(?:[,，]|$)", cell)}
        assert {x.replace("2³²", str(2**32)) for x in found} == limits, key


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_section_is_named(tongue: str) -> None:
    text = page("recipe.md", tongue)
    for key, _ in keys():
        if key not in leaves():
            assert f"## {key}" in text or f"`{key}`" in text or f"`{key.rpartition('.')[2]}`" in text, key


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_the_names_in_other_tools_are_those_that_are_translated(tongue: str) -> None:
    wanted: dict[str, set[str]] = defaultdict(set)
    for alias, (key, _) in ALIASES.items():
        if alias != key.rpartition(".")[2]:
            wanted[key].add(alias)
    found = {
        quoted(row[0])[0]: set(quoted(row[1]))
        for row in rows(page("recipe.md", tongue))
        if len(row) == 2 and quoted(row[0])
    }
    assert found == wanted


def test_the_translated_example_is_what_it_is_said_to_be() -> None:
    for tongue in LANGUAGES:
        theirs, ours = blocks(ROOT / "docs" / tongue / "recipe.md", "yaml")[-2:]
        assert make_recipe(loads(theirs, "theirs"))[0] == make_recipe(loads(ours, "ours"))[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_yaml_block_is_a_recipe(path: Path) -> None:
    for n, block in enumerate(blocks(path, "yaml"), 1):
        make_recipe(loads(block, f"{path.name}, block {n}"), where=f"{path.name}, block {n}")


def test_there_are_yaml_blocks() -> None:
    assert all(blocks(path, "yaml") for path in [*READMES, *(ROOT / "docs").glob("*/recipe.md")])


# settings.md


def variables() -> set[str]:
    """Every environment variable that the one reader of the environment names."""
    tree = ast.parse((SOURCE / "base/environment.py").read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {x for x in texts if re.fullmatch(r"[A-Z][A-Z_]*", x)}


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_environment_variable_is_documented(tongue: str) -> None:
    text = page("settings.md", tongue)
    named = {x for span in quoted(text) for x in re.findall(r"[A-Z][A-Z_]{3,}", span)}
    assert {"TUNELOOP_HOME", "LANG", "HF_ENDPOINT", "TOKENIZERS_PARALLELISM"} <= variables()
    assert not sorted(variables() - named)
    own = {x for path in PAGES for x in re.findall(r"TUNELOOP_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert not sorted(own - variables())


# files.md


def written(folder: Path) -> set[str]:
    """The names of the files below a folder; blobs have no name of their own."""
    return {p.name for p in folder.rglob("*") if p.is_file() and not re.fullmatch(r"[0-9a-f]{64}", p.name)}


@pytest.fixture(scope="module")
def workspace(tiny_run: Path) -> Path:
    """The workspace of a run that was evaluated, registered, laid out again and exported."""
    from tuneloop import pipeline
    from tuneloop.registry import versions
    from tuneloop.runs.run import Run

    place = tiny_run.parents[1]
    if not (tiny_run / "evaluation.json").is_file():
        pipeline.evaluate(Run(tiny_run))
    version = pipeline.register(Run(tiny_run), workspace=place)
    versions.locate(place, version.ref)
    if not (place / "exports" / "docs").is_dir():
        pipeline.export(tiny_run, place / "exports" / "docs", workspace=place)
    questions = place.parent / "questions.csv"
    questions.write_text("question\nWho are you?\n", encoding="utf-8")
    predicted = place / pipeline.predicted_path(questions)
    pipeline.predict(questions, run=tiny_run, to=predicted, workspace=place, max_new_tokens=2)
    return place


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_file_of_a_workspace_is_documented(tongue: str, workspace: Path) -> None:
    spans = quoted(page("files.md", tongue))
    named = {part for span in spans for part in span.split("/")}
    assert not sorted(written(workspace) - named)
    run = workspace / "runs" / "tiny-1"
    assert {p.name for p in run.iterdir()} <= named
    assert {p.name for p in (workspace / "models").iterdir()} <= named
    first = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    shown = page("files.md", tongue)
    assert not [k for k in [*first, *first["clock"], "eval_loss"] if f'"{k}"' not in shown]
    assert set(json.loads((run / "evaluation.json").read_text(encoding="utf-8"))) <= named


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_no_file_is_documented_that_is_not_there(tongue: str, workspace: Path) -> None:
    spans = {
        s
        for s in quoted(page("files.md", tongue))
        if re.fullmatch(r"[\w.]+\.(jsonl?|parquet|html|png|safetensors|yaml|db|jinja)", s)
    }
    # samples.jsonl only where it is asked for, stamps.json only of files that have lain for a while, answers.jsonl only
    # while a run is evaluated, comparison.json only of a recipe that compares
    elsewhere = {"tuneloop.json", "chats.yaml", "samples.jsonl", "stamps.json", "answers.jsonl", "comparison.json",
                 "suspicious_rows.jsonl"}  # fmt: skip
    elsewhere |= {"study.json", "ratings.jsonl", "verdicts.jsonl"}  # of a run that was rated and judged
    assert len(spans) > 20
    assert not sorted(spans - written(workspace) - elsewhere)


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_reason_of_the_ledger_is_documented(tongue: str) -> None:
    """What lacks is told as lines to put into the table."""
    heading = {"en": "### The reasons in the ledger", "zh": "### 处理记录里的原因"}[tongue]
    part = page("files.md", tongue).split(heading)[1].split("\n## ")[0]
    language.use(tongue)
    wanted = [f"| `{reason}` | {words} |" for reason, words in ledger.words().items()]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    assert not [line for line in wanted if line not in table], "\n".join(["lacking:", *(set(wanted) - set(table))])
    assert not [line for line in table if line not in wanted]


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_every_event_is_documented(tongue: str) -> None:
    events = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "event" and node.args:
                first = node.args[0]
                assert isinstance(first, ast.Constant), path
                events.add(first.value)
    assert {"started", "finished"} <= events
    assert events <= set(quoted(page("files.md", tongue)))


# Commands


def command_line() -> Any:
    from tuneloop.cli.main import app

    return typer.main.get_command(app)


VERBS = set(command_line().commands)


def commands(text: str) -> Iterator[str]:
    """Command lines in a page: in code spans, in fenced and in indented blocks."""
    prose = FENCE.sub("", text)
    spans = [" ".join(span.split()) for span in quoted(prose)]
    lines = [line for kind, block in FENCE.findall(text) if kind in {"", "bash", "sh"} for line in block.splitlines()]
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    for line in [*spans, *(line.strip().removeprefix("$ ") for line in lines)]:
        words = line.split()
        if words[:1] == ["tuneloop"]:
            yield line
        elif words[:1] and words[0] in VERBS and any(w.startswith("--") for w in words):
            yield f"tuneloop {line}"


def in_the_code() -> Iterator[tuple[str, str]]:
    """(where, command line) that the program itself prints: in help, and in texts that are a command alone."""
    for path in sorted(SOURCE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in (n for n in nodes if id(n) not in parts):
            where = f"{path.relative_to(SOURCE).as_posix()}:{getattr(node, 'lineno', 0)}"
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            if re.match(rf"\s*tuneloop ({'|'.join(VERBS)})\b(?!:)", text) and "\n" not in text:
                yield where, re.sub(r"\{\w+\}", "X", text.strip())
            examples = re.search(r"^ *Examples?: (tuneloop .*?)\s*\Z", text, re.MULTILINE | re.DOTALL)
            for one in examples[1].split(" | ") if examples else ():
                yield where, " ".join(one.split())


def fault(line: str) -> str:
    """What the command line has against it; "" when it takes it. An argument that is left out is no fault."""
    words = shlex.split(line.replace("…", "").replace("...", ""), comments=True)[1:]
    command = command_line()
    while words and hasattr(command, "commands"):
        if words[0] == "--lang":
            words = words[2:]
        elif words[0] in {"--version", "--help", "-h"}:
            return ""
        elif words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        else:
            return f"no {words[0]}"
    if hasattr(command, "commands") or words in (["--help"], ["-h"]):
        return ""
    try:
        command.make_context("tuneloop", words)
    except Exception as error:
        return "" if type(error).__name__ == "MissingParameter" else f"{type(error).__name__} {error}"
    return ""


def test_the_check_of_commands_finds_faults() -> None:
    assert not fault("tuneloop --lang zh run 对话.yaml --set train.epochs=2  # it's a comment")
    assert not fault("tuneloop train --resume latest")
    for wrong in ("walk demo", "run demo --fast", "model push x", "evaluate a b", "serve x --port many"):
        assert fault(f"tuneloop {wrong}"), wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_the_documents_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [(line, found) for line in commands(text) if (found := fault(line))]
    flags = {flag for command in walk(command_line()) for p in command.params for flag in p.opts} | {
        "--help",
        "--version",
    }
    assert not [s for s in quoted(FENCE.sub("", text)) if re.fullmatch(r"--[\w-]+", s) and s not in flags]


def walk(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from walk(child)


def test_every_command_that_the_program_prints_exists() -> None:
    found = list(in_the_code())
    assert len(found) > 10
    assert not [(where, line, wrong) for where, line in found if (wrong := fault(line))]


def test_both_readmes_have_every_verb_in_their_table() -> None:
    tables = [
        {verb for row in rows(path.read_text(encoding="utf-8")) if len(row) == 2 for verb in quoted(row[0])}
        for path in READMES
    ]
    assert tables[0] == tables[1] == VERBS


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    code = [*quoted(text), *(line.strip() for line in text.splitlines() if line.startswith("    "))]
    named = {match[1] for line in code if (match := re.match(r"make ([a-z][\w-]*)", line))}
    assert not sorted(named - targets)
    assert {"demo", "test", "check"} <= targets


# Python, links, two languages


@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_python_of_the_readme_fits_the_package(path: Path) -> None:
    assert blocks(path, "python")
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        compile(block, path.name, "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tuneloop":
                assert node.attr in tuneloop.__all__
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"tuneloop.{x}" for x in tuneloop.__all__}:
                called = getattr(tuneloop, ast.unparse(node.func).removeprefix("tuneloop."))
                named = {k.arg: None for k in node.keywords if k.arg}
                inspect.signature(called).bind(*node.args, **named)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    assert not [x for x in targets if "://" not in x and not (path.parent / x).exists()]


def test_both_languages_have_the_same_pages_and_parts() -> None:
    pages = [sorted(p.name for p in (ROOT / "docs" / tongue).iterdir()) for tongue in LANGUAGES]
    assert pages[0] == pages[1]
    for name in pages[0]:
        levels = [re.findall(r"^(#+) ", page(name, tongue), re.MULTILINE) for tongue in LANGUAGES]
        assert levels[0] == levels[1], name
        widths = [[len(row) for row in rows(page(name, tongue))] for tongue in LANGUAGES]
        assert widths[0] == widths[1], name
