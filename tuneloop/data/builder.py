"""Raw files -> a dataset version: rows in parts, then what concerns all rows together, then the folder.

Nothing here knows a tokenizer: `encode` turns records into samples, `key` names the tokenizer. What a version was made
from is remembered beside it, so that an unchanged `prepare` finds its version without doing the work again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tuneloop.data import holdout, parts
from tuneloop.data.augmenting import derive
from tuneloop.data.augmenting.augment import NOBODY, Helpers, check
from tuneloop.data.cleaning.clean import steps
from tuneloop.data.dataset import Dataset, open_dataset
from tuneloop.data.excerpts import View
from tuneloop.data.fit import Encode
from tuneloop.data.kept import Kept
from tuneloop.data.ledger import entries, words
from tuneloop.data.parts import Found, Part, Sources
from tuneloop.data.reading import formats, sides
from tuneloop.data.reading.sniff import shown
from tuneloop.data.stamps import Stamps, digest
from tuneloop.data.version import write
from tuneloop.disk import require_room
from tuneloop.environment import environment
from tuneloop.errors import DataError, MachineError, os_words
from tuneloop.sections import Recipe

Say = Callable[[int], None]
_TOGETHER = ({"chat", "text"}, {"label"}, {"preference"}, {"judged", "chat"})
"""Kinds that may stand in one version."""


def _quiet(rows: int) -> None:
    """Says nothing."""


def build(
    recipe: Recipe, workspace: Path, encode: Encode, key: str, say: Say = _quiet, view: View | None = None,
    helpers: Helpers = NOBODY,
) -> Dataset:  # fmt: skip
    """Read, clean, dedupe, fit and split the recipe's files; write the version, or find it if it is there.

    `view` shows samples on the card as the model sees them; `helpers` make and judge the rows of `prepare.augment`.

    Raises DataError where a file cannot be used or nothing is left, MachineError where the disk has no room or refuses.
    After a crash the finished parts of the work are taken as they are.
    """
    if not recipe.data:
        raise DataError("TL-DATA-NONE", where="data")
    home = workspace / "datasets" / recipe.name
    found, left_out = _find(recipe)
    stamps = Stamps(home / "stamps.json")
    try:
        known = stamps.digests({s.path for _, group in found for s in group})
    except OSError as error:
        raise DataError("TL-DATA-UNREADABLE", where=shown(error.filename or "data"), error=os_words(error)) from error
    digests = {s.label: known[s.path] for _, group in found for s in group}
    made_from = _cache_key(recipe, found, digests, key)
    try:
        dataset = _remembered(home, made_from, stamps)
        if dataset is None:
            with _alone(home, made_from):  # another process may be at it: then its work is ours
                dataset = _remembered(home, made_from, stamps)
                if dataset is None:
                    work = home / f".work-{made_from[:12]}"
                    dataset = _build(home, work, recipe, Sources(found, digests, left_out), encode, key, say, view,
                                     helpers)  # fmt: skip
                    _remember(home, made_from, dataset.hash)
                    shutil.rmtree(work, ignore_errors=True)
                    _tidy(home)
        stamps.keep()
        return dataset
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError("TL-MACHINE-DISK", where=shown(home), needed="?", free="0") from error
        raise MachineError("TL-MACHINE-FOLDER", where=shown(home), error=os_words(error)) from error


@contextmanager
def _alone(home: Path, made_from: str, wait: float = -1) -> Iterator[None]:
    """One process of this user at a time makes this version. Raises Timeout after `wait` seconds, if not negative."""
    folder = environment().home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{home.resolve()}/{made_from[:12]}".encode()).hexdigest()[:16]
    with FileLock(folder / f"{name}.lock", timeout=wait):
        yield


def _tidy(home: Path) -> None:
    """Remove the unfinished work of recipes that were changed since, unless somebody is at it."""
    for work in home.glob(".work-*"):
        with suppress(Timeout), _alone(home, work.name.removeprefix(".work-"), wait=0):
            shutil.rmtree(work, ignore_errors=True)


def _build(
    home: Path, work: Path, recipe: Recipe, sources: Sources, encode: Encode, key: str, say: Say, view: View | None,
    helpers: Helpers,
) -> Dataset:  # fmt: skip
    part = recipe.prepare
    require_room(home, 4 * sum(p.stat().st_size for p in {s.path for _, group in sources.found for s in group}))
    try:
        check(part.augment, helpers)
        raw = parts.raw_rows(sources.found, recipe.seed)
        made = parts.make(work, raw, part, steps(part.clean, part.turns), encode, say)
        rows = Kept(made)
        if not len(rows):
            raise _nothing(made)
        _one_kind(rows)
        choice = holdout.choose(rows, part, recipe.seed)
        if "train" not in choice.sides:
            raise _nothing_to_train(recipe, choice.sides)
        if part.augment.methods:
            rows, choice = derive.derived(work, rows, choice, recipe, encode, helpers)
        return write(home, work / "version", recipe, sources, rows, choice, key, view)
    except DataError:  # the data's fault: there is nothing to go on from
        shutil.rmtree(work, ignore_errors=True)
        for folder in (home, home.parent):
            with suppress(OSError):
                folder.rmdir()
        raise


def _find(recipe: Recipe) -> tuple[Found, list[tuple[str, str]]]:
    """Every file of the recipe with what it is, and what was left out; two of one name get labels that differ."""
    listed = [(file, formats.paths(file)) for file in recipe.data]
    names = formats.labels(path for _, paths in listed for path in paths)
    seen = [(file, formats.survey(file, names)) for file, _ in listed]
    found = sides.settled([(file, one.sources) for file, one in seen])
    return found, [pair for _, one in seen for pair in one.left_out]


def _nothing(made: list[Part]) -> DataError:
    """The three commonest reasons why no row is left, each with an example of its details."""
    counts, details = Counter[str](), dict[str, str]()
    for part in made:
        counts.update({c["reason"]: c["dropped"] for c in part.meta["counts"] if c["dropped"]})
        for e in entries(part.ledger):
            details.setdefault(e.reason, e.detail)
    reasons = "; ".join(
        f"{words().get(reason, reason)}: {n}" + (f" ({details[reason]})" if details[reason] else "")
        for reason, n in counts.most_common(3)
    )
    return DataError("TL-DATA-NOTHING-LEFT", rows=sum(sum(p.meta["rows"].values()) for p in made), reasons=reasons)


def _nothing_to_train(recipe: Recipe, out: list[str]) -> DataError:
    """Every row is held out, or goes because it repeats one that is."""
    gone = out.count("")
    repeated = [f"{words()['held out elsewhere']}: {gone}"] if gone else []
    said = [f"prepare.{name}: {share:g}" for name in ("validation", "test") if (share := getattr(recipe.prepare, name))]
    split = [f"data[].split: {file.split}" for file in recipe.data if file.split in ("validation", "test")][:1]
    return DataError("TL-DATA-NOTHING-LEFT", rows=len(out), reasons="; ".join([*repeated, *said, *split]))


def _one_kind(rows: Kept) -> None:
    """Raise TL-DATA-MIXED where the rows cannot be trained together."""
    kinds = set(rows.kinds)
    if not any(kinds <= together for together in _TOGETHER):
        first = {kind: rows.files[rows.kinds.index(kind)] for kind in sorted(kinds)}
        raise DataError("TL-DATA-MIXED", where="data", files=", ".join(f"{f}: {k}" for k, f in first.items()))


def _cache_key(recipe: Recipe, found: Found, digests: dict[str, str], key: str) -> str:
    """Digest of all that a version depends on: file contents, settings, tokenizer, this room's code."""
    here = Path(__file__).parent
    code = sorted([*here.rglob("*.py"), *here.with_name("safety").glob("**/*.*"), here.with_name("records.py")])
    parts = {
        "files": [
            [s.label, s.side, s.given, digests[s.label], f.model_dump(mode="json", exclude={"path"})]
            for f, group in found
            for s in group
        ],
        "prepare": recipe.prepare.model_dump(mode="json"),
        "lexicons": [digest(Path(p)) for p in recipe.prepare.clean.lexicon_files if Path(p).is_file()],
        "augment": _derived_from(recipe, here),
        "seed": recipe.seed,
        "tokenizer": key,
        "code": [digest(path) for path in code if "__pycache__" not in path.parts],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _derived_from(recipe: Recipe, here: Path) -> list[str]:
    """What derived rows depend on beside the settings: the tables of words, and the model that judges and answers."""
    part = recipe.prepare.augment
    if not part.methods:
        return []
    tables = [Path(part.synonyms_file)] if part.synonyms_file else sorted((here / "synonyms").iterdir())
    return [recipe.model.model_dump_json(), *(digest(path) for path in tables if path.is_file())]


def _known(home: Path) -> dict[str, str]:
    try:
        value = json.loads((home / "sources.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remembered(home: Path, made_from: str, stamps: Stamps) -> Dataset | None:
    """The version that was made from the same, if it is still whole."""
    name = _known(home).get(made_from, "")
    if not isinstance(name, str) or len(name) != 12 or not name.isalnum():
        return None
    try:
        return open_dataset(home / name, lambda path: stamps.digests([path])[path])
    except DataError:
        return None


def _remember(home: Path, made_from: str, name: str) -> None:
    draft = home / f".sources.{os.getpid()}"
    text = json.dumps(_known(home) | {made_from: name}, indent=1) + "\n"
    with suppress(FileNotFoundError):
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, home / "sources.json")
