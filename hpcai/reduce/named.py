"""Reducers by the names that --compress accepts; CODECS is their table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec
from hpcai.entry import Entry
from hpcai.errors import UsageError, meant
from hpcai.reduce.combine import by_gather, by_scatter, by_sum, error_feedback, exact
from hpcai.reduce.integer_sum import integer_sum
from hpcai.reduce.power_sgd import Place, power_sgd
from hpcai.reduce.reducer import Reducer
from hpcai.reduce.reproducible import reproducible

_RATIO = re.compile(r"([0-9]*\.)?[0-9]+(e-?[0-9]{1,3})?")
Make = Callable[[str, int, Sequence[Place], int], Reducer]


def _plainly(reducer: Callable[[], Reducer]) -> Make:
    """The maker of a reducer that has no argument and is the same for any number of ranks."""
    return lambda value, ranks, places, seed: reducer()


def _whole(codec: Callable[[], Codec]) -> Make:
    """The maker of a reducer from a codec without an argument, combined in the cheapest way for the number of ranks."""

    def make(value: str, ranks: int, places: Sequence[Place], seed: int) -> Reducer:
        return by_gather(codec()) if ranks <= 2 else by_scatter(codec())

    return make


def _of_a_ratio(name: str, codec: Callable[[float], Codec], combined: Callable[[Codec], Reducer]) -> Make:
    """The maker of a reducer from a codec that sends a ratio of the elements."""

    def make(value: str, ranks: int, places: Sequence[Place], seed: int) -> Reducer:
        try:
            return combined(codec(float(value) if _RATIO.fullmatch(value) else 0.0))
        except ValueError:
            given = f"{name}:{value}".rstrip(":")
            raise UsageError(
                f"--compress {name} wants a ratio above 0 and up to 1, as in {name}:0.01; got {given[:60]!r}"
            ) from None

    return make


def _power_sgd(value: str, ranks: int, places: Sequence[Place], seed: int) -> Reducer:
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        given = f"powersgd:{value}".rstrip(":")
        raise UsageError(f"--compress powersgd wants an approximation rank of at least 1, as in powersgd:4; got {given[:60]!r}")
    return power_sgd(int(value), places, seed=seed)


CODECS = {
    "none": Entry("no compression", _plainly(exact)),
    "bf16": Entry("bfloat16", _whole(cast.bf16)),
    "fp16": Entry("IEEE half precision", _whole(cast.fp16)),
    "fp8": Entry("8-bit floating point (e4m3) with a scale for each block", _whole(quantize.fp8), source="arXiv:2209.05433"),
    "int8": Entry("8-bit levels with a scale for each block", _whole(quantize.int8), source="arXiv:1610.02132"),
    "int4": Entry("4-bit levels with a scale for each block", _whole(quantize.int4), source="arXiv:1610.02132"),
    "sign": Entry("signs with a scale for each block", _whole(sign.sign), source="arXiv:1802.04434"),
    "int8sum": Entry("8-bit levels, which the all-reduce sums as integers", _plainly(integer_sum)),
    "topk:RATIO": Entry(
        "the elements of largest magnitude", _of_a_ratio("topk", top_k.top_k, by_gather), source="arXiv:1704.05021"
    ),
    "randomk:RATIO": Entry(
        "random elements, the same on all ranks", _of_a_ratio("randomk", random_k.random_k, by_sum), source="arXiv:1809.07599"
    ),
    "powersgd:RANK": Entry("low-rank factors of matrices", _power_sgd, source="arXiv:1905.13727"),
    "reproducible": Entry("sums of integers: the same bits for any number of ranks", _plainly(reproducible)),
}
"""Name, with its argument in capitals -> entry. `make(value, ranks, places, seed)` returns a Reducer; see `by_name`."""

CHOICES = tuple(CODECS)
_BY_BASE = {name.partition(":")[0]: name for name in CODECS}


def by_name(name: str, ranks: int, *, places: Sequence[Place] = (), seed: int = 0, feedback: bool = True) -> Reducer:
    """Return the reducer of that name, combined in the cheapest way for so many ranks (see combine.py).

    places: for powersgd, the arrays in the flat array to reduce. seed: of random choices. feedback: use error feedback, except
    for "none" and "reproducible". Raises: UsageError, which names the choices.
    """
    base, colon, value = name.partition(":")
    full = _BY_BASE.get(base, "")
    if not full or (colon and ":" not in full):
        near = meant(base, list(_BY_BASE))
        raise UsageError(f"--compress wants one of {', '.join(CHOICES)}; got {name[:60]!r}{near}")
    reducer: Reducer = CODECS[full].make(value, ranks, places, seed)
    return error_feedback(reducer) if feedback and full not in ("none", "reproducible") else reducer
