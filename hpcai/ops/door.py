"""Declarations of a verb's arguments: a call is checked once, at the door, and kernels trust the arguments.

    @takes(out="T b k", rows="u8|f32|f64 n k", index="i64 b <n", writes="out")
    def gather_into(out, rows, index, scale: float, shift: float): ...

An array is declared by its dtypes and dims. A dim is a name, which means the same size wherever it occurs, or an expression of
names and scalars; `*` is any shape, the same for all arrays declared so. A capital letter is one of several dtypes (see
layouts.py), the same wherever it occurs. `<n`: every value is at least 0 and below n. Arrays must be aligned and contiguous. An
array that a verb writes must be writable and must not overlap the others. Annotations declare scalars and arguments that may be
None.

Cost: each combination of dtypes and shapes is examined once. A call like an earlier accepted one goes through a native door
(kernels/cpu/door.cpp), which accepts it in 1 us or leaves the decision to `check`. Without kernels a check takes 10 us.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import combinations
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np

from hpcai.ops import layouts
from hpcai.ops.layouts import Rule, described
from hpcai.xp import Array

try:
    from hpcai._native import Door as _Door
except ImportError:  # not built
    _Door = None
Door: Any = _Door

Verb = TypeVar("Verb", bound=Callable[..., Any])
U32: TypeAlias = int
U64: TypeAlias = int
"""Annotations of whole numbers below 2**32 and 2**64."""

ARRAYS = {np.ndarray, np.memmap}
"""The accepted types. Other subclasses may give their values another meaning, as masked arrays do."""

MOST_SEEN = 1024
"""Combinations of dtypes and shapes that a verb remembers."""

WHOLE = {int, *(np.dtype(kind).type for kind in "bhilqBHILQ")}
SCALARS: dict[str, tuple[str, set[type], str, int | None]] = {
    "int": ("i", WHOLE, "a whole number", None),
    "U32": ("u", WHOLE, "a whole number from 0 to below 2**32", 2**32),
    "U64": ("U", WHOLE, "a whole number from 0 to below 2**64", 2**64),
    "float": ("f", WHOLE | {float, np.float16, np.float32, np.float64}, "a number", None),
    "bool": ("b", {bool, np.bool_}, "True or False", None),
    "str": ("s", {str}, "a name", None),
}
"""Annotation -> the native door's letter for it, the accepted types, the words in messages, the exclusive upper limit."""


class ArrayRule(NamedTuple):
    """The native door's rule for one array; `place` is its position among the arguments."""

    place: int
    written: bool
    strided: bool
    optional: bool
    limited: bool


class ScalarRule(NamedTuple):
    """The native door's rule for one scalar. shaping: shapes depend on the scalar."""

    place: int
    letter: str
    optional: bool
    shaping: bool


class _Scalar(NamedTuple):
    """The requirement on one scalar."""

    name: str
    letter: str
    kinds: set[type]
    words: str
    limit: int | None
    optional: bool


