"""tuneloop key: a key is made, listed and revoked, and a server that others can reach does not start without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.base import language
from tuneloop.base.errors import ServeError
from tuneloop.cli.key import add_key, list_keys, revoke_key
from tuneloop.cli.serve import _examples, serve


def test_a_key_from_its_first_day_to_its_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language.use("en")
    add_key(
        "shop", scope=["chat"], expires="90d", requests=60, tokens=0, streams=None, another=False, workspace=tmp_path
    )
    out, err = capsys.readouterr()
    secret = out.strip()
    assert secret.startswith("tl-")
    assert "shown this once" in err
    assert secret not in err
    list_keys(tmp_path, json=True)
    text = capsys.readouterr().out
    (row,) = json.loads(text)
    assert secret not in text
    assert "digest" not in row
    assert (row["name"], row["scopes"], row["requests"], row["tokens"], row["streams"], row["state"]) == (
        "shop", ["chat"], 60, 0, None, "live",
    )  # fmt: skip
    assert secret.startswith(f"tl-{row['id']}-")
    list_keys(tmp_path)
    table = capsys.readouterr().out
    assert "shop" in table
    assert "∞" in table
    revoke_key("shop", tmp_path)
    assert row["id"] in capsys.readouterr().out
    list_keys(tmp_path, json=True)
    assert json.loads(capsys.readouterr().out)[0]["state"] == "revoked"
    with pytest.raises(ServeError, match="TL-SERVE-KEY-UNKNOWN"):
        revoke_key("shop", tmp_path)


def test_json_has_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_key("shop", None, "", None, None, None, False, tmp_path, json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith(f"tl-{made['id']}-")
    assert "metrics" not in made["scopes"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_server_for_others_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServeError, match="TL-SERVE-OPEN"):
        serve("", "proxy", ["http://127.0.0.1:9/v1"], None, host, 0, None, workspace=tmp_path)
    assert list(tmp_path.iterdir()) == [], "looking for keys makes no store"


def test_the_examples_of_a_locked_server_have_a_place_for_the_key() -> None:
    code = _examples("http://127.0.0.1:8000", "m", None, locked=True)
    assert '-H "Authorization: Bearer KEY"' in code
    assert 'api_key="KEY"' in code
