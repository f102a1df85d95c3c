"""The laws of collectives, with ranks as threads: every dtype, operation, awkward size and number of ranks."""

import itertools
import os

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.algorithms import halving, ring
from hpcai.ops import native
from hpcai.xp import DTYPES
from tests.laws import OPS, RANKS, SIZES, assert_reduced, shares


@pytest.fixture(params=["ring", "ring in many segments", "node", "node by reach", "node on symmetric arrays"])
def way(request, monkeypatch):
    """How collectives are carried out: (algorithm, what makes an array of given values)."""
    if "segments" in request.param:
        monkeypatch.setattr(ring, "SEGMENT_BYTES", 48)
        monkeypatch.setattr(ring, "WIDE_ELEMENTS", 70)
    if "node" in request.param:  # without it arrays of these tests pass through segments
        monkeypatch.setenv("HPCAI_STAGED_BYTES", "0" if "reach" in request.param else "1000000000")
    if "node" in request.param and not native.is_native():
        pytest.skip("native kernels are not built")

    def array(comm, values):
        if "symmetric" not in request.param:
            return values
        made = comm.symmetric_empty(values.shape, values.dtype)
        made[...] = values
        return made

    return ("node" if "node" in request.param else "ring"), array


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("name", DTYPES)
def test_allreduce_equals_the_plain_reduction_with_the_same_bytes_on_all_ranks(name, size, way):
    algorithm, array = way

    def program(comm):
        out = {}
        for n, op in itertools.product(SIZES, OPS):
            out[n, op] = comm.allreduce(array(comm, shares(size, n, name)[comm.rank]), op, algorithm=algorithm)
        return out

    results = threads.run(size, program)
    again = threads.run(size, program)
    for n, op in itertools.product(SIZES, OPS):
        first = results[0][n, op]
        assert first.dtype == DTYPES[name]
        assert_reduced(first, shares(size, n, name), op, name)
        for other in (*results[1:], *again):
            assert first.tobytes() == other[n, op].tobytes()


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("name", ["bf16", "f32", "i64"])
def test_reduce_scatter_then_allgather_is_allreduce(name, size, way):
    algorithm, array = way

    def program(comm):
        for n, op in itertools.product(SIZES, OPS):
            x, y = (array(comm, shares(size, n, name)[comm.rank]) for _ in range(2))
            own = comm.reduce_scatter(x, op, algorithm=algorithm)
            assert own.size == comm.chunk(n).stop - comm.chunk(n).start
            assert not own.size or np.shares_memory(own, x)
            if name != "bf16" or n <= ring.WIDE_ELEMENTS:
                comm.allgather(x, algorithm=algorithm)
                assert x.tobytes() == comm.allreduce(y, op, algorithm=algorithm).tobytes()

    threads.run(size, program)


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("name", DTYPES)
def test_halving_and_doubling(name, size, monkeypatch):
    """In messages so short that the longest array is hundreds; there with one operation, unless HPCAI_ALL=1."""
    monkeypatch.setattr(halving, "MESSAGE_BYTES", 48)
    every = bool(os.environ.get("HPCAI_ALL"))
    calls = [(n, op) for n, op in itertools.product(SIZES, OPS) if every or n < SIZES[-1] or op == OPS[size % len(OPS)]]

    def program(comm):
        return {(n, op): comm.allreduce(shares(size, n, name)[comm.rank], op, algorithm="halving_doubling") for n, op in calls}

    results = threads.run(size, program)
    for n, op in calls:
        assert_reduced(results[0][n, op], shares(size, n, name), op, name)
        assert len({r[n, op].tobytes() for r in results}) == 1


