"""Python and the kernels, which each state some tables by themselves, state the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpcai import environment
from hpcai.comm import call, threads, wire
from hpcai.comm.communicator import Communicator
from hpcai.comm.wires import node
from hpcai.ops import blocks, blocks_reference, door, layouts, native
from hpcai.xp import CODES, DTYPES, bfloat16

pytestmark = pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")


def upper(names):
    return tuple(name.upper() for name in names)


def stated_in_python():
    levels = {name: (blocks_reference.LARGEST[name], blocks_reference.NOT_FINITE[name]) for name in blocks_reference.LARGEST}
    return {
        "kinds": upper(call.NATIVE_KINDS),
        "statuses": node.STATUSES,
        "dtypes": (*upper(DTYPES), "BYTES"),
        "folds": upper(native.OPERATIONS),
        "key": upper(call.FIELDS),
        "shape_code": (call.SHAPE_FACTOR, call.SHAPE_BITS),
        "place_bits": call.PLACE_BITS,
        "desk_alignment": wire.ALIGNMENT,
        "formats": tuple((name.upper(), bits, *levels.get(name, ())) for name, bits in blocks.FORMATS.items()),
        "block": blocks.BLOCK,
        "smallest_scale": blocks_reference.SMALLEST_SCALE,
        "lane_types": tuple(layouts.LETTERS["L"].split("|")),
        "lanes": (f"{environment.PREFIX}LANES", *environment.LANES),
        "scalars": {name.upper(): letter for name, (letter, *_) in door.SCALARS.items()},
        "array_rule": door.ArrayRule._fields,
        "scalar_rule": door.ScalarRule._fields,
        "most_seen": door.MOST_SEEN,
    }


def test_every_table_of_the_kernels_is_the_one_of_python():
    theirs, ours = native.kernels().tables(), stated_in_python()
    assert theirs.keys() == ours.keys()
    assert {name: (table, ours[name]) for name, table in theirs.items() if table != ours[name]} == {}


def test_what_python_numbers_is_numbered_from_zero_in_the_order_of_its_table():
    assert tuple(getattr(node, name) for name in node.STATUSES) == tuple(range(len(node.STATUSES)))
    assert tuple(call.KINDS.index(kind) for kind in call.NATIVE_KINDS) == tuple(range(len(call.NATIVE_KINDS)))
    assert [*(CODES[dtype] for dtype in DTYPES.values()), call.BYTES] == list(range(len(DTYPES) + 1))
    assert list(native.OPERATIONS.values()) == list(range(len(native.OPERATIONS)))


def test_a_key_has_its_numbers_where_its_fields_say():
    x = np.zeros((2, 3), np.float64)
    key = call.key(0, "broadcast", x, "max", 7, "ring", None)
    assert dict(zip(call.FIELDS, key, strict=True)) == {
        "valid": 1,
        "kind": call.KINDS.index("broadcast"),
        "count": 6,
        "dtype": CODES[x.dtype],
        "operation": call.OPERATIONS.index("max"),
        "choice": 7,
        "shape": call.shape_code(x.shape),
        "algorithm": environment.ALGORITHMS.index("ring"),
    }


def test_the_short_way_compares_the_same_numbers_as_the_long_way(monkeypatch):
    """Rank 0 goes the short way, where C++ makes the key, and rank 1 the long way, where Python does."""
    long_way, went = Communicator._checked_collective, set()

    def noted(comm, *arguments):
        went.add(comm.rank)
        return long_way(comm, *arguments)

    def program(comm):
        algorithm = ("auto", "node")[comm.rank]
        for shape in ((), (0,), (5,), (2, 3), (3, 2), (1, 2, 3), (0, 7), (1,) * 32):
            for dtype, op in itertools.product(DTYPES.values(), call.OPERATIONS[1:]):
                x = np.full(shape, 1 + comm.rank, dtype)
                comm.allreduce(x, op, algorithm=algorithm)
                comm.reduce_scatter(x, "".join(op), algorithm=algorithm)
            for letter in [*call.LETTERS, bfloat16]:
                x = np.full(shape, 1 + comm.rank, letter)
                comm.allgather(x, algorithm=algorithm)
                comm.broadcast(x, 1, algorithm=algorithm)
                if shape[:1] == (2,):
                    comm._collective("alltoall", x, "", 0, algorithm)

    monkeypatch.setattr(Communicator, "_checked_collective", noted)
    threads.run(2, program)
    assert went == {1}
