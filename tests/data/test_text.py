import bz2
import gzip
import lzma
import zipfile

import pytest

from hpcai.data import sources
from hpcai.errors import DataError

TEXT = ("To be, or not to be: that is the question.\n" * 40 + "Être ou ne pas être\n").encode()


def load(path, content, context=16):
    path.write_bytes(content)
    return sources.load(f"text:{path}", context=context)


def zipped(path, *names):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, TEXT)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "no-ending"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_what_is_compressed_is_read_decompressed_whatever_its_name(tmp_path, name, pack):
    data = load(tmp_path / name, pack(TEXT))
    assert data.x_train.tobytes() + data.x_test.tobytes() == TEXT
    assert len(data.x_test) == len(TEXT) // 10


def test_a_zip_of_one_file_is_read(tmp_path):
    content = zipped(tmp_path / "a.zip", "a.txt", "__MACOSX/._a.txt", "folder/")
    data = load(tmp_path / "b.txt", content)
    assert data.x_train.tobytes() + data.x_test.tobytes() == TEXT
    with pytest.raises(DataError, match="holds 2 files"):
        load(tmp_path / "b.txt", zipped(tmp_path / "a.zip", "a.txt", "b.txt"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "cp1252"])
def test_any_encoding_without_null_bytes_is_text(tmp_path, encoding):
    content = TEXT.decode().encode(encoding)
    assert load(tmp_path / "a.txt", content).x_train.tobytes() == content[: len(content) - len(content) // 10]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"%PDF-1.7\n" + TEXT, "is PDF, not plain text"),
        (TEXT.decode().encode("utf-16"), "is UTF-16, not plain text.*UTF-8"),
        (TEXT.decode().encode("utf-32"), "is UTF-32, not plain text"),
        (TEXT.decode().encode("utf-16-le"), "byte 1 is null"),
        (TEXT.decode().encode("utf-16-be"), "byte 0 is null"),
        (TEXT + b"\0", "byte 1,742 is null"),
        (gzip.compress(TEXT.decode().encode("utf-16")), "is UTF-16, not plain text"),
        (gzip.compress(gzip.compress(TEXT)), "is gz, not plain text"),
        (b"\x89PNG\r\n\x1a\n" + TEXT, "is PNG"),
        (b"\x7fELF" + TEXT, "is program"),
        (gzip.compress(TEXT)[:-20], "damaged or truncated"),
        (b"", r"has 0 bytes, 0 of them for testing; --context 16 wants 170 at least"),
        (TEXT[:169], "has 169 bytes"),
        (gzip.compress(bytes(66 << 20)), "expands to more than 200 times"),
    ],
    ids=lambda given: given if isinstance(given, str) else "content",  # compressed bytes hold the time
)
def test_what_is_no_text_is_refused_by_name(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / "a.txt", content)
    assert str(tmp_path / "a.txt") in str(caught.value)


def test_the_shortest_text(tmp_path):
    data = load(tmp_path / "a.txt", TEXT[:170])
    assert (data.train_samples, data.test_samples) == (8, 1)
