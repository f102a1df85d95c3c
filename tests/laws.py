"""What every member must obey: sizes, dtypes and numbers of ranks to try, and data that a misplaced element cannot survive."""

from __future__ import annotations

import numpy as np

from hpcai.xp import DTYPES

SIZES = (0, 1, 2, 3, 10, 101, 4099)
RANKS = (1, 2, 3, 4, 5, 7)
OPS = ("sum", "mean", "max", "min")


def shares(size: int, n: int, name: str, seed: int = 0) -> list[np.ndarray]:
    """Each rank's array of n elements of dtype `name`: all elements of all ranks differ, up to rounding."""
    rng = np.random.default_rng([seed, size, n])
    values = rng.permutation(size * n).reshape(size, n) - size * n // 2
    scale = 1 if name.startswith("i") else 1 / 7
    return [(row * scale).astype(DTYPES[name]) for row in values]


def expected(parts: list[np.ndarray], op: str) -> np.ndarray:
    """The reduction in f64 (integers exactly)."""
    exact = np.int64 if parts[0].dtype.kind == "i" else np.float64
    wide = np.stack([part.astype(exact) for part in parts])
    if op == "mean":
        total = wide.sum(0)
        return np.trunc(total / len(parts)).astype(exact) if exact is np.int64 else total / len(parts)
    return {"sum": wide.sum, "max": wide.max, "min": wide.min}[op](0)


def tolerance(name: str, size: int) -> float:
    """Relative error of a sum of `size` values, each exact, rounded once to a 16-bit type or at every step otherwise."""
    return {"f16": 2**-11, "bf16": 2**-8, "f32": size * 2**-24, "f64": size * 2**-53}.get(name, 0.0)


def assert_reduced(result: np.ndarray, parts: list[np.ndarray], op: str, name: str) -> None:
    want = expected(parts, op)
    magnitude = np.abs(np.stack([part.astype(np.float64) for part in parts])).sum(0) if parts[0].size else 0.0
    bound = tolerance(name, len(parts)) * np.maximum(np.abs(want), 1e-30) + (
        len(parts) * 2**-24 * magnitude if result.dtype.itemsize == 2 else tolerance(name, len(parts)) * magnitude
    )
    error = np.abs(result.astype(want.dtype) - want)
    assert (error <= bound).all(), f"{op} of {name}: largest error {error.max()}"
