"""Checks that the dtypes and shapes of a call match the verb's declaration; door.py explains the notation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hpcai.xp import DTYPES

NAMES = DTYPES | {"u8": np.dtype(np.uint8), "u16": np.dtype(np.uint16), "u32": np.dtype(np.uint32), "bool": np.dtype(bool)}
LETTERS = {"T": "f32|f64", "L": "u8|u16", "A": "|".join(DTYPES), "B": "|".join(DTYPES)}
"""The dtypes for which a capital letter in a declaration stands."""


class Rule(NamedTuple):
    """The requirement on one array. dims: None for any shape. limit: an expression; all values are below it."""

    name: str
    dtype: str
    dims: tuple[str, ...] | None
    limit: str | None
    written: bool
    strided: bool
    optional: bool


def rule(name: str, spec: str, written: bool, strided: bool, optional: bool) -> Rule:
    """Return the rule for one array from the text `spec` of its declaration."""
    dtype, *dims = spec.split()
    limit = dims.pop()[1:] if dims[-1].startswith("<") else None
    return Rule(name, dtype, None if dims == ["*"] else tuple(dims), limit, written, strided, optional)


def fits(
    title: str, scope: dict[str, Any], rules: list[Rule], where: dict[str, str], scalars: list[str]
) -> tuple[Callable[..., tuple[int, ...]], list[str]]:
    """Return the check of dtypes and shapes, which returns the limits of values, and the names of the scalars that it needs."""
    sizes = {dim for rule in rules for dim in rule.dims or () if dim.isidentifier()}
    spelt = [*where, *(dim for rule in rules for dim in rule.dims or ()), *(rule.limit for rule in rules if rule.limit)]
    wanted = {text: set(compile(text, title, "eval").co_names) for text in spelt}
    shaping = [name for name in scalars if any(name in used for used in wanted.values())]
    early = [text for text in where if not wanted[text] & (sizes | LETTERS.keys())]

    def fit(*key: Any) -> tuple[int, ...]:
        count = 2 * len(rules)
        bound: dict[str, Any] = dict(zip(shaping, key[count:], strict=True))

        def conditions(texts: Any) -> None:
            for text in texts:
                unbound = wanted[text] & (sizes | LETTERS.keys()) - bound.keys()  # names of arrays that are None
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

    return fit, shaping


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
    """Compare a shape with the sizes bound so far. plain: bind and compare names; otherwise compare expressions of names."""
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


def described(x: Any) -> str:
    """Describe an argument in a few words."""
    if isinstance(x, np.ndarray):
        return f"{type(x).__name__} of {x.dtype}{list(x.shape)}"
    return repr(x) if isinstance(x, (int, float, str, np.generic, np.dtype, type(None))) else type(x).__name__
