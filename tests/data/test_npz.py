import io
import os
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest

from hpcai.data import npz, sources
from hpcai.errors import DataError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3)), np.arange(20) % 3


def npy(array, **how):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **how)
    return file.getvalue()


def header(shape, dtype="<f8", order=False, version=1):
    """The head of an .npy that promises this."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text) + 1) + text + b"\n"


def write(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def load(path, members=None, **how):
    if members is not None:
        write(path, members, **how)
    return npz.load(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_fifth_is_for_testing_unless_the_archive_says(tmp_path, save):
    x, y = RNG.integers(0, 256, (20, 6, 6), np.uint8), RNG.integers(0, 3, 20) * 5
    save(tmp_path / "a.npz", x=x, y=y, names=np.array(["more"]))
    data = sources.load(f"npz:{tmp_path / 'a.npz'}")
    assert (data.classes, data.shape, len(data.x_train), data.x_train.dtype) == (3, (6, 6), 16, np.uint8)
    whole = np.concatenate([data.x_train, data.x_test])
    assert sorted(row.tobytes() for row in whole) == sorted(row.tobytes() for row in x)
    save(tmp_path / "b.npz", x_train=x / 3, y_train=y / 7, x_test=x[:4] / 3, y_test=y[:4] / 7)
    data = sources.load(f"npz:{tmp_path / 'b.npz'}")
    assert (data.classes, data.x_train.dtype, len(data.x_test)) == (0, np.float32, 4)
    np.testing.assert_array_equal(data.x_train, (x / 3).astype(np.float32).reshape(20, 36))


@pytest.mark.parametrize("ending", ["npz", "zip", "dat"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_is_known_by_its_content_and_read_as_numpy_reads_it(tmp_path, monkeypatch, ending, method):
    monkeypatch.setattr(npz, "_PART_BYTES", 100)
    arrays = {"x": np.asfortranarray(RNG.normal(size=(20, 4, 3))), "y": Y.astype(">i2")}
    for version in ((1, 0), (2, 0)):
        members = [(f"{name}.npy", npy(array, version=version)) for name, array in arrays.items()]
        found = npz.read(write(tmp_path / f"a.{ending}", members, method))
        with np.load(tmp_path / f"a.{ending}") as archive:
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], archive[name])
                np.testing.assert_array_equal(found[name], array)


def test_members_need_no_ending_and_others_do_not_matter(tmp_path):
    others = [
        ("../x.npy", npy(1)),
        ("/y.npy", b"?"),
        ("model.pkl", b"?"),
        ("x/", b""),
        ("é.npy", npy(np.array([{}]), allow_pickle=True)),
    ]
    assert load(tmp_path / "a.npz", [*others, ("x", npy(X)), ("y.npy", npy(Y))]).classes == 3
    assert os.listdir(tmp_path) == ["a.npz"]


GOOD = [("x.npy", npy(X)), ("y.npy", npy(Y))]
REFUSED = {
    "no arrays": ([], "has arrays \\(none\\); wanted x and y"),
    "other names": ([("X.npy", npy(X)), ("labels.npy", npy(Y))], "has arrays X, labels; wanted x and y"),
    "many other names": ([(f"{i:02}.npy", b"") for i in range(50)], "has arrays 00, .*, 09, ...; wanted"),
    "a name of control characters": ([("\n\x1b[31m.npy", b"")], r"has arrays \\n\\x1b\[31m; wanted"),
    "half of both": ([("x.npy", npy(X)), ("y_test.npy", npy(Y))], "wanted x and y"),
    "both": ([*GOOD, *((f"{name}.npy", npy(X)) for name in npz.PARTED)], "not both"),
    "two of a name": ([*GOOD, ("x", npy(X))], "two arrays of the name x"),
    "paths": ([("../x.npy", npy(X)), ("/y.npy", npy(Y))], r"has arrays \.\./x, /y; wanted"),
    "a pickled member": ([GOOD[0], ("y.npy", npy(Y.astype(object), allow_pickle=True))], r"y has Python objects.*astype\(str\)"),
    "pickles in a structure": ([GOOD[0], ("y.npy", header((20,), [("a", "|O")]) + bytes(160))], "y has Python objects"),
    "no array": ([GOOD[0], ("y.npy", b"0,1,2")], "y is no array: it starts with 30 2c 31"),
    "an empty member": ([GOOD[0], ("y.npy", b"")], "y is no array: it starts with nothing"),
    "a later format": ([GOOD[0], ("y.npy", b"\x93NUMPY\x03\0" + bytes(20))], "y is an array of format 3.0"),
    "a header cut": ([GOOD[0], ("y.npy", npy(Y)[:30])], "y is damaged or truncated"),
    "a header of nonsense": ([GOOD[0], ("y.npy", header("(20,)", "nonsense"))], "y is damaged or truncated"),
    "a dtype of control characters": ([GOOD[0], ("y.npy", header("(20,)", "a\x1b\x07"))], r"y is damaged .*\\x1b"),
    "a header that is code": ([GOOD[0], ("y.npy", header("__import__('os')"))], "y is damaged or truncated"),
    "a deep header": ([GOOD[0], ("y.npy", header("(" * 3000 + ")" * 3000))], "y is damaged or truncated"),
    "many dimensions": (
        [GOOD[0], ("y.npy", header("(" + "1, " * 3000 + ")"))],
        "y promises float64 of shape .1, 1, .*, 8 bytes, and",
    ),
    "many fields": (
        [GOOD[0], ("y.npy", npy(np.zeros(20, [(f"field {i}", "u1") for i in range(200)])))],
        "y is .*; wanted numbers",
    ),
    "a long header": ([GOOD[0], ("y.npy", header("(20," + " " * 60000 + ")"))], "y is damaged or truncated"),
    "16 TiB": ([("x.npy", header((2**41,))), GOOD[1]], r"x promises float64 of shape .*, 17,592,186,044,416 bytes, and has 0"),
    "beyond all numbers": ([("x.npy", header((2**62, 2**62, 3))), GOOD[1]], "x promises float64"),
    "negative": ([("x.npy", header((-20, -3)) + npy(X)[128:]), GOOD[1]], "x promises float64 of shape .-20, -3."),
    "elements of nothing": ([GOOD[0], ("y.npy", header((10**15,), "<U0"))], "y promises <U0"),
    "an array cut": ([("x.npy", npy(X)[:-8]), GOOD[1]], "x promises float64 of shape .20, 3., 480 bytes, and has 472"),
    "an array and more": ([("x.npy", npy(X) + b"?"), GOOD[1]], "and has 481"),
    "few rows": (
        [("x.npy", npy(X[:9])), ("y.npy", npy(Y[:9]))],
        "x has 9 rows; wanted 10 at least, of which two are for testing",
    ),
    "lengths": ([GOOD[0], ("y.npy", npy(Y[:19]))], "do not belong together"),
    "huge and empty": (
        [("x.npy", header((2**60, 0))), ("y.npy", header((2**60, 0)))],
        "x is damaged or truncated .array is too big",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_archive_of_arrays_is_refused_in_a_line(tmp_path, case):
    members, words = REFUSED[case]
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / "a.npz", members)
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def spoilt(content, at, value):
    """With other bytes at an offset from the central directory's entry of x."""
    place = content.index(b"PK\x01\x02") + at
    return content[:place] + value + content[place + len(value) :]


