"""Every error a user can meet. Each has a code, says what and where, and what to do.

    TuneloopError
    ├── RecipeError    TL-RECIPE-…   the recipe file and the command line
    ├── DataError      TL-DATA-…     data files and rows
    ├── ModelError     TL-MODEL-…    model folders, sources, methods
    ├── RunError       TL-RUN-…      run folders, checkpoints, training, the registry
    ├── MachineError   TL-MACHINE-…  disk, memory, packages, ports
    └── ServeError     TL-SERVE-…    requests to the server

The words are not here: `messages/<language>/<class>.toml` has one table a code with `what` (one sentence), `do` (the
remedy) and `more` (for `tuneloop explain`), so that each error exists in both languages. `{name}` in them is filled
from the keywords an error is raised with. Alerts and remedies of a run (NOTICES) lie beside them and are no errors;
they have a fourth text, `why` it matters.
"""

from __future__ import annotations

import difflib
import errno
import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from tuneloop.base.language import current, t

SEARCHED = 2000
"""Names of a folder that are compared with one that is missing."""


class _Unknown:
    """Stands for a fact that is not there: "?" in every format."""

    def __format__(self, form: str) -> str:
        return "?"


class _Facts(dict[str, Any]):
    def __missing__(self, key: str) -> _Unknown:
        return _Unknown()


def filled(text: str, facts: Mapping[str, Any]) -> str:
    """A text of the catalogue with its facts; one that is missing or None is shown as "?".

    >>> filled("{n:.1f} of {of:,} rows", {"n": 1})
    '1.0 of ? rows'
    """
    return text.format_map(_Facts({name: fact for name, fact in facts.items() if fact is not None})).strip()


