from __future__ import annotations

import codecs

import pytest

from tuneloop.cli.signs import letters
from tuneloop.monitor.alerts import SIGNS


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "gbk"])
def test_every_level_has_a_sign_of_its_own_in_every_code_page(encoding: str) -> None:
    codecs.register_error("letters", letters)
    written = {sign.encode(encoding, "letters") for sign in SIGNS.values()}
    assert len(written) == len(SIGNS)
    assert b"?" not in written


def test_only_what_cannot_be_written_is_replaced() -> None:
    codecs.register_error("letters", letters)
    assert "✗ 严重".encode("gbk", "letters").decode("gbk") == "x 严重"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", "letters")
