"""Matrix products, computed by BLAS."""

from __future__ import annotations

from hpcai.ops.door import takes
from hpcai.xp import Array, namespace


@takes(out="T m n", a="T m k", b="T k n", writes="out", strided="a b")
def matmul_into(out: Array, a: Array, b: Array) -> Array:
    """out = a b; a and b may be transposed views. Returns out."""
    return namespace(out).matmul(a, b, out=out)
