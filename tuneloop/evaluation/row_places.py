"""Held-out rows by where they stand in the raw files: runs that cut a row otherwise have measured the same row.

A row's id is of its content, so two tokenizers, or two limits of length, give one row two ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuneloop.base.errors import TuneloopError
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.runs.run import Run


def row_places(run: Run) -> dict[str, str]:
    """Id of each held-out row of a run -> digest of its file and line.

    {} where that does not tell rows apart: the dataset is gone, or one line has made several rows.
    """
    try:
        dataset = dataset_of(run)
        digests = {source["file"]: source["sha256"][:12] for source in dataset.manifest["sources"]}
        places = {row.id: f"{digests[row.file]}:{row.line}" for row in dataset.records("validation")}
    except (TuneloopError, OSError, KeyError, TypeError, json.JSONDecodeError):
        return {}
    return places if len(set(places.values())) == len(places) else {}


def by_place(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of runs with their held-out rows named by place, where their ids are not the same anyway."""
    if len({frozenset(one.held or ()) for one in evaluations}) < 2:
        return list(evaluations)
    every = [row_places(run) for run in runs]
    if not all(every):
        return list(evaluations)
    return [placed(one, places) for one, places in zip(evaluations, every, strict=True)]


def placed(evaluation: Evaluation, places: Mapping[str, str]) -> Evaluation:
    """An evaluation with the ids of held-out rows replaced; a row of the suite's other sections has its own.

    >>> from tuneloop.evaluation.paired import RowScores
    >>> one = Evaluation(held=("a",), row_scores=(RowScores("a"), RowScores("a", "general/safety-en")))
    >>> [row.id for row in placed(one, {"a": "f:1"}).row_scores], placed(one, {"a": "f:1"}).held
    (['f:1', 'a'], ('f:1',))
    """
    rows = [replace(row, id=places.get(row.id, row.id)) if not row.section else row for row in evaluation.row_scores]
    answers = [replace(one, id=places.get(one.id, one.id)) if not one.section else one for one in evaluation.answers]
    held = evaluation.held if evaluation.held is None else tuple(places.get(i, i) for i in evaluation.held)
    return replace(evaluation, row_scores=tuple(rows), answers=tuple(answers), held=held)
