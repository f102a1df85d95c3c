"""Standard JSON, which has no NaN and no infinity: these become null, and "not_finite" says where they were."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Return the JSON text of a value.

    >>> dumps({"loss": float("nan"), "steps": [1, float("-inf")]})
    '{"loss": null, "steps": [1, null], "not_finite": {"loss": "nan", "steps.1": "-inf"}}'
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        found: dict[str, str] = {}
        finite = _finite(value, (), found)
        return json.dumps(finite | {"not_finite": found} if isinstance(finite, dict) else finite, indent=indent, allow_nan=False)


def _finite(value: Any, where: tuple[str, ...], found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[".".join(where)] = str(float(value))
        return None
    if isinstance(value, dict):
        return {key: _finite(one, (*where, str(key)), found) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one, (*where, str(i)), found) for i, one in enumerate(value)]
    return value
