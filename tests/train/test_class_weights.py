"""Weights of classes: what each way of naming them comes to, and that they weigh the same however ranks share a batch."""

import numpy as np
import pytest

import hpcai
from hpcai import nn
from hpcai.comm import threads
from hpcai.errors import DataError, UsageError
from hpcai.train import class_weights
from tests.train import mine

pytestmark = pytest.mark.usefixtures("clean_environment")
WEIGHTS = [0.5, 4.0, 1.25]


def trained(tmp_path, ranks=2, model="softmax", data=mine.points, run="run", **options):
    """What rank 0 has."""
    chosen = {"run_dir": tmp_path / run, "steps": 6, "batch": 50, "lr": 0.05, "optimizer": "sgd", "dtype": "f64"} | options
    return threads.run(ranks, lambda comm: hpcai.fit(model, data, comm, **chosen))[0]


def labelled(labels):
    x, y = mine.points()
    return x, np.array(labels)[y]


def by_hand(x, y, weights, steps, batch, clip=np.inf, lr=0.05):
    """Softmax regression by sgd as one process would do it, in f64, the mean being divided by the batch's weight."""
    built = nn.softmax((5,), 3, nn.softmax_cross_entropy())
    flat = nn.models.initialise(built, 0, np.float64)
    (_, params) = nn.models.per_layer(built, flat)
    for step in range(steps):
        index = hpcai.data.sharding.global_batch(len(x), batch, 0, step)
        scores = x[index] @ params["weight"] + params["bias"]
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares[np.arange(len(index)), y[index]] -= 1
        shares *= (weights[y[index]] / weights[y[index]].sum())[:, None]
        weight, bias = x[index].T @ shares, shares.sum(0)
        norm = np.sqrt((weight**2).sum() + (bias**2).sum())
        params["weight"] -= lr * min(1, clip / norm) * weight
        params["bias"] -= lr * min(1, clip / norm) * bias
    return params


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_the_mean_is_divided_by_the_weight_of_the_global_batch(tmp_path, clip):
    data, weights = hpcai.data.from_arrays(*mine.points()), 10 * np.array(WEIGHTS)
    wanted = by_hand(data.x_train.astype(np.float64), data.y_train, weights, steps=6, batch=50, clip=clip or np.inf)
    found = trained(tmp_path, class_weights=weights, clip_norm=clip).parameters
    for key, value in wanted.items():
        np.testing.assert_allclose(found[f"linear1.{key}"], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "ranks, options",
    [
        (3, {}),
        (2, {"micro_batches": 5}),
        (4, {"zero": 1}),
        (3, {"zero": 1, "redundancy": 1}),
        (2, {"zero": 3}),
        (2, {"mesh": "pp=2", "micro_batches": 2}),
        (4, {"mesh": "dp=2,pp=2", "micro_batches": 5, "zero": 2}),
        (2, {"overlap": "always", "bucket_bytes": 100}),
    ],
)
def test_ranks_micro_batches_shards_and_stages_change_nothing(tmp_path, ranks, options):
    common = {"model": "mlp", "hidden": [8], "class_weights": WEIGHTS, "clip_norm": 0.3, "steps": 8}
    one, found = trained(tmp_path, 1, run="one", **common), trained(tmp_path, ranks, **common, **options)
    for key, value in one.parameters.items():
        np.testing.assert_allclose(found.parameters[key], value, rtol=1e-10, atol=1e-13)
    assert [record["loss"] for record in found.history] == pytest.approx([record["loss"] for record in one.history], rel=1e-12)
    assert [record["test_loss"] for record in found.history] == pytest.approx(
        [record["test_loss"] for record in one.history], rel=1e-12
    )


def test_reproducible_sums_stay_the_same_bit_for_bit(tmp_path):
    common = {"class_weights": [0.1, 0.7, 1 / 3], "compress": "reproducible", "dtype": "f32"}
    one, three = trained(tmp_path, 1, run="one", **common), trained(tmp_path, 3, **common)
    for key, value in one.parameters.items():
        np.testing.assert_array_equal(three.parameters[key], value)
    assert one.history[-1]["loss"] == three.history[-1]["loss"]


def test_equal_weights_of_any_size_change_nothing(tmp_path):
    plain, weighed = trained(tmp_path, run="plain"), trained(tmp_path, class_weights=[7, 7, 7])
    for key, value in plain.parameters.items():
        np.testing.assert_allclose(weighed.parameters[key], value, rtol=1e-12, atol=1e-15)
    assert weighed.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"])
    assert weighed.history[-1]["test_loss"] == pytest.approx(plain.history[-1]["test_loss"])


def test_losses_and_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    given = torch.tensor(scores, requires_grad=True)
    wanted = torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS, dtype=torch.float64))(given, torch.tensor(target))
    wanted.backward()
    loss, dy = nn.softmax_cross_entropy(WEIGHTS), np.empty_like(scores)
    weight = loss.weights[target].sum()
    total, _ = loss.evaluate(dy, scores, target, 1 / weight)
    assert total / weight == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(dy, given.grad.numpy(), rtol=1e-12, atol=1e-15)


def test_the_test_loss_is_weighed_too(tmp_path):
    found = trained(tmp_path, class_weights=WEIGHTS)
    data = hpcai.data.from_arrays(*mine.points())
    scores = found.scores(data.x_test)
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), data.y_test]
    weights = np.array(WEIGHTS)[data.y_test]
    assert found.history[-1]["test_loss"] == pytest.approx((weights * losses).sum() / weights.sum())