def takes(
    *, writes: str = "", same: str = "", strided: str = "", where: Mapping[str, str] | None = None, **arrays: str
) -> Callable[[Verb], Verb]:
    """Declare a verb's arguments; calls with other arguments raise an error.

    writes: names of arrays that are written. strided: names of arrays that need not be contiguous. same: names of arrays that may
    be one and the same array, although it is written. where: conditions on dims, letters of dtypes and scalars, each with the
    words that say what is wanted. A call raises TypeError (type or dtype) or ValueError (shape, memory or values).
    """

    def declared(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        rules = [
            layouts.rule(
                name, spec, name in writes.split(), name in strided.split(), "None" in str(signature.parameters[name].annotation)
            )
            for name, spec in arrays.items()
        ]
        return _guarded(verb, signature, rules, set(same.split()), dict(where or {}))

    return declared


def _guarded(verb: Any, signature: inspect.Signature, rules: list[Rule], same: set[str], where: dict[str, str]) -> Any:
    """Return the verb with its checks. `.unchecked` is the verb itself, for callers that have checked; `.rules` are for tests."""
    names = list(signature.parameters)
    scalars = _scalars(signature)
    check, shaping = _check(verb, names, rules, scalars, same, where)

    def bind(*args: Any, **named: Any) -> tuple[Any, ...]:
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def enter(*args: Any, **named: Any) -> Any:
        args = args if len(args) == len(names) and not named else bind(*args, **named)
        check(args)
        return verb(*args)

    if Door is not None:
        looks = [
            ArrayRule(names.index(rule.name), rule.written, rule.strided, rule.optional, rule.limit is not None) for rule in rules
        ]
        kinds = [ScalarRule(names.index(one.name), one.letter, one.optional, one.name in shaping) for one in scalars]
        enter = Door(verb, check, bind, len(names), looks, kinds, _apart(names, rules))
    entered: Any = wraps(verb)(enter)
    entered.unchecked, entered.rules = verb, rules
    return entered


def _check(
    verb: Any, names: list[str], rules: list[Rule], scalars: list[_Scalar], same: set[str], where: dict[str, str]
) -> tuple[Callable[[tuple[Any, ...]], tuple[int, ...]], list[str]]:
    """Return a function and the names of the scalars on which shapes depend. The function checks all arguments of a call in
    order, and returns the limits of arrays' values.
    """
    title = verb.__name__
    fit, shaping = layouts.fits(title, verb.__globals__, rules, where, [one.name for one in scalars])
    places = [(names.index(rule.name), rule) for rule in rules]
    scalar_places = [(names.index(one.name), one) for one in scalars]
    shaping_places = [names.index(name) for name in shaping]
    apart = [(a, b, {names[a], names[b]} <= same) for a, b in _apart(names, rules)]
    seen: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def check(args: tuple[Any, ...]) -> tuple[int, ...]:
        key: list[Any] = []
        for at, rule in places:
            key += _looked_at(title, rule, args[at])
        for at, scalar in scalar_places:
            _look_at_scalar(title, scalar, args[at])
        key += [args[at] for at in shaping_places]
        limits = seen.get(fitting := tuple(key))
        if limits is None:
            if len(seen) >= MOST_SEEN:
                seen.clear()
            limits = seen[fitting] = fit(*key)
        for a, b, may_be_same in apart:
            _refuse_overlap(title, names[a], args[a], names[b], args[b], may_be_same)
        limited = [(rule.name, args[at]) for at, rule in places if rule.limit is not None and args[at] is not None]
        for (name, x), limit in zip(limited, limits, strict=True):
            refuse_outside(title, name, x, limit)
        return limits

    return check, shaping


def _apart(names: list[str], rules: list[Rule]) -> list[tuple[int, int]]:
    """Pairs of positions of arrays that must not share memory."""
    return [(names.index(a.name), names.index(b.name)) for a, b in combinations(rules, 2) if a.written or b.written]


def _looked_at(title: str, rule: Rule, x: Any) -> tuple[Any, Any]:
    """Check an array's type and memory, and return its dtype and shape; (None, None) for None."""
    if x is None and rule.optional:
        return None, None
    if type(x) not in ARRAYS:
        raise TypeError(f"{title} wants {rule.name} as a numpy array, got {described(x)}")
    flags = x.flags
    if not (flags.carray if rule.written else flags.aligned and (rule.strided or flags.c_contiguous)):
        _refuse_memory(title, rule.name, rule.written, x)
    return x.dtype, x.shape


def _scalars(signature: inspect.Signature) -> list[_Scalar]:
    """Return the requirements on the annotated scalars; a scalar annotated with `| None` may be None."""
    found = []
    for name, parameter in signature.parameters.items():
        kind, _, more = str(parameter.annotation).partition(" | ")
        if kind in SCALARS:
            found.append(_Scalar(name, *SCALARS[kind], bool(more)))
    return found


def refuse_outside(title: str, name: str, x: Array, limit: int) -> None:
    """Raise ValueError unless every element of x (whole numbers) is at least 0 and below `limit`."""
    if x.size and np.maximum.reduce(x.view(f"u{x.itemsize}"), axis=None) >= limit:  # a negative number is large as unsigned
        bad = x[(x < 0) | (x >= limit)][0]
        raise ValueError(f"{title} wants every {name} from 0 to below {limit}, got {bad}")


def _same(one: Array, two: Array) -> bool:
    return (
        one.shape == two.shape and one.dtype == two.dtype and one.__array_interface__["data"] == two.__array_interface__["data"]
    )


def _refuse_overlap(title: str, name: str, x: Array | None, other: str, y: Array | None, may_be_same: bool) -> None:
    if x is not None and y is not None and np.may_share_memory(x, y) and not (may_be_same and _same(x, y)):
        raise ValueError(f"{title} wants {name} and {other} not to overlap, got arrays that share memory")


def _refuse_memory(title: str, name: str, written: bool, x: Array) -> NoReturn:
    flags = x.flags
    fault = "not contiguous" if not flags.c_contiguous else "not aligned" if not flags.aligned else "read-only"
    raise ValueError(
        f"{title} wants {name} contiguous and aligned{', in memory that can be written' * written}, got {described(x)}, "
        f"which is {fault}; pass a copy"
    )


def _look_at_scalar(title: str, scalar: _Scalar, value: Any) -> None:
    if (value is None and scalar.optional) or (
        type(value) in scalar.kinds and (scalar.limit is None or 0 <= value < scalar.limit)
    ):
        return
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    raise (ValueError if good else TypeError)(f"{title} wants {scalar.name} as {scalar.words}, got {described(value)}")
