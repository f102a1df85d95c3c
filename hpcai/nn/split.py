"""How ranks split layers, as far as a layer must know: its part, and the operations that combine the parts.

hpcai/nn does not use communicators: parallel/tensor.py makes a Split from one. WHOLE is the Split of a layer on a single rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcai.xp import Array


class Split(NamedTuple):
    """This rank has part `place` of `parts`.

    Between tensor-parallel layers each rank has 1/parts of the rows. `gather(name)` returns the layers that collect all rows
    before a product whose columns are split. `scatter(name)` returns the layers that sum the parts of a product and leave each
    rank its rows. sum_into(x) and max_into(x) reduce a small array over the parts, in place, and return the array.
    """

    place: int
    parts: int
    gather: Callable[[str], tuple[Any, ...]]
    scatter: Callable[[str], tuple[Any, ...]]
    sum_into: Callable[[Array], Array]
    max_into: Callable[[Array], Array]

    def share(self, n: int) -> slice:
        """Return this rank's part of n elements; n must be divisible by `parts`."""
        each = n // self.parts
        return slice(self.place * each, (self.place + 1) * each)


WHOLE = Split(0, 1, lambda name: (), lambda name: (), lambda x: x, lambda x: x)
"""The Split of one rank, which has everything."""
