import gzip
import hashlib
import os
import resource
import struct

import numpy as np
import pytest

from hpcai.data import dataset, idx, sources
from hpcai.errors import DataError


def write_idx(path, array):
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A tiny data set of MNIST's form, half of its files gz, half raw, whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (n, 4, 4), np.uint8) if i % 2 == 0 else rng.integers(0, 10, n, np.uint8)
        for i, n in enumerate((20, 20, 6, 6))
    ]
    names = [f"{name}{'.gz' if i < 2 else ''}" for i, name in enumerate(idx._FILES)]
    monkeypatch.setitem(idx.SHA256, "mnist", tuple(write_idx(tmp_path / n, a) for n, a in zip(names, arrays, strict=True)))
    monkeypatch.delenv("HPCAI_DATA", raising=False)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "nowhere")
    return tmp_path, arrays


def test_idx_gz_and_raw_are_read(small_mnist):
    folder, arrays = small_mnist
    data = sources.load("mnist", folder)
    assert (data.x_train == arrays[0].reshape(20, 16)).all()
    assert (data.y_test == arrays[3]).all()
    x = dataset.batch_into(np.empty((20, 16), np.float32), data.x_train, np.arange(20), data)
    assert x.shape == (20, 4, 4)
    assert x.min() >= -1
    assert x.max() <= 1


def test_idx_is_found_through_the_variable_and_in_debians_place(small_mnist, monkeypatch):
    folder, _ = small_mnist
    monkeypatch.setenv("HPCAI_DATA", str(folder))
    assert len(sources.load("mnist").x_train) == 20
    monkeypatch.delenv("HPCAI_DATA")
    monkeypatch.setattr(idx, "DEBIAN", folder)
    assert len(sources.load("mnist").x_train) == 20


def test_absent_idx_files_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN", tmp_path)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        sources.load("fashion-mnist", tmp_path)
    with pytest.raises(DataError, match="--data-dir"):
        sources.load("mnist", tmp_path)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda raw: raw[:-5], "truncated"),
        (lambda raw: raw + b"x", "too long"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "SHA-256"),
        (lambda raw: b"hello" + raw, "not an IDX file"),
        (lambda raw: raw[:6], "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
        (lambda raw: raw[:3] + b"\xff" + raw[4:], "not an IDX file|its header promises"),
        (lambda raw: raw[:3] + b"\x05" + b"\x7f\xff\xff\xff" * 5, "its header promises 45,671,926,0"),
        (lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:], "its header promises 68,719,476,"),
        (lambda raw: raw[:4] + b"\0\0\0\0" * 3, "SHA-256"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "not an IDX file of bytes"),
    ],
)
def test_damaged_idx_files_are_named(small_mnist, spoil, words):
    folder, _ = small_mnist
    path = folder / idx._FILES[2]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        sources.load("mnist", folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-20], lambda raw: b"no gzip at all", lambda raw: raw[:40] + b"\xff" * 30 + raw[70:]]
)
def test_damaged_gz_files_are_named(small_mnist, spoil):
    folder, _ = small_mnist
    path = folder / f"{idx._FILES[0]}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match="train-images.*(truncated|damaged|not an IDX file)"):
        sources.load("mnist", folder)


def test_files_in_each_others_places_are_named(small_mnist):
    folder, _ = small_mnist
    images, labels = (folder / idx._FILES[i] for i in (2, 3))
    content = images.read_bytes(), labels.read_bytes()
    labels.write_bytes(content[0])
    images.write_bytes(content[1])
    with pytest.raises(DataError, match="t10k-images.* has the content of mnist's t10k-labels-idx1-ubyte"):
        sources.load("mnist", folder)


def test_another_data_set_under_this_name_is_named(small_mnist, monkeypatch):
    folder, _ = small_mnist
    monkeypatch.setitem(idx.SHA256, "fashion-mnist", (*idx.SHA256["mnist"][:2], "?", "?"))
    with pytest.raises(DataError, match="t10k-images.* has the content of mnist's t10k-images"):
        sources.load("fashion-mnist", folder)


def test_a_gz_that_expands_without_end_is_bounded(small_mnist):
    folder, _ = small_mnist
    (folder / f"{idx._FILES[0]}.gz").write_bytes(gzip.compress(bytes(100 << 20), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="expands to more than|holds more than 67,108,864 bytes"):
        sources.load("mnist", folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10


def test_a_file_longer_than_any_is_not_read_to_its_end(small_mnist):
    folder, _ = small_mnist
    os.truncate(folder / idx._FILES[2], 1 << 40)
    with pytest.raises(DataError, match="holds more than 67,108,864 bytes"):
        sources.load("mnist", folder)


def test_a_fifo_in_a_files_place_is_not_waited_for(small_mnist):
    folder, _ = small_mnist
    (folder / idx._FILES[2]).unlink()
    os.mkfifo(folder / idx._FILES[2])
    with pytest.raises(DataError, match="is a FIFO; wanted a regular file"):
        sources.load("mnist", folder)


def test_all_places_where_files_were_looked_for_are_named(tmp_path):
    with pytest.raises(DataError, match=rf"no .*\[\.gz\] in {tmp_path}, {idx.DEBIAN / 'mnist'}\."):
        idx.files("mnist", tmp_path)
    with pytest.raises(DataError, match=rf"no .*\[\.gz\] in {idx.DEBIAN / 'mnist'}\."):
        idx.files("mnist", None)
