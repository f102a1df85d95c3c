from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.algorithms import hierarchical
from hpcai.errors import DataError, RankFailed, RankMismatch


def everywhere(size, program):
    """Run a program that must raise on every rank; returns the errors."""

    def guarded(comm):
        with pytest.raises(Exception) as caught:
            program(comm)
        return caught.value

    return threads.run(size, guarded)


CALLS = pytest.mark.parametrize(
    "call, parts",
    [
        (lambda c: c.allreduce(np.ones(3 + c.rank)), ["float64[3]", "float64[4]"]),
        (lambda c: c.allreduce(np.ones(3 + c.rank), algorithm="ring"), ["float64[3]", "float64[4]"]),
        (lambda c: c.reduce_scatter(np.ones(3 + c.rank)), ["float64[3]", "float64[4]"]),
        (lambda c: c.allreduce(np.ones(3, [np.float32, np.int32][c.rank])), ["float32", "int32"]),
        (lambda c: c.allreduce(np.ones(3), ["sum", "max"][c.rank]), ["op sum", "op max"]),
        (lambda c: c.broadcast(np.ones(3), c.rank), ["broadcast", "choice 1"]),
        (lambda c: c.allgather(np.ones(3, ["u1", "S1"][c.rank])), ["uint8", "|S1"]),
        (lambda c: c.barrier() if c.rank else c.allreduce(np.ones(3)), ["barrier", "allreduce"]),
        (lambda c: c.leave() if c.rank else c.allreduce(np.ones(3)), ["left", "allreduce"]),
        (lambda c: c.split(0) if c.rank else c.allgather_object(1), ["split", "allgather_object"]),
        (lambda c: c.split(0) if c.rank else c.split_by_node(), ["split", "split_by_node"]),
        (lambda c: c.allgather_object(1) if c.rank else c.barrier(), ["allgather_object", "barrier"]),
        (lambda c: c.on_root(int) if c.rank else c.barrier(), ["allgather_object", "barrier"]),
        (lambda c: c.alltoall(np.ones((2, 3 + c.rank))), ["alltoall of float64[2, 3]", "alltoall of float64[2, 4]"]),
        (lambda c: c.alltoall(np.ones((2, 2))) if c.rank else c.allgather(np.ones((2, 2))), ["alltoall", "allgather"]),
        (lambda c: c.symmetric_empty(3 + c.rank), ["empty of float32[3]", "empty of float32[4]"]),
        (lambda c: c.symmetric_empty(8 >> c.rank, ["f4", "f8"][c.rank]), ["empty of float32[8]", "empty of float64[4]"]),
        (lambda c: c.symmetric_empty(3) if c.rank else c.allreduce(np.ones(3, "f4")), ["empty of", "allreduce of"]),
        (lambda c: c.reduce_scatter(np.ones(4)) if c.rank else c.allreduce(np.ones(4)), ["reduce_scatter", "allreduce"]),
        (lambda c: c.broadcast(np.ones(4)) if c.rank else c.allgather(np.ones(4)), ["broadcast", "allgather"]),
        (lambda c: [*c.allgather_each([np.ones(4)])] if c.rank else c.allreduce(np.ones(4)), ["allgather", "allreduce"]),
        (lambda c: [c.allreduce(np.ones(n)) for n in ([3, 4], [4, 3])[c.rank]], ["float64[3]", "float64[4]"]),
        (lambda c: c.allreduce(np.ones(3), algorithm=["auto", "ring"][c.rank]), ["allreduce", "by ring"]),
        (lambda c: c.allreduce(np.ones(3), algorithm=["halving_doubling", "ring"][c.rank]), ["by halving_doubling", "by ring"]),
    ],
)


