"""Models whose gradients PyTorch or JAX compute: the same as hpcai's own layers, on any number of ranks."""

import numpy as np
import pytest

from hpcai import nn
from hpcai.nn import models
from tests.train import mine
from tests.train.test_trained import trained

pytestmark = pytest.mark.usefixtures("clean_environment")

WIDTH = 16


def layers(data):
    """Two linear layers, as both have them."""
    parts = nn.flatten(data.shape), nn.linear("0", 5, WIDTH), nn.relu("1"), nn.linear("2", WIDTH, 3)
    return nn.sequential("two", *parts, loss=nn.softmax_cross_entropy())


def initial():
    """Where `layers` begins with seed 0, by names like those of torch."""
    built = layers(type("", (), {"shape": (5,)}))
    return nn.models.arena.views(models.initialise(built, 0, np.float64), built.layout)


class Torch:
    def __init__(self):
        import torch

        self.module = torch.nn.Sequential(torch.nn.Linear(5, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 3)).double()
        self.parameters = {name: np.ascontiguousarray(array.T) if array.ndim == 2 else array for name, array in initial().items()}

    def _scores(self, params, x, torch):
        tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in params.items()}
        return tensors, torch.func.functional_call(self.module, tensors, (torch.from_numpy(x),))

    def loss_and_gradients(self, params, x, target):
        import torch

        tensors, scores = self._scores(params, x, torch)
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(target))
        return loss.item(), dict(zip(tensors, torch.autograd.grad(loss, tensors.values()), strict=True))

    def predict(self, params, x):
        import torch

        return self._scores(params, x, torch)[1].detach()


class Jax:
    def __init__(self):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.parameters = initial()
        self.both = jax.jit(jax.value_and_grad(self._loss))

    def _loss(self, params, x, target):
        import jax

        scores = self.predict(params, x)
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(scores), target[:, None], 1).mean()

    def loss_and_gradients(self, params, x, target):
        return self.both(dict(params), x, target)

    def predict(self, params, x):
        import jax

        return jax.nn.relu(x @ params["0.weight"] + params["0.bias"]) @ params["2.weight"] + params["2.bias"]


@pytest.mark.parametrize("options", [{}, {"zero": 1, "micro_batches": 2, "clip": 0.5}, {"zero": 3}], ids=str)
@pytest.mark.parametrize("library", [Torch, Jax])
def test_gradients_of_another_library_train_as_layers_do(tmp_path, library, options):
    pytest.importorskip(library.__name__.lower())
    common = {"dtype": "f64", "optimizer": "momentum", "data": mine.points} | options
    plain = trained(tmp_path, 1, layers, run="layers", **common)[0]
    for ranks in (1, 2, 4):
        found = trained(tmp_path, ranks, library, run=f"run{ranks}", **common)[0]
        assert found.history[-1]["test_accuracy"] == plain.history[-1]["test_accuracy"]
        for name, array in plain.parameters.items():
            other = found.parameters[f"external.{name}"]
            turned = other.T if library is Torch and other.ndim == 2 else other
            np.testing.assert_allclose(turned, array, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("library", [Torch, Jax])
def test_they_go_with_compression_and_resume(tmp_path, library):
    pytest.importorskip(library.__name__.lower())
    options = {"compress": "int8", "compress_smallest": 1, "zero": 1}
    whole = trained(tmp_path, 2, library, run="whole", **options)[0]
    trained(tmp_path, 2, library, steps=11, **options)
    then = trained(tmp_path, 2, library, resume="auto", **options)[0]
    for name, array in whole.parameters.items():
        assert then.parameters[name].tobytes() == array.tobytes()
