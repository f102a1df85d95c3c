"""Files of data: tables, archives of arrays, images, texts, plain and in every kind of wrapping.

What is right is known by way of a plain file: the content is unwrapped and read by Python's and numpy's own readers, written
anew in the plainest form, and that must give the same data set.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.data import idx, sources
from hpcai.data.dataset import Dataset
from tests.fuzz_inputs import damage
from tests.fuzz_inputs.kind import Kind

MOST = 64 << 20
"""Bytes that the plain way decompresses at the most."""


def digest(dataset: Dataset) -> tuple[Any, ...]:
    """What training sees of a data set."""
    arrays = (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test)
    sums = [hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest()[:12] for one in arrays]
    kinds = [(one.shape, one.dtype.str) for one in arrays]
    return (*kinds, *sums, dataset.shape, dataset.classes, dataset.scale, dataset.shift, dataset.target_unit)


# Wrappings.


def _zipped(raw: bytes, rng: random.Random) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as archive:
        archive.writestr("data.csv", raw)
        if rng.random() < 0.3:
            archive.writestr(rng.choice(("__MACOSX/._data.csv", "../x", "other.csv", ".DS_Store", "/abs")), b"x")
    return held.getvalue()


_WRAPPINGS = (
    ("plain", lambda raw, rng: raw),
    ("gz", lambda raw, rng: gzip.compress(raw, 1, mtime=0)),
    ("bz2", lambda raw, rng: bz2.compress(raw, 1)),
    ("xz", lambda raw, rng: lzma.compress(raw, preset=0)),
    ("zip", _zipped),
)


def _wrapped(rng: random.Random, raw: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.01:
        name, wrap = rng.choice(_WRAPPINGS[1:])
        return f"a bomb of {name}", wrap(bytes(16 << 20), rng) * (1 if name == "zip" else 400)
    name, wrap = rng.choice(_WRAPPINGS)
    wrapped = wrap(raw, rng)
    if rng.random() < 0.4:
        return f"{name}, damaged", damage.bytes_of(rng, wrapped)
    return name, wrapped


def unwrapped(raw: bytes) -> bytes:
    """The content by Python's own readers."""
    if raw[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=io.BytesIO(raw)).read(MOST)
    if raw[:3] == b"BZh":
        return bz2.BZ2File(io.BytesIO(raw)).read(MOST)
    if raw[:6] == b"\xfd7zXZ\0":
        return lzma.LZMAFile(io.BytesIO(raw)).read(MOST)
    if raw[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/") and not name.endswith(".DS_Store")]
            assert len(names) == 1
            with archive.open(names[0]) as member:
                return member.read(MOST)
    return raw


def _odd_file(rng: random.Random, path: Path) -> str:
    """Something else than a regular file."""
    kind = rng.choice(("FIFO", "folder", "link to /dev/zero", "link to itself", "nothing", "empty"))
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "empty":
        path.touch()
    return kind


def _made(rng: random.Random, path: Path, raw: bytes) -> str:
    if rng.random() < 0.03:
        return _odd_file(rng, path)
    what, wrapped = _wrapped(rng, raw)
    path.write_bytes(wrapped)
    return what


# Tables.


def _cell(rng: random.Random, kind: str) -> str:
    if kind == "class":
        return str(rng.randint(0, 3))
    if kind == "word":
        return rng.choice(("barolo", "chianti", "lugana"))
    return repr(round(rng.gauss(0, 10 ** rng.randint(-3, 6)), rng.randint(0, 6)))


def _table_text(rng: random.Random) -> str:
    names = ["y", *(f"c{i}" for i in range(rng.randint(1, 5)))]
    label = rng.choice(("class", "word", "number"))
    rng.shuffle(names)
    rows = [names]
    for _ in range(rng.choice((2, 5, 40, 200))):
        rows.append([_cell(rng, label if name == "y" else "number") for name in names])
    held = io.StringIO()
    writer = csv.writer(
        held,
        delimiter=rng.choice(",,,,;\t"),
        lineterminator=rng.choice(("\n", "\r\n")),
        quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    writer.writerows(rows)
    return held.getvalue()


def _make_table(rng: random.Random, folder: Path) -> str:
    text, what = _table_text(rng), "a table"
    if rng.random() < 0.6:
        text, what = damage.text_of(rng, text), "a damaged table"
    raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")
    return f"{what}, {_made(rng, folder / 'in.csv', raw)}"


def _load_table(path: Path) -> Any:
    return digest(sources.load(f"csv:{path}", label="y"))


def _plain_table(folder: Path) -> Any:
    raw = unwrapped((folder / "in.csv").read_bytes())
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    first = text.splitlines()[0]
    delimiter = next((one for one in "\t;" if one in first and "," not in first), ",")
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    with (folder / "plain.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([cell.strip() for cell in row] for row in rows)
    values = [[float(cell) for cell in column[1:]] for column in zip(*rows, strict=True) if column[0].strip() != "y"]
    assert np.isfinite(values).all()
    return _load_table(folder / "plain.csv")


table = Kind(_make_table, lambda folder: _load_table(folder / "in.csv"), _plain_table)


# Archives of arrays.


def _arrays(rng: random.Random) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(rng.randrange(2**32))
    n, shape = rng.choice((2, 7, 50)), rng.choice(((3,), (4, 4), (4, 4, 3), (), (1,)))
    kinds = ("f4", "f8", "u1", "i8", "f2", ">f4", "?", "c8", "S3", "u8")
    x = (numbers.normal(size=(n, *shape)) * 50).astype(rng.choice(kinds[:3] if rng.random() < 0.7 else kinds))
    y = numbers.integers(0, 3, n).astype(rng.choice(("i8", "u1", "i4") if rng.random() < 0.8 else kinds))
    if rng.random() < 0.5:
        return {"x": x, "y": y}
    parts = {"x_train": x, "y_train": y, "x_test": x[: n // 2 + 1], "y_test": y[: n // 2 + 1]}
    if rng.random() < 0.3:
        name = rng.choice(sorted(parts))
        parts[name] = rng.choice((parts[name][:0], parts[name][..., None], parts[name].ravel()[:3], np.float64(3), parts[name].T))
    if rng.random() < 0.1:
        del parts[rng.choice(sorted(parts))]
    return parts


def _make_archive(rng: random.Random, folder: Path) -> str:
    held, arrays = io.BytesIO(), _arrays(rng)
    if rng.random() < 0.05:
        arrays["x"] = np.array([{"a": 1}, None], dtype=object)
    rng.choice((np.savez, np.savez_compressed))(held, **arrays)
    raw, path = held.getvalue(), folder / "in.npz"
    if rng.random() < 0.05:
        return _odd_file(rng, path)
    if rng.random() < 0.3:
        raw = _other_header(rng, raw)
    path.write_bytes(damage.bytes_of(rng, raw) if rng.random() < 0.6 else raw)
    return f"arrays {', '.join(arrays)}"


def _other_header(rng: random.Random, raw: bytes) -> bytes:
    """The archive again, in which headers say something else than the arrays are."""
    old, new = rng.choice(
        (
            ("'shape': (", "'shape': (9999999999999,"),
            ("'shape': (", "'shape': (-1, "),
            ("<f4", "|O8"),
            ("False", "True"),
            ("descr", "desc"),
        )
    )
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(held, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name).replace(old.encode(), new.encode())
            changed.writestr(rng.choice((name, name, name, f"../{name}", name.removesuffix(".npy"))), content)
    return held.getvalue()


def _plain_archive(folder: Path) -> Any:
    with np.load(folder / "in.npz", allow_pickle=False) as archive:
        names = ("x", "y") if {"x", "y"} <= set(archive.files) else ("x_train", "y_train", "x_test", "y_test")
        arrays = {name: archive[name] for name in names}
    np.savez(folder / "plain.npz", **arrays)
    return digest(sources.load(f"npz:{folder / 'plain.npz'}"))


archive = Kind(_make_archive, lambda folder: digest(sources.load(f"npz:{folder / 'in.npz'}")), _plain_archive)


# Images: those that were published alone are right, here small ones in their place.


def _published() -> list[bytes]:
    numbers = np.random.default_rng(0)
    files = []
    for n in (20, 10):
        images, labels = numbers.integers(0, 256, (n, 4, 4), np.uint8), numbers.integers(0, 10, n).astype(np.uint8)
        for array in (images, labels):
            dims = b"".join(d.to_bytes(4, "big") for d in array.shape)
            files.append(bytes([0, 0, 8, array.ndim]) + dims + array.tobytes())
    return files


def _make_images(rng: random.Random, folder: Path) -> str:
    contents = _published()
    idx.SHA256["mnist"] = tuple(hashlib.sha256(raw).hexdigest() for raw in contents)
    if rng.random() < 0.2:
        rng.shuffle(contents)
    what = []
    for name, raw in zip(idx._FILES, contents, strict=True):
        changed = damage.bytes_of(rng, raw) if rng.random() < 0.2 else raw
        wrap, wrapped = rng.choice((("", changed), (".gz", gzip.compress(changed, 1, mtime=0))))
        path = folder / f"{name}{wrap}"
        if rng.random() < 0.03:
            what.append(_odd_file(rng, path))
        else:
            path.write_bytes(damage.bytes_of(rng, wrapped) if rng.random() < 0.2 else wrapped)
    return f"images {' '.join(what)}"


def _load_images(folder: Path) -> Any:
    return digest(sources.load("mnist", folder))


def _right_images(folder: Path) -> Any:
    right = folder / "right"
    right.mkdir()
    for name, raw in zip(idx._FILES, _published(), strict=True):
        (right / name).write_bytes(raw)
    return _load_images(right)


images = Kind(_make_images, _load_images, _right_images)


# Texts.


def _make_text(rng: random.Random, folder: Path) -> str:
    text = " ".join(
        rng.choice(("to", "be", "or", "not", "que", "sera", "für", "λόγος")) for _ in range(rng.choice((3, 300, 900)))
    )
    if rng.random() < 0.3:
        text = damage.text_of(rng, text)
    raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "latin-1")), "replace")
    if rng.random() < 0.1:
        raw = rng.choice((b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"\x7fELF", b"PK\x03\x04")) + rng.randbytes(3000)
    return f"text, {_made(rng, folder / 'in.txt', raw)}"


def _load_text(path: Path) -> Any:
    return digest(sources.load(f"text:{path}", context=16))


def _plain_text(folder: Path) -> Any:
    (folder / "plain.txt").write_bytes(unwrapped((folder / "in.txt").read_bytes()))
    return _load_text(folder / "plain.txt")


text = Kind(_make_text, lambda folder: _load_text(folder / "in.txt"), _plain_text)
