"""The same laws under real MPI: run by `mpirun -n {2,3,4} pytest`."""

import itertools

import numpy as np
import pytest

from hpcai.comm.algorithms import ring
from hpcai.errors import RankMismatch
from hpcai.xp import DTYPES
from tests.laws import OPS, SIZES, assert_reduced, shares

pytestmark = pytest.mark.mpi


def same_everywhere(comm, x):
    return len(set(comm.allgather_object(x.tobytes()))) == 1


@pytest.mark.parametrize("algorithm", ["ring", "mpi"])
@pytest.mark.parametrize("name", DTYPES)
def test_allreduce_equals_the_plain_reduction(comm, name, algorithm):
    for n, op in itertools.product(SIZES, OPS):
        parts = shares(comm.size, n, name)
        x = comm.allreduce(parts[comm.rank].copy(), op, algorithm=algorithm)
        assert_reduced(x, parts, op, name)
        assert same_everywhere(comm, x)


def test_long_arrays_travel_in_segments(comm):
    n = 3 * ring.SEGMENT_BYTES // 8 + 12345
    parts = shares(comm.size, n, "f64")
    assert_reduced(comm.allreduce(parts[comm.rank].copy()), parts, "sum", "f64")


def test_library_calls_are_cut_below_2_to_the_31(comm, monkeypatch):
    from hpcai.comm.wires import mpi

    monkeypatch.setattr(mpi, "MESSAGE_BYTES", 64)
    for name in ("f16", "f64"):
        parts = shares(comm.size, 101, name)
        assert_reduced(comm.allreduce(parts[comm.rank].copy(), "mean", algorithm="mpi"), parts, "mean", name)


def test_reduce_scatter_allgather_broadcast(comm):
    parts = shares(comm.size, 1001, "f32")
    x = parts[comm.rank].copy()
    own = comm.reduce_scatter(x)
    assert np.shares_memory(own, x) or comm.size == 1
    comm.allgather(x)
    assert_reduced(x, parts, "sum", "f32")
    y = np.full(100003, comm.rank, np.int32)
    assert (comm.broadcast(y, comm.size - 1) == comm.size - 1).all()


@pytest.mark.mpi(min_size=2)
def test_mismatch_is_an_error_on_all_ranks(comm):
    with pytest.raises(RankMismatch, match="rank 0"):
        comm.allreduce(np.ones(3 if comm.rank == 0 else 4))
    with pytest.raises(RankMismatch, match="barrier"):
        if comm.rank == 1:
            comm.barrier()
        else:
            comm.allreduce(np.ones(3))
    assert comm.allreduce(np.ones(2))[0] == comm.size


@pytest.mark.mpi(min_size=3)
def test_mismatch_among_some_ranks_names_them_by_their_numbers_in_the_world(comm):
    part = comm.split(comm.rank > 0)
    assert part.path[1] == min(comm.rank, 1)
    if comm.rank == 0:
        return
    with pytest.raises(RankMismatch, match=f"rank {comm.size - 1}: barrier") as caught:
        if part.rank == part.size - 1:
            part.barrier()
        else:
            part.alltoall(np.ones((part.size, 2)))
    assert "rank 0" not in str(caught.value)


def test_the_time_limit_is_set_for_all_communicators_and_those_to_come(comm):
    before = comm.wire.timeout_s
    try:
        part = comm.split(0)
        comm.set_timeout(77.0)
        later = comm.split(0)
        for one in (comm, part, later):
            assert one.wire.timeout_s == 77.0
            assert one._memory is None or one._memory.native.timeout_s == 77.0
    finally:
        comm.set_timeout(before)


def test_split_and_node(comm):
    pair = comm.split(comm.rank // 2)
    assert pair.size in (1, 2)
    assert pair.allreduce(np.ones(3))[0] == pair.size
    assert comm.split_by_node().size == comm.size


@pytest.mark.big
@pytest.mark.timeout(600)
def test_more_than_2_to_the_31_elements(comm):
    """4 GiB a rank of bf16, whose exact sum every element knows."""
    n = 2**31 + 5
    x = np.empty(n, DTYPES["bf16"])
    x[:] = 1
    x[-1] = comm.rank
    x[2**31 - 1] = 2 * comm.rank
    comm.allreduce(x)
    ranks = sum(range(comm.size))
    assert float(x[-1]) == ranks
    assert float(x[2**31 - 1]) == 2 * ranks
    assert (x[: 2**31 - 1].view(np.uint16) == np.array(comm.size, DTYPES["bf16"]).view(np.uint16)).all()
