"""What algorithms and reducers send, as the page of algorithms shows it. tests/test_docs.py counts and compares.

P ranks, n bytes of array (f32), N nodes of L ranks. Numbers are of the rank that sends most.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import NamedTuple

SEGMENT = 60 << 10
LONGEST = 1 << 20


class Collective(NamedTuple):
    """An algorithm on messages: its words, and what one rank sends of an f32 array of n bytes on P ranks, P a power of two."""

    name: str
    call: str
    messages_in_words: str
    bytes_in_words: str
    source: str
    messages: Callable[[int, int], int]
    nbytes: Callable[[int, int], float]


def _pieces(n: float, longest: int) -> int:
    return max(1, -int(-n // longest))


COLLECTIVES = (
    Collective(
        "ring",
        '`allreduce(x, algorithm="ring")`',
        "`2(P-1)`, each in segments of 60 KiB",
        "`2n(P-1)/P`",
        "Patarasuk & Yuan, JPDC 69(2), 2009",
        lambda P, n: 2 * (P - 1) * _pieces(n / P, SEGMENT),
        lambda P, n: 2 * n * (P - 1) / P,
    ),
    Collective(
        "halving and doubling",
        '`allreduce(x, algorithm="halving_doubling")`',
        "`2 log2 P`, each in pieces of 1 MiB",
        "`2n(P-1)/P`; up to n more where P is no power of two",
        "Rabenseifner, ICCS 2004",
        lambda P, n: 2 * sum(_pieces(n / 2**k, LONGEST) for k in range(1, int(log2(P)) + 1)),
        lambda P, n: 2 * n * (P - 1) / P,
    ),
    Collective(
        "first lap of the ring",
        "`reduce_scatter(x)`",
        "`P-1`, each in segments of 60 KiB",
        "`n(P-1)/P`",
        "as the ring",
        lambda P, n: (P - 1) * _pieces(n / P, SEGMENT),
        lambda P, n: n * (P - 1) / P,
    ),
    Collective(
        "second lap of the ring",
        "`allgather(x)`",
        "`P-1`, each in segments of 60 KiB",
        "`n(P-1)/P`",
        "as the ring",
        lambda P, n: (P - 1) * _pieces(n / P, SEGMENT),
        lambda P, n: n * (P - 1) / P,
    ),
    Collective(
        "chain",
        "`broadcast(x)`",
        "1, in segments of 60 KiB that follow each other",
        "n",
        "",
        lambda P, n: _pieces(n, SEGMENT),
        lambda P, n: n,
    ),
    Collective(
        "pairwise",
        "`alltoall(x)`",
        "`P-1`, each in segments of 60 KiB",
        "`n(P-1)/P`",
        "",
        lambda P, n: (P - 1) * _pieces(n / P, SEGMENT),
        lambda P, n: n * (P - 1) / P,
    ),
)


class Compression(NamedTuple):
    """A choice of --compress: how it travels on two ranks and on more, and the bytes that a rank sends of m f32 elements on P."""

    choice: str
    error: str
    by: str
    bytes_in_words: str
    source: str
    nbytes: Callable[[int, int], float]


def _scattered(per_element: float) -> Callable[[int, int], float]:
    """One payload on two ranks; on more 2(P-1)/P of one."""
    return lambda P, m: per_element * m * (1 if P <= 2 else 2 * (P - 1) / P)


COMPRESSIONS = (
    Compression("none", "none", "all-reduce", "`8m(P-1)/P`", "", lambda P, m: 8 * m * (P - 1) / P),
    Compression("bf16", "2^-9 of each value", "scatter", "`4m(P-1)/P`", "", _scattered(2)),
    Compression("fp16", "2^-12 of each value; beyond 65504 infinite", "scatter", "`4m(P-1)/P`", "", _scattered(2)),
    Compression(
        "fp8",
        "1/16 of each value",
        "scatter",
        "`2m(P-1)/P` and scales: 4 bytes for 256 elements",
        "Micikevicius et al., arXiv:2209.05433",
        _scattered(1 + 4 / 256),
    ),
    Compression(
        "int8",
        "1/254 of the largest in a block of 256",
        "scatter",
        "`2m(P-1)/P` and scales",
        "Dettmers, arXiv:1511.04561",
        _scattered(1 + 4 / 256),
    ),
    Compression(
        "int4",
        "1/14 of the largest in a block of 256",
        "scatter",
        "`m(P-1)/P` and scales",
        "Alistarh et al., arXiv:1610.02132",
        _scattered(1 / 2 + 4 / 256),
    ),
    Compression(
        "sign",
        "all but the sign and a block's mean magnitude",
        "scatter",
        "`m(P-1)/(4P)` and scales",
        "Seide et al., Interspeech 2014",
        _scattered(1 / 8 + 4 / 256),
    ),
    Compression(
        "int8sum",
        "half a level of 127 // P on either side",
        "all-reduce of integers",
        "`2(P-1)/P (m + m/64)`",
        "Li et al., NSDI 2024, arXiv:2302.08545",
        lambda P, m: 2 * (P - 1) / P * (m + m / 64),
    ),
    Compression(
        "topk:0.01",
        "all but the largest hundredth",
        "gather",
        "8 bytes for each chosen element, times P-1",
        "Aji & Heafield, arXiv:1704.05021",
        lambda P, m: 0.08 * m * (P - 1),
    ),
    Compression(
        "randomk:0.01",
        "all but a random hundredth, in blocks of 64",
        "all-reduce of values",
        "`8(P-1)/P` for each chosen element",
        "Stich et al., arXiv:1809.07599",
        lambda P, m: 0.08 * m * (P - 1) / P,
    ),
    Compression(
        "reproducible",
        "2^-46 of the largest",
        "all-reduce of i64",
        "`16m(P-1)/P`",
        "after Demmel & Nguyen, ARITH 2013",
        lambda P, m: 16 * m * (P - 1) / P,
    ),
)


def table(name: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and the cells of a table of the page: "collectives" or "compression"."""
    if name == "collectives":
        head = ("call", "algorithm", "messages of a rank", "bytes of a rank", "source")
        return head, [(one.call, one.name, one.messages_in_words, one.bytes_in_words, one.source) for one in COLLECTIVES]
    head = ("`--compress`", "what is lost", "how it travels", "bytes of a rank", "source")
    return head, [(f"`{one.choice}`", one.error, one.by, one.bytes_in_words, one.source) for one in COMPRESSIONS]
