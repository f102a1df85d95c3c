import bz2
import gzip
import io
import lzma
import os
import socket
import struct
import zipfile
import zlib

import pytest

from hpcai.data import opening
from hpcai.errors import DataError

TEXT = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(5000))


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def patched_zip(flag=0, method=None):
    """A zip whose headers say another flag or method."""
    raw = bytearray(zipped(("a.csv", TEXT)))
    central = raw.index(b"PK\x01\x02")
    for at in (6, central + 8):
        raw[at] |= flag
    if method is not None:
        for at in (8, central + 10):
            raw[at : at + 2] = struct.pack("<H", method)
    return bytes(raw)


FORMS = {
    "t.csv": TEXT,
    "t.csv.gz": gzip.compress(TEXT),
    "t.CSV.GZ": gzip.compress(TEXT),
    "gz without its suffix.csv": gzip.compress(TEXT),
    "plain, but named.gz": TEXT,
    "two streams.gz": gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),
    "t.csv.bz2": bz2.compress(TEXT),
    "t.csv.xz": lzma.compress(TEXT),
    "t.zip": zipped(("folder/", b""), ("folder/t.csv", TEXT)),
    "bzip2.zip": zipped(("t.csv", TEXT), method=zipfile.ZIP_BZIP2),
    "of a Mac.zip": zipped(("t.csv", TEXT), ("__MACOSX/._t.csv", b"x"), (".DS_Store", b"x"), ("d/.DS_Store", b"")),
    "BZhang": b"BZhang,b\n1,2\n",
    "PAR1": b"PAR1,b\n1,2\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", FORMS)
def test_what_a_file_is_its_content_says(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    wanted = TEXT if len(FORMS[name]) > 20 else FORMS[name]
    assert opening.read(tmp_path / name) == wanted
    with opening.opened(tmp_path / name) as content:
        assert b"".join(content) == wanted


SPOILT = {
    "gz cut off": (gzip.compress(TEXT)[:-20], "truncated"),
    "gz with another sum": (gzip.compress(TEXT)[:-8] + bytes(8), "damaged.*CRC"),
    "gz of nothing": (b"\x1f\x8b\x08", "truncated"),
    "gz changed": (gzip.compress(TEXT)[:40] + b"\xff" * 30 + gzip.compress(TEXT)[70:], "damaged"),
    "bz2 cut off": (bz2.compress(TEXT)[:-20], "truncated"),
    "bz2 changed": (bz2.compress(TEXT)[:40] + b"\xff" * 30 + bz2.compress(TEXT)[70:], "damaged"),
    "xz cut off": (lzma.compress(TEXT)[:-20], "truncated"),
    "xz changed": (lzma.compress(TEXT)[:40] + b"\xff" * 30 + lzma.compress(TEXT)[70:], "damaged"),
    "zip cut off": (zipped(("t.csv", TEXT))[:-20], "truncated"),
    "zip changed": (zipped(("t.csv", TEXT))[:80] + b"\xff" * 30 + zipped(("t.csv", TEXT))[110:], "damaged"),
    "zip of nothing": (zipped(), "holds 0 files; wanted one"),
    "zip of two": (zipped(("a.csv", TEXT), ("b.csv", TEXT)), "holds 2 files.*'a.csv', 'b.csv'.*wanted one"),
    "zip with a password": (patched_zip(flag=1), "encrypted; extract it"),
    "zip of an unknown method": (patched_zip(method=99), "unknown way.*extract it"),
    "gz of 200 MB of zeros": (gzip.compress(bytes(200 << 20)), "more than 200 times its size.*decompress it"),
    "bz2 of 200 MB of zeros": (bz2.compress(bytes(200 << 20)), "more than 200 times"),
    "zip of 200 MB of zeros": (zipped(("t.csv", bytes(200 << 20))), "more than 200 times"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_read_is_named_in_a_line(tmp_path, name):
    content, words = SPOILT[name]
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        opening.read(tmp_path / "t")
    assert str(caught.value).startswith(str(tmp_path / "t"))
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_after_little_work(tmp_path):
    """Of 3 GB of zeros no more comes out than is free, and it is never held."""
    part = zlib.compressobj(wbits=31)
    begin = part.compress(b"") + part.flush(zlib.Z_FULL_FLUSH)
    zeros = part.compress(bytes(1 << 24)) + part.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "t.gz").write_bytes(begin + 190 * zeros)
    size = 0
    with pytest.raises(DataError, match="times its size"), opening.opened(tmp_path / "t.gz") as content:
        while got := content.read(1 << 20):
            size += len(got)
    assert size <= opening.FREE_BYTES


def test_a_file_that_expands_beyond_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "available", lambda: 20_000)
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT))
    with pytest.raises(DataError, match="20,000 bytes, the memory at hand"), opening.opened(tmp_path / "t.gz") as content:
        content.read()
    (tmp_path / "t").write_bytes(TEXT)
    with pytest.raises(DataError, match="more than 10,000 bytes, which is memory at hand"):
        opening.read(tmp_path / "t")
    assert opening.read(tmp_path / "t", len(TEXT)) == TEXT
    with pytest.raises(DataError, match="what was expected"):
        opening.read(tmp_path / "t", len(TEXT) - 1)


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened_and_nothing_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    refused = {
        tmp_path / "fifo": "a FIFO; wanted a regular file",
        tmp_path / "link": "a FIFO",
        tmp_path / "socket": "a socket",
        tmp_path: "a folder",
        "/dev/zero": "a device",
        tmp_path / "none": "cannot be opened: No such file",
        tmp_path / "loop": "cannot be opened: Too many levels",
        tmp_path / "a\0b": "cannot be opened: embedded null",
        tmp_path / ("n" * 300): "cannot be opened: File name too long",
    }
    for path, words in refused.items():
        with pytest.raises(DataError, match=words):
            opening.regular(path)


@pytest.mark.timeout(20)
def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    regular = os.stat(__file__)
    with pytest.raises(DataError, match="a FIFO; wanted a regular file"), monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *path, **how: regular)
        opening.regular(tmp_path / "fifo")


def test_little_may_expand_as_it_likes_and_much_at_a_usual_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "FREE_BYTES", 1 << 20)
    for name, content in (("zeros", b"0" * (1 << 20)), ("text", TEXT * 40)):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content))
        assert opening.read(path, 1 << 30) == content
    path.write_bytes(gzip.compress(b"0" * ((1 << 20) + 70_000)))
    with pytest.raises(DataError, match="expands to more than 200 times its size"):
        opening.read(path, 1 << 30)
