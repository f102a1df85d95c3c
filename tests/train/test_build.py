import numpy as np
import pytest

from hpcai.checkpoint import format
from hpcai.comm import threads
from hpcai.errors import CheckpointError, UsageError
from hpcai.train import resume
from hpcai.train.loop import fit
from hpcai.train.options import parser

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_colour_images_train_alike_in_both_orders(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "last.npz", x=x, y=y)
    np.savez(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2), y=y)

    def train(order, *flags, ranks=2):
        given = ["--data", f"npz:{tmp_path / order}.npz", "--run-dir", str(tmp_path / order), "--model", "cnn", "--channels", "4"]
        chosen = parser.parse([*given, "--batch", "8", "--steps", "6", *flags])
        threads.run(ranks, lambda comm: fit(chosen, comm))
        return format.read(resume.newest(tmp_path / order))[1].arrays["params"]

    with pytest.raises(UsageError, match="look like .channels, height, width."):
        train("first")
    np.testing.assert_array_equal(train("last"), train("first", "--image-channels", "first"))
    with pytest.raises(CheckpointError, match="--image-channels first"):
        train("first", "--image-channels", "last", "--resume", "auto")
