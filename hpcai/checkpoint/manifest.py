"""The manifest of a checkpoint as a file. All of it is checked before any field is used.

manifest.schema.json beside this file, a JSON Schema (draft 2020-12), defines the fields. `agreement` checks them against each
other. The last field is a checksum of all bytes before it, so that damage is found before the JSON is parsed.
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
"""Limits of a manifest: bytes and JSON values. A run of a shard takes 100 bytes, so that some 150,000 runs fit."""

_SEAL = ',\n "checksum": "'
_SEALED = re.compile(rb',\n "checksum": "([0-9a-f]{32})"}\n')
_SEAL_BYTES = len(_SEAL) + 32 + 3


def write(fields: dict[str, Any]) -> bytes:
    """Return the file's bytes, with their checksum at the end. Raises: CheckpointError if `read` would refuse the file."""
    try:
        text = json.dumps(fields, allow_nan=False)[:-1]
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} cannot be written: {error}") from None
    raw = f'{text}{_SEAL}{checksum(text.encode())}"}}\n'.encode()
    if len(raw) > LARGEST_BYTES or _values(raw) > MOST_VALUES:
        size = f"{len(raw):,} bytes for {counted(len(fields['shards']), 'shard')}"
        raise CheckpointError(f"{MANIFEST} would have {size}, more than can be read again: the shards have too many runs")
    return raw


def read(raw: bytes, name: str) -> dict[str, Any]:
    """Return a manifest's fields, checked.

    raw: the file's first LARGEST_BYTES + 1 bytes; name: the checkpoint's. Raises: Refused, which names the field.
    """
    fields = _parsed(raw)
    if schema.depth(fields.get("meta")) > schema.DEEPEST:
        raise Refused(f"has more than {schema.DEEPEST} levels of nested lists and objects", "meta")
    _check()(fields)
    agreement.check(fields, name)
    return fields


@functools.cache
def schema_file() -> dict[str, Any]:
    """Return the published JSON Schema of manifests."""
    return json.loads(Path(__file__).with_name("manifest.schema.json").read_bytes())


@functools.cache
def _check() -> schema.Check:
    return schema.check(schema_file())


def _values(raw: bytes) -> int:
    """Return an upper bound of the number of JSON values, mostly exact: it bounds the cost of parsing before parsing."""
    return raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{")


def _parsed(raw: bytes) -> dict[str, Any]:
    """Return the parsed JSON, after checks of its size, checksum and format. Raises: Refused."""
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
        raise Refused("has too many levels of nested lists or objects") from None
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
    """Return a JSON object as a dict. Raises: Refused if a name comes twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise Refused(f"has the field {schema.shown(next(name for name in names if names.count(name) > 1))} twice")
    return made
