"""The native door lets in what the check lets in, nothing else, also after it has seen calls of the same kind."""

from __future__ import annotations

import gc
import itertools
import pickle
import weakref

import numpy as np
import pytest

from hpcai import ops
from hpcai.ops import door
from hpcai.ops.door import U32, U64


@pytest.fixture(params=["native", "Python"])
def takes(request, monkeypatch):
    if request.param == "native" and door.Door is None:
        pytest.skip("the kernels are not built")
    if request.param == "Python":
        monkeypatch.setattr(door, "Door", None)
    return door.takes


def grown(takes):
    """A verb with every kind of argument: out is x, `times` over in its columns."""

    @takes(
        out="f32 n times*k",
        x="T n k",
        index="i64|u8 n <n",
        more="f32 n",
        writes="out",
        strided="x",
        where={"times > 0": "times from 1", "0 <= rate < 1": "a rate from 0 to below 1"},
    )
    def verb(
        out,
        x,
        index,
        more: np.ndarray | None,
        times: int,
        rate: float,
        name: str = "a",
        flag: bool = False,
        key: U64 = 0,
        small: U32 = 0,
    ):
        out[...] = np.tile(x[index], times)
        return out, more, times, rate, name, flag, key, small

    return verb


def arguments(**changed):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    given = {"out": np.zeros((3, 4), np.float32), "x": x, "index": np.array([2, 0, 1]), "more": None, "times": 2, "rate": 0.5}
    return {**given, **changed}


NO = object()
VALUES = {
    "times": [True, 2.0, np.int32(2), np.float64(2), 2**70, -2, 0, 3, None, "2", NO],
    "rate": [1, 0, True, np.float32(0.5), 1.0, float("nan"), -0.0, 5e-324, "0.5", None, 2**70],
    "name": ["b", np.str_("c"), b"d", None, 7, "b" * 50],
    "flag": [True, np.True_, 1, 0.0, None],
    "key": [2**64 - 1, 2**64, -1, np.uint64(7), 1.0, True],
    "small": [2**32 - 1, 2**32, -1, np.uint8(7)],
    "more": [np.zeros(3, np.float32), np.zeros(2, np.float32), np.zeros(3), [0, 0, 0]],
    "index": [
        np.array([0, 0, 2], np.uint8),
        np.array([0, 3, 0]),
        np.array([0, -1, 0]),
        np.array([0, 1]),
        np.array([0, 1, 2], np.int32),
    ],
    "x": [
        np.ones((2, 3), np.float32).T,
        np.ones((3, 4), np.float32)[:, ::2],
        np.ones((3, 2)),
        np.ones((3, 2), ">f4"),
        np.ones((3, 2), np.float32)[::-1],
        np.ones((3, 3), np.float32),
    ],
}


def outcome(verb, given):
    given = {name: x.copy(order="K") if isinstance(x, np.ndarray) and x.flags.c_contiguous else x for name, x in given.items()}
    try:
        out, *rest = verb(**{name: x for name, x in given.items() if x is not NO})
    except (TypeError, ValueError) as error:
        assert not given["out"].any()
        return type(error), str(error)
    return out.tolist(), rest


def test_both_doors_answer_alike(monkeypatch):
    if door.Door is None:
        pytest.skip("the kernels are not built")
    quick = grown(door.takes)
    monkeypatch.setattr(door, "Door", None)
    slow = grown(door.takes)
    singles = [{name: value} for name, values in VALUES.items() for value in values]
    pairs = [{**a, **b} for a, b in itertools.combinations(singles, 2) if a.keys() != b.keys()]
    refused = 0
    for _ in range(2):  # the second time all that was let in has been seen
        for changed in [{}, *singles, *pairs]:
            given = arguments(**changed)
            want = outcome(slow, given)
            got = outcome(quick, given)
            assert repr(got) == repr(want), changed
            refused += isinstance(want[0], type)
    assert refused > 500