@cache
def catalogue(family: str, language: str) -> dict[str, dict[str, str]]:
    """Code -> {"what", "do", "more"} of one family ("data", "model", …) in one language."""
    path = files("tuneloop").joinpath("messages", language, f"{family}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


class TuneloopError(Exception):
    """An error with a code; `str()` is the whole message in the chosen language.

    Parameters: `code` from the catalogue; `where` a file, file:line or key; `causes` further errors that belong to the
    same report; `facts` fill the placeholders of the message.
    """

    family = "run"

    def __init__(self, code: str, *, where: str = "", causes: Sequence[TuneloopError] = (), **facts: Any) -> None:
        super().__init__(code)
        self.code = code
        self.where = where
        self.causes = tuple(causes)
        self.facts = facts

    def _text(self, part: str) -> str:
        texts = catalogue(self.family, current()).get(self.code, {})
        return texts.get(part, "").format_map(_Facts(self.facts, where=self.where)).strip()

    @property
    def what(self) -> str:
        """What happened, one sentence."""
        return self._text("what") or " ".join(f"{k}={v}" for k, v in self.facts.items())

    @property
    def do(self) -> str:
        """What to do about it."""
        return self._text("do")

    def __str__(self) -> str:
        # Chinese has its own colon and no blank between sentences.
        colon, blank = ("：", "") if current() == "zh" else (": ", " ")

        def placed(error: TuneloopError) -> str:
            return f"{error.where}{colon}{error.what}" if error.where else error.what

        lines = [f"{self.code}  {placed(self)}", *(f"  - {placed(c)}{blank}{c.do}".rstrip() for c in self.causes)]
        return "\n".join([*lines, f"  -> {self.do}"] if self.do else lines)

    def as_dict(self) -> dict[str, Any]:
        """For --json and the server."""
        return {
            "code": self.code,
            "where": self.where,
            "what": self.what,
            "do": self.do,
            "causes": [c.as_dict() for c in self.causes],
        }


class RecipeError(TuneloopError):
    family = "recipe"


class DataError(TuneloopError):
    family = "data"


class ModelError(TuneloopError):
    family = "model"


class RunError(TuneloopError):
    family = "run"


class MachineError(TuneloopError):
    family = "machine"


class ServeError(TuneloopError):
    family = "serve"


FAMILIES: dict[str, type[TuneloopError]] = {
    c.family: c for c in (RecipeError, DataError, ModelError, RunError, MachineError, ServeError)
}

NOTICES = ("watch", "remedy")
"""Families of codes that a run tells without an error: TL-WATCH-… (monitor/alerts), TL-REMEDY-… (monitor/remedies)."""


def os_words(error: BaseException) -> str:
    """What the operating system objects to, in the chosen language; an error's own words where it has rare ones.

    >>> os_words(FileNotFoundError(2, "No such file or directory"))
    'there is no such file or folder'
    """
    if isinstance(error, UnicodeDecodeError):
        return t("it is not UTF-8")
    if type(error).__name__ == "gaierror":
        return t("no machine of this name is known")
    if not isinstance(error, OSError):
        return str(error)
    return known_words(error.errno) or _of_the_network().get(error.errno or 0) or error.strerror or str(error)


def known_words(number: int | None) -> str:
    """What the operating system objects to at a file or folder, by its error number; "" for any other.

    >>> known_words(28), known_words(None)
    ('no room left on the disk', '')
    """
    known = {
        errno.ENOENT: t("there is no such file or folder"),
        errno.EACCES: t("permission denied"),
        errno.EPERM: t("permission denied"),
        errno.EEXIST: t("it exists already"),
        errno.EISDIR: t("it is a folder"),
        errno.ENOTDIR: t("a part of the path is no folder"),
        errno.ENOTEMPTY: t("the folder is not empty"),
        errno.ENOSPC: t("no room left on the disk"),
        errno.EDQUOT: t("the disk quota is used up"),
        errno.EFBIG: t("a file may not become so large here (ulimit -f)"),
        errno.EROFS: t("the disk is read-only"),
        errno.ENAMETOOLONG: t("the name is too long"),
        errno.ELOOP: t("links that lead in a circle"),
        errno.EMFILE: t("too many open files"),
        errno.ENFILE: t("too many open files"),
        errno.EIO: t("the disk reports a read or write error"),
        errno.ESTALE: t("the network drive has lost it"),
        errno.EBUSY: t("it is in use"),
        errno.ETXTBSY: t("it is in use"),
        errno.EINVAL: t("the system does not accept this name or value"),
        errno.ENOMEM: t("not enough memory"),
    }
    return known.get(number or 0, "")


def _of_the_network() -> dict[int, str]:
    return {
        errno.EADDRINUSE: t("the address is in use"),
        errno.EADDRNOTAVAIL: t("this machine has no such address"),
        errno.ECONNREFUSED: t("the connection was refused"),
        errno.ECONNRESET: t("the connection was cut"),
        errno.ETIMEDOUT: t("no answer in time"),
        errno.ENETUNREACH: t("the network cannot be reached"),
        errno.EHOSTUNREACH: t("the machine cannot be reached"),
    }


def nearby(path: str | os.PathLike[str]) -> str:
    """Words for an error about a path that leads nowhere: `nearest_path`, "" where there is none."""
    near = nearest_path(path)
    return t("; near it: {names}", names=near.encode("utf-8", "backslashreplace").decode()) if near else ""


def nearest_path(path: str | os.PathLike[str]) -> str:
    """The existing path that is most like one that does not exist, "" where none is.

    Looked for beside it, in the nearest folder above it that exists, and by its very name one folder deeper.
    """
    return _existing(os.path.expanduser(os.fspath(path)).rstrip("/\\"))


def _existing(path: str) -> str:
    folder, name = os.path.split(path)
    if not name:
        return ""
    if folder and not os.path.isdir(folder):
        above = _existing(folder)
        if not os.path.isdir(above):
            return above
        below = os.path.join(above, name)
        return below if os.path.exists(below) else _existing(below) or above
    try:
        beside = sorted(os.listdir(folder or "."))[:SEARCHED]
    except OSError:
        return ""
    same = {one.casefold(): one for one in beside}
    close = difflib.get_close_matches(name.casefold(), same, 1, 0.6)
    stem, ending = os.path.splitext(name.casefold())
    twins = [one for one in same if os.path.splitext(one)[0] == stem and (ending == ".yaml" or ".y" not in one)]
    if close or twins:
        return os.path.join(folder, same[[*close, *twins][0]])
    deeper = (os.path.join(folder, one, name) for one in beside if not one.startswith("."))
    return next((one for one in deeper if os.path.exists(one)), "")