@pytest.mark.parametrize("size", RANKS)
def test_allgather_takes_any_dtype(size, way):
    algorithm, array = way

    def program(comm):
        for dtype in (np.uint8, np.bool_, np.complex128, "S7"):
            whole = np.arange(size * 5).astype(dtype).reshape(size, 5)
            x = array(comm, np.zeros_like(whole))
            x[comm.rank] = whole[comm.rank]
            assert comm.allgather(x, algorithm=algorithm) is x
            assert (x == whole).all()

    threads.run(size, program)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_allgather_each_is_one_allgather_after_the_other_and_asks_one_ahead(size, shared, monkeypatch):
    if not shared:
        monkeypatch.setenv("HPCAI_NODE", "0")

    def program(comm):
        made, came = [], []

        def arrays():
            for i, n in enumerate((10, 0, 100_003, 7, 7)):
                x = np.full(n, -1.0, np.float32)
                x[comm.chunk(n)] = 10 * i + comm.rank
                made.append(x)
                yield x
            made.append(None)

        for i, x in enumerate(comm.allgather_each(arrays())):
            assert x is made[i]
            assert len(made) >= i + 2
            for rank in range(comm.size):
                assert (x[comm.chunk(x.size, rank)] == 10 * i + rank).all()
            came.append(x)
        return len(came)

    assert threads.run(size, program) == [5] * size


@pytest.mark.parametrize("size", RANKS)
def test_alltoall_is_a_transposition(size, way, monkeypatch):
    algorithm, array = way
    if algorithm == "ring":  # all-to-all has no ring, but goes by messages where the ranks share no memory
        monkeypatch.setenv("HPCAI_NODE", "0")

    def program(comm):
        for k, dtype in [*itertools.product((0, 1, 7, 100), ("f4", "u1", "S3")), (70_001, "f4")]:
            x = array(comm, (np.arange(size * k) + 1000 * comm.rank).astype(dtype).reshape(size, k))
            want = [(np.arange(size * k) + 1000 * r).astype(dtype).reshape(size, k)[comm.rank] for r in range(size)]
            assert comm.alltoall(x) is x
            assert (x == np.array(want).reshape(size, k)).all()
        with pytest.raises(ValueError, match="a row for each"):
            comm.alltoall(np.zeros((size + 1, 2)))

    threads.run(size, program)


@pytest.mark.parametrize("size", [2, 3])
def test_elements_longer_than_a_segment_are_moved(size, way):
    algorithm, array = way

    def program(comm):
        values = np.arange(size * 40_000, dtype="f8").reshape(size, -1) + 0.5 * comm.rank
        rows = array(comm, values).view("V320000")
        assert comm.alltoall(rows) is rows
        mine = np.arange(size * 40_000, dtype="f8").reshape(size, -1)[comm.rank]
        assert (rows.view("f8") == mine + 0.5 * np.arange(size)[:, None]).all()
        comm.broadcast(rows, size - 1, algorithm=algorithm)
        assert (rows.view("f8")[:, 0] == (size - 1) * 40_000 + 0.5 * np.arange(size)).all()
        rows.view("f8")[...] = comm.rank
        comm.allgather(rows, algorithm=algorithm)
        assert (rows.view("f8") == np.arange(size)[:, None]).all()

    threads.run(size, program)


@pytest.mark.parametrize("size", RANKS)
def test_broadcast_from_every_root(size, way):
    algorithm, array = way

    def program(comm):
        for root, n in itertools.product(range(size), SIZES):
            x = array(comm, np.arange(n, dtype=np.float64) + 1000 * comm.rank)
            comm.broadcast(x, root, algorithm=algorithm)
            assert (x == np.arange(n) + 1000 * root).all()

    threads.run(size, program)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_16_bit_sums_are_rounded_once(name):
    """A sum of many small values onto a large one: rounded at every step it would never move."""

    def program(comm):
        x = np.full(5, 256.0 if comm.rank == 0 else 0.5 if name == "bf16" else 0.0625).astype(DTYPES[name])
        return comm.allreduce(x)

    result = threads.run(7, program)[0].astype(np.float64)
    exact = 256.0 + 6 * (0.5 if name == "bf16" else 0.0625)
    assert (result == np.float64(np.array(exact).astype(DTYPES[name]))).all()


