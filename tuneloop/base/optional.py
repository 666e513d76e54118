"""Late imports of optional packages; their absence names the extra to install."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path
from types import ModuleType

from tuneloop.base.errors import MachineError


def need(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise TL-MACHINE-EXTRA that names the extra which brings it.

    >>> need("json", extra="serve").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MachineError("TL-MACHINE-EXTRA", module=module, command=install(extra), error=str(error)) from error


def quoted(word: str) -> str:
    """A word of a command line as every shell takes it, those of Windows among them.

    >>> quoted("chats.jsonl"), quoted("my chats.jsonl"), quoted("C:\\\\x[serve]")
    ('chats.jsonl', '"my chats.jsonl"', '"C:\\\\x[serve]"')
    """
    return word if re.fullmatch(r"[\w@%+=:,./\\~-]+", word) else '"' + word.replace('"', '\\"') + '"'


def install(extra: str = "") -> str:
    """The pip command that brings the packages of an extra ("": of the core) to this Python.

    In a checkout it is the one that made it; else the packages are named, since tuneloop itself may be on no index.
    """
    pip = f"{quoted(sys.executable or 'python')} -m pip install"
    checkout = Path(__file__).parents[2]
    constraints = checkout / "constraints.txt"
    if constraints.is_file() and (checkout / "pyproject.toml").is_file():
        wanted = f"{checkout}[{extra}]" if extra else str(checkout)
        return f"{pip} -c {quoted(str(constraints))} -e {quoted(wanted)}"
    return f"{pip} {' '.join(map(quoted, _packages(extra)))}"


def _packages(extra: str) -> list[str]:
    """What the core or an extra requires, as pip takes it."""
    try:
        required = importlib.metadata.requires("tuneloop") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    lines = [line.partition(";") for line in required]
    marker = re.compile(rf"extra == .{re.escape(extra)}." if extra else r"^((?!extra).)*$")
    needed = [
        (name.strip(), re.sub(r"( and )?extra == .[\w-]+.", "", when)) for name, _, when in lines if marker.search(when)
    ]
    return [f"{name};{where}".rstrip("; ").replace('"', "'") for name, where in needed]
