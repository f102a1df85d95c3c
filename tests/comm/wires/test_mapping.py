"""Shared memory without a name, and with one for a moment, among threads of this process in place of ranks."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.wires import mapping
from hpcai.errors import RankFailed

pytestmark = pytest.mark.skipif(not os.path.isdir(mapping.FOLDER), reason="there is no /dev/shm")
BYTES = 8192


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, tmp_path):
    """No descriptor, and no name."""
    monkeypatch.setattr(mapping, "FOLDER", str(tmp_path))
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


def written(comm):
    """What all ranks see of what each writes into its part of memory that they share."""
    memory = mapping.shared(comm.wire, BYTES)
    if memory is None:
        return None
    assert memory.size == comm.size * BYTES
    assert not memory.any()
    comm.barrier()
    memory[comm.rank * BYTES : (comm.rank + 1) * BYTES] = comm.rank + 1
    comm.barrier()
    return np.unique(memory.reshape(comm.size, BYTES), axis=1).tolist()


def opening(monkeypatch, replaced):
    """Have `replaced(open, path)` open what mapping.py opens."""
    inner = os.open
    monkeypatch.setattr(mapping.os, "open", lambda path, *more: replaced(lambda at=path: inner(at, *more), str(path)))


def refuse(*arguments, **more):
    raise OSError("forbidden")


def fail(*arguments):
    raise RankFailed("another")


@pytest.mark.parametrize("size", [1, 3])
def test_all_ranks_see_what_each_writes(size):
    assert threads.run(size, written) == [[[rank + 1] for rank in range(size)]] * size


def test_the_file_has_no_name_where_rank_0_can_be_seen(monkeypatch):
    monkeypatch.setattr(mapping, "_with_name", None)
    assert threads.run(2, written) == [[[1], [2]]] * 2


@pytest.mark.parametrize("way", ["the folder has no nameless files", "rank 0 is not seen", "rank 0 is another process"])
def test_else_it_has_one_while_it_is_opened(monkeypatch, tmp_path, way):
    (tmp_path / "other").write_text("")

    def replaced(open_it, path):
        if way == "the folder has no nameless files":
            return refuse() if path == mapping.FOLDER else open_it()
        if path.startswith("/proc/"):
            return refuse() if way == "rank 0 is not seen" else open_it(str(tmp_path / "other"))
        return open_it()

    opening(monkeypatch, replaced)
    try:
        assert threads.run(3, written) == [[[1], [2], [3]]] * 3
    finally:
        (tmp_path / "other").unlink()


@pytest.mark.parametrize("named", [False, True])
def test_where_standard_input_is_closed_its_descriptor_will_do(monkeypatch, named):
    if named:
        opening(monkeypatch, lambda open_it, path: refuse() if path == mapping.FOLDER else open_it())
    else:
        monkeypatch.setattr(mapping, "_with_name", None)
    kept = os.dup(0)
    os.close(0)
    try:
        results = threads.run(1, written) + threads.run(2, written)
        with pytest.raises(RankFailed):
            (mapping._with_name if named else mapping._without_name)(SimpleNamespace(rank=0, exchange=fail))
        other = os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR)
        os.close(other[0])
        told = (os.getpid(), other[1], 1, 2)  # of another process's file, which has the same descriptor here
        assert mapping._without_name(SimpleNamespace(rank=1, exchange=lambda value: [told])) == -1
        os.close(other[1])
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert results == [[[1]], [[1], [2]], [[1], [2]]]


def test_only_its_owner_may_open_it(monkeypatch):
    modes, inner = [], mapping._mapped

    def mapped(wire, handle, count):
        modes.append(os.fstat(handle).st_mode & 0o777)
        return inner(wire, handle, count)

    monkeypatch.setattr(mapping, "_mapped", mapped)
    threads.run(2, written)
    opening(monkeypatch, lambda open_it, path: refuse() if path == mapping.FOLDER else open_it())
    threads.run(2, written)
    assert modes == [0o600] * 4


def test_where_no_file_can_be_opened_there_is_none(monkeypatch):
    opening(monkeypatch, lambda open_it, path: refuse())
    monkeypatch.setattr(mapping.tempfile, "mkstemp", refuse)
    assert threads.run(3, written) == [None] * 3


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_where_memory_lacks_for_one_rank_there_is_none(monkeypatch, lacking):
    inner = os.posix_fallocate

    def reserve(handle, start, count):
        assert (start % BYTES, count) == (0, BYTES)
        return refuse() if start == lacking * BYTES else inner(handle, start, count)

    monkeypatch.setattr(mapping.os, "posix_fallocate", reserve)
    assert threads.run(3, written) == [None] * 3


def test_huge_pages_are_asked_for_and_may_be_refused(monkeypatch):
    asked, inner = [], mapping.mmap.mmap

    class Mapped(inner):
        def madvise(self, advice):
            asked.append(advice)
            raise OSError("not here")

    monkeypatch.setattr(mapping.mmap, "mmap", Mapped)
    assert threads.run(2, written) == [[[1], [2]]] * 2
    assert asked == [mapping.mmap.MADV_HUGEPAGE] * 2


@pytest.mark.parametrize("boots", [("a", "b"), ("a", "a")])
def test_ranks_of_other_machines_share_none(boots, monkeypatch):
    monkeypatch.setattr(mapping, "boot_id", lambda: boots[int(threading.current_thread().name.removeprefix("rank "))])
    assert threads.run(2, lambda comm: mapping.shared(comm.wire, BYTES) is not None) == [boots[0] == boots[1]] * 2


def test_without_the_folder_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(mapping, "FOLDER", str(tmp_path / "absent"))
    assert threads.run(2, written) == [None] * 2


def test_a_failure_meanwhile_leaves_nothing_open():
    """Whatever the exchange at which the others are known to have failed."""
    for last in range(5):
        answers = iter([lambda value: [value]] * last)

        def exchange(value, answers=answers):
            if (answer := next(answers, None)) is None:
                raise RankFailed("another")
            return answer(value)

        wire = SimpleNamespace(rank=0, size=1, exchange=exchange)
        if last == 4:
            assert mapping.shared(wire, BYTES) is not None
        else:
            with pytest.raises(RankFailed):
                mapping.shared(wire, BYTES)


def test_a_failure_while_it_has_a_name_leaves_none(monkeypatch):
    said = []

    def exchange(value):
        said.append(value)
        if len(said) == 2:
            raise RankFailed("another")
        return [value]

    with pytest.raises(RankFailed):
        mapping._with_name(SimpleNamespace(rank=0, size=1, exchange=exchange))
    assert Path(said[0]).parent == Path(mapping.FOLDER)


def test_a_descriptor_says_which_file_it_is(tmp_path):
    with open(tmp_path / "a", "w") as a, open(tmp_path / "b", "w") as b:
        assert mapping._file(a.fileno()) == (os.stat(a.name).st_dev, os.stat(a.name).st_ino)
        assert mapping._file(a.fileno()) != mapping._file(b.fileno())
    assert mapping._file(-1) == (0, 0)
    for name in "ab":
        (tmp_path / name).unlink()
