"""Optimizers: (init, update) on flat parameters. Each update is one fused pass over parameters, gradient and state.

State is a dict of flat arrays with the layout of the parameters, so a checkpoint or a shard of it is a slice like any other.
Step counts start at 1 and come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.arena import Layout
from hpcai.xp import Array

State = dict[str, Array]


class Optimizer(NamedTuple):
    """init(params) -> state. update(params, grads, state, step, lr, scale) writes params and state in place.

    params, grads and all state arrays are flat, of one dtype and length. The gradient is multiplied by `scale` (clipping) in the
    same pass.
    """

    name: str
    init: Callable[[Array], State]
    update: Callable[[Array, Array, State, int, float, float], None]


def sgd(weight_decay: float = 0.0) -> Optimizer:
    """p -= lr (g + weight_decay p). Cost: 12 bytes an element in f32."""

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        ops.sgd_into(params, grads, lr, scale, weight_decay)

    return Optimizer("sgd", lambda params: {}, update)


def momentum(mu: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """m = mu m + g + weight_decay p; p -= lr m (Polyak 1964, in PyTorch's form). Cost: 20 bytes an element in f32."""

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        ops.momentum_into(params, grads, state["momentum"], lr, mu, scale, weight_decay)

    return Optimizer("momentum", lambda params: {"momentum": np.zeros_like(params)}, update)


def nesterov(mu: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """m = mu m + g; p -= lr (g + mu m): Nesterov's momentum as in Sutskever et al., ICML 2013, in PyTorch's form."""

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        ops.nesterov_into(params, grads, state["momentum"], lr, mu, scale, weight_decay)

    return Optimizer("nesterov", lambda params: {"momentum": np.zeros_like(params)}, update)


def adam(
    beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, *, decoupled: bool = False
) -> Optimizer:
    """Adam (Kingma & Ba, arXiv:1412.6980). Weight decay joins the gradient, or with `decoupled` the step (AdamW)."""

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        fix1, fix2 = 1 - beta1**step, 1 - beta2**step
        ops.adam_into(
            params,
            grads,
            state["mean"],
            state["square"],
            lr,
            beta1,
            beta2,
            eps,
            fix1,
            fix2,
            scale,
            weight_decay,
            decoupled,
        )

    return Optimizer("adamw" if decoupled else "adam", _moments, update)


def adamw(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101). Cost: 28 bytes an element in f32."""
    return adam(beta1, beta2, eps, weight_decay, decoupled=True)


def lamb(layout: Layout, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.01) -> Optimizer:
    """LAMB (You et al., arXiv:1904.00962): Adam's direction, its length in each array set to that of the array's parameters.

    `layout` tells where the arrays lie. The trust ratio is |p| / |u|, and 1 where either is zero, not clamped (the paper's
    phi is the identity).
    """

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        fix1, fix2 = 1 - beta1**step, 1 - beta2**step
        for slot in layout.slots:
            at = slice(slot.start, slot.stop)
            p, g, m, v, u = params[at], grads[at], state["mean"][at], state["square"][at], state["direction"][at]
            pp, uu = ops.lamb_direction_into(u, p, g, m, v, beta1, beta2, eps, fix1, fix2, scale, weight_decay)
            ops.lamb_step_into(p, u, lr * (sqrt(pp / uu) if pp > 0 and uu > 0 else 1.0))

    return Optimizer("lamb", lambda params: _moments(params) | {"direction": np.zeros_like(params)}, update)


def _moments(params: Array) -> State:
    return {"mean": np.zeros_like(params), "square": np.zeros_like(params)}
