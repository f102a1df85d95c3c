"""Checks of JSON values against a JSON Schema (draft 2020-12), with the keywords that the manifest's schema uses.

The checks are stricter than the standard: 1.0 is not an integer, numbers are finite, and a pattern must match the whole text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from hpcai.errors import counted

Check = Callable[[Any], None]
"""A function of a value: returns if the value fits the schema, else raises Refused."""

DEEPEST = 32
"""The limit for levels of nested arrays and objects."""

_SAYING_NOTHING = {"$schema", "$id", "$defs", "title", "description"}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) is int or (type(value) is float and math.isfinite(value)),
    "string": lambda value: type(value) is str,
    "array": lambda value: type(value) is list,
    "object": lambda value: type(value) is dict,
}
_PLAIN = {"integer": "a whole number", "array": "a list", "string": "text"}


class Refused(ValueError):
    """The error of a value that does not fit. field: the value's place; what: what is wrong with it."""

    def __init__(self, what: str, field: str = ""):
        super().__init__(f"{field.lstrip('.')} {what}".lstrip())
        self.what, self.field = what, field

    def within(self, outer: str) -> Refused:
        """Return the same error for a value that lies within the field `outer`."""
        return Refused(self.what, outer + self.field)


def check(schema: dict[str, Any]) -> Check:
    """Return a function that checks values against a schema. Raises: KeyError for an unknown keyword."""
    made: dict[str, Check] = {}
    return _compiled(schema, schema, made)


def depth(value: Any, most: int = DEEPEST) -> int:
    """Return how deep arrays and objects are nested, looking no deeper than most + 1."""
    level, deep = [value], 0
    while deep <= most and (level := [one for one in level if isinstance(one, (list, dict))]):
        deep += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return deep


