import gc
import itertools
import time

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.wires import node
from hpcai.errors import RankMismatch, StallError
from hpcai.ops import native

pytestmark = pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")


def test_symmetric_arrays_are_apart_and_keep_what_is_written():
    def program(comm):
        arrays = [
            comm.symmetric_empty(shape, dtype)
            for shape, dtype in (((3, 5), np.float32), (0, np.int64), ((), np.float64), (10**6, np.uint8))
        ]
        for i, x in enumerate(arrays):
            x[...] = i + 10 * comm.rank
        comm.barrier()
        for i, x in enumerate(arrays):
            assert (x == i + 10 * comm.rank).all()
        assert [x.shape for x in arrays] == [(3, 5), (0,), (), (10**6,)]
        return [comm.addresses(x) for x in arrays if x.size]

    results = threads.run(3, program)
    assert results[0] == results[1] == results[2]
    assert len({address for addresses in results[0] for address in addresses}) == 9


def test_slices_of_symmetric_arrays_are_symmetric_and_others_are_not():
    def program(comm):
        x = comm.symmetric_empty(1000, np.float64)
        return comm.addresses(x[100:])[comm.rank] - comm.addresses(x)[comm.rank], comm.addresses(np.zeros(3))

    assert threads.run(2, program) == [(800, None)] * 2


def test_each_rank_knows_where_the_others_parts_lie():
    """Threads have the same addresses for it."""

    def program(comm):
        x, y = comm.symmetric_empty(1000, np.float64), comm.symmetric_empty(3, np.uint8)
        for part in (x, x[7:], x[-1:], y):
            assert comm.addresses(part) == comm.allgather_object(part.__array_interface__["data"][0])
        at = comm.addresses(x)
        assert [after - before for before, after in itertools.pairwise(at)] == [node.PAGE] * 2

    threads.run(3, program)


def test_memory_returns_to_the_pool_only_when_all_ranks_and_views_let_go():
    def program(comm):
        kept = [comm.symmetric_empty(100, np.float64)]
        view = kept[0][10:20].reshape(2, 5)
        first = comm.addresses(kept[0])
        if comm.rank == 0:
            kept.clear()
        gc.collect()
        comm.barrier()
        second = comm.addresses(comm.symmetric_empty(100, np.float64))
        kept.clear()
        del view
        gc.collect()
        comm.barrier()
        third = comm.addresses(comm.symmetric_empty(100, np.float64))
        return first != second, third in (first, second)

    assert threads.run(2, program) == [(True, True)] * 2


def test_the_pool_gives_back_what_it_cannot_keep(monkeypatch):
    monkeypatch.setattr(node, "POOL_BYTES", 5 * node.PAGE)

    def program(comm):
        for size in range(1, 9):
            comm.symmetric_empty(size * node.PAGE, np.uint8)
            gc.collect()
            comm.barrier()
        return len(comm._memory.blocks)

    assert max(threads.run(2, program)) <= 3


def test_the_pool_keeps_at_least_128_MiB():
    """Freed arrays of so much memory are there again, for half as long ones too; longer and much shorter ones take no such."""
    assert node.POOL_BYTES >= 128 << 20

    def program(comm):
        first = [comm.symmetric_empty(n, np.uint8) for n in (10 << 21, 20 << 21)]
        at = [comm.addresses(x)[0] for x in first]
        del first
        gc.collect()
        comm.barrier()
        assert comm.addresses(comm.symmetric_empty((20 << 21) + 1, np.uint8))[0] not in at
        assert comm.addresses(comm.symmetric_empty(4 << 21, np.uint8))[0] != at[0]
        again = [comm.symmetric_empty(n, np.uint8) for n in (5 << 21, 10 << 21)]
        assert [comm.addresses(x)[0] for x in again] == at

    threads.run(2, program)


@pytest.mark.parametrize("reach", ["0", "1"])
@pytest.mark.parametrize("staged", ["0", "1000000"])
def test_arrays_of_different_places_are_reduced_all_the_same(reach, staged, monkeypatch):
    monkeypatch.setenv("HPCAI_REACH", reach)
    monkeypatch.setenv("HPCAI_STAGED_BYTES", staged)

    def program(comm):
        x, y = comm.symmetric_empty(5000, np.float32), comm.symmetric_empty(5000, np.float32)
        mine = [x, y, np.empty(5000, np.float32)][comm.rank]
        mine[:] = comm.rank + 1
        return comm.allreduce(mine).tolist()

    assert threads.run(3, program) == [[6.0] * 5000] * 3


