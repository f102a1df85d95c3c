"""The manifest of a checkpoint as a file: what it may be is refused or known before anything that it says is believed.

manifest.schema.json beside this file, a JSON Schema (draft 2020-12), says which fields there are; `agreement` what they must say
together. The last field is a checksum of all bytes before it, so that damage is found before the JSON is read.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from hpcai.checkpoint import agreement, schema
from hpcai.checkpoint.naming import MANIFEST
from hpcai.checkpoint.schema import Refused
from hpcai.checkpoint.shards import checksum
from hpcai.errors import CheckpointError, counted

FORMAT = 2

LARGEST_BYTES, MOST_VALUES = 1 << 24, 1_000_000
"""A manifest is 100 bytes for each run of a shard: some 150,000 of them."""

_SEAL = ',\n "checksum": "'
_SEALED = re.compile(rb',\n "checksum": "([0-9a-f]{32})"}\n')
_SEAL_BYTES = len(_SEAL) + 32 + 3


def write(fields: dict[str, Any]) -> bytes:
    """The file, with its own checksum at the end. Raises: CheckpointError if no reader would take it."""
    try:
        text = json.dumps(fields, allow_nan=False)[:-1]
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} cannot be written: {error}") from None
    raw = f'{text}{_SEAL}{checksum(text.encode())}"}}\n'.encode()
    if len(raw) > LARGEST_BYTES or _values(raw) > MOST_VALUES:
        size = f"{len(raw):,} bytes for {counted(len(fields['shards']), 'shard')}"
        raise CheckpointError(f"{MANIFEST} would have {size}, more than can be read again: they have too many runs")
    return raw


def read(raw: bytes, name: str) -> dict[str, Any]:
    """Its fields, all of them as they must be.

    raw: at most LARGEST_BYTES + 1; name: the checkpoint's. Raises: Refused, which names the field.
    """
    fields = _parsed(raw)
    if schema.depth(fields.get("meta")) > schema.DEEPEST:
        raise Refused(f"has more than {schema.DEEPEST} lists and objects within each other", "meta")
    _check()(fields)
    agreement.check(fields, name)
    return fields


@functools.cache
def schema_file() -> dict[str, Any]:
    """The published schema."""
    return json.loads(Path(__file__).with_name("manifest.schema.json").read_bytes())


@functools.cache
def _check() -> schema.Check:
    return schema.check(schema_file())


def _values(raw: bytes) -> int:
    """At least as many values as JSON has, and mostly as many: what reading it costs, known before it is read."""
    return raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{")


def _parsed(raw: bytes) -> dict[str, Any]:
    """The JSON, whole: with the right checksum, and of this format."""
    if len(raw) > LARGEST_BYTES:
        raise Refused(f"has more than {LARGEST_BYTES:,} bytes")
    if not raw.isascii():
        raise Refused("has bytes that are not ASCII")
    sealed = _SEALED.fullmatch(raw, max(0, len(raw) - _SEAL_BYTES))
    if sealed is None:
        raise Refused(f"is damaged or of another version: it does not end with a checksum as format {FORMAT} does")
    if checksum(raw[:-_SEAL_BYTES]) != sealed[1].decode():
        raise Refused("differs from its checksum")
    if _values(raw) > MOST_VALUES:
        raise Refused(f"has more than {MOST_VALUES:,} values")
    try:
        fields = json.loads(raw.decode("ascii"), object_pairs_hook=_once, parse_constant=str)
    except RecursionError:
        raise Refused("has too many lists or objects within each other") from None
    except Refused:
        raise
    except json.JSONDecodeError as error:
        raise Refused(f"is not JSON ({error})") from None
    except ValueError:
        raise Refused("has a number of thousands of digits") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = schema.shown(fields.get("format")) if isinstance(fields, dict) else schema.shown(fields)
        raise Refused(f"is of another version: its manifest does not say format {FORMAT} but {found}")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose names comes once."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise Refused(f"has the field {schema.shown(next(name for name in names if names.count(name) > 1))} twice")
    return made
