"""PyTorch computes gradients, hpcai combines, updates and saves: mpirun -n 2 python examples/torch_gradients.py"""

import numpy as np
import torch

import hpcai

torch.manual_seed(0)  # the same initial parameters on all ranks
net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))


class Net:
    """Any torch module, called with the parameters that hpcai holds."""

    parameters = {name: p.detach().numpy() for name, p in net.named_parameters()}

    def loss_and_gradients(self, parameters, x, target):
        """Mean cross-entropy of this rank's samples, and its gradients."""
        held = {name: torch.tensor(p, requires_grad=True) for name, p in parameters.items()}
        scores = torch.func.functional_call(net, held, torch.tensor(x))
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(target))
        found = torch.autograd.grad(loss, list(held.values()))
        return loss.item(), {name: one.numpy() for name, one in zip(held, found, strict=True)}


if __name__ == "__main__":
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    trained = hpcai.fit(Net(), (x, np.digitize(np.hypot(*x.T), [0.4, 0.8])), epochs=20, lr=0.01, run_dir="runs/torch")
    if hpcai.init().rank == 0:
        print(f"loss {trained.history[0]['loss']:.3f}, then {trained.history[-1]['loss']:.3f}")
