"""Raw files -> a dataset version: rows in parts, then what concerns all rows together, then the folder.

Nothing here knows a tokenizer: `encode` turns records into samples, `key` names the tokenizer. What a version was made
from is remembered beside it, so that an unchanged `prepare` finds its version without doing the work again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from tuneloop.base.errors import DataError, os_words
from tuneloop.base.files import printable, sha256_of, write_atomic
from tuneloop.base.language import listed
from tuneloop.base.refusals import require_name, require_space, writing
from tuneloop.data.augmenting.augment import NOBODY, Helpers, check
from tuneloop.data.augmenting.substitute import synonym_tables
from tuneloop.data.card.excerpts import View
from tuneloop.data.cleaning.clean import steps
from tuneloop.data.kinds import mixable
from tuneloop.data.ledger import entries, words
from tuneloop.data.reading import formats, sides
from tuneloop.data.version import derive, holdout, shards
from tuneloop.data.version.dataset import Dataset, open_dataset
from tuneloop.data.version.digest_cache import GRAIN, DigestCache, stamp
from tuneloop.data.version.lengths import Encode
from tuneloop.data.version.rows import PreparedRows
from tuneloop.data.version.shards import Known, Shard, SourceGroups, Sources
from tuneloop.data.version.split import Split
from tuneloop.data.version.write import write
from tuneloop.recipe.choices import learns_verdicts
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.lock import lock

Say = Callable[[int], None]
GUARD_FORMAT = 1
"""Changes when the guard finds other words than before."""
PREPARE_FORMAT = 2
"""To be raised with every change of what preparing makes of the same files, settings and tokenizer: a version made in
another format is not taken for what would be made now. `tests/data/version/test_format.py` sees to it."""


def _quiet(rows: int) -> None:
    """Says nothing."""


def build(
    recipe: Recipe,
    workspace: Path,
    encode: Encode,
    key: str,
    say: Say = _quiet,
    view: View | None = None,
    helpers: Helpers = NOBODY,
    most: int = 0,
    before: Mapping[str, Split] | None = None,
) -> Dataset:
    """Read, clean, dedupe, fit and split the recipe's files; write the version, or find it if it is there.

    `most` is how many tokens the model takes, which is the limit of a row where prepare.max_length is auto; 0 for any.
    `before` are the held-out rows of an earlier version, by id, which stay so (`holdout.choose`).
    `view` shows samples on the card as the model sees them; `helpers` make and judge the rows of `prepare.augment`.

    Raises DataError where a file cannot be used or nothing is left, MachineError where the disk has no room or refuses.
    After a crash the finished parts of the work are taken as they are.
    """
    if not recipe.data:
        raise DataError("TL-DATA-NONE", where="data")
    home = workspace / "datasets" / recipe.name
    digest_cache = DigestCache(home / "stamps.json")
    groups, left_out, known = _find(recipe, digest_cache)
    digests = {s.label: known[s.path][0] for _, group in groups for s in group}
    most = most if recipe.prepare.max_length == "auto" else 0
    made_from = _cache_key(recipe, groups, digests, key, most, before or {})
    with writing(home):
        dataset = _remembered(home, made_from, digest_cache)
        if dataset is None:
            require_name(home)
            with _alone(home, made_from):  # another process may be at it: then its work is ours
                dataset = _remembered(home, made_from, digest_cache)
                if dataset is None:
                    work = home / f".work-{made_from[:12]}"
                    sources = Sources(groups, digests, left_out, known)
                    dataset = _build(home, work, recipe, sources, encode, key, say, view, helpers, most, before)
                    _remember(home, made_from, dataset.hash)
                    shutil.rmtree(work, ignore_errors=True)
                    _tidy(home)
        digest_cache.keep()
        return dataset


@contextmanager
def _alone(home: Path, made_from: str, wait: float = -1) -> Iterator[None]:
    """One process at a time makes this version. Raises Timeout after `wait` seconds, if not negative."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        with lock(home / f".lock-{made_from[:12]}", wait):
            yield
    finally:
        for folder in (home, home.parent):  # where nothing came of it, nothing is left
            with suppress(OSError):
                folder.rmdir()


def _tidy(home: Path) -> None:
    """Remove the unfinished work of recipes that were changed since, unless somebody is at it."""
    for work in home.glob(".work-*"):
        with suppress(Timeout), _alone(home, work.name.removeprefix(".work-"), wait=0):
            shutil.rmtree(work, ignore_errors=True)


def _build(
    home: Path,
    work: Path,
    recipe: Recipe,
    sources: Sources,
    encode: Encode,
    key: str,
    say: Say,
    view: View | None,
    helpers: Helpers,
    most: int,
    before: Mapping[str, Split] | None,
) -> Dataset:
    part = recipe.prepare.model_copy(update={"max_length": most}) if most else recipe.prepare
    require_space(home, 4 * sum(p.stat().st_size for p in {s.path for _, group in sources.groups for s in group}))
    try:
        check(part.augment, helpers)
        raw = shards.raw_rows(sources.groups, recipe.seed)
        try:
            parts = shards.make(work, raw, part, steps(part.clean, part.turns), encode, say)
        finally:  # a fault in the rows may come from it, too
            _require_unchanged(sources.known)
        rows = PreparedRows(parts)
        if not len(rows):
            raise _nothing(parts)
        _one_kind(rows)
        choice = holdout.choose(rows, part, recipe.seed, before)
        if "train" not in choice.sides:
            raise _nothing_to_train(recipe, choice.sides)
        if part.augment.methods:
            limited = recipe.model_copy(update={"prepare": part})
            rows, choice = derive.derived(work, rows, choice, limited, encode, helpers)
        return write(home, work / "version", recipe, sources, rows, choice, key, view)
    except DataError:  # the data's fault: there is nothing to go on from
        shutil.rmtree(work, ignore_errors=True)
        raise