@CALLS
@pytest.mark.parametrize("shared", ["0", "1"])
def test_disagreement_in_a_part_of_the_ranks_names_them_by_their_numbers_in_the_world(call, parts, shared, monkeypatch):
    monkeypatch.setenv("HPCAI_NODE", shared)

    def program(comm):
        pair = comm.split(comm.rank // 2)
        if comm.rank < 2:
            return None
        with pytest.raises(RankMismatch) as caught:
            call(pair)
        return str(caught.value)

    for text in threads.run(4, program)[2:]:
        assert "rank 2: " in text
        assert "rank 3: " in text
        for part in parts:
            assert part in text


@CALLS
def test_disagreement_is_an_error_on_all_ranks_that_shows_both_sides(call, parts):
    errors = everywhere(2, call)
    for error in errors:
        assert isinstance(error, RankMismatch)
        assert "rank 0" in str(error)
        assert "rank 1" in str(error)
        for part in parts:
            assert part in str(error)


def test_a_different_number_of_calls_is_noticed():
    def program(comm):
        for _ in range(2 + comm.rank):
            comm.allreduce(np.ones(2))
        comm.leave()

    assert all(isinstance(error, RankMismatch) for error in everywhere(2, program))


@pytest.mark.parametrize(
    "x, op, kind, words",
    [
        (np.ones(3, np.complex64), "sum", TypeError, "complex64"),
        ([1.0, 2.0], "sum", TypeError, "list"),
        (np.ones((4, 4))[:, :2], "sum", ValueError, "contiguous"),
        (np.ones(3), "product", ValueError, "product"),
        (np.frombuffer(b"12345678"), "sum", ValueError, "writeable"),
    ],
)
def test_a_bad_argument_on_one_rank_is_its_error_there_and_a_mismatch_elsewhere(x, op, kind, words):
    errors = everywhere(2, lambda comm: comm.allreduce(x if comm.rank else np.ones(3), op if comm.rank else "sum"))
    assert isinstance(errors[1], kind)
    assert words in str(errors[1])
    assert isinstance(errors[0], RankMismatch)
    assert words in str(errors[0])


def test_bad_arguments_are_refused_alone_too():
    with pytest.raises(ValueError, match="algorithm"):
        threads.run(1, lambda comm: comm.allreduce(np.ones(3), algorithm="tree"))
    with pytest.raises(ValueError, match="needs MPI"):
        threads.run(2, lambda comm: comm.allreduce(np.ones(3), algorithm="mpi"))
    with pytest.raises(ValueError, match="root"):
        threads.run(3, lambda comm: comm.broadcast(np.ones(3), 3))
    with pytest.raises(TypeError, match="objects"):
        threads.run(1, lambda comm: comm.broadcast(np.array([None])))


def test_any_shape_is_reduced_in_place():
    def program(comm):
        x = np.full((2, 3, 4), 1.5)
        assert comm.allreduce(x) is x
        return x

    assert (threads.run(3, program)[1] == 4.5).all()


def test_split_groups_and_orders():
    def program(comm):
        half = comm.split(comm.rank % 2, key=-comm.rank)
        none = comm.split(None if comm.rank else 0)
        total = half.allreduce(np.array([float(comm.rank)]))[0]
        return half.rank, half.size, total, none is None

    assert threads.run(5, program) == [
        (2, 3, 6.0, False),
        (1, 2, 4.0, True),
        (1, 3, 6.0, True),
        (0, 2, 4.0, True),
        (0, 3, 6.0, True),
    ]


def test_node_is_everyone_where_memory_is_shared():
    assert threads.run(3, lambda comm: (comm.split_by_node().rank, comm.split_by_node().size)) == [(0, 3), (1, 3), (2, 3)]


def test_on_root_runs_once_and_raises_everywhere():
    ran = []

    def work():
        ran.append(1)
        return "value"

    assert threads.run(3, lambda comm: comm.on_root(work)) == ["value"] * 3
    assert len(ran) == 1

    def fail():
        raise DataError("broken")

    assert [str(error) for error in everywhere(3, lambda comm: comm.on_root(fail))] == ["broken"] * 3


def test_a_failing_thread_releases_the_others_and_its_error_is_the_one_raised():
    def program(comm):
        inner = comm.split(0)
        if comm.rank == 1:
            raise ZeroDivisionError("here")
        try:
            inner.allreduce(np.ones(10))
        except RankFailed:
            comm.barrier()

    with pytest.raises(ZeroDivisionError, match="here"):
        threads.run(3, program)


def test_empty_has_the_shape_and_dtype_asked_for():
    x = threads.run(1, lambda comm: comm.symmetric_empty((3, 5), np.float16))[0]
    assert x.shape == (3, 5)
    assert x.dtype == np.float16


def test_what_memory_knows_is_asked_of_it_and_else_of_the_wire(monkeypatch):
    """And what nobody knows is as where ranks share none."""
    monkeypatch.setenv("HPCAI_NODE", "0")
    comm = threads.run(1, lambda comm: comm)[0]
    comm.wire.waiting_since, comm.wire.waited_s = 3.0, 7.0
    assert (comm.shares_memory, comm.reaches, comm.notices_ends) == (False, False, True)
    assert (comm.waiting_since, comm.waited_s, comm.missing(), comm.addresses(np.ones(3))) == (3.0, 7.0, None, None)
    native = SimpleNamespace(waiting_since=5.0, waited_s=0.5, missing=lambda: [1], timeout_s=1.0)
    comm._memory = SimpleNamespace(reaches=True, notices_ends=False, native=native, addresses=lambda x: [x.size])
    assert (comm.shares_memory, comm.reaches, comm.notices_ends) == (True, True, False)
    assert (comm.waiting_since, comm.waited_s, comm.missing(), comm.addresses(np.ones(3))) == (5.0, 7.5, [1], [3])
    native.waiting_since = 0.0
    comm._memory.reaches, comm._memory.notices_ends = False, True
    assert (comm.waiting_since, comm.reaches, comm.notices_ends) == (3.0, False, True)


def test_a_chunk_is_this_ranks_unless_another_is_named():
    def program(comm):
        for n in (-1, 1.0, True, None):
            with pytest.raises(ValueError, match="number of elements from 0"):
                comm.chunk(n)
        for rank in (-1, comm.size, 1.0, True):
            with pytest.raises(ValueError, match=f"a rank from 0 to {comm.size - 1}"):
                comm.chunk(3, rank)
        assert [comm.chunk(7, rank) for rank in range(comm.size)] == comm.allgather_object(comm.chunk(7))
        return comm.chunk(0), comm.chunk(7, 0), comm.chunk(np.int64(7), np.int8(comm.size - 1))

    for none, first, last in threads.run(3, program):
        assert (none.stop - none.start, first.start, last.stop) == (0, 0, 7)


def test_nodes_and_rails_are_found_once(monkeypatch):
    """And taken by each later call of the hierarchical algorithm."""
    monkeypatch.setenv("HPCAI_NODE", "0")
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")
    made, taken, inner = [], [], hierarchical.allreduce
    levels = hierarchical.levels
    monkeypatch.setattr(hierarchical, "levels", lambda comm: made.append(1) or levels(comm))
    monkeypatch.setattr(
        hierarchical, "allreduce", lambda x, two, op: taken.append((two.node.size, two.rail.size)) or inner(x, two, op)
    )

    def program(comm):
        return [comm.allreduce(np.ones(5), algorithm="hierarchical").tolist() for _ in range(2)]

    assert threads.run(4, program) == [[[4.0] * 5] * 2] * 4
    assert taken == [(2, 2)] * 8
    assert len(made) == 4
    assert threads.run(3, program) == [[[3.0] * 5] * 2] * 3
    assert len(taken) == 8
    assert len(made) == 7
