"""Parts of whole arrays, and the intersections of two layouts of such parts: integers only.

A rank's flat array holds parts one after the other. Each part is a box of a whole array, in row-major order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from hpcai.xp import Array

Box = tuple[tuple[int, int], ...]
"""(start, stop) in each dim."""


class Part(NamedTuple):
    """A box of a whole array, which has this name and shape. start: the place in the flat array where the part begins."""

    name: str
    shape: tuple[int, ...]
    box: Box
    start: int

    @property
    def extent(self) -> tuple[int, ...]:
        """The box's own shape."""
        return tuple(b - a for a, b in self.box)

    @property
    def stop(self) -> int:
        """The end of the part in the flat array."""
        return self.start + prod(self.extent)

    def run(self, box: Box) -> slice:
        """Return the shortest run of the flat array that contains a box. box: within this part's box, not empty."""
        last = self.start + sum((b - 1 - at) * step for (_, b), (at, _), step in zip(box, self.box, self._steps(), strict=True))
        first = self.start + sum((a - at) * step for (a, _), (at, _), step in zip(box, self.box, self._steps(), strict=True))
        return slice(first, last + 1)

    def view(self, flat: Array, box: Box) -> Array:
        """Return a box within this part's box, as a view of the flat array."""
        own = flat[self.start : self.stop].reshape(self.extent)
        cuts = [slice(a - at, b - at) for (a, b), (at, _) in zip(box, self.box, strict=True)]
        view: Array = own[(*cuts, ...)]  # type: ignore[arg-type]  # a view even where there is no dim
        return view

    def rows(self, wanted: Sequence[slice]) -> Iterator[Box]:
        """Yield the rows (along the first dim) that have wanted elements, as boxes. wanted: slices of the flat array."""
        if not self.box:
            yield from ((),) * any(want.start <= self.start < want.stop for want in wanted)
            return
        (top, bottom), *others = self.box
        length = prod(self.extent[1:])
        for want in wanted:
            if length and want.start < self.stop and want.stop > self.start:
                first = (max(want.start, self.start) - self.start) // length
                after = -(-(min(want.stop, self.stop) - self.start) // length)
                yield ((top + first, min(bottom, top + after)), *others)

    def _steps(self) -> list[int]:
        """Return the stride of each dim, in elements."""
        return [prod(self.extent[dim + 1 :]) for dim in range(len(self.box))]


class Shared(NamedTuple):
    """The intersection of two parts, one of their layout and one of mine."""

    theirs: Part
    mine: Part
    box: Box

    @property
    def run(self) -> slice:
        """The shortest run of their flat array that contains the box."""
        return self.theirs.run(self.box)

    def copy(self, theirs: Array, mine: Array) -> None:
        """Copy the box from their flat array into mine."""
        self.mine.view(mine, self.box)[...] = self.theirs.view(theirs, self.box)


def part(name: str, shape: Sequence[int], box: Iterable[Sequence[int]], start: int) -> Part:
    """Return the part that a manifest's JSON describes."""
    return Part(name, tuple(shape), tuple((a, b) for a, b in box), start)


def shared(theirs: Sequence[Part], mine: Sequence[Part], wanted: Sequence[slice]) -> list[Shared]:
    """Return the intersections of their parts with mine, restricted to rows with wanted elements of my flat array.

    >>> four = part("w", (4, 2), [(0, 4), (0, 2)], 0)
    >>> below = part("w", (4, 2), [(2, 4), (0, 2)], 16)
    >>> [(one.box, one.run) for one in shared([four], [below], [slice(18, 20)])]
    [(((3, 4), (0, 2)), slice(6, 8, None))]
    """
    by_name: dict[str, list[Part]] = {}
    for one in theirs:
        by_name.setdefault(one.name, []).append(one)
    found = []
    for own in mine:
        for rows, other in itertools.product(own.rows(wanted), by_name.get(own.name, [])):
            box = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(rows, other.box, strict=True))
            if all(a < b for a, b in box):
                found.append(Shared(other, own, box))
    return found


def overlap(a: slice, b: slice) -> slice:
    """Return the intersection of two runs; start >= stop if they do not overlap."""
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def merged(runs: Iterable[slice]) -> list[slice]:
    """Return the elements of `runs` as sorted runs that do not touch.

    >>> merged([slice(4, 6), slice(0, 3), slice(2, 4), slice(8, 9)])
    [slice(0, 6, None), slice(8, 9, None)]
    """
    found: list[slice] = []
    for run in sorted((run for run in runs if run.start < run.stop), key=lambda run: run.start):
        if found and run.start <= found[-1].stop:
            found[-1] = slice(found[-1].start, max(found[-1].stop, run.stop))
        else:
            found.append(run)
    return found


def covered(wanted: Iterable[slice], runs: Iterable[slice]) -> bool:
    """Return whether every wanted element is in one of the runs."""
    have = merged(runs)
    return all(any(run.start <= want.start and want.stop <= run.stop for run in have) for want in merged(wanted))
