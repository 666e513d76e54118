"""The YAML that recipes are written in: plain values only, numbers as in YAML 1.2, no key twice."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """YAML itself would drop the first of two equal keys in silence."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and key.value != "<<" else ""
            if name and name in seen:
                problem = t("{key} is written twice", key=name)
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, node: Any) -> bool:
        """Equal lists are written out, not as &id001 and *id001."""
        return True

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """The line ends that only Unicode knows survive in double quotes alone."""
        rare = any(end in text for end in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if rare else None)


_Dumper.add_representer(str, _Dumper.represent_str)

for _yaml in (_Loader, _Dumper):  # 2e-4 is a number; a text that looks like one is written in quotes
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def loads(text: str, where: str) -> Any:
    """The value of a YAML text. `where` is the file or assignment it stands in. Raises TL-RECIPE-YAML.

    >>> loads("a: 2e-4", "x.yaml")
    {'a': 0.0002}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError("TL-RECIPE-YAML", where=where, error=_words(error), causes=slips(text, where)) from error


def _words(error: Exception) -> str:
    """What YAML objects to, in the chosen language, and where."""
    if isinstance(error, RecursionError):
        return t("sections within sections without end")
    if isinstance(error, yaml.reader.ReaderError):
        return t("a control character (code {code}) at character {at}", code=error.character, at=error.position + 1)
    if not isinstance(error, yaml.MarkedYAMLError):  # a date like 2026-02-31, a number of thousands of digits
        return t("a value that looks like a date or a number and is none; put it in quotes")
    begins = error.context or ""
    # Of what is not closed, or not ended, the beginning is the place to mend.
    at = error.context_mark if "simple key" in begins or "quoted" in begins else None
    at = at or error.problem_mark or error.context_mark
    problem = _problem(error.problem or str(error))
    if at is None:
        return problem
    return t("{problem} (line {line}, column {column})", problem=problem, line=at.line + 1, column=at.column + 1)


def _problem(text: str) -> str:
    """PyYAML's words for a problem -> ours; its own where it has others."""
    char = (re.findall(r"character ['\"](.+)['\"]", text) or [""])[0]
    known = {
        "mapping values are not allowed here": t("a second `: ` in one line, or a line indented too far"),
        "could not find expected ':'": t("a line without `: `"),
        "found character '\\t'": t("a tab, where only spaces may stand"),
        "found character": t("a value that begins with {char} needs quotes", char=char),
        "sequence entries are not allowed here": t("a `- ` in the middle of a line"),
        "mapping keys are not allowed here": t("a `? ` in the middle of a line"),
        "found unexpected end of stream": t("a quote that is not closed"),
        "found unknown escape character": t("a \\ in double quotes; use single quotes"),
        "found unexpected document separator": t("a quote that is not closed before ---"),
        "expected <block end>": t("a line that is indented otherwise than the ones above it"),
        "expected ',' or ']'": t("a [ that is not closed, or a comma that is missing in it"),
        "expected ',' or '}'": t("a { that is not closed, or a comma that is missing in it"),
        "expected the node content": t("a value that is missing or begins with a character that needs quotes"),
        "expected '<document start>'": t("two contents one after the other; is a line indented too little?"),
        "expected a single document": t("several documents in one file (---); a recipe is one"),
        "but found another document": t("several documents in one file (---); a recipe is one"),
        "found undefined alias": t("a value that begins with * needs quotes"),
        "expected alphabetic or numeric": t("a value that begins with * or & needs quotes"),
        "could not determine a constructor": t("a value that begins with ! needs quotes"),
        "found unhashable key": t("a key that is a list or a section"),
        "expected chomping": t("a value that begins with | or > needs quotes"),
    }
    return next((ours for theirs, ours in known.items() if text.startswith(theirs)), text)


def slips(text: str, where: str) -> list[RecipeError]:
    """Full-width punctuation, tabs and wide spaces where YAML wants others: left by a Chinese keyboard or a web page.

    For texts in which something is wrong already: where all is well, such a character is meant.
    """
    faults: list[RecipeError] = []
    lines = text.splitlines()
    inside = -1  # the indentation of a key whose text follows below it, in | or >
    for n, line in enumerate(lines, 1):
        depth = len(line) - len(line.lstrip())
        if line.lstrip().startswith("#") or (0 <= inside < depth) or not line.strip():
            continue
        inside = depth if re.search(r":\s+[|>][+-]?\d?\s*$", line) else -1
        place = f"{where}:{n}" if len(lines) > 1 else where
        faults += [
            RecipeError("TL-RECIPE-CHARACTER", where=place, char=char, wanted=wanted)
            for char, wanted in _slips_of(line)
        ]
    return faults


def _slips_of(line: str) -> list[tuple[str, str]]:
    """(the character, what YAML wants) of one line."""
    pairs = []
    if re.match(r" *\t", line):
        pairs.append((t("a tab"), t("spaces")))
    if wide := re.match(r" *([\u3000\xa0])", line):
        pairs.append((t("a wide space (U+{code})", code=f"{ord(wide[1]):04X}"), t("half-width spaces")))
    head = re.match(r"\s*(?:-\s+)?[\"'“”]?[\w.]{1,40}[\"'“”]?\s*([:：])\s*", line)
    if head and head[1] == "：":
        pairs.append(("`：`", t("a half-width : and a space")))
    rest = line[head.end() :] if head else line.strip().removeprefix("- ")
    if rest[:1] in set("“”‘’「『＂＇"):
        pairs.append((f"`{rest[0]}`", t("straight quotes, \" or '")))
    if rest[:1] in set("【［｛〔"):
        pairs.append((f"`{rest[0]}`", t("half-width brackets, [ ]")))
    if rest[:1] in set("[{【［｛") and (comma := re.search("[，、]", re.sub(r"\"[^\"]*\"|'[^']*'", "", rest))):
        pairs.append((f"`{comma[0]}`", t("a half-width comma")))
    return pairs


def dumps(content: Any) -> str:
    """YAML that `loads` reads as the same value.

    >>> dumps({"revision": "12e5"})
    "revision: '12e5'\\n"
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
