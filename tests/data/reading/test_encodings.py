"""Encodings: which one a file is in, and its text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.data.reading import encodings
from tuneloop.data.reading.containers import Blob

CHINESE = "早餐的种类不多，我觉得一般。下次还会再来住这家酒店，因为他们的服务很好。"
TRADITIONAL = "早餐的種類不多，我覺得一般，下次還會再來。這個地方的人都很好，他們說沒有問題。"
TEXTS = {
    "gb18030": CHINESE,
    "big5": TRADITIONAL,
    "cp932": "朝ごはんの種類は多くないと思います",
    "euc_jp": "朝ごはんの種類は多くないと思います",
    "cp949": "아침 식사는 종류가 많지 않아서 보통이라고 생각합니다",
    "koi8_r": "Завтрак был не очень разнообразным, но вкусным",
    "cp1251": "Завтрак был не очень разнообразным, но вкусным",
    "mac_cyrillic": "Завтрак был не очень разнообразным, но вкусным",
    "cp866": "Завтрак был не очень разнообразным, но вкусным",
    "cp1252": "Le petit déjeuner était très bien, à côté de la fenêtre – “merci”",
    "iso8859_7": "Το πρωινό ήταν πολύ καλό και το δωμάτιο καθαρό",
}


def blob(tmp_path: Path, data: bytes) -> Blob:
    (tmp_path / "f").write_bytes(data)
    return Blob(tmp_path / "f")


def detected(tmp_path: Path, data: bytes) -> str:
    return encodings.detect(blob(tmp_path, data), data[:4096])


@pytest.mark.parametrize("encoding", TEXTS)
def test_older_encodings_by_what_they_say(tmp_path: Path, encoding: str) -> None:
    lines = [f'{{"instruction": "{w}", "output": "{w}"}}' for w in TEXTS[encoding].split() * 3]
    data = "\n".join(lines).encode(encoding)
    assert detected(tmp_path, data) == encoding
    assert "".join(encodings.lines(blob(tmp_path, data), encoding)) == "\n".join(lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_with_rules(tmp_path: Path, encoding: str) -> None:
    assert detected(tmp_path, (CHINESE + "\n").encode(encoding) * 1) == encoding


def test_half_utf8_half_gbk_line_by_line(tmp_path: Path) -> None:
    data = (CHINESE + "\n").encode() * 10 + (CHINESE + "\r\n").encode("gbk") * 10
    assert detected(tmp_path, data) == "utf-8+gb18030"
    assert set(encodings.lines(blob(tmp_path, data), "utf-8+gb18030")) == {CHINESE + "\n"}
    kept = list(encodings.lines(blob(tmp_path, data), "utf-8+gb18030", ""))
    assert kept[-1] == CHINESE + "\r\n"
    assert "".join(encodings.chunks(blob(tmp_path, data), "utf-8+gb18030")) == (CHINESE + "\n") * 20


def test_one_gbk_line_among_many(tmp_path: Path) -> None:
    assert detected(tmp_path, (CHINESE + "\n").encode() * 50 + CHINESE.encode("gbk")) == "utf-8+gb18030"


def test_a_line_in_neither_is_marked_and_not_guessed(tmp_path: Path) -> None:
    data = (CHINESE + "\n").encode() + (CHINESE + "\n").encode("gbk") + b"a\xff\xffb\n"
    assert list(encodings.lines(blob(tmp_path, data), "utf-8+gb18030"))[-1] == "a\udcff\udcffb\n"


@pytest.mark.parametrize("bad", [b"\xff", b"\xe4\xb8", b"no\xc3", b"\xed\xa0\x80"])
def test_few_broken_lines_do_not_spoil_utf8(tmp_path: Path, bad: bytes) -> None:
    assert detected(tmp_path, (CHINESE + "\n").encode() * 30 + bad) == "utf-8"
    assert detected(tmp_path, b"plain\n" * 30 + b'"' + bad + b'"') == "utf-8"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for data in (bytes(range(1, 256)), bytes(range(128, 256)) * 9, b"\xff\xfea"):
        with pytest.raises(DataError) as caught:
            detected(tmp_path, data)
        assert caught.value.code == "TL-DATA-ENCODING"


def test_a_long_line_is_looked_at_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_BLOCK", 7)
    assert detected(tmp_path, (CHINESE * 20).encode()) == "utf-8"
    assert detected(tmp_path, ("\n".join([CHINESE, "plain"]) * 9).encode()) == "utf-8"


@pytest.mark.parametrize("name", ["GBK", "big5", "UTF8", "latin-1", "Shift-JIS"])
def test_names_that_a_recipe_may_give(name: str) -> None:
    assert "é".encode(encodings.named(name, "f"), "replace")


@pytest.mark.parametrize("name", ["rot13", "base64", "idna", "unicode_escape", "no-such", "", "zlib", "a\0b"])
def test_names_that_are_no_encodings(name: str) -> None:
    with pytest.raises(DataError) as caught:
        encodings.named(name, "f")
    assert caught.value.code == "TL-DATA-ENCODING-NAME"
