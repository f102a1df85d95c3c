"""What optimizers, schedules and clipping do not take: arrays, steps, and hyper-parameters in the wrong place or out of range."""

import inspect

import numpy as np
import pytest

from hpcai import arena
from hpcai.optim import clip, optimizers, schedules
from tests.guarded import assert_door

LAYOUT = arena.layout({"a": (5, 3), "b": (4,)})
MAKERS = {
    "sgd": optimizers.sgd,
    "momentum": optimizers.momentum,
    "nesterov": optimizers.nesterov,
    "adam": optimizers.adam,
    "adamw": optimizers.adamw,
    "lamb": lambda **given: optimizers.lamb(LAYOUT, **given),
}
BAD = {
    "weight_decay": (-1e-9, np.nan, np.inf, True, "0.1", None),
    "mu": (-0.1, 1.0, np.nan),
    "beta1": (-0.1, 1.0, 1.5, np.nan),
    "beta2": (-0.1, 1.0, np.nan),
    "eps": (0.0, -1e-8, np.nan, np.inf),
    "lr": (-0.1, np.nan, np.inf, None),
    "final": (-0.1, np.nan),
    "factor": (0.0, -1, np.nan),
    "steps": (0, -1, 2.5, np.nan),
    "every": (0, -1, 1.5),
    "warmup": (-1, 0.5, np.nan),
    "norm": (-1.0, np.nan, np.inf),
    "limit": (-1.0, np.nan),
    "step": (-1, 0.5, np.nan),
}
NO_NUMBERS = (None, True, np.True_, "0.1", [0.1], {}, 1j, np.ones(2), 1e400 * 1j)
"""What no hyper-parameter takes."""
COUNTS = ("steps", "every", "warmup", "step")
BAD = {key: (*values, *NO_NUMBERS, *([np.inf] * (key in COUNTS))) for key, values in BAD.items()}


def test_every_optimizer_and_schedule_is_known_here():
    made = {
        name for name, value in vars(optimizers).items() if inspect.isfunction(value) and value.__module__ == optimizers.__name__
    }
    assert {name for name in made if not name.startswith("_")} == MAKERS.keys()
    made = {
        name for name, value in vars(schedules).items() if inspect.isfunction(value) and value.__module__ == schedules.__name__
    }
    assert {name for name in made if not name.startswith("_")} == SCHEDULES.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_updates_refuse_arrays_that_do_not_fit(name):
    optimizer = MAKERS[name]()
    params = np.linspace(-1, 1, LAYOUT.size).astype(np.float32)
    state = optimizer.init(params)

    def update(params, grads, **state):
        optimizer.update(params, grads, state, 0, 0.1, 1.0)

    assert_door(update, {"params": params, "grads": params.copy(), **state}, writes=("params", *state))


@pytest.mark.parametrize("name", MAKERS)
def test_updates_refuse_steps_rates_and_states_that_make_no_sense(name):
    optimizer = MAKERS[name]()
    params = np.ones(LAYOUT.size)
    state, before = optimizer.init(params), params.copy()
    for step, lr, scale in (
        (-1, 0.1, 1.0),
        (0.5, 0.1, 1.0),
        (0, np.nan, 1.0),
        (0, np.inf, 1.0),
        (0, -0.1, 1.0),
        (0, 0.1, np.nan),
    ):
        with pytest.raises(ValueError, match=f"{name} .* got"):
            optimizer.update(params, params.copy(), state, step, lr, scale)
    if state:
        with pytest.raises(ValueError, match="is missing"):
            optimizer.update(params, params.copy(), {}, 0, 0.1, 1.0)
    np.testing.assert_array_equal(params, before)


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_counted_from_0(name):
    params = np.ones(LAYOUT.size)
    MAKERS[name]().update(params, params.copy(), MAKERS[name]().init(params), 0, 0.1, 1.0)
    assert np.isfinite(params).all()


SCHEDULES = {
    "constant": (schedules.constant, {}),
    "cosine": (schedules.cosine, {"steps": 10}),
    "step": (schedules.step, {"every": 3}),
}


def parameters(function):
    return [name for name, given in inspect.signature(function).parameters.items() if given.kind is given.KEYWORD_ONLY]


@pytest.mark.parametrize("name", MAKERS)
def test_hyper_parameters_of_optimizers_have_names_and_ranges(name):
    make = getattr(optimizers, name)
    with pytest.raises(TypeError, match="positional"):
        make(*([LAYOUT] if name == "lamb" else []), 1e-3)
    checked = [key for key in parameters(make) if key != "decoupled"]
    assert checked
    for key in checked:
        for value in BAD[key]:
            with pytest.raises(ValueError, match=f"wants {key} .* got"):
                MAKERS[name](**{key: value})


@pytest.mark.parametrize("name", SCHEDULES)
def test_hyper_parameters_of_schedules_have_names_and_ranges(name):
    make, needed = SCHEDULES[name]
    with pytest.raises(TypeError, match="positional"):
        make(0.1, 5)
    for key in ("lr", *parameters(make)):
        for value in BAD[key]:
            with pytest.raises(ValueError, match=f"{name} wants {key} .* got"):
                make(**{"lr": 0.1, **needed, key: value})


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_count_steps_from_0(name):
    make, needed = SCHEDULES[name]
    for warmup in (0, 4):
        schedule = make(0.1, **needed, warmup=warmup)
        assert schedule(np.int64(3)) == schedule(3)
        for step in BAD["step"]:
            with pytest.raises(ValueError, match="a schedule wants step a whole number of at least 0, got"):
                schedule(step)


def test_clipping_refuses_norms_and_limits_that_are_none():
    for key, given in (("norm", {"limit": 1.0}), ("limit", {"norm": 1.0})):
        for value in BAD[key]:
            with pytest.raises(ValueError, match=f"factor wants {key} .* got"):
                clip.factor(**given, **{key: value})
    assert clip.factor(2.0, np.inf) == 1.0
    with pytest.raises(TypeError, match="sum_of_squares wants x"):
        clip.norm([1.0])