def test_ranks_that_share_memory_say_so(monkeypatch):
    assert threads.run(2, lambda comm: comm.shares_memory) == [True, True]
    monkeypatch.setenv("HPCAI_NODE", "0")
    assert threads.run(2, lambda comm: comm.shares_memory) == [False, False]


@pytest.mark.parametrize("size", [2, 3])
def test_symmetric_arrays_are_read_where_the_others_have_them(size):
    n = 3000

    def program(comm):
        x, found = comm.symmetric_empty(n, np.float32), {}
        mine = np.arange(n) % 7 + 10.0 * comm.rank
        for kind in ("allreduce", "reduce_scatter", "allgather", "broadcast"):
            x[:] = mine
            if kind == "allgather":
                x.reshape(size, -1)[np.arange(size) != comm.rank] = -1
            kept = getattr(comm, kind)(x)
            found[kind] = kept.copy()
        return found

    whole = sum(np.arange(n) % 7 + 10.0 * rank for rank in range(size))
    for rank, found in enumerate(threads.run(size, program)):
        assert found["allreduce"].tolist() == whole.tolist()
        part = slice(n * rank // size, n * (rank + 1) // size)
        assert found["reduce_scatter"].tolist() == whole[part].tolist()
        rows = [(np.arange(n) % 7 + 10.0 * other)[n * other // size : n * (other + 1) // size] for other in range(size)]
        assert found["allgather"].tolist() == np.concatenate(rows).tolist()
        assert found["broadcast"].tolist() == (np.arange(n) % 7).tolist()


def test_empty_is_collective():
    def program(comm):
        with pytest.raises(RankMismatch, match="symmetric_empty"):
            comm.symmetric_empty(3 + comm.rank)

    threads.run(2, program)


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_never_comes_is_named_within_the_time_limit(late, monkeypatch):
    monkeypatch.setenv("HPCAI_TIMEOUT_S", "0.3")

    def program(comm):
        if comm.rank == late:
            return None
        begin = time.perf_counter()
        with pytest.raises(StallError, match=rf"0\.3 s in allreduce of .* at .*test_node.py:\d+ program for rank {late}, which"):
            comm.allreduce(np.ones(5000))
        return time.perf_counter() - begin

    for seconds in threads.run(3, program):
        assert seconds is None or 0.25 < seconds < 5


def test_ranks_that_come_late_are_waited_for():
    def program(comm):
        for late in range(comm.size):
            if comm.rank == late:
                time.sleep(0.15)
            assert comm.allreduce(np.ones(10))[0] == comm.size

    threads.run(4, program)


def test_an_adopted_array_is_a_symmetric_copy():
    def program(comm):
        x = np.arange(5000.0).reshape(50, 100).T + comm.rank
        made = comm.adopt(x)
        assert comm.addresses(made) is not None
        assert (made.shape, made.dtype, made.flags.c_contiguous) == (x.shape, x.dtype, True)
        np.testing.assert_array_equal(made, x)
        comm.allreduce(made)
        return made[3, 0] - x[3, 0]

    assert threads.run(2, program) == [4.0, 3.0]
    with pytest.raises(TypeError, match="adopt wants a numpy array, got list"):
        threads.run(1, lambda comm: comm.adopt([1.0]))
    with pytest.raises(TypeError, match="object"):
        threads.run(2, lambda comm: comm.adopt(np.array([None])))


def test_a_torch_tensor_may_be_a_symmetric_array():
    torch = pytest.importorskip("torch")

    def program(comm):
        x = comm.adopt(np.ones(4000, np.float32))
        tensor = torch.from_numpy(x)
        tensor *= comm.rank + 1
        comm.allreduce(tensor.numpy())
        assert comm.addresses(tensor.numpy()) is not None
        return float(tensor.sum())

    assert threads.run(2, program) == [12000.0] * 2
