"""What a verb takes, declared: arguments are checked once, where they come in, and kernels trust them.

    @takes(out="T b k", rows="u8|f32|f64 n k", index="i64 b <n", writes="out")
    def gather_into(out, rows, index, scale: float, shift: float): ...

An array is declared by its dtypes and dims. A dim is a name, which is one size wherever it stands, or an expression of names and
scalars; `*` is any shape, one for all that say so. A capital letter is one of several dtypes (see LETTERS), the same wherever it
stands. `<n`: every value is at least 0 and below n. Arrays are aligned and in one piece; what a verb writes can be written and
lies apart from the rest. Scalars, and what may be None, are declared by annotations.

Cost: some 2 us a call. What follows from dtypes and shapes alone is worked out once for each combination and remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import combinations
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np

from hpcai.xp import DTYPES, Array

Verb = TypeVar("Verb", bound=Callable[..., Any])
U32: TypeAlias = int
U64: TypeAlias = int
"""Annotations of whole numbers below 2**32 and 2**64."""

NAMES = DTYPES | {"u8": np.dtype(np.uint8), "u16": np.dtype(np.uint16), "u32": np.dtype(np.uint32), "bool": np.dtype(bool)}
LETTERS = {"T": "f32|f64", "L": "u8|u16", "A": "|".join(DTYPES), "B": "|".join(DTYPES)}
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


class Rule(NamedTuple):
    """What one array has to be. dims: None for any shape. limit: its values are below it."""

    name: str
    dtype: str
    dims: tuple[str, ...] | None
    limit: str | None
    written: bool
    strided: bool
    optional: bool


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
            _rule(
                name, spec, name in writes.split(), name in strided.split(), "None" in str(signature.parameters[name].annotation)
            )
            for name, spec in arrays.items()
        ]
        return _guarded(verb, signature, rules, set(same.split()), dict(where or {}))

    return declared


def _rule(name: str, spec: str, written: bool, strided: bool, optional: bool) -> Rule:
    dtype, *dims = spec.split()
    limit = dims.pop()[1:] if dims[-1].startswith("<") else None
    return Rule(name, dtype, None if dims == ["*"] else tuple(dims), limit, written, strided, optional)


def _guarded(verb: Any, signature: inspect.Signature, rules: list[Rule], same: set[str], where: dict[str, str]) -> Any:
    """The verb behind its door. `.unchecked` is the verb itself, for callers that have looked; `.rules` are for tests."""
    names, title = list(signature.parameters), verb.__name__
    places = [(names.index(rule.name), rule) for rule in rules]
    looks = [(at, rule.written, rule.strided) for at, rule in places]
    limited = [(at, rule.name) for at, rule in places if rule.limit]
    apart = [(a, b, {one.name, two.name} <= same) for (a, one), (b, two) in combinations(places, 2) if one.written or two.written]
    scalars = [(names.index(name), name, *kind) for name, kind in _scalars(signature)]
    fits, shaping = _fits(title, verb.__globals__, rules, where, [name for _, name, *_ in scalars])
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
            limits = seen[fitting] = fits(*key)
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


def _fits(
    title: str, scope: dict[str, Any], rules: list[Rule], where: dict[str, str], scalars: list[str]
) -> tuple[Callable[..., tuple[int, ...]], list[str]]:
    """The check of dtypes and shapes, which returns the limits of values; and the scalars that it wants."""
    sizes = {dim for rule in rules for dim in rule.dims or () if dim.isidentifier()}
    spelt = [*where, *(dim for rule in rules for dim in rule.dims or ()), *(rule.limit for rule in rules if rule.limit)]
    wanted = {text: set(compile(text, title, "eval").co_names) for text in spelt}
    shaping = [name for name in scalars if any(name in used for used in wanted.values())]
    early = [text for text in where if not wanted[text] & (sizes | LETTERS.keys())]

    def fits(*key: Any) -> tuple[int, ...]:
        count = 2 * len(rules)
        bound: dict[str, Any] = dict(zip(shaping, key[count:], strict=True))

        def conditions(texts: Any) -> None:
            for text in texts:
                unbound = wanted[text] & (sizes | LETTERS.keys()) - bound.keys()  # of arrays that were not given
                if not unbound and not eval(text, scope, bound):
                    got = ", ".join(f"{name}={described(bound[name])}" for name in sorted(wanted[text] & bound.keys()))
                    raise (TypeError if wanted[text] & LETTERS.keys() else ValueError)(f"{title} wants {where[text]}, got {got}")

        conditions(early)
        given = [(rule, *pair) for rule, *pair in zip(rules, key[:count:2], key[1:count:2], strict=True) if pair[0] is not None]
        for rule, dtype, _ in given:
            _bind_dtype(title, rule, dtype, bound)
        for plain in (True, False):
            for rule, _, shape in given:
                _bind_shape(title, rule, shape, bound, scope, plain)
        conditions(text for text in where if text not in early)
        return tuple(eval(rule.limit, scope, bound) for rule in rules if rule.limit)

    return fits, shaping


def _bind_dtype(title: str, rule: Rule, dtype: np.dtype, bound: dict[str, Any]) -> None:
    choices = (
        [bound[rule.dtype]] if rule.dtype in bound else [NAMES[name] for name in LETTERS.get(rule.dtype, rule.dtype).split("|")]
    )
    if dtype not in choices:
        raise TypeError(f"{title} wants {rule.name} of {' or '.join(map(str, choices))}, got {dtype}")
    if rule.dtype in LETTERS:
        bound[rule.dtype] = dtype


def _bind_shape(
    title: str, rule: Rule, shape: tuple[int, ...], bound: dict[str, Any], scope: dict[str, Any], plain: bool
) -> None:
    """Compare a shape with what is bound so far, and bind what is not: first names, then what is computed from them."""
    if rule.dims is None:
        if not shape or bound.setdefault("*", shape) != shape:
            raise ValueError(f"{title} wants {rule.name} of shape {bound.get('*', '(n,)')}, got {shape}")
        return
    good = len(shape) == len(rule.dims)
    for dim, size in zip(rule.dims, shape, strict=False):
        if dim.isidentifier() == plain:
            good &= (bound.setdefault(dim, size) if plain else eval(dim, scope, bound)) == size
    if not good:
        known = {dim: bound[dim] for dim in rule.dims if dim in bound} if len(shape) == len(rule.dims) else {}
        sizes = [
            str(eval(dim, scope, bound)) if not (plain or dim.isidentifier()) else f"{dim}={known[dim]}" if dim in known else dim
            for dim in rule.dims
        ]
        raise ValueError(f"{title} wants {rule.name} of shape ({', '.join(sizes)}), got {shape}")


def refuse_outside(title: str, name: str, x: Array, limit: int) -> None:
    """Raise ValueError unless all of x, whole numbers, are at least 0 and below `limit`."""
    if x.size and np.maximum.reduce(x.view(f"u{x.itemsize}"), axis=None) >= limit:  # so a negative one is large
        bad = x[(x < 0) | (x >= limit)][0]
        raise ValueError(f"{title} wants every {name} from 0 to below {limit}, got {bad}")


def described(x: Any) -> str:
    """An argument, in few words."""
    if isinstance(x, np.ndarray):
        return f"{type(x).__name__} of {x.dtype}{list(x.shape)}"
    return repr(x) if isinstance(x, (int, float, str, np.generic, np.dtype, type(None))) else type(x).__name__


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
