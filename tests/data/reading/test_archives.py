"""Zip archives: what is refused before a byte of it is unpacked."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.data.reading import archives
from tuneloop.data.reading.containers import Blob, blobs, members, open_bytes


def packed(path: Path, **contents: bytes | str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in contents.items():
            out.writestr(name, content)
    return path


def unpack(path: Path) -> None:
    for blob in blobs(path):
        with blob.open() as handle:
            handle.read()


def code_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        unpack(path)
    assert caught.value.what
    return caught.value.code


@pytest.mark.parametrize(
    "name", ["../out.csv", "a/../../out.csv", "/etc/out.csv", "C:/out.csv", "c:out.csv", "a\\b.csv", "\\\\host\\x.csv"]
)
def test_names_that_lead_out_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("good.csv", "question,answer\nq,a\n")
        info = zipfile.ZipInfo("x")
        info.filename = name
        out.writestr(info, "x")
    with pytest.raises(DataError) as caught:
        members(path)
    assert caught.value.code == "TL-DATA-MEMBER"
    assert caught.value.facts["name"] == name
    assert not list(tmp_path.parent.glob("out.csv"))


def test_links_and_doubles_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
    assert code_of(tmp_path / "a.zip") == "TL-DATA-MEMBER"
    path = packed(tmp_path / "b.zip", **{"aa": "1", "bb": "2"})
    path.write_bytes(path.read_bytes().replace(b"bb", b"aa"))
    assert code_of(tmp_path / "b.zip") == "TL-DATA-MEMBER"


def test_a_bomb_is_refused_by_what_it_says(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", zeros=bytes(80 << 20))
    assert path.stat().st_size < 1 << 17
    assert code_of(path) == "TL-DATA-BOMB"


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_a_bomb_is_refused_while_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    import bz2
    import lzma

    import pyarrow as pa

    zeros = (b"a" * ((1 << 20) - 1) + b"\n") * 80  # long runs of one byte, which bzip2 packs fast
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    path = tmp_path / "a"
    if kind == "zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(zeros)
    else:
        path.write_bytes(pack[kind](zeros))
    assert code_of(path) == "TL-DATA-BOMB"


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", zeros=bytes(80 << 20))
    data = path.read_bytes().replace((80 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(data)
    assert code_of(path) == "TL-DATA-ARCHIVE"


def test_archives_in_archives_are_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as out:
        out.writestr("x.csv", "a,b")
    from tuneloop.data.reading.sniff import look

    path = packed(tmp_path / "a.zip", **{"inner.zip": inner.getvalue()})
    for blob in (Blob(path, "inner.zip"),):
        with pytest.raises(DataError) as caught:
            look(blob)
        assert caught.value.code == "TL-DATA-NESTED"
    (tmp_path / "a.gz").write_bytes(gzip.compress(inner.getvalue()))
    assert code_of(tmp_path / "a.gz") == "TL-DATA-NESTED"
    (tmp_path / "b.gz").write_bytes(gzip.compress(gzip.compress(b"x")))
    assert code_of(tmp_path / "b.gz") == "TL-DATA-NESTED"


def test_a_password_and_a_broken_archive_are_told(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", x="question,answer\nq,a\n" * 50)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    assert code_of(path) == "TL-DATA-ARCHIVE"
    path = packed(tmp_path / "b.zip", x="question,answer\nq,a\n" * 500)
    data = bytearray(path.read_bytes())
    data[45:60] = b"\xff" * 15
    path.write_bytes(data)
    assert code_of(path) == "TL-DATA-ARCHIVE"
    path.write_bytes(bytes(data)[:100])
    assert code_of(path) == "TL-DATA-ARCHIVE"


@pytest.mark.parametrize(
    ("contents", "kind"),
    [
        ({"[Content_Types].xml": "", "word/document.xml": "<x/>"}, "docx / pptx"),
        ({"mimetype": "application/epub+zip"}, "OpenDocument / EPUB"),
        ({"archive/data.pkl": "x"}, "pickle"),
    ],
)
def test_zips_that_are_no_archives_of_data(tmp_path: Path, contents: dict[str, str], kind: str) -> None:
    with pytest.raises(DataError) as caught:
        blobs(packed(tmp_path / "a", **contents))
    assert (caught.value.code, caught.value.facts["kind"]) == ("TL-DATA-BINARY", kind)


def test_an_empty_zip(tmp_path: Path) -> None:
    assert code_of(packed(tmp_path / "a.zip")) == "TL-DATA-EMPTY"


def test_names_of_chinese_windows(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", **{"dddd.csv": "a"})
    path.write_bytes(path.read_bytes().replace(b"dddd", "数据".encode("gbk")))
    (name,) = members(path)
    assert archives.title(name, path) == "数据.csv"
    with open_bytes(path, name) as handle:
        assert handle.read() == b"a"
    utf8 = packed(tmp_path / "b.zip", **{"数据.csv": "a"})
    assert archives.title(members(utf8)[0], utf8) == "数据.csv"


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", x="one")
    assert open_bytes(path, "x").read() == b"one"
    packed(path, x="another")
    assert open_bytes(path, "x").read() == b"another"
