"""Reducers by the names that --compress knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec
from hpcai.errors import UsageError, meant
from hpcai.reduce.combine import by_gather, by_scatter, by_sum, error_feedback, exact
from hpcai.reduce.integer_sum import integer_sum
from hpcai.reduce.power_sgd import Place, power_sgd
from hpcai.reduce.reducer import Reducer
from hpcai.reduce.reproducible import reproducible

PLAIN: dict[str, Callable[[], Codec]] = {
    "bf16": cast.bf16,
    "fp16": cast.fp16,
    "fp8": quantize.fp8,
    "int8": quantize.int8,
    "int4": quantize.int4,
    "sign": sign.sign,
}
WITH_RATIO: dict[str, Callable[[float], Codec]] = {"topk": top_k.top_k, "randomk": random_k.random_k}
_RATIO = re.compile(r"([0-9]*\.)?[0-9]+(e-?[0-9]{1,3})?")
CHOICES = ("none", *PLAIN, "int8sum", *(f"{name}:RATIO" for name in WITH_RATIO), "powersgd:RANK", "reproducible")


def named(name: str, ranks: int, *, places: Sequence[Place] = (), seed: int = 0, feedback: bool = True) -> Reducer:
    """The reducer of that name, in the way that is cheapest for so many ranks (see combine.py).

    places: the arrays in the flat one that is to be reduced, for powersgd. feedback: with a memory for what is lost, where
    something is. Raises: UsageError, naming the choices.
    """
    if name == "none":
        return exact()
    if name == "reproducible":
        return reproducible()
    reducer = _without_memory(name, ranks, places, seed)
    return error_feedback(reducer) if feedback else reducer


def _without_memory(name: str, ranks: int, places: Sequence[Place], seed: int) -> Reducer:
    if name == "int8sum":
        return integer_sum()
    if name.partition(":")[0] == "powersgd":
        return power_sgd(_approximation_rank(name), places, seed=seed)
    codec = _codec(name)
    if codec.name.startswith("randomk"):
        return by_sum(codec)
    sparse = codec.name.startswith("topk")
    return by_gather(codec) if sparse or ranks <= 2 else by_scatter(codec)


def _approximation_rank(name: str) -> int:
    text = name.partition(":")[2]
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise UsageError(f"--compress powersgd wants an approximation rank of 1 at least, as in powersgd:4; got {name[:60]!r}")
    return int(text)


def _codec(name: str) -> Codec:
    base, colon, value = name.partition(":")
    if base in PLAIN and not colon:
        return PLAIN[base]()
    if base in WITH_RATIO:
        try:
            return WITH_RATIO[base](float(value) if _RATIO.fullmatch(value) else 0.0)
        except ValueError:
            raise UsageError(
                f"--compress {base} wants a ratio above 0 and up to 1, as in {base}:0.01; got {name[:60]!r}"
            ) from None
    near = meant(base, [choice.partition(":")[0] for choice in CHOICES])
    raise UsageError(f"--compress wants one of {', '.join(CHOICES)}; got {name[:60]!r}{near}")
