"""Reducers by the names that --compress knows."""

from __future__ import annotations

from collections.abc import Callable

from hpcai.compress import cast, quantize, random_k, sign, top_k
from hpcai.compress.codec import Codec
from hpcai.errors import UsageError
from hpcai.reduce.combine import by_gather, by_scatter, by_sum, error_feedback
from hpcai.reduce.reducer import Reducer

PLAIN: dict[str, Callable[[], Codec]] = {
    "bf16": cast.bf16,
    "fp16": cast.fp16,
    "fp8": quantize.fp8,
    "int8": quantize.int8,
    "int4": quantize.int4,
    "sign": sign.sign,
}
WITH_RATIO: dict[str, Callable[[float], Codec]] = {"topk": top_k.top_k, "randomk": random_k.random_k}
CHOICES = ("none", *PLAIN, *(f"{name}:RATIO" for name in WITH_RATIO))


def named(name: str, ranks: int) -> Reducer | None:
    """The reducer of that name with error feedback, None for "none". Cheapest way for so many ranks: see combine.py.

    Raises: UsageError, naming the choices.
    """
    if name == "none":
        return None
    codec = _codec(name)
    if codec.name.startswith("randomk"):
        return error_feedback(by_sum(codec))
    sparse = codec.name.startswith("topk")
    return error_feedback(by_gather(codec) if sparse or ranks <= 2 else by_scatter(codec))


def _codec(name: str) -> Codec:
    base, colon, value = name.partition(":")
    if base in PLAIN and not colon:
        return PLAIN[base]()
    if base in WITH_RATIO:
        try:
            return WITH_RATIO[base](float(value))
        except ValueError:
            raise UsageError(f"--compress {base} wants a ratio above 0 and up to 1, as in {base}:0.01; got {name!r}") from None
    raise UsageError(f"--compress wants one of {', '.join(CHOICES)}; got {name!r}")