def test_names_order_and_mapping_say_the_same(tmp_path):
    data = labelled(["red", "green", "a=b,c"])  # in order: a=b,c, green, red
    ways = [[3, 2, 1], {"red": 1, "green": 2, "a=b,c": 3}, np.array([3, 2, 1]), [("a=b,c", 3), ("green", 2.0)]]
    found = [trained(tmp_path, data=data, class_weights=way, run=str(i)).history for i, way in enumerate(ways)]
    assert all(history == found[0] for history in found)


def test_labels_that_are_numbers_are_names_too(tmp_path):
    data = labelled([30, 10, 20])
    ways = ["20=5", {20: 5}, [1, 5, 1]]
    found = [trained(tmp_path, data=data, class_weights=way, run=str(i)).history for i, way in enumerate(ways)]
    assert all(history == found[0] for history in found)


def test_balanced_weights_are_those_of_sklearn():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.random.default_rng(0).choice(5, 200, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    wanted = sklearn.compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(class_weights.balanced(np.bincount(labels)), wanted)


@pytest.mark.parametrize("data", [mine.points, mine.rows])
def test_balanced_counts_training_labels_alone_wherever_they_are(tmp_path, data):
    train = hpcai.data.from_arrays(*mine.points()).y_train
    found = trained(tmp_path, 3, data=data, class_weights="balanced")
    np.testing.assert_allclose(found.data.class_weights, len(train) / (3 * np.bincount(train)))
    assert found.model.loss.weights is not None


def test_classes_without_training_samples_do_not_count():
    np.testing.assert_array_equal(class_weights.balanced(np.array([2, 0, 6])), [2.0, 1.0, 2 / 3])


def test_a_batch_whose_classes_all_weigh_nothing_moves_nothing(tmp_path):
    x, y = mine.points()
    data = (x, np.where(np.arange(len(y)) < len(y) - 30, 0, 1))
    found = trained(tmp_path, data=data, class_weights=[0, 1], batch=2, steps=40)
    assert all(np.isfinite(value).all() for value in found.parameters.values())
    assert np.isfinite(found.history[-1]["loss"])


def test_models_of_ones_own_go_through_hpcais_loss_or_are_refused(tmp_path):
    named, option = (
        trained(tmp_path, class_weights=WEIGHTS, run="a"),
        trained(tmp_path, model=mine.model, class_weights=WEIGHTS, run="b"),
    )
    own = trained(tmp_path, model=lambda data: nn.softmax(data.shape, data.outputs, nn.softmax_cross_entropy(WEIGHTS)), run="c")
    asks = trained(
        tmp_path,
        model=lambda data: nn.softmax(data.shape, data.outputs, nn.softmax_cross_entropy(data.class_weights)),
        class_weights=WEIGHTS,
        run="d",
    )
    assert named.history == option.history == own.history == asks.history
    with pytest.raises(UsageError, match="model external has a loss of its own .external"):
        trained(tmp_path, model=mine.Program, class_weights=WEIGHTS, run="e")
    with pytest.raises(UsageError, match="already has class weights; leave these or --class-weights out"):
        trained(
            tmp_path,
            model=lambda data: nn.softmax(data.shape, data.outputs, nn.softmax_cross_entropy([1, 1, 1])),
            class_weights=WEIGHTS,
            run="f",
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_weights": "rde=2"}, "names 'rde', which is not a class of the data .is red meant..; classes are blue, green"),
        ({"class_weights": [1, 2]}, "2 weights for 3 classes .blue, green, red.; give one for each"),
        ({"class_weights": "red=1,green=2,red=3"}, "wants balanced, NAME=W"),
        ({"class_weights": "red=1,2"}, "wants balanced, NAME=W"),
        ({"class_weights": [0, 0, 0]}, "and not all are 0"),
        ({"class_weights": "red=0,green=0,blue=0"}, "and not all are 0"),
        ({"class_weights": [1, -2, 1]}, "wants balanced, NAME=W"),
        ({"class_weights": "ballanced"}, "wants balanced, NAME=W"),
        ({"class_weights": [1, float("nan"), 1]}, "wants balanced, NAME=W"),
    ],
)
def test_weights_that_fit_no_class_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        trained(tmp_path, data=labelled(["red", "green", "blue"]), **options)


def test_what_has_no_classes_is_refused(tmp_path):
    x, _ = mine.points()
    with pytest.raises(UsageError, match="for classes, but the targets of own-data are not classes"):
        trained(tmp_path, data=(x, x[:, 0] * 2), model="softmax", class_weights="balanced")
    (tmp_path / "t.txt").write_bytes(b"abcd" * 200)
    with pytest.raises(UsageError, match="is text; leave them out"):
        trained(tmp_path, model=None, data=f"text:{tmp_path / 't.txt'}", class_weights=[1] * 256)


def test_samples_whose_targets_cannot_be_counted_are_refused(tmp_path):
    train, test = mine.rows()
    with pytest.raises(DataError, match="whole numbers at least 0 and below 3; take returned int64 of shape .* up to 7"):
        trained(tmp_path, data=(mine.Rows(train.x, np.where(train.y == 2, 7, 0)), test), class_weights="balanced")


def test_weights_of_a_loss_are_refused_where_they_are_none():
    for wrong in ([[1, 2]], [1, -1], [0, 0], [1, np.inf], []):
        with pytest.raises(UsageError, match="are not class weights"):
            nn.softmax_cross_entropy(wrong)


def test_a_resumed_run_says_that_weights_changed(tmp_path, capfd):
    trained(tmp_path, class_weights="balanced")
    found = trained(tmp_path, class_weights=WEIGHTS, steps=9, resume="auto")
    assert "with --class-weights 0.5,4.0,1.25 (was balanced)" in capfd.readouterr().err
    assert found.summary["steps"] == 9
