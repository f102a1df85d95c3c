"""Random collectives under real MPI: kind, size, dtype, operation, algorithm, symmetric or not (or on some ranks), through segments or
not, on sub-communicators too.

`make fuzz` runs 160,000 of them; the test suite some hundreds. All ranks draw the same calls from one seed.
"""

import contextlib
import os

import numpy as np
import pytest

from hpcai.xp import DTYPES
from tests.laws import OPS, assert_reduced, shares

HEAP = 1 << 21
COUNT = int(os.environ.get("HPCAI_FUZZ", "400"))


@pytest.mark.mpi
@pytest.mark.timeout(3000)
def test_random_collectives_equal_numpy(comm):
    rng = np.random.default_rng(int(os.environ.get("HPCAI_FUZZ_SEED", "0")))
    groups = [comm, comm.split(comm.rank % 2), comm.split(0 if comm.rank else None), comm.split(0, key=-comm.rank)]
    heap = [[g.symmetric_empty(HEAP, np.uint8) if g else None for _ in range(2)] for g in groups]
    for _ in range(COUNT):
        which = int(rng.integers(len(groups)))
        kind, name, op = (
            rng.choice(["allreduce", "reduce_scatter", "allgather", "broadcast", "alltoall"]),
            rng.choice(list(DTYPES)),
            str(rng.choice(OPS)),
        )
        n = int(
            min(
                rng.choice([0, 1, 7, 100, 2000, 16000, 150_000], p=[0.15] * 6 + [0.1]) + rng.integers(0, 5),
                30_000 if name == "f16" else HEAP // DTYPES[name].itemsize - 8,  # whose sums would overflow
            )
        )
        symmetric, algorithm, offset = (
            ("none", "some", "all")[rng.integers(3)],
            str(rng.choice(["auto", "auto", "ring", "halving_doubling", "mpi"])),
            int(rng.integers(8)),
        )
        staged_bytes = int(rng.choice([0, 20_000, 1 << 30]))
        root_draw, seed = int(rng.integers(1 << 30)), int(rng.integers(1 << 30))
        group = groups[which]
        if group is None:
            continue
        n -= n % group.size * (kind == "alltoall")
        parts = shares(group.size, n, name, seed)
        x = parts[group.rank].copy()
        if symmetric == "all" or (symmetric == "some" and (group.rank + seed) % 2):
            x = heap[which][seed % 2].view(DTYPES[name])[offset : offset + n]
            x[:] = parts[group.rank]
        with group.staged_up_to(staged_bytes) if group.shares_memory else contextlib.nullcontext():
            if kind == "allreduce":
                group.allreduce(x, op, algorithm=algorithm)
                assert_reduced(x, parts, op, name)
            elif kind == "reduce_scatter":
                own = group.reduce_scatter(x, op, algorithm="auto" if algorithm == "auto" else "ring")
                mine = group.chunk(n)
                assert_reduced(own, [part[mine] for part in parts], op, name)
            elif kind == "allgather":
                group.allgather(x, algorithm="auto" if algorithm == "auto" else "ring")
                for rank, part in enumerate(parts):
                    np.testing.assert_array_equal(x[group.chunk(n, rank)], part[group.chunk(n, rank)])
            elif kind == "alltoall":
                group.alltoall(x.reshape(group.size, -1))
                np.testing.assert_array_equal(x, np.concatenate([part[group.chunk(n)] for part in parts]))
            else:
                root = root_draw % group.size
                group.broadcast(x, root, algorithm="auto" if algorithm == "auto" else "ring")
                np.testing.assert_array_equal(x, parts[root])
    comm.barrier()
