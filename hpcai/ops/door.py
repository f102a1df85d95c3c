"""What a verb takes, declared: arguments are checked once, where they come in, and kernels trust them.

    @takes(out="T b k", rows="u8|f32|f64 n k", index="i64 b <n", writes="out")
    def gather_into(out, rows, index, scale: float, shift: float): ...

An array is declared by its dtypes and dims. A dim is a name, which is one size wherever it stands, or an expression of names and
scalars; `*` is any shape, one for all that say so. A capital letter is one of several dtypes (see layouts.py), the same wherever
it stands. `<n`: every value is at least 0 and below n. Arrays are aligned and in one piece; what a verb writes can be written and
lies apart from the rest. Scalars, and what may be None, are declared by annotations.

Cost: some 2 us a call. What follows from dtypes and shapes alone is worked out once for each combination and remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import combinations
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np

from hpcai.ops import layouts
from hpcai.ops.layouts import Rule, described
from hpcai.xp import Array

Verb = TypeVar("Verb", bound=Callable[..., Any])
U32: TypeAlias = int
U64: TypeAlias = int
"""Annotations of whole numbers below 2**32 and 2**64."""

ARRAYS = {np.ndarray, np.memmap}
"""Subclasses that mean something else by their values, as masked arrays do, are not among them."""

OWNERS: set[type] = {np.ndarray}
"""Types whose instances own memory that no other has: two arrays with different owners of these types are apart."""

MOST_SEEN = 1024
"""Combinations of dtypes and shapes that a verb remembers."""

WHOLE = {int, *(np.dtype(kind).type for kind in "bhilqBHILQ")}
SCALARS: dict[str, tuple[set[type], str, int | None]] = {
    "int": (WHOLE, "a whole number", None),
    "U32": (WHOLE, "a whole number from 0 to below 2**32", 2**32),
    "U64": (WHOLE, "a whole number from 0 to below 2**64", 2**64),
    "float": (WHOLE | {float, np.float16, np.float32, np.float64}, "a number", None),
    "bool": ({bool, np.bool_}, "True or False", None),
    "str": ({str}, "a name", None),
}


def takes(
    *, writes: str = "", same: str = "", strided: str = "", where: Mapping[str, str] | None = None, **arrays: str
) -> Callable[[Verb], Verb]:
    """Refuse a verb's calls with arrays other than declared.

    writes, strided: names of arrays that are written, and that need not lie in one piece. same: names of arrays of which one that
    is written may be another. where: conditions on dims, dtypes' letters and scalars, and the words for what is wanted.
    Raises: TypeError (of another type or dtype), ValueError (shape, memory or values).
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
    """The verb behind its door. `.unchecked` is the verb itself, for callers that have looked; `.rules` are for tests."""
    names, title = list(signature.parameters), verb.__name__
    places = [(names.index(rule.name), rule) for rule in rules]
    looks = [(at, rule.written, rule.strided) for at, rule in places]
    limited = [(at, rule.name) for at, rule in places if rule.limit]
    apart = [(a, b, {one.name, two.name} <= same) for (a, one), (b, two) in combinations(places, 2) if one.written or two.written]
    scalars = [(names.index(name), name, *kind) for name, kind in _scalars(signature)]
    fit, shaping = layouts.fits(title, verb.__globals__, rules, where, [name for _, name, *_ in scalars])
    optional = {at for at, rule in places if rule.optional}
    seen: dict[tuple[Any, ...], tuple[int, ...]] = {}
    shaping_places = [names.index(name) for name in shaping]

    @wraps(verb)
    def enter(*args: Any, **named: Any) -> Any:
        if named or len(args) != len(names):
            args = _completed(signature, args, named)
        key: list[Any] = []
        owners: dict[int, Any] = {}
        for at, written, strided in looks:
            x = args[at]
            if type(x) in ARRAYS:
                flags = x.flags
                if not (flags.carray if written else flags.aligned and (strided or flags.c_contiguous)):
                    _refuse_memory(title, names[at], written, x)
                key += (x.dtype, x.shape)
                while x.base is not None:
                    x = x.base
                    if type(x) is not np.ndarray:
                        break
                owners[at] = x
            elif x is None and at in optional:
                key += (None, None)
            else:
                raise TypeError(f"{title} wants {names[at]} as a numpy array, got {described(x)}")
        for at, name, kinds, words, limit in scalars:
            if type(args[at]) not in kinds or (limit and args[at] is not None and not 0 <= args[at] < limit):
                _refuse_scalar(title, name, words, args[at])
        for at in shaping_places:
            key.append(args[at])
        limits = seen.get(fitting := tuple(key))
        if limits is None:
            if len(seen) >= MOST_SEEN:
                seen.clear()
            limits = seen[fitting] = fit(*key)
        if apart and not (len({*map(id, owners.values())}) == len(owners) and OWNERS.issuperset(map(type, owners.values()))):
            _refuse_overlap(title, names, args, owners, apart)
        for (at, name), limit in zip(limited, limits, strict=True):
            refuse_outside(title, name, args[at], limit)
        return verb(*args)

    enter.unchecked, enter.rules = verb, rules  # type: ignore[attr-defined]
    return enter