def _find(recipe: Recipe, digest_cache: DigestCache) -> tuple[SourceGroups, list[tuple[str, str]], Known]:
    """Every file of the recipe with what it is, what was left out, and what the files are.

    Two files of one name get labels that differ. Raises TL-DATA-CHANGED where a file changes while it is looked at.
    """
    listed = [(file, formats.paths(file)) for file in recipe.data]
    names = formats.labels(path for _, paths in listed for path in paths)
    was = {path: stamp(path) for path in names if path.is_file()}
    verdicts = learns_verdicts(recipe.train.task, recipe.train.prefer.loss)
    seen = [(file, formats.survey(file, names, verdicts=verdicts)) for file, _ in listed]
    groups = sides.settled([(file, one.sources) for file, one in seen])
    try:
        digests = digest_cache.digests({s.path for _, group in groups for s in group})
        known = {path: (sha, stamp(path)) for path, sha in digests.items()}
    except OSError as error:
        raise DataError(
            "TL-DATA-UNREADABLE", where=printable(error.filename or "data"), error=os_words(error)
        ) from error
    for path, (_, now) in known.items():
        if was.get(path, now) != now:
            raise DataError("TL-DATA-CHANGED", where=printable(path))
    return groups, [pair for _, one in seen for pair in one.left_out], known


def _require_unchanged(known: Known) -> None:
    """Raise TL-DATA-CHANGED where a file that was read is another one now, or gone."""
    for path, (before, was) in known.items():
        try:
            quiet = stamp(path) == was and time.time_ns() - max(was[1:3]) > GRAIN
            same = quiet or sha256_of(path) == before
        except OSError:
            same = False
        if not same:
            raise DataError("TL-DATA-CHANGED", where=printable(path))


def _nothing(parts: list[Shard]) -> DataError:
    """The three commonest reasons why no row is left, each with an example of its details."""
    counts, details = Counter[str](), dict[str, str]()
    for part in parts:
        counts.update({c["reason"]: c["dropped"] for c in part.meta["counts"] if c["dropped"]})
        for e in entries(part.ledger):
            details.setdefault(e.reason, e.detail)
    reasons = "; ".join(
        f"{words().get(reason, reason)}: {n}" + (f" ({details[reason]})" if details[reason] else "")
        for reason, n in counts.most_common(3)
    )
    return DataError("TL-DATA-NOTHING-LEFT", rows=sum(sum(p.meta["rows"].values()) for p in parts), reasons=reasons)


def _nothing_to_train(recipe: Recipe, out: list[str]) -> DataError:
    """Every row is held out, or goes because it repeats one that is."""
    gone = out.count("")
    repeated = [f"{words()['held out elsewhere']}: {gone}"] if gone else []
    shares = [
        f"prepare.{name}: {share:g}" for name in ("validation", "test") if (share := getattr(recipe.prepare, name))
    ]
    split = [f"data[].split: {file.split}" for file in recipe.data if file.split in ("validation", "test")][:1]
    return DataError("TL-DATA-NOTHING-LEFT", rows=len(out), reasons="; ".join([*repeated, *shares, *split]))


def _one_kind(rows: PreparedRows) -> None:
    """Raise TL-DATA-MIXED where the rows cannot be trained together."""
    kinds = set(rows.kinds)
    if not mixable(kinds):
        first = {kind: rows.files[rows.kinds.index(kind)] for kind in sorted(kinds)}
        raise DataError("TL-DATA-MIXED", where="data", files=listed(f"{f}: {k}" for k, f in first.items()))


def _cache_key(
    recipe: Recipe, groups: SourceGroups, digests: dict[str, str], key: str, most: int, before: Mapping[str, Split]
) -> str:
    """Digest of all that a version depends on: file contents, settings, tokenizer, and what preparing makes of them."""
    parts = {
        "files": [
            [s.label, s.side, s.given, digests[s.label], s.guess.kind, f.model_dump(mode="json", exclude={"path"})]
            for f, group in groups
            for s in group
        ],
        "prepare": recipe.prepare.model_dump(mode="json"),
        "lexicons": [sha256_of(Path(p)) for p in recipe.prepare.clean.lexicon_files if Path(p).is_file()],
        **({"guard": GUARD_FORMAT} if recipe.prepare.clean.lexicon != "off" else {}),
        "augment": _derived_from(recipe),
        "seed": recipe.seed,
        "tokenizer": key,
        "most": most,
        "before": dict(before),
        "format": PREPARE_FORMAT,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _derived_from(recipe: Recipe) -> list[str]:
    """What derived rows depend on beside the settings: the tables of words, and the model that judges and answers."""
    part = recipe.prepare.augment
    if not part.methods:
        return []
    tables = [Path(part.synonyms_file)] if part.synonyms_file else synonym_tables()
    return [recipe.model.model_dump_json(), *(sha256_of(path) for path in tables if path.is_file())]


def _known(home: Path) -> dict[str, str]:
    try:
        content = json.loads((home / "sources.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remembered(home: Path, made_from: str, digest_cache: DigestCache) -> Dataset | None:
    """The version that was made from the same, if it is still whole."""
    name = _known(home).get(made_from, "")
    if not isinstance(name, str) or len(name) != 12 or not name.isalnum():
        return None
    try:
        return open_dataset(home / name, lambda path: digest_cache.digests([path])[path])
    except DataError:
        return None


def _remember(home: Path, made_from: str, name: str) -> None:
    with suppress(FileNotFoundError):
        write_atomic(home / "sources.json", json.dumps(_known(home) | {made_from: name}, indent=1) + "\n")
