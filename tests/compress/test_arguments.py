"""What codecs do not take: arrays, and payloads of another form, which come from elsewhere."""

import inspect
from functools import partial

import numpy as np
import pytest

from hpcai import compress
from hpcai.compress import cast, codec, quantize, random_k, sign, top_k
from tests.compress.test_codecs import CODECS
from tests.guarded import assert_door

N = 700


def x(seed=0):
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


def payload_of(one):
    payload, _ = one.encode(x(), one.init(x()))
    return {f"part{i}": part for i, part in enumerate(payload)}


def as_long(one):
    """Arrays one shorter or longer of which payloads have the same form."""

    def form(n):
        return [(part.shape, part.dtype) for part in one.encode(np.ones(n, np.float32), one.init(x()))[0]]

    return {("out", f"first dim {what}") for what, n in (("short", N - 1), ("long", N + 1)) if form(n) == form(N)}


def with_payload(way, out, **given):
    way(out, gathered(given), 0.5)


def gathered(arrays):
    return tuple(value for name, value in sorted(arrays.items()) if name.startswith("part"))


@pytest.mark.parametrize("name", CODECS)
def test_arrays_that_are_not_flat_f32_are_refused(name):
    one = CODECS[name]
    alone = {("x", what) for what in ("first dim short", "first dim long", "empty")}
    assert_door(lambda x: one.encode(x, one.init(np.zeros(N, np.float32))), {"x": x()}, right=alone)
    if one.keep is not None:
        state = one.init(x())
        assert_door(lambda x, memory: one.keep(x, memory, state), {"x": x(), "memory": x(1)}, writes=["memory"])


@pytest.mark.parametrize("name", CODECS)
def test_payloads_of_another_form_are_refused(name):
    one = CODECS[name]
    payload = payload_of(one)
    limits = {
        part: -(-N // random_k.BLOCK) if name.startswith("random") else N
        for part, value in payload.items()
        if value.dtype == np.uint32
    }
    assert_door(lambda **given: one.decode(gathered(given), N), payload, limits=limits)
    for way in (one.put, one.add):
        if way is not None:
            call = partial(with_payload, way)
            assert_door(call, {"out": x(), **payload}, writes=["out"], limits=limits, right=as_long(one))


@pytest.mark.parametrize("name", CODECS)
def test_what_is_no_payload_is_refused(name):
    one = CODECS[name]
    parts = gathered(payload_of(one))
    for bad in (None, list(parts), parts[:-1], (*parts, parts[0]), b"bytes"):
        with pytest.raises(TypeError, match="a payload of .* got"):
            one.decode(bad, N)
    for n in (N * 10, 0):
        with pytest.raises((TypeError, ValueError)):
            one.decode(parts, n)
    with pytest.raises((TypeError, ValueError)):
        one.decode(parts, -1)


def test_every_codec_is_tried_here():
    made = {
        name
        for module in (cast, quantize, random_k, sign, top_k)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and value.__annotations__.get("return") == "Codec"
    }
    assert {name for name in made if not name.startswith("_")} == {
        "bf16",
        "fp16",
        "int8",
        "int4",
        "fp8",
        "sign",
        "top_k",
        "random_k",
    }
    assert compress.__doc__
    assert codec.Codec._fields[1:3] == ("encode", "decode")


def test_hyper_parameters_have_names_and_ranges():
    for make in (quantize.int8, quantize.int4, quantize.fp8):
        with pytest.raises(TypeError, match="positional"):
            make(True)
        for seed in (-1, 0.5, None):
            with pytest.raises((TypeError, ValueError), match="a seed is .* got"):
                make(stochastic=True, seed=seed)
    with pytest.raises(TypeError, match="positional"):
        random_k.random_k(0.1, 3)
    for make in (top_k.top_k, random_k.random_k):
        for ratio in (0, -1, 1.5, np.nan, np.inf, "0.1", None, True):
            with pytest.raises(ValueError, match="wants ratio above 0 and up to 1, got"):
                make(ratio)
