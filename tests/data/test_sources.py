import gzip
import hashlib
import struct

import numpy as np
import pytest

from hpcai.data import dataset, idx, sources
from hpcai.errors import DataError, UsageError


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
    with pytest.raises(DataError, match="train-images.*(truncated|damaged)"):
        sources.load("mnist", folder)


def test_digits_are_whole():
    data = sources.digits()
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).sum() == 1797
    assert data.x_train.max() == 16
    assert dataset.constant_score(data) < 0.15


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 6, 6), np.uint8), rng.integers(0, 3, 20) * 5
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = sources.load(f"npz:{tmp_path / 'a.npz'}")
    assert (data.classes, data.shape, len(data.x_train), data.x_train.dtype) == (3, (6, 6), 16, np.uint8)
    assert set(data.y_train) <= {0, 1, 2}
    np.savez(tmp_path / "b.npz", x_train=x / 3, y_train=y / 7, x_test=x[:4], y_test=y[:4])
    data = sources.load(f"npz:{tmp_path / 'b.npz'}")
    assert (data.classes, data.x_train.dtype, len(data.x_test)) == (0, np.float32, 4)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": np.ones((3, 2))}, "wanted x and y"),
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, "do not belong together"),
        ({"x": np.full((5, 2), np.nan), "y": np.ones(5)}, "finite"),
        ({"x": np.full((5, 2), "a"), "y": np.ones(5)}, "numbers"),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        sources.load(f"npz:{tmp_path / 'a.npz'}")


def test_an_npz_that_is_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match="not a readable npz"):
        sources.load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("spec", ["cifar", "csv", "csv:", "digits:x"])
def test_unknown_names_list_the_known_ones(spec):
    with pytest.raises(UsageError, match="digits, fashion-mnist, mnist, csv:PATH, npz:PATH"):
        sources.load(spec)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.csv"):
        sources.load("csv:none.csv", tmp_path)
