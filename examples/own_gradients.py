"""Gradients that a program of one's own computes, here numpy for a line: mpirun -n 2 python examples/own_gradients.py"""

import numpy as np

import hpcai


class Line:
    """y = x w + b, with half the squared error."""

    parameters = {"w": np.zeros((3, 1)), "b": np.zeros(1)}

    def predict(self, p, x):
        """(n, 1) for (n, 3)."""
        return x @ p["w"] + p["b"]

    def loss_and_gradients(self, p, x, target):
        """Means over the samples that this rank has."""
        off = self.predict(p, x) - target
        return (off**2).mean() / 2, {"w": x.T @ off / len(x), "b": off.mean(0)}


if __name__ == "__main__":
    x = np.random.default_rng(0).normal(size=(1000, 3))
    trained = hpcai.fit(Line(), (x, x @ [1.0, -2.0, 0.5] + 3), epochs=20, lr=0.05, run_dir="runs/line")
    if hpcai.init().rank == 0:
        print(trained.predict([[0, 0, 0], [1, 0, 0]]).round(2), trained.history[-1]["test_loss"])