SPOILS = {
    "an npy": (lambda raw: npy(X), "is a single array .npy., not an npz archive.*np.savez"),
    "text": (lambda raw: b"1,2,3\n", "is not an npz archive"),
    "a gz": (lambda raw: b"\x1f\x8b\x08" + raw, "is gz, not an npz archive"),
    "nothing": (lambda raw: b"", "is not an npz archive"),
    "the signature alone": (lambda raw: b"PK\x03\x04", "is damaged or truncated"),
    "half": (lambda raw: raw[: len(raw) // 2], "is damaged or truncated"),
    "a byte changed": (lambda raw: raw.replace(X[5].tobytes(), X[6].tobytes()), "x is damaged or truncated .*CRC"),
    "encrypted": (lambda raw: spoilt(raw, 8, b"\1\0"), "x is encrypted"),
    "unknown method": (lambda raw: spoilt(raw, 10, b"\x63\0"), "x is compressed in an unknown way"),
    "another name in its header": (lambda raw: raw.replace(b"x.npy", b"z.npy", 1), "x is damaged or truncated"),
    "a size that is not so": (lambda raw: spoilt(raw, 20, struct.pack("<II", 1000, 1000)), "x is damaged or truncated"),
    "a size beyond memory": (lambda raw: spoilt(raw, 20, struct.pack("<II", 2**32 - 2, 2**32 - 2)), "memory at hand|expands to"),
    "a member elsewhere": (lambda raw: spoilt(raw, 42, struct.pack("<I", 10**6)), "x is damaged or truncated|not an npz"),
}


@pytest.mark.parametrize("case", SPOILS)
def test_damaged_archives_are_named(tmp_path, case):
    spoil, words = SPOILS[case]
    path = write(tmp_path / "a.npz", GOOD)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_any_byte_changed_changes_no_result(tmp_path):
    """Whatever is damaged: it is refused, or lies where nothing is read."""
    path = write(tmp_path / "a.npz", GOOD)
    content, good = path.read_bytes(), npz.load(path)
    for place in RNG.permutation(len(content))[:100]:
        for flip in (1, 128):
            path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            try:
                found = npz.load(path)
            except DataError:
                continue
            for name in npz.PARTED:
                np.testing.assert_array_equal(getattr(found, name), getattr(good, name))


def test_a_member_that_expands_without_end_is_bounded(tmp_path):
    rows = 9 << 20
    content = header((rows, 1)) + bytes(8 * rows)
    path = write(tmp_path / "a.npz", [("x.npy", content), ("y.npy", npy(Y))], method=zipfile.ZIP_DEFLATED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="x expands to 75,.* bytes, more than 200 times its size.*np.savez, uncompressed"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10


def test_a_compressed_size_that_is_not_so_allows_no_more(tmp_path):
    """The central directory claims a large compressed size, so that the ratio looks ordinary."""
    deflated = zlib.compressobj(wbits=-15)
    content = npy(X) + bytes(65 << 20)
    packed = deflated.compress(content) + deflated.flush()
    write(tmp_path / "a.npz", GOOD)
    raw = (tmp_path / "a.npz").read_bytes()
    raw = spoilt(spoilt(raw, 10, b"\x08\0"), 16, struct.pack("<III", zlib.crc32(content), 50 << 20, len(content)))
    (tmp_path / "a.npz").write_bytes(raw)
    assert len(packed) < 200_000
    with pytest.raises(DataError, match="more than 200 times its size"):
        load(tmp_path / "a.npz")


def test_a_member_that_ends_early_is_named(tmp_path):
    """Its checksum is right for what there is, and its sizes for what its header promises."""
    content = npy(X)[:-80]
    short = write(tmp_path / "short.npz", [("x.npy", content), GOOD[1]], zipfile.ZIP_DEFLATED).read_bytes()
    (tmp_path / "short.npz").write_bytes(spoilt(short, 24, struct.pack("<I", len(npy(X)))))
    with pytest.raises(DataError, match="x ends after 400 of 480 bytes"):
        load(tmp_path / "short.npz")


def test_more_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "available", lambda: 700)
    with pytest.raises(DataError, match="holds .* bytes of arrays, more than the memory at hand .700 bytes."):
        load(tmp_path / "a.npz", GOOD)
    monkeypatch.setattr(npz, "available", lambda: 10**9)
    monkeypatch.setattr(np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(DataError, match="does not fit into memory"):
        load(tmp_path / "a.npz")
