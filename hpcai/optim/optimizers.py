"""Optimizers: (init, update) on flat parameters. Each update is one fused pass over parameters, gradient and state.

State is a dict of flat arrays with the layout of the parameters, so a shard of the state is a slice, like a shard of parameters.
The caller counts steps, from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.arena import Layout
from hpcai.ops.door import takes
from hpcai.ops.ranges import below_one, not_negative, positive
from hpcai.xp import Array

State = dict[str, Array]


class Optimizer(NamedTuple):
    """init(params) -> state. update(params, grads, state, step, lr, scale) writes params and state in place.

    params, grads and all state arrays are flat, of one dtype (f32 or f64) and one length, and do not overlap. step: from 0.
    scale: the same pass multiplies the gradient by it (clipping). Raises: TypeError or ValueError for other arguments, before
    anything is written.
    """

    name: str
    init: Callable[[Array], State]
    update: Callable[[Array, Array, State, int, float, float], None]


def sgd(*, weight_decay: float = 0.0) -> Optimizer:
    """p -= lr (g + weight_decay p). Cost: 12 bytes an element in f32."""
    not_negative(sgd, weight_decay=weight_decay)

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        _arrays("sgd", state, (), step, lr, scale)
        ops.sgd_into(params, grads, lr, scale, weight_decay)

    return Optimizer("sgd", lambda params: {}, update)


def momentum(*, mu: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """m = mu m + g + weight_decay p; p -= lr m (Polyak 1964, in PyTorch's form). Cost: 20 bytes an element in f32."""
    below_one(momentum, mu=mu)
    not_negative(momentum, weight_decay=weight_decay)

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        (m,) = _arrays("momentum", state, ("momentum",), step, lr, scale)
        ops.momentum_into(params, grads, m, lr, mu, scale, weight_decay)

    return Optimizer("momentum", lambda params: {"momentum": np.zeros_like(params)}, update)


def nesterov(*, mu: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """m = mu m + g; p -= lr (g + mu m): Nesterov's momentum as in Sutskever et al., ICML 2013, in PyTorch's form."""
    below_one(nesterov, mu=mu)
    not_negative(nesterov, weight_decay=weight_decay)

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        (m,) = _arrays("nesterov", state, ("momentum",), step, lr, scale)
        ops.nesterov_into(params, grads, m, lr, mu, scale, weight_decay)

    return Optimizer("nesterov", lambda params: {"momentum": np.zeros_like(params)}, update)


def adam(
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = False
) -> Optimizer:
    """Adam (Kingma & Ba, arXiv:1412.6980). Weight decay is added to the gradient, or if `decoupled` to the step (AdamW)."""
    name = "adamw" if decoupled else "adam"
    _moments_within(adam, beta1, beta2, eps, weight_decay)

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        m, v = _arrays(name, state, ("mean", "square"), step, lr, scale)
        fix1, fix2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        ops.adam_into(params, grads, m, v, lr, beta1, beta2, eps, fix1, fix2, scale, weight_decay, decoupled)

    return Optimizer(name, _moments, update)


def adamw(*, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101). Cost: 28 bytes an element in f32."""
    return adam(beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, decoupled=True)


def lamb(layout: Layout, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.01) -> Optimizer:
    """LAMB (You et al., arXiv:1904.00962): Adam's direction, scaled in each array to the norm of the array's parameters.

    layout: the positions of the arrays. The trust ratio is |p| / |u|, or 1 if either norm is zero. It is not clamped (the
    paper's phi is the identity).
    """
    _moments_within(lamb, beta1, beta2, eps, weight_decay)

    @takes(
        params="T n",
        grads="T n",
        mean="T n",
        square="T n",
        direction="T n",
        writes="params mean square direction",
        where={"n == size": "params with as many elements as the layout"},
    )
    def lamb_into(
        params: Array, grads: Array, mean: Array, square: Array, direction: Array, size: int, step: int, lr: float, scale: float
    ) -> None:
        fix1, fix2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        for slot in layout.slots:
            at = slice(slot.start, slot.stop)
            p, g, m, v, u = params[at], grads[at], mean[at], square[at], direction[at]
            pp, uu = ops.lamb_direction_into.unchecked(u, p, g, m, v, beta1, beta2, eps, fix1, fix2, scale, weight_decay)
            ops.lamb_step_into.unchecked(p, u, lr * (sqrt(pp / uu) if pp > 0 and uu > 0 else 1.0))

    def update(params: Array, grads: Array, state: State, step: int, lr: float, scale: float) -> None:
        m, v, u = _arrays("lamb", state, ("mean", "square", "direction"), step, lr, scale)
        lamb_into(params, grads, m, v, u, layout.size, step, lr, scale)

    return Optimizer("lamb", lambda params: _moments(params) | {"direction": np.zeros_like(params)}, update)


def _moments(params: Array) -> State:
    return {"mean": np.zeros_like(params), "square": np.zeros_like(params)}


def _moments_within(maker: Callable[..., Optimizer], beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
    below_one(maker, beta1=beta1, beta2=beta2)
    positive(maker, eps=eps)
    not_negative(maker, weight_decay=weight_decay)


def _arrays(name: str, state: State, wanted: tuple[str, ...], step: int, lr: float, scale: float) -> list[Array]:
    """Check step, lr, scale and the names in the state, and return the state's arrays; the verb checks the arrays."""
    if not isinstance(step, (int, np.integer)) or step < 0:
        raise ValueError(f"{name} counts steps from 0, got step {step!r}")
    if not (0 <= lr < inf and isfinite(scale)):
        raise ValueError(f"{name} wants a learning rate of at least 0 and a scale, both finite, got {lr} and {scale}")
    if missing := [key for key in wanted if key not in state]:
        raise ValueError(f"{name} wants the state that its init returned, with {', '.join(wanted)}; {missing[0]} is missing")
    return [state[key] for key in wanted]
