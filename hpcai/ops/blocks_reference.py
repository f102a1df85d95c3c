"""Reference implementations of the verbs of blocks.py, in numpy. kernels/include/hpcai/blocks.hpp has the same in C++."""

from __future__ import annotations

import numpy as np

from hpcai.xp import float8

BLOCK = 256
LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
NOT_FINITE = {"int8": -128, "int4": -8, "fp8": 0x7F}
"""The levels that stand for NaN."""

SMALLEST_SCALE = 2.0**-126
"""A block with a smaller scale counts as zero."""


def encode_blocks_into(scales, packed, x, form, memory, key):
    """A block's scale maps its largest magnitude to the largest level; for sign, the scale is the mean magnitude."""
    with np.errstate(all="ignore"):
        t = x if memory is None else x + memory
        rows = _rows(t)
        finite = np.isfinite(rows)
        counts = np.minimum(BLOCK, x.size - BLOCK * np.arange(len(rows)))
        if form == "sign":
            s = np.array([_magnitude_sum(row[:n]) for row, n in zip(rows, counts, strict=True)], np.float32)
            s = s / (counts.astype(np.float32) * np.float32(2.0**-8))
        else:
            s = np.where(finite, np.abs(rows), np.float32(0)).max(1, initial=0) / np.float32(LARGEST[form])
        s[s < np.float32(SMALLEST_SCALE)] = 0
        level = _levels(rows, s, form, key)
        bad = ~finite.all(1)
        if form == "sign":
            s[bad] = np.nan
        scales[:] = s
        packed[:] = _pack(level.reshape(-1)[: x.size], finite.reshape(-1)[: x.size], form)
        if memory is not None:
            memory[:] = t - decode_blocks_into(np.empty_like(x), scales, packed, form, 1.0, False)
    return int(bad.sum())


def decode_blocks_into(out, scales, packed, form, weight, add):
    """out = weight * scale * level, or out += that if `add`."""
    with np.errstate(all="ignore"):
        value = np.float32(weight) * (np.repeat(scales, BLOCK)[: out.size] * _unpack(packed, out.size, form))
        out[:] = out + value if add else value
    return out


def select_above(x, threshold, room, memory):
    """Indices and values of elements whose magnitude is at least `threshold`, and their number."""
    if memory is not None:
        memory += x
        x = memory
    index = np.flatnonzero(~(np.abs(x) < np.float32(threshold))).astype(np.uint32)
    return index[:room], x[index[:room]], len(index)


def random_bits(key, counter):
    """32 bits, a function of key and counter (u32 arrays)."""
    h = counter ^ np.uint32(key)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x846CA68B)
    return h ^ h >> np.uint32(16)


def _rows(t):
    padded = np.zeros(-(-t.size // BLOCK) * BLOCK, np.float32)
    padded[: t.size] = t
    return padded.reshape(-1, BLOCK)


def _magnitude_sum(row):
    """The sum of magnitudes divided by 256, which cannot overflow; sixteen partial sums fix the order of additions."""
    row = np.abs(row) * np.float32(2.0**-8)
    whole = row.size // 16 * 16
    part = np.zeros(16, np.float32)
    for sixteen in row[:whole].reshape(-1, 16):
        part += sixteen
    part[: row.size - whole] += row[whole:]
    for half in (8, 4, 2, 1):
        part[:half] += part[half : 2 * half]
    return part[0]


def _levels(rows, s, form, key):
    inverse = np.where(s > 0, np.float32(1) / s, np.float32(0))[:, None].astype(np.float32)
    y = rows * inverse
    if form == "sign":
        return np.where(np.signbit(rows), np.int8(-1), np.int8(1))
    random = None if key is None else random_bits(key, np.arange(rows.size, dtype=np.uint32)).reshape(rows.shape)
    u = None if random is None else (random >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    if form == "fp8":
        return np.clip(y, -448, 448).astype(float8).view(np.int8) if u is None else _fp8_stochastic(y, random, u)
    top = np.float32(LARGEST[form])
    y = np.rint(y) if u is None else np.clip(np.floor(y + u), -top, top)
    return np.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0).astype(np.int8)


def _fp8_stochastic(y, random, u):
    """Add random bits below the last bit of the mantissa, then drop the lower bits."""
    bits = y.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude - np.uint32(120 << 23) + (random >> np.uint32(12))) >> np.uint32(20)
    small = magnitude < np.uint32(121 << 23)
    subnormal = np.floor(np.where(small, np.abs(y), 0) * np.float32(512) + u).astype(np.uint32)
    code = np.minimum(np.where(small, subnormal, normal), np.uint32(0x7E)) | (bits >> np.uint32(24) & np.uint32(0x80))
    return code.astype(np.uint8).view(np.int8)


def _pack(level, finite, form):
    if form == "sign":
        return np.packbits(level < 0, bitorder="little")
    level = np.where(finite, level, np.int8(NOT_FINITE[form]))
    if form != "int4":
        return level.view(np.uint8)
    nibbles = np.append(level, np.zeros(level.size % 2, np.int8)).view(np.uint8) & 15
    return nibbles[::2] | nibbles[1::2] << 4


def _unpack(packed, n, form):
    if form == "sign":
        return 1 - 2 * np.unpackbits(packed, count=n, bitorder="little").astype(np.float32)
    if form == "fp8":
        return packed.view(float8).astype(np.float32)
    if form == "int8":
        level = packed.view(np.int8)
    else:
        level = ((np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:n] ^ 8).astype(np.int8) - 8).astype(np.int8)
    return np.where(level == NOT_FINITE[form], np.float32(np.nan), level.astype(np.float32))