def test_one_number_of_three_types_is_three_kinds_of_call(takes):
    verb = grown(takes)
    assert verb(**arguments())[2] == 2
    for other in (True, 2.0, "2"):
        with pytest.raises((TypeError, ValueError), match="times"):
            verb(**arguments(times=other))
    assert verb(**arguments(rate=0))[3] == 0
    with pytest.raises(ValueError, match="rate"):
        verb(**arguments(rate=1))


def test_arrays_that_overlap_are_refused_after_others_were_let_in(takes):
    verb = grown(takes)
    raw = np.zeros(64, np.float32)
    out = raw[:12].reshape(3, 4)
    verb(**arguments(out=out, x=raw[12:18].reshape(3, 2)))
    for x in (raw[11:17].reshape(3, 2), raw[4:10].reshape(3, 2), raw[23:5:-3].reshape(3, 2), raw[8:20].reshape(3, 4)[:, ::2]):
        with pytest.raises(ValueError, match="overlap"):
            verb(**arguments(out=out, x=x))
    verb(**arguments(out=out, x=raw[29:11:-3].reshape(3, 2)))


def test_values_of_arrays_with_gaps_are_looked_at_too(takes):
    @takes(index="i64 n <n", strided="index")
    def verb(index):
        return index.tolist()

    whole = np.array([1, 9, 0, 9])
    assert verb(whole[::2]) == [1, 0]
    for bad in (whole, np.array([0, 7, 2, 7])[::2]):
        with pytest.raises(ValueError, match="every index from 0 to below"):
            verb(bad)
    assert verb(np.array([1, 0])) == [1, 0]


def test_an_array_may_be_another_where_declared(takes):
    @takes(out="f32 *", x="f32 *", writes="out", same="out x")
    def verb(out, x):
        return out

    x = np.zeros(9, np.float32)
    for _ in range(2):
        assert verb(x, x) is x
        assert verb(x[:4], x[4:8]) is not None
        with pytest.raises(ValueError, match="overlap"):
            verb(x[:5], x[4:])


def test_many_kinds_of_call_are_neither_kept_for_ever_nor_mixed_up(takes):
    @takes(x="f32 n", y="f32 n", writes="x")
    def verb(x, y):
        return len(x)

    for n in [*range(1, 3 * door.MOST_SEEN), 5]:
        assert verb(np.zeros(n, np.float32), np.zeros(n, np.float32)) == n
    with pytest.raises(ValueError, match="y of shape"):
        verb(np.zeros(5, np.float32), np.zeros(6, np.float32))


def test_a_verb_may_call_itself_and_is_called_by_what_its_arguments_run(takes):
    @takes(x="f32 n", writes="x")
    def verb(x, deep: int):
        return verb(x[1:].copy(), deep - 1) + 1 if deep else 0

    assert verb(np.zeros(9, np.float32), 5) == 5
    assert verb(np.zeros(9, np.float32), deep=3) == 3


def test_a_door_is_like_its_verb(takes):
    verb = grown(takes)
    assert (verb.__name__, verb.__wrapped__, verb.__module__) == ("verb", verb.unchecked, __name__)
    for wrong in (lambda: verb(), lambda: verb(*range(11)), lambda: verb(**arguments(), nothing=1)):
        with pytest.raises(TypeError, match="argument"):
            wrong()
    assert pickle.loads(pickle.dumps(ops.fold_into)) is ops.fold_into

    class Owner:
        @takes(x="f32 n")
        def size(self, x):
            return self, x.size

    owner = Owner()
    assert owner.size(np.zeros(3, np.float32)) == (owner, 3)


def test_a_door_goes_away_with_what_it_remembers(takes):
    class Mark:
        pass

    verb, mark = grown(takes), Mark()
    verb.itself, verb.mark, gone = verb, mark, weakref.ref(mark)
    verb(**arguments(), name="".join(["a", "name"]))
    del verb, mark
    gc.collect()
    assert gone() is None