def test_the_mean_of_f16_does_not_overflow():
    assert threads.run(3, lambda comm: comm.allreduce(np.full(4, 60000, np.float16), "mean"))[0].tolist() == [60000.0] * 4


def test_nan_and_infinity_reach_every_rank():
    def program(comm):
        x = np.array([np.nan if comm.rank == 1 else 1.0, np.inf if comm.rank == 2 else 1.0, 1.0], np.float32)
        return comm.allreduce(x.copy(), "max"), comm.allreduce(x.copy(), "sum")

    for highest, total in threads.run(3, program):
        np.testing.assert_array_equal(highest, [np.nan, np.inf, 1])
        np.testing.assert_array_equal(total, [np.nan, np.inf, 3])


@pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_path_on_a_node_gives_the_same_bytes(name, size, monkeypatch):
    """Short messages, symmetric arrays, and ordinary ones by reach and through segments, cut anywhere: values are folded in the order of ranks."""
    n = 300_001
    rng = np.random.default_rng(0)
    parts = (rng.normal(size=(size, n)) * 1000).astype(DTYPES[name])

    def program(comm):
        x, y, z = comm.symmetric_empty(n, DTYPES[name]), parts[comm.rank].copy(), parts[comm.rank].copy()
        x[:] = y
        comm.allreduce(x, "mean")
        comm.allreduce(y, "mean")
        for start in range(0, n, 100_000):
            comm.allreduce(z[start : start + 33], "mean")
        return x.tobytes(), y.tobytes(), b"".join(z[s : s + 33].tobytes() for s in range(0, n, 100_000))

    results = []
    for staged in ("0", "1000000000"):
        monkeypatch.setenv("HPCAI_STAGED_BYTES", staged)
        results += threads.run(size, program)
    monkeypatch.setenv("HPCAI_REACH", "0")
    results += threads.run(size, program)
    assert len({r[:2] for r in results}) == 1
    assert results[0][0] == results[0][1]
    pieces = np.frombuffer(results[0][0], np.uint8).reshape(n, -1)
    assert results[0][2] == b"".join(pieces[s : s + 33].tobytes() for s in range(0, n, 100_000))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("size, per_node", [(4, 2), (6, 2), (6, 3), (3, 1), (5, 2)])
def test_across_nodes(name, size, per_node, monkeypatch):
    """Nodes of equal size have two levels; one rank a node, or nodes of different size, fall back to the ring."""
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", str(per_node))
    monkeypatch.setattr(ring, "WIDE_ELEMENTS", 70)
    two = size % per_node == 0 and per_node > 1

    def program(comm):
        assert comm._memory is None
        out = {}
        for n, op in itertools.product(SIZES, OPS):
            out[n, op] = comm.allreduce(shares(size, n, name)[comm.rank], op, algorithm="hierarchical")
        assert comm.split_by_node().size in (per_node, size % per_node)
        assert (comm._levels is not None) == two
        return out

    results = threads.run(size, program)
    for n, op in itertools.product(SIZES, OPS):
        assert_reduced(results[0][n, op], shares(size, n, name), op, name)
        assert len({r[n, op].tobytes() for r in results}) == 1


@pytest.mark.parametrize("algorithm", ["auto", "ring", "halving_doubling"])
def test_an_array_that_is_not_aligned_on_one_rank_is_reduced_as_others_are(algorithm):
    def program(comm):
        x = np.frombuffer(bytearray(4001), np.uint8)[comm.rank : comm.rank + 4000].view(np.float32)
        x[:] = comm.rank + 1
        comm.allreduce(x, algorithm=algorithm)
        return x.flags.aligned, x.tolist()

    assert threads.run(2, program) == [(True, [3.0] * 1000), (False, [3.0] * 1000)]