def _completed(signature: inspect.Signature, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    bound = signature.bind(*args, **named)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def _scalars(signature: inspect.Signature) -> list[tuple[str, tuple[Any, ...]]]:
    """What the annotations say of scalars; one with a default of None may be None."""
    found = []
    for name, parameter in signature.parameters.items():
        kind, _, more = str(parameter.annotation).partition(" | ")
        if kind in SCALARS:
            kinds, words, limit = SCALARS[kind]
            found.append((name, (kinds | {type(None)} if more else kinds, words, limit)))
    return found


def refuse_outside(title: str, name: str, x: Array, limit: int) -> None:
    """Raise ValueError unless all of x, whole numbers, are at least 0 and below `limit`."""
    if x.size and np.maximum.reduce(x.view(f"u{x.itemsize}"), axis=None) >= limit:  # so a negative one is large
        bad = x[(x < 0) | (x >= limit)][0]
        raise ValueError(f"{title} wants every {name} from 0 to below {limit}, got {bad}")


def _same(one: Array, two: Array) -> bool:
    return (
        one.shape == two.shape and one.dtype == two.dtype and one.__array_interface__["data"] == two.__array_interface__["data"]
    )


def _refuse_overlap(
    title: str, names: list[str], args: tuple[Any, ...], owners: dict[int, Any], apart: list[tuple[int, int, bool]]
) -> None:
    """Raise ValueError if arrays share memory, which they may where not each is alone in what its owner has."""
    alone = {i for i, owner in owners.items() if type(owner) in OWNERS}
    for i, j, may_be_same in apart:
        if i not in owners or j not in owners or (owners[i] is not owners[j] and i in alone and j in alone):
            continue
        if np.may_share_memory(args[i], args[j]) and not (may_be_same and _same(args[i], args[j])):
            raise ValueError(f"{title} wants {names[i]} and {names[j]} in memory of their own, got arrays that overlap")


def _refuse_memory(title: str, name: str, written: bool, x: Array) -> NoReturn:
    flags = x.flags
    fault = "not contiguous" if not flags.c_contiguous else "not aligned" if not flags.aligned else "read-only"
    raise ValueError(
        f"{title} wants {name} in one aligned piece of memory{' that it can write' * written}, got {described(x)}, "
        f"which is {fault}: give it a copy"
    )


def _refuse_scalar(title: str, name: str, words: str, value: Any) -> NoReturn:
    good = isinstance(value, (int, float, np.number, str)) and not isinstance(value, bool)
    raise (ValueError if good and not isinstance(value, str) else TypeError)(
        f"{title} wants {name} as {words}, got {described(value)}"
    )
