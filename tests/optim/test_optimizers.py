"""Twenty steps of each optimizer equal ten lines of textbook numpy."""

import numpy as np
import pytest

from hpcai import arena
from hpcai.optim import optimizers

LAYOUT = arena.layout({"a": (5, 3), "b": (4,)})


def run(optimizer, dtype, scale=1.0):
    rng = np.random.default_rng(0)
    params = np.zeros(LAYOUT.size, dtype)
    for view in arena.views(params, LAYOUT).values():
        view[...] = rng.normal(size=view.shape)
    state = optimizer.init(params)
    gradients = []
    start = params.copy()
    for step in range(20):
        grads = np.zeros_like(params)
        for view in arena.views(grads, LAYOUT).values():
            view[...] = rng.normal(size=view.shape)
        gradients.append(grads.astype(np.float64) * scale)
        optimizer.update(params, grads, state, step, 0.01 * (step + 1), scale)
    return start.astype(np.float64), gradients, params


def textbook_sgd(p, gs, wd):
    for t, g in enumerate(gs, 1):
        p = p - 0.01 * t * (g + wd * p)
    return p


def textbook_momentum(p, gs, mu, nesterov):
    m = 0
    for t, g in enumerate(gs, 1):
        m = mu * m + g
        p = p - 0.01 * t * ((g + mu * m) if nesterov else m)
    return p


def textbook_adam(p, gs, wd, decoupled):
    m = v = 0
    for t, g in enumerate(gs, 1):
        g = g if decoupled else g + wd * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - 0.01 * t * (step + (wd * p if decoupled else 0))
    return p


def textbook_lamb(p, gs, wd):
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gs, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + wd * p
        for s in LAYOUT.slots:
            at = slice(s.start, s.stop)
            p[at] -= 0.01 * t * np.linalg.norm(p[at]) / np.linalg.norm(u[at]) * u[at]
    return p


CASES = {
    "sgd": (optimizers.sgd(), lambda p, g: textbook_sgd(p, g, 0)),
    "sgd with decay": (optimizers.sgd(weight_decay=0.1), lambda p, g: textbook_sgd(p, g, 0.1)),
    "momentum": (optimizers.momentum(mu=0.8), lambda p, g: textbook_momentum(p, g, 0.8, False)),
    "nesterov": (optimizers.nesterov(mu=0.8), lambda p, g: textbook_momentum(p, g, 0.8, True)),
    "adam": (optimizers.adam(weight_decay=0.1), lambda p, g: textbook_adam(p, g, 0.1, False)),
    "adamw": (optimizers.adamw(weight_decay=0.1), lambda p, g: textbook_adam(p, g, 0.1, True)),
    "lamb": (optimizers.lamb(LAYOUT, weight_decay=0.1), lambda p, g: textbook_lamb(p, g, 0.1)),
}


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 3e-5)])
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_the_textbook(name, dtype, tolerance, scale):
    optimizer, textbook = CASES[name]
    start, gradients, params = run(optimizer, dtype, scale)
    np.testing.assert_allclose(params, textbook(start, gradients), atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gaps_between_arrays_stay_zero(name):
    _, _, params = run(CASES[name][0], np.float64)
    for slot, following in zip(LAYOUT.slots, (*LAYOUT.slots[1:], None), strict=True):
        assert (params[slot.stop : following.start if following else LAYOUT.size] == 0).all()


def test_lamb_leaves_zero_parameters_and_zero_gradients_alone():
    optimizer = optimizers.lamb(LAYOUT, weight_decay=0.0)
    params = np.zeros(LAYOUT.size)
    optimizer.update(params, np.zeros_like(params), optimizer.init(params), 0, 0.1, 1.0)
    assert (params == 0).all()
