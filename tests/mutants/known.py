"""Faults that were looked at and change nothing that a test could see, each with the reason."""

from __future__ import annotations

from tests.mutants.operators import Fault

_SEED = "another seed by default is as good"
CHANGES_NOTHING: dict[tuple[str, str, str], str] = {
    (
        "hpcai/optim/clip.py",
        "return sqrt(square) if (square := ops.sum_of_squares(grads)) >= 0 else square",
        "return sqrt(square) if (square := ops.sum_of_squares(grads)) > 0 else square",
    ): "the root of 0 is 0",
    (
        "hpcai/compress/sign.py",
        'return blockwise("sign", stochastic=False, seed=0)',
        'return blockwise("sign", stochastic=True, seed=0)',
    ): "signs are not rounded",
    (
        "hpcai/reduce/combine.py",
        "row[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)",
        "row[at : at + part.nbytes] = part.reshape(-2).view(np.uint8)",
    ): "numpy takes any negative length for the one that is to be found",
    (
        "hpcai/compress/quantize.py",
        "def int4(*, stochastic: bool = False, seed: int = 0) -> Codec:",
        "def int4(*, stochastic: bool = False, seed: int = 1) -> Codec:",
    ): _SEED,
    (
        "hpcai/compress/quantize.py",
        "def fp8(*, stochastic: bool = False, seed: int = 0) -> Codec:",
        "def fp8(*, stochastic: bool = False, seed: int = 1) -> Codec:",
    ): _SEED,
    (
        "hpcai/compress/random_k.py",
        "def random_k(ratio: float, *, seed: int = 0) -> Codec:",
        "def random_k(ratio: float, *, seed: int = 1) -> Codec:",
    ): _SEED,
}
"""(file, line's text, what it becomes) -> why nothing differs."""


def reason(fault: Fault) -> str | None:
    """Why this fault changes nothing; None if it is not known to."""
    return CHANGES_NOTHING.get((fault.file, fault.before, fault.after))
