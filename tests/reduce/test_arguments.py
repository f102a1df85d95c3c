"""What reducers do not take: found by introspection, so that a way of reducing without a case fails."""

import inspect

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.compress import cast
from hpcai.reduce import combine, integer_sum, policy, power_sgd, reproducible
from tests.guarded import assert_door
from tests.reduce.test_reducers import REDUCERS

N = 300
MORE = {
    "error_feedback": combine.error_feedback(combine.by_sum(cast.bf16())),
    "policy": policy.policy(combine.by_gather(cast.bf16()), smallest=10, warmup=1),
    "power_sgd": power_sgd.power_sgd(2, [(0, (20, 10))]),
}
ALL = {name: reducer for name, reducer in REDUCERS.items() if not name.endswith(" own") and name != "exact"} | MORE
ALONE = {("x", what) for what in ("first dim short", "first dim long", "empty")}
"""A reducer without a state takes an array of any length."""


def test_every_reducer_has_a_case():
    made = {
        name
        for module in (combine, integer_sum, policy, power_sgd, reproducible)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and value.__annotations__.get("return") == "Reducer"
    }
    assert made - {"exact"} == {name.split()[0] for name in ALL}  # exact is the communicator's all-reduce


@pytest.mark.parametrize("name", ALL)
def test_arrays_that_are_not_flat_f32_are_refused(name):
    reducer = ALL[name]
    x = np.random.default_rng(0).normal(size=N).astype(np.float32)

    def program(comm):
        def reduce(x):
            reducer.reduce(x, comm, reducer.init(np.zeros(N, np.float32)))

        def keep(x, memory):
            reducer.keep(x, memory, comm, reducer.init(np.zeros(N, np.float32)))

        lengths = {("x", what) for what in ("first dim short", "first dim long", "empty")}
        assert_door(reduce, {"x": x}, writes=["x"], skip=lengths)
        if reducer.keep is not None:
            assert_door(keep, {"x": x, "memory": x.copy()}, writes=["x", "memory"])

    threads.run(1, program)


def test_hyper_parameters_have_names_and_ranges():
    for rank in (0, -1, 1.5, np.nan, None, True):
        with pytest.raises(ValueError, match="power_sgd wants approximation_rank .* got"):
            power_sgd.power_sgd(rank, [])
    with pytest.raises(TypeError, match="positional"):
        power_sgd.power_sgd(2, [], 7)
    with pytest.raises(TypeError, match="positional"):
        policy.policy(combine.exact(), 10, 1)
    for given in ({"smallest": -1}, {"warmup": -1}, {"warmup": np.nan}):
        with pytest.raises(ValueError, match="policy wants"):
            policy.policy(combine.exact(), **given)


def test_parts_that_do_not_cover_the_array_are_refused():
    exact = combine.exact()
    for parts in (
        [(slice(0, 3), exact), (slice(4, None), exact)],
        [(slice(1, None), exact)],
        [(slice(0, 4), exact), (slice(3, 9), exact)],
        [],
    ):
        with pytest.raises(ValueError, match="by_parts wants"):
            policy.by_parts(parts)
    short = policy.by_parts([(slice(0, 3), exact), (slice(3, 9), exact)])
    for n in (8, 10):
        with pytest.raises(ValueError, match=r"by_parts wants .* got"):
            threads.run(1, lambda comm, n=n: short.reduce(np.zeros(n, np.float32), comm, short.init(np.zeros(9, np.float32))))


def test_seeds_of_factors_are_whole_numbers_below_2_to_the_64():
    for seed in (-1, 0.5, None, 2**64):
        with pytest.raises((TypeError, ValueError), match="a seed is .* got"):
            power_sgd.power_sgd(1, [(0, (3, 4))], seed=seed)
