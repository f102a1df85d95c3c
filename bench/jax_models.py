"""bench.step's models in JAX, as its users write them: one jitted step, parameters donated; data-parallel over JAX's own Gloo.

Each rank has one core: XLA computes with as many threads as the process may use cores, so start with -bind-to core.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.train.options.options import Options


def load(comm: Communicator) -> Any:
    """jax, started among the ranks; None where it is not installed. Collective."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        import jax
    except ImportError:
        return None

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    if comm.size > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{comm.on_root(free_port)}", comm.size, comm.rank)
    return jax


def step(jax: Any, options: Options, comm: Communicator, initial: dict[str, Any], x: Any, y: Any) -> Callable[[], float]:
    """One training step from these parameters; returns the mean loss over all ranks."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def placed(value: Any) -> Any:
        return jax.make_array_from_process_local_data(whole, np.asarray(value))

    inputs, labels = (jax.make_array_from_process_local_data(rows, np.ascontiguousarray(one)) for one in (x, y.astype(np.int32)))
    model, start, update = (mlp, momentum_state, momentum) if options.model == "mlp" else (gpt, adam_state, adamw)
    params = {name: placed(value) for name, value in initial.items()}
    state = jax.tree.map(placed, start(initial))

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        logits = model(jax, options, params, x).reshape(y.size, -1)
        chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(logits), y.reshape(-1, 1), 1)
        return -chosen.mean()

    def one(params: Any, state: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        return *update(jax, options, params, grads, state), loss

    jitted = jax.jit(one, donate_argnums=(0, 1), out_shardings=(whole, whole, whole))

    def call() -> float:
        nonlocal params, state
        params, state, loss = jitted(params, state, inputs, labels)
        return float(loss)

    return call


def mlp(jax: Any, options: Options, params: Any, x: Any) -> Any:
    """Linear layers and ReLU."""
    for i in range(1, len(options.hidden) + 2):
        x = x @ params[f"linear{i}.weight"] + params[f"linear{i}.bias"]
        x = jax.nn.relu(x) if i <= len(options.hidden) else x
    return x


def gpt(jax: Any, options: Options, params: Any, x: Any) -> Any:
    """Pre-norm blocks of causal attention and GELU."""
    heads = options.heads

    def norm(name: str, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params[f"{name}.weight"] + params[f"{name}.bias"]

    def linear(name: str, x: Any, *, transposed: bool) -> Any:
        weight = params[f"{name}.weight"]
        return x @ (weight.T if transposed else weight) + params[f"{name}.bias"]

    hidden = params["embedding.token"][x] + params["embedding.position"]
    for i in range(1, options.layers + 1):
        batch, context, width = hidden.shape
        qkv = linear(f"block{i}/attention/qkv", norm(f"block{i}/attention/norm", hidden), transposed=True)
        q, k, v = (part.reshape(batch, context, heads, width // heads) for part in jax.numpy.split(qkv, 3, -1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, context, width)
        hidden = hidden + linear(f"block{i}/attention/out", mixed, transposed=False)
        up = jax.nn.gelu(linear(f"block{i}/hidden/up", norm(f"block{i}/hidden/norm", hidden), transposed=True), approximate=False)
        hidden = hidden + linear(f"block{i}/hidden/down", up, transposed=False)
    return norm("head/norm", hidden) @ params["head.token"].T


def momentum_state(initial: dict[str, Any]) -> Any:
    return {name: np.zeros_like(value) for name, value in initial.items()}


def momentum(jax: Any, options: Options, params: Any, grads: Any, state: Any) -> Any:
    state = jax.tree.map(lambda m, g: options.momentum * m + g, state, grads)
    return jax.tree.map(lambda p, m: p - options.lr * m, params, state), state


def adam_state(initial: dict[str, Any]) -> Any:
    return (np.zeros((), np.float32), momentum_state(initial), momentum_state(initial))


def adamw(jax: Any, options: Options, params: Any, grads: Any, state: Any) -> Any:
    count, m, v = state
    count = count + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)

    def stepped(p: Any, m: Any, v: Any) -> Any:
        direction = (m / (1 - 0.9**count)) / (jax.numpy.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return p - options.lr * (direction + 0.01 * p)

    return jax.tree.map(stepped, params, m, v), (count, m, v)
