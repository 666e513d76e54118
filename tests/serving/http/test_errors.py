"""Errors in OpenAI's shape, with their status, headers and words."""

from __future__ import annotations

import pytest

from tuneloop.base.errors import FAMILIES, DataError, ServeError, catalogue
from tuneloop.serving.http.errors import STATUS, error_body, headers_of, status_of


def test_errors_have_openais_shape() -> None:
    body = error_body(ServeError("TL-SERVE-MODEL", where="model", param="model", got="x", known="m"))
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "TL-SERVE-MODEL"
    assert body["error"]["param"] == "model"
    assert "x" in body["error"]["message"]
    assert "m" in body["error"]["message"]
    assert error_body(DataError("TL-DATA-NEVER-SEEN", status=404))["error"]["type"] == "server_error"


def test_a_step_of_admission_names_its_status_itself() -> None:
    refusal = ServeError("TL-SERVE-FULL", status=429, waiting=1, seconds=2)
    assert status_of(refusal) == 429
    assert error_body(refusal)["error"]["type"] == "rate_limit_error"
    assert status_of(ServeError("TL-SERVE-BODY", most=1)) == 413


def test_headers_say_when_to_come_back_and_how_to_say_who_one_is() -> None:
    assert headers_of(ServeError("TL-SERVE-FULL", status=503, seconds=2)) == {"Retry-After": "2"}
    assert headers_of(ServeError("TL-SERVE-CLOSING")) == {"Retry-After": "1"}
    assert headers_of(ServeError("TL-SERVE-KEY", status=401)) == {"WWW-Authenticate": "Bearer"}
    assert headers_of(ServeError("TL-SERVE-REQUEST")) == {}


@pytest.mark.parametrize("code", sorted({*STATUS, "TL-SERVE-KEY", "TL-SERVE-FULL"}))
def test_every_code_has_words_in_both_languages(code: str) -> None:
    family = next(f for f in FAMILIES if code.split("-")[1].lower() == f)
    for language in ("en", "zh"):
        assert {"what", "do", "more"} <= catalogue(family, language)[code].keys()
