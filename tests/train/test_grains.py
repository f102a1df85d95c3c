"""`--compress reproducible`: the same bits for any number of ranks, topology and cut, also after an interruption."""

import numpy as np
import pytest

from hpcai.errors import NonFiniteError
from hpcai.nn import models
from hpcai.parallel.zero import WholeGradients
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

FLAGS = ["--compress", "reproducible", "--steps", "100", "--batch", "50"]
SETUPS = {
    "mlp": ["--hidden", "16,8"],
    "cnn": ["--model", "cnn", "--channels", "4,4", "--steps", "12"],
    "large grain": ["--hidden", "16", "--fixed-micro-batch", "20", "--optimizer", "lamb", "--clip-norm", "0.5"],
    "grain of one": ["--model", "softmax", "--fixed-micro-batch", "1", "--steps", "20"],
}


def arrays(tmp_path, run):
    return {name: array.tobytes() for name, array in final(tmp_path, run).items()}


@pytest.mark.parametrize("setup", SETUPS)
def test_any_number_of_ranks_gives_the_same_bits(tmp_path, setup):
    """Batch 50 in grains of 8 leaves a short grain; 7 ranks or more get uneven shares, and some none."""
    flags = [*FLAGS, *SETUPS[setup]]
    one = train(1, options(tmp_path, *flags, run="one"))
    for ranks in (2, 3, 4, 7):
        many = train(ranks, options(tmp_path, *flags, run=f"run{ranks}"))
        assert arrays(tmp_path, f"run{ranks}") == arrays(tmp_path, "one")
        assert many["epoch_losses"] == one["epoch_losses"]
    plain = train(3, options(tmp_path, *[flag for flag in flags if flag not in FLAGS[:2]], run="plain"))
    assert plain["test_loss"] == pytest.approx(one["test_loss"], rel=0.05)


def test_dropout_drops_the_same_elements_on_any_number_of_ranks_and_without_grains(tmp_path):
    """Masks follow the number of a sample in the global batch, whichever grain, micro-batch or rank it is in."""
    (tmp_path / "text.txt").write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 2000, np.uint8)))
    flags = ["--data", f"text:{tmp_path / 'text.txt'}", "--layers", "1", "--width", "8", "--heads", "2", "--context", "8"]
    flags += ["--batch", "12", "--steps", "6", "--dropout", "0.4", "--optimizer", "sgd", "--lr", "0.1"]
    one = train(1, options(tmp_path, *flags, "--compress", "reproducible", "--fixed-micro-batch", "2", run="one"))
    for ranks in (2, 3):
        train(ranks, options(tmp_path, *flags, "--compress", "reproducible", "--fixed-micro-batch", "2", run=f"run{ranks}"))
        assert arrays(tmp_path, f"run{ranks}") == arrays(tmp_path, "one")
    for ranks, more in ((1, []), (2, []), (1, ["--micro-batches", "3"])):
        plain = train(ranks, options(tmp_path, *flags, *more, run="plain"))
        assert plain["epoch_losses"] == pytest.approx(one["epoch_losses"], rel=1e-5)
        np.testing.assert_allclose(final(tmp_path, "plain")["params"], final(tmp_path, "one")["params"], atol=1e-5)


@pytest.mark.parametrize("how", [{"HPCAI_NODE": "0"}, {"HPCAI_RANKS_PER_NODE": "2"}, {"HPCAI_ALGORITHM": "halving_doubling"}])
def test_topology_and_algorithm_change_no_bit(tmp_path, how, monkeypatch):
    flags = [*FLAGS, "--hidden", "16", "--steps", "10"]
    train(3, options(tmp_path, *flags, run="plain"))
    for name, value in how.items():
        monkeypatch.setenv(name, value)
    train(4, options(tmp_path, *flags, run="other"))
    assert arrays(tmp_path, "other") == arrays(tmp_path, "plain")


def test_going_on_with_another_number_of_ranks_is_bitwise_the_undisturbed_run(tmp_path):
    flags = [*FLAGS, "--hidden", "16"]
    train(2, options(tmp_path, *flags, "--steps", "30", run="whole"))
    train(3, options(tmp_path, *flags, "--steps", "17", run="cut"))
    train(5, options(tmp_path, *flags, "--steps", "30", "--resume", "auto", run="cut"))
    assert arrays(tmp_path, "cut") == arrays(tmp_path, "whole")


def test_gradients_that_jump_are_computed_again_and_not_cut_off(tmp_path, monkeypatch):
    """One step's gradient is 2**40 times larger: the unit of the step before would overflow."""
    plain, count = models.backward, [0]

    def jumping(model, params, grads, caches, dy, *filled):
        count[0] += 1
        plain(model, params, grads, caches, dy * np.float32(2.0**40 if 50 < count[0] < 100 else 1), *filled)

    monkeypatch.setattr(models, "backward", jumping)
    flags = [*FLAGS, "--model", "softmax", "--optimizer", "sgd", "--lr", "1e-13", "--steps", "20"]
    train(1, options(tmp_path, *flags))
    assert count[0] > 7 * 21
    assert np.isfinite(final(tmp_path)["params"]).all()


def test_a_gradient_that_is_not_finite_is_named(tmp_path, monkeypatch):
    def spoilt(gradients, layer):
        if layer == 3:
            gradients.views[3]["weight"][0, 0] = np.nan

    monkeypatch.setattr(WholeGradients, "filled", spoilt)
    with pytest.raises(NonFiniteError, match="gradient of linear2"):
        train(3, options(tmp_path, *FLAGS, "--hidden", "16"))
