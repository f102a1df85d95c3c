"""Every public verb refuses what it does not take: found by introspection, so that a verb without a case here fails."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import hpcai.ops
from hpcai import ops
from hpcai.ops import integers
from hpcai.xp import bfloat16
from tests.guarded import assert_door

RNG = np.random.default_rng(0)


def f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def i(*values, dtype=np.int64):
    return np.array(values, dtype)


def half(*shape):
    return f(*shape).astype(np.float16)


def u8(*shape, below=256):
    return RNG.integers(0, below, shape).astype(np.uint8)


def wide(*shape):
    return f(*shape).astype(np.float64)


FIRST = ("first dim short", "first dim long", "empty")
ALONE = {("x", what) for what in ("other dtype", *FIRST)}
TABLE = {("rows", what) for what in ("first dim long", "other dtype")}

CASES = {
    "fold_into": ({"acc": f(9), "x": f(9)}, ("sum",), set()),
    "fold_into half": ({"acc": f(9), "x": half(9)}, ("max",), set()),
    "cast_into": ({"out": half(9), "x": f(9)}, (), set()),
    "cast_into bf16": ({"out": f(9), "x": f(9).astype(bfloat16)}, (), set()),
    "cast_keeping_into": ({"out": half(9), "x": f(9), "memory": f(9)}, (), set()),
    "widen_scaled_into": ({"out": f(9), "x": half(9)}, (0.5, True), set()),
    "divide_into": ({"x": f(9)}, (3,), {*ALONE, ("x", "one dim more")}),
    "matmul_into": (
        {"out": f(3, 4), "a": f(3, 5), "b": f(5, 4)},
        (),
        {("a", "not contiguous"), ("b", "not contiguous")},
    ),
    "gather_into": ({"out": f(3, 4), "rows": f(5, 4), "index": i(0, 4, 4)}, (0.5, 1.0), {*TABLE, ("out", "other dtype")}),
    "gather_into bytes": (
        {"out": f(3, 4), "rows": u8(5, 4), "index": i(0, 4, 4)},
        (0.5, 1.0),
        {("rows", "first dim long"), ("rows", "NaN"), ("out", "other dtype")},
    ),
    "gather_into bools": (
        {"out": f(3, 4), "rows": u8(5, 4, below=2).astype(bool), "index": i(0, 4, 4)},
        (0.5, 1.0),
        {("rows", "first dim long"), ("out", "other dtype")},
    ),
    "add_bias_into": ({"y": f(3, 4), "bias": f(4)}, (), {("y", what) for what in FIRST[:2]}),
    "relu_into": ({"out": f(3, 4), "x": f(3, 4)}, (), set()),
    "relu_backward_into": ({"dx": f(3, 4), "dy": f(3, 4), "y": f(3, 4)}, (), set()),
    "gelu_into": ({"out": f(3, 4), "x": f(3, 4)}, (), set()),
    "gelu_backward_into": ({"dx": f(3, 4), "dy": f(3, 4), "x": f(3, 4)}, (), set()),
    "softmax_cross_entropy_into": ({"dlogits": f(3, 4), "logits": f(3, 4), "labels": i(0, 3, 1)}, (1.0,), set()),
    "weighted_softmax_cross_entropy_into": (
        {"dlogits": f(3, 4), "logits": f(3, 4), "labels": i(0, 3, 1), "weights": wide(4)},
        (1.0,),
        set(),
    ),
    "mean_squared_error_into": ({"dy": f(3, 4), "y": f(3, 4), "target": wide(3, 4)}, (1.0,), {("target", "other dtype")}),
    "im2col_into": ({"cols": f(2 * 4 * 3, 18), "x": f(2, 4, 3, 2)}, (3, 1), set()),
    "col2im_into": ({"dx": f(2, 4, 3, 2), "cols": f(2 * 4 * 3, 18)}, (3, 1), set()),
    "max_pool_into": (
        {"out": f(2, 2, 1, 3), "winner": u8(2, 2, 1, 3), "x": f(2, 5, 3, 3)},
        (2,),
        {("x", "1. dim short"), ("x", "2. dim short")},
    ),
    "max_pool_backward_into": (
        {"dx": f(2, 5, 3, 3), "dy": f(2, 2, 1, 3), "winner": u8(2, 2, 1, 3, below=4)},
        (2,),
        {("dx", "1. dim short"), ("dx", "2. dim short")},
    ),
    "sum_of_squares": ({"x": f(9)}, (), ALONE),
    "sgd_into": ({"p": f(9), "g": f(9)}, (0.1, 1.0, 0.0), set()),
    "momentum_into": ({"p": f(9), "g": f(9), "m": f(9)}, (0.1, 0.9, 1.0, 0.0), set()),
    "nesterov_into": ({"p": f(9), "g": f(9), "m": f(9)}, (0.1, 0.9, 1.0, 0.0), set()),
    "adam_into": ({"p": f(9), "g": f(9), "m": f(9), "v": f(9)}, (0.1, 0.9, 0.99, 1e-8, 0.1, 0.1, 1.0, 0.0, False), set()),
    "lamb_direction_into": (
        {"u": f(9), "p": f(9), "g": f(9), "m": f(9), "v": f(9)},
        (0.9, 0.99, 1e-8, 0.1, 0.1, 1.0, 0.0),
        set(),
    ),
    "lamb_step_into": ({"p": f(9), "u": f(9)}, (0.1,), set()),
    "embed_into": (
        {"y": f(3, 4), "tokens": i(0, 4, 4), "table": f(5, 4), "positions": f(2, 4)},
        (),
        {(x, w) for x in ("table", "positions") for w in FIRST[:2]},
    ),
    "embed_gradients_into": (
        {"dtable": f(5, 4), "dpositions": f(2, 4), "dy": f(3, 4), "tokens": i(0, 4, 4)},
        (),
        {(x, w) for x in ("dtable", "dpositions") for w in FIRST[:2]},
    ),
    "dropout_into": ({"y": f(3, 4), "x": f(3, 4)}, (7, 0, 0.5), set()),
    "cross_entropy_backward_into": (
        {"out": f(3, 4), "sums": 1 + wide(3) ** 2, "labels": i(0, 3, 9)},
        (0, 1.0),
        {("out", w) for w in ("1. dim short", "1. dim long", "other dtype")},
    ),
    "bias_gelu_into": ({"y": f(3, 4), "slope": f(3, 4), "bias": f(4)}, (), set()),
    "multiply_and_sum_into": ({"x": f(3, 4), "by": f(3, 4), "sums": f(4)}, (), set()),
    "column_sums_into": ({"sums": f(4), "x": f(3, 4)}, (), {("x", w) for w in FIRST[:2]}),
    "row_max_into": ({"top": f(3), "x": f(3, 4)}, (), {("x", w) for w in ("1. dim short", "1. dim long")}),
    "exponentials_into": (
        {"out": f(3, 4), "sums": wide(3), "picked": wide(3), "x": f(3, 4), "top": f(3), "labels": i(0, 3, 9)},
        (),
        set(),
    ),
    "layer_norm_into": ({"y": f(3, 4), "mean": f(3), "inverse": f(3), "x": f(3, 4), "weight": f(4), "bias": f(4)}, (), set()),
    "layer_norm_backward_into": (
        {"dx": f(3, 4), "dy": f(3, 4), "x": f(3, 4), "mean": f(3), "inverse": f(3), "weight": f(4)},
        (True,),
        set(),
    ),
    "layer_norm_gradients_into": (
        {"dweight": f(4), "dbias": f(4), "dy": f(3, 4), "x": f(3, 4), "mean": f(3), "inverse": f(3)},
        (),
        set(),
    ),
    "attention_into": ({"y": f(6, 4), "norms": f(2, 2, 3), "x": f(6, 12)}, (2,), set()),
    "attention_backward_into": ({"dx": f(6, 12), "dy": f(6, 4), "y": f(6, 4), "norms": f(2, 2, 3), "x": f(6, 12)}, (2,), set()),
    "encode_blocks_into": ({"scales": f(2), "packed": u8(257), "x": f(257), "memory": f(257)}, {"form": "int8"}, set()),
    "decode_blocks_into": ({"out": f(257), "scales": f(2), "packed": u8(129)}, ("int4",), {("out", "first dim long")}),
    "add_blocks_into": ({"acc": f(257), "scales": f(2), "packed": u8(33)}, ("sign",), {("acc", "first dim long")}),
    "select_above": ({"x": f(70), "memory": f(70)}, {"threshold": 1.0, "room": 5}, set()),
    "scatter_add_into": ({"acc": f(9), "index": i(0, 8, 3, dtype=np.uint32), "value": f(3)}, (), {("acc", "first dim long")}),
    "scatter_zero_into": (
        {"out": f(9), "index": i(0, 8, 3, dtype=np.uint32)},
        (),
        {("out", "first dim long"), *(("index", w) for w in FIRST)},
    ),
    "block_tops_into": ({"tops": f(2), "x": f(257), "memory": f(257)}, (), set()),
    "encode_lanes_into": ({"lanes": u8(257), "scales": f(2), "memory": f(257)}, (63,), set()),
    "decode_lanes_into": ({"out": f(257), "lanes": u8(257), "scales": f(2)}, (63, 2), set()),
    "add_fixed_into": ({"sums": i(*range(9)), "x": f(9)}, (-20,), set()),
    "from_fixed_into": ({"out": f(9), "sums": i(*range(9))}, (-20,), set()),
}
LIMITS = {
    "gather_into": {"index": 5},
    "softmax_cross_entropy_into": {"labels": 4},
    "weighted_softmax_cross_entropy_into": {"labels": 4},
    "max_pool_backward_into": {"winner": 4},
    "scatter_add_into": {"index": 9},
    "scatter_zero_into": {"index": 9},
}
NO_ARRAYS = {"is_native", "lanes", "block_count", "packed_bytes", "BLOCK"}


def verb(name):
    return getattr(integers, name, None) or getattr(ops, name)


def test_every_public_verb_has_a_door_and_a_case():
    public = {*ops.__all__, *(name for name in vars(integers) if name.endswith("_into"))} - NO_ARRAYS
    assert public == {name.split()[0] for name in CASES}
    for name in public:
        arrays = {p for p, given in inspect.signature(verb(name)).parameters.items() if "Array" in str(given.annotation)}
        assert arrays == {rule.name for rule in verb(name).rules}, name
        annotated = inspect.signature(verb(name)).parameters.values()
        assert all(given.annotation is not inspect.Parameter.empty for given in annotated), f"{name}: a scalar is not declared"


def test_no_other_verb_hides_in_the_room():
    for module in pkgutil.iter_modules(hpcai.ops.__path__):
        if "reference" in module.name:
            continue
        for name, value in vars(importlib.import_module(f"hpcai.ops.{module.name}")).items():
            if name.endswith("_into") and not name.startswith("_") and name != "fold_ranks_into":
                assert hasattr(value, "rules") or module.name == "sequence", f"{module.name}.{name}"


@pytest.mark.parametrize("name", CASES)
def test_what_a_verb_does_not_take_is_refused(name):
    arrays, scalars, right = CASES[name]
    call = verb(name.split()[0])
    names = list(inspect.signature(call).parameters)

    def by_name(**given):
        more = (
            scalars
            if isinstance(scalars, dict)
            else dict(zip([one for one in names if one not in arrays], scalars, strict=False))
        )
        return call(**given, **more)

    writes = [rule.name for rule in call.rules if rule.written]
    before = {key: x.copy() for key, x in arrays.items()}
    by_name(**before)
    changed = {key for key, x in arrays.items() if x.tobytes() != before[key].tobytes()}
    assert changed <= set(writes), f"{name} writes {changed - set(writes)}, which it does not declare"
    limits = LIMITS.get(name.split()[0], {})
    assert assert_door(by_name, arrays, writes=writes, limits=limits, right=right) > 5
