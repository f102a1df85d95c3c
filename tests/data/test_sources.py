import os
from pathlib import Path

import numpy as np
import pytest

from hpcai.data import dataset, sources
from hpcai.errors import DataError, UsageError


def test_digits_are_whole():
    data = sources.digits()
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).sum() == 1797
    assert data.x_train.max() == 16
    assert dataset.constant_score(data) < 0.15


@pytest.mark.parametrize("spec", ["cifar", "csv", "csv:", "digits:x"])
def test_unknown_names_list_the_known_ones(spec):
    with pytest.raises(UsageError, match="digits, fashion-mnist, mnist, csv:PATH, npz:PATH"):
        sources.load(spec)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.csv"):
        sources.load("csv:none.csv", tmp_path)


@pytest.mark.parametrize(
    "spec, meant",
    [
        ("MNIST", "mnist"),
        ("Digits", "digits"),
        ("fashion_mnist", "fashion-mnist"),
        ("CSV:a.csv", "csv:PATH"),
        ("txt:a.txt", "text:PATH"),
        ("table.csv", "csv:table.csv"),
        ("~/a/table.tsv.gz", "csv:~/a/table.tsv.gz"),
        ("a.npz", "npz:a.npz"),
        ("shakespeare.txt", "text:shakespeare.txt"),
    ],
)
def test_a_name_in_another_spelling_is_understood_and_refused(spec, meant):
    with pytest.raises(UsageError, match=f"is {meant} meant"):
        sources.load(spec)


TABLE = "a,b,kind\n" + "\n".join(f"{i},{(i * 7) % 5}.5,{int(i % 4 == 0)}" for i in range(40)) + "\n"


def test_files_are_looked_for_in_the_variables_folder(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(TABLE)
    monkeypatch.setenv("HPCAI_DATA", str(tmp_path))
    assert sources.load("csv:t.csv", label="kind").classes == 2
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPCAI_DATA", "csv:elsewhere.csv")
    assert sources.load("csv:~/t.csv", label="kind").classes == 2
    assert sources.load("csv:t.csv", Path("~"), label="kind").classes == 2
    with pytest.raises(DataError, match=r"no file t\.csv$"):
        sources.load("csv:t.csv", label="kind")


@pytest.mark.parametrize(
    "path, words",
    [
        ("", "is a folder; wanted a regular file"),
        ("~nobody-of-this-name/t.csv", "there is no user nobody-of-this-name"),
        ("a\0b", "null"),
        ("a" * 300, "too long"),
        ("t.csv/x", "there is no file"),
        ("fifo", "is a FIFO; wanted a regular file"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "text"])
def test_paths_that_are_no_files(tmp_path, kind, path, words):
    (tmp_path / "t.csv").write_text(TABLE)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match=words):
        sources.load(f"{kind}:{path if path.startswith('~') else tmp_path / path}", label="kind")


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    def refuse(path, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    for spec in ("csv:t.csv", "mnist"):
        with pytest.raises(DataError, match="cannot be looked at: Permission denied"):
            sources.files(spec, tmp_path)
