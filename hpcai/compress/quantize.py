"""Levels of 8 or 4 bits with a scale for each block of 256 elements.

Sources: Dettmers, arXiv:1511.04561 (8-bit blocks); Alistarh et al., arXiv:1610.02132 (stochastic rounding); Micikevicius et
al., arXiv:2209.05433 (fp8-e4m3).
"""

from __future__ import annotations

from hpcai.compress.blockwise import blockwise
from hpcai.compress.codec import Codec


def int8(*, stochastic: bool = False, seed: int = 0) -> Codec:
    """Levels -127..127. Payload: 1 byte an element and 4 bytes a block. Error at most 1/254 of a block's largest magnitude.

    stochastic: round up or down at random, so that the expected value is exact and the error at most 1/127; otherwise round to
    nearest. seed: of the random numbers.
    """
    return blockwise("int8", stochastic, seed)


def int4(*, stochastic: bool = False, seed: int = 0) -> Codec:
    """Levels -7..7. Payload: half a byte an element and 4 bytes a block. Error at most 1/14 of a block's largest magnitude."""
    return blockwise("int4", stochastic, seed)


def fp8(*, stochastic: bool = False, seed: int = 0) -> Codec:
    """fp8-e4m3 of values scaled so that a block's largest magnitude is 448. Payload as int8. Error at most 1/16 of each value, or
    2^-19 of the block's largest magnitude."""
    return blockwise("fp8", stochastic, seed)
