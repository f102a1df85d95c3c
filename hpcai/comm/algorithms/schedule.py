"""Schedules: which chunk a rank sends to whom at which step. They are integers, so that tests need no communication.

The ring. An array is cut into P chunks; chunk c belongs to rank c. In the reduce-scatter lap chunk c starts at rank c+1 and
goes right; every rank folds its own values into it, so after P-1 steps rank c holds the whole sum of chunk c. In the
all-gather lap the reduced chunks go round once more and are copied. The order of additions depends on c alone, so the result
is the same from run to run, and since reduced chunks are copied it has the same bytes on all ranks.

Source: Patarasuk & Yuan, JPDC 69(2), 2009, doi:10.1016/j.jpdc.2008.09.002.
"""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One step of one rank: the number of the chunk to send to the right, and of the chunk to receive from the left."""

    send: int
    receive: int


def split(n: int, parts: int, index: int) -> slice:
    """Part `index` of `range(n)` cut into `parts` contiguous pieces whose lengths differ by one at most.

    >>> [split(10, 4, i) for i in range(4)]
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    return slice(n * index // parts, n * (index + 1) // parts)


def reduce_scatter(rank: int, size: int) -> list[Step]:
    """The steps of the first lap, at whose end rank r holds chunk r reduced.

    >>> reduce_scatter(rank=0, size=3)
    [Step(send=2, receive=1), Step(send=1, receive=0)]
    """
    return [Step((rank - 1 - s) % size, (rank - 2 - s) % size) for s in range(size - 1)]


def allgather(rank: int, size: int) -> list[Step]:
    """The steps of the second lap, which begins with chunk r on rank r and ends with all chunks on every rank.

    >>> allgather(rank=0, size=3)
    [Step(send=0, receive=2), Step(send=2, receive=1)]
    """
    return [Step((rank - s) % size, (rank - 1 - s) % size) for s in range(size - 1)]


class Exchange(NamedTuple):
    """One step of recursive halving: the partner, the chunks that this rank keeps, and those that it gives to the partner."""

    partner: int
    keep: range
    give: range


def halving(rank: int, size: int) -> list[Exchange]:
    """The steps of recursive halving among `size` ranks, a power of two. Near partners come first, since they exchange most.

    At the end each rank has one chunk, reduced. The steps backwards, with keep and give exchanged, are the all-gather.

    >>> halving(rank=2, size=4)
    [Exchange(partner=3, keep=range(0, 2), give=range(2, 4)), Exchange(partner=0, keep=range(1, 2), give=range(0, 1))]
    """
    steps, chunks, distance = [], range(size), 1
    while distance < size:
        halves = chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]
        upper = bool(rank & distance)
        chunks = halves[upper]
        steps.append(Exchange(rank ^ distance, chunks, halves[not upper]))
        distance *= 2
    return steps
