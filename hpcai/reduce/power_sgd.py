"""PowerSGD: matrices travel as the two thin factors of a low-rank approximation, found by one step of subspace iteration.

M is a gradient matrix (n, m), r the approximation rank. P = M Q (n, r) is averaged and orthonormalised. Then Q = M^T P (m, r) is
averaged, and P Q^T is the mean that all ranks get. Q starts the next step, since the subspace changes little (warm start).

Source: Vogels, Karimireddy & Jaggi, arXiv:1905.13727. Here Cholesky QR in f64 orthonormalises each P.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.ops import ranges, streams
from hpcai.ops.door import takes
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array

Place = tuple[int, tuple[int, ...]]
"""The start of an array in the flat array, and the array's shape."""

BLOCK_ELEMENTS = 1 << 16
"""Elements of a matrix that are processed at a time."""


def power_sgd(approximation_rank: int, places: Sequence[Place], *, seed: int = 0) -> Reducer:
    """Return a reducer of two all-reduces: one of all P's, one of all Q's and of all elements that are not factored.

    places: the arrays in the flat array; those with two dims and r(n+m) < nm travel as factors. Needs error feedback.
    State: the Q's, the same on all ranks. Cost: 8(P-1)/P bytes sent per rank for each of the r(n+m) elements of factors.
    """
    ranges.counts(power_sgd, 1, approximation_rank=approximation_rank)
    streams.seed_checked(seed)
    r = approximation_rank
    matrices = [(start, shape) for start, shape in places if len(shape) == 2 and r * sum(shape) < prod(shape)]

    def init(x: Array) -> State:
        rng = streams.generator(seed, x.size)
        return tuple(rng.normal(size=(m, r)).astype(np.float32) for _, (_, m) in matrices)

    def views(x: Array) -> list[Array]:
        return [x[start : start + prod(shape)].reshape(shape) for start, shape in matrices]

    def others(n: int) -> list[slice]:
        ends = [0, *(start + prod(shape) for start, shape in matrices)]
        starts = [*(start for start, _ in matrices), n]
        return [slice(end, start) for end, start in zip(ends, starts, strict=True) if end < start]

    @takes(x="f32 n", memory="f32 n", writes="x memory")
    def keep(x: Array, memory: Array, comm: Collectives, state: State) -> Reduced:
        means, ms, rest = views(x), views(memory), others(x.size)
        for s in rest:
            memory[s] += x[s]

        ps, flat = _thin([(len(M), r) for M in ms])
        for X, M, Q, P in zip(means, ms, state, ps, strict=True):
            for rows in _row_blocks(M):
                M[rows] += X[rows]
                np.matmul(M[rows], Q, out=P[rows])
        comm.allreduce(flat, "mean")

        qs, flat = _thin([(M.shape[1], r) for M in ms], sum(s.stop - s.start for s in rest))
        for M, P, Q in zip(ms, ps, qs, strict=True):
            _orthonormalise(P)
            np.matmul(M.T, P, out=Q)
        tail = flat[flat.size - sum(s.stop - s.start for s in rest) :]
        np.concatenate([memory[s] for s in rest], out=tail) if rest else None
        comm.allreduce(flat, "mean")

        for mean, M, P, Q in zip(means, ms, ps, qs, strict=True):
            for rows in _row_blocks(M):
                np.matmul(P[rows], Q.T, out=mean[rows])
                M[rows] -= mean[rows]
        at = 0
        for s in rest:
            x[s] = tail[at : at + s.stop - s.start]
            memory[s] = 0
            at += s.stop - s.start
        # A column of Q that became zero keeps its old value, since a zero column would stay zero.
        return Reduced(x, memory, tuple(np.where(Q.any(0), Q, before) for Q, before in zip(qs, state, strict=True)))

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        return keep(x, np.zeros_like(x), comm, state)

    return Reducer(f"powersgd:{r}", init, reduce, keep)


def _row_blocks(M: Array) -> list[slice]:
    """Return blocks of rows that stay in the cache from one operation to the next."""
    step = max(1, BLOCK_ELEMENTS // M.shape[1])
    return [slice(start, start + step) for start in range(0, len(M), step)]


def _thin(shapes: list[tuple[int, int]], more: int = 0) -> tuple[list[Array], Array]:
    """Return consecutive arrays of these shapes in a flat array, and the flat array, which ends with `more` further elements."""
    flat = np.empty(sum(map(prod, shapes)) + more, np.float32)
    made, at = [], 0
    for shape in shapes:
        made.append(flat[at : at + prod(shape)].reshape(shape))
        at += prod(shape)
    return made, flat


def _orthonormalise(P: Array) -> None:
    """Make the columns of P (n, r) orthonormal, or zero where P has lower rank, by Cholesky QR, twice for accuracy.

    All become NaN if P is not finite.
    """
    wide = P.astype(np.float64)
    if not np.isfinite(wide).all():
        P[...] = np.nan
        return
    for _ in range(2):
        gram = wide.T @ wide
        gram[np.diag_indices_from(gram)] += 1e-12 * max(np.trace(gram), 1e-300)
        wide = np.linalg.solve(np.linalg.cholesky(gram), wide.T).T
    P[...] = wide
