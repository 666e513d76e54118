"""The YAML that recipes are written in: plain values only, numbers as in YAML 1.2, no key twice."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from tuneloop.errors import RecipeError
from tuneloop.language import t


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
    def ignore_aliases(self, data: Any) -> bool:
        """Equal lists are written out, not as &id001 and *id001."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """The line ends that only Unicode knows survive in double quotes alone."""
        rare = any(end in data for end in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if rare else None)


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2026-02-31
        raise RecipeError("TL-RECIPE-YAML", where=where, error=" ".join(str(error).split())) from error


def dumps(value: Any) -> str:
    """YAML that `loads` reads as the same value.

    >>> dumps({"revision": "12e5"})
    "revision: '12e5'\\n"
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