def shown(value: Any) -> str:
    """Return a value for a message: short, and on one line."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if type(value) is int and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    text = {True: "true", False: "false", None: "null"}[value] if value is None or type(value) is bool else repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def _compiled(schema: dict[str, Any], root: dict[str, Any], made: dict[str, Check]) -> Check:
    """Return the check of a schema. made: the checks of `$defs` by name, which may refer to themselves."""
    if set(schema) == {"$ref"}:
        return _referred(schema["$ref"], root, made)
    checks = [_typed(schema["type"])] if "type" in schema else []
    for keyword, rule in schema.items():
        if keyword in _SAYING_NOTHING or keyword == "type":
            continue
        if keyword in _RULES:
            checks.append(_RULES[keyword](rule))
        elif keyword in ("items", "prefixItems"):
            inner = [_compiled(one, root, made) for one in (rule if keyword == "prefixItems" else [rule])]
            checks.append(_each(inner, keyword == "items"))
        elif keyword == "properties":
            checks.append(_fields({name: _compiled(one, root, made) for name, one in rule.items()}))
        elif keyword == "additionalProperties" and rule is False:
            checks.append(_no_others(frozenset(schema["properties"])))
        else:
            raise KeyError(f"no rule for {keyword}: {rule}")
    return _quick(schema, checks)


def _quick(schema: dict[str, Any], checks: list[Check]) -> Check:
    """Return one check that runs all checks. The commonest rules, which a manifest needs thousands of times, take one call."""
    if schema.get("type") == "integer" and schema.keys() <= {"type", "minimum", "maximum"}:
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        return lambda value: None if type(value) is int and low <= value <= high else _every(checks, value)
    if schema.get("type") == "string" and schema.keys() <= {"type", "pattern", "description"}:
        whole = _whole(schema.get("pattern", "^(?s:.)*$")).fullmatch
        return lambda value: None if type(value) is str and whole(value) else _every(checks, value)
    return checks[0] if len(checks) == 1 else lambda value: _every(checks, value)


def _every(checks: list[Check], value: Any) -> None:
    for one in checks:
        one(value)


def _referred(reference: str, root: dict[str, Any], made: dict[str, Check]) -> Check:
    name = reference.removeprefix("#/$defs/")
    if name not in made:
        made[name] = lambda value: made[name](value)  # until the check is made
        made[name] = _compiled(root["$defs"][name], root, made)
    return made[name]


def _typed(names: str | list[str]) -> Check:
    wanted = [names] if isinstance(names, str) else names
    kinds, said = [_TYPES[name] for name in wanted], " or ".join(_PLAIN.get(name, name) for name in wanted)
    only = kinds[0]

    def one(value: Any) -> None:
        if not only(value):
            raise Refused(f"is {shown(value)}; wanted is {said}")

    def several(value: Any) -> None:
        if not any(kind(value) for kind in kinds):
            raise Refused(f"is {shown(value)}; wanted is {said}")

    return one if len(kinds) == 1 else several


def _ruled(of: tuple[type, ...], holds: Callable[[Any], bool], said: str) -> Check:
    """Return the check of a rule for values of these types, or of all types (empty). The keyword `type` refuses other types."""

    def one(value: Any) -> None:
        if (not of or type(value) in of) and not holds(value):
            raise Refused(f"is {shown(value)}; wanted is {said}")

    return one


def _patterned(rule: str) -> Check:
    whole = _whole(rule)
    return _ruled((str,), lambda value: whole.fullmatch(value) is not None, f"text like {whole.pattern}")


def _whole(rule: str) -> re.Pattern[str]:
    return re.compile(rule.removeprefix("^").removesuffix("$"))


def _required(names: list[str]) -> Check:
    def one(value: Any) -> None:
        if type(value) is dict:
            for name in names:
                if name not in value:
                    raise Refused("is missing", f".{name}")

    return one


def _no_others(known: frozenset[str]) -> Check:
    def one(value: Any) -> None:
        if type(value) is dict and not value.keys() <= known:
            raise Refused(f"has the unknown field {shown(min(value.keys() - known))}")

    return one


def _fields(checks: dict[str, Check]) -> Check:
    def one(value: Any) -> None:
        if type(value) is dict:
            for name, inner in value.items():
                if name in checks:
                    _within(checks[name], inner, f".{name}")

    return one


def _each(checks: list[Check], all_alike: bool) -> Check:
    def one(value: Any) -> None:
        if type(value) is not list:
            return
        at = 0
        try:
            pairs: Iterable[tuple[Check, Any]] = zip(checks * len(value) if all_alike else checks, value, strict=False)
            for at, (inner, item) in enumerate(pairs):  # noqa: B007
                inner(item)
        except Refused as refused:
            raise refused.within(f"[{at}]") from None

    return one


def _within(inner: Check, value: Any, where: str) -> None:
    try:
        inner(value)
    except Refused as refused:
        raise refused.within(where) from None


_NUMBERS = (int, float)
_RULES: dict[str, Callable[[Any], Check]] = {
    "const": lambda rule: _ruled((), lambda v: type(v) is type(rule) and v == rule, shown(rule)),
    "enum": lambda rule: _ruled((), lambda v: type(v) is str and v in rule, " or ".join(rule)),
    "minimum": lambda rule: _ruled(_NUMBERS, lambda v: v >= rule, f"{rule} or more"),
    "exclusiveMinimum": lambda rule: _ruled(_NUMBERS, lambda v: v > rule, f"more than {rule}"),
    "maximum": lambda rule: _ruled(_NUMBERS, lambda v: v <= rule, f"{rule} or less"),
    "minLength": lambda rule: _ruled((str,), lambda v: len(v) >= rule, f"text of at least {counted(rule, 'character')}"),
    "maxLength": lambda rule: _ruled((str,), lambda v: len(v) <= rule, f"text of at most {counted(rule, 'character')}"),
    "pattern": _patterned,
    "minItems": lambda rule: _ruled((list,), lambda v: len(v) >= rule, f"at least {counted(rule, 'item')}"),
    "maxItems": lambda rule: _ruled((list,), lambda v: len(v) <= rule, f"at most {counted(rule, 'item')}"),
    "required": _required,
}
