"""Queries, pieces and errors as JSON objects, which pass between a server and its engine's process."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from tuneloop.base.errors import FAMILIES, TuneloopError
from tuneloop.base.records import Sampling
from tuneloop.serving.engine import CallPiece, Piece, Query, TokenScore

_TUPLES = frozenset({"tools", "stop"})
_PLAIN = tuple((one.name, one.default) for one in fields(Piece) if one.name not in {"calls", "scores", "vector"})


def query_frame(query: Query) -> dict[str, Any]:
    """A query as a JSON object.

    >>> read_query(query_frame(Query("text", "m", prompt=(1, 2), stop=("x",)))) == Query(
    ...     "text", "m", prompt=(1, 2), stop=("x",))
    True
    """
    return {**asdict(query), "schema": None if query.schema is None else dict(query.schema)}


def read_query(frame: dict[str, Any]) -> Query:
    """The query of `query_frame`, through JSON or not."""
    how, prompt = frame["sampling"], frame["prompt"]
    bias = tuple((int(token), float(logit)) for token, logit in how["logit_bias"])
    tuples = {key: tuple(content) for key, content in frame.items() if key in _TUPLES}
    return Query(
        **{
            **frame,
            **tuples,
            "prompt": prompt if isinstance(prompt, str) else tuple(prompt),
            "sampling": Sampling(**{**how, "logit_bias": bias}),
        }
    )


def piece_frame(piece: Piece) -> dict[str, Any]:
    """A piece as a JSON object, without what is not in it.

    >>> piece_frame(Piece(text="Hi"))
    {'text': 'Hi'}
    >>> score = TokenScore(1, "a", b"\\xff", -0.5, (TokenScore(2, "b", b"b", -1.0),))
    >>> read_piece(piece_frame(Piece(1, scores=(score,), finish="stop"))) == Piece(1, scores=(score,), finish="stop")
    True
    """
    out: dict[str, Any] = {name: own for name, usual in _PLAIN if (own := getattr(piece, name)) != usual}
    if piece.calls:
        out["calls"] = [[call.index, call.id, call.name, call.arguments] for call in piece.calls]
    if piece.scores:
        out["scores"] = [_score_frame(score) for score in piece.scores]
    if piece.vector is not None:
        out["vector"] = [float(number) for number in piece.vector]
    return out


def read_piece(frame: dict[str, Any]) -> Piece:
    """The piece of `piece_frame`."""
    if "calls" in frame:
        frame["calls"] = tuple(CallPiece(*call) for call in frame["calls"])
    if "scores" in frame:
        frame["scores"] = tuple(map(_read_score, frame["scores"]))
    return Piece(**frame)


def _score_frame(score: TokenScore) -> list[Any]:
    likeliest = [_score_frame(one) for one in score.likeliest]
    return [score.token, score.text, score.octets.decode("latin-1"), score.logprob, likeliest]


def _read_score(frame: list[Any]) -> TokenScore:
    token, text, octets, logprob, likeliest = frame
    return TokenScore(token, text, octets.encode("latin-1"), logprob, tuple(map(_read_score, likeliest)))


def error_frame(error: TuneloopError) -> dict[str, Any]:
    """An error as a JSON object: its code and facts; words are made of them where they are read."""
    facts = json.loads(json.dumps(error.facts, default=str))
    causes = [error_frame(cause) for cause in error.causes]
    return {"family": error.family, "code": error.code, "where": str(error.where), "causes": causes, "facts": facts}


def read_error(frame: dict[str, Any]) -> TuneloopError:
    """The error of `error_frame`.

    >>> from tuneloop.base.errors import ServeError
    >>> read_error(error_frame(ServeError("TL-SERVE-CONTEXT", where="messages", tokens=9, context=4))).what
    'The prompt has 9 tokens, and the model takes 4 for prompt and answer together.'
    """
    causes = [read_error(cause) for cause in frame["causes"]]
    return FAMILIES[frame["family"]](frame["code"], where=frame["where"], causes=causes, **frame["facts"])
