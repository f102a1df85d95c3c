"""How layers are shared between ranks, as far as a layer must know: its part, and the operations that join the parts.

The room knows no ranks: parallel/tensor.py makes a Split from a communicator, and WHOLE is a layer that is not shared out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcai.xp import Array


class Split(NamedTuple):
    """This rank has part `place` of `parts`.

    Between tensor-parallel layers each rank has 1/parts of the rows. `gather(name)` and `scatter(name)` give the layers that
    collect all rows before a product whose columns are shared out, and that sum such products' parts and leave each rank its
    rows. sum_into(x) and max_into(x) reduce a small array over the parts, in place, and return it.
    """

    place: int
    parts: int
    gather: Callable[[str], tuple[Any, ...]]
    scatter: Callable[[str], tuple[Any, ...]]
    sum_into: Callable[[Array], Array]
    max_into: Callable[[Array], Array]

    def share(self, n: int) -> slice:
        """This rank's part of n things, which `parts` divides."""
        each = n // self.parts
        return slice(self.place * each, (self.place + 1) * each)


WHOLE = Split(0, 1, lambda name: (), lambda name: (), lambda x: x, lambda x: x)
"""One rank that has everything."""
