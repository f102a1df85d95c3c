"""What a run says of its model at the end, against sklearn.metrics, on any ranks."""

import json
import math

import numpy as np
import pytest

import hpcai
from hpcai import nn
from hpcai.comm import threads
from hpcai.data.dataset import Dataset
from hpcai.train import loop
from hpcai.train.report import curve, figures
from tests.train import mine

pytestmark = pytest.mark.usefixtures("clean_environment")


def trained(tmp_path, ranks=2, model="softmax", data=mine.points, run="run", **options):
    chosen = {"run_dir": tmp_path / run, "steps": 12, "batch": 50, "lr": 0.05} | options
    return threads.run(ranks, lambda comm: hpcai.fit(model, data, comm, **chosen))[0]


def quantities():
    x, _ = mine.points()
    return x, 2000 + 300 * x[:, 0] - 100 * x[:, 1]


def counted(ranks, y, target, classes):
    """The summary's part of these predictions, shared out between ranks."""
    dataset = Dataset("made", *[np.zeros((0, 1))] * 4, (1,), classes)
    model = nn.softmax((1,), classes, nn.softmax_cross_entropy())

    def program(comm):
        found = figures.Figures(dataset, model)
        for part in np.array_split(np.arange(len(y)), 3 * comm.size)[comm.rank :: comm.size]:
            found.add(y[part], target[part])
        return figures.by_class(found.counts, dataset.class_names, comm)

    return threads.run(ranks, program)


@pytest.mark.parametrize("classes", [2, 7, figures.MOST_CONFUSED, figures.MOST_CONFUSED + 1, 300])
def test_figures_of_classes_are_those_of_sklearn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    target = rng.integers(0, classes - 1, 400)  # the last class never comes
    y = rng.normal(size=(400, classes)) + 2 * np.eye(classes)[target]
    first, *others = counted(3, y, target, classes)
    assert all(one == first for one in others)
    labels, predicted = np.arange(classes), y.argmax(1)
    wanted = metrics.precision_recall_fscore_support(target, predicted, labels=labels, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        np.testing.assert_allclose([one[key] for one in first["classes"]], values, rtol=1e-15)
    if classes <= figures.MOST_CONFUSED:
        np.testing.assert_array_equal(first["confusion"], metrics.confusion_matrix(target, predicted, labels=labels))
    else:
        assert "confusion" not in first


def test_of_thousands_of_classes_the_summary_has_the_worst():
    target = np.arange(3000)
    y = np.eye(3000, dtype=np.float32)[np.where(target % 50, target, (target + 1) % 3000)]
    (found,) = counted(1, y, target, 3000)
    assert found.keys() == {"classes"}
    assert len(found["classes"]) == figures.MOST_LISTED
    assert [one["f1"] for one in found["classes"][:61]] == pytest.approx([0.0] * 60 + [2 / 3])
    said = figures.table(found, 3000).splitlines()
    assert said[0] == "  the 5 worst classes of 3,000, by f1:"
    assert len(said) == 2 + figures.WORST_SHOWN


@pytest.mark.parametrize(
    "ranks, options",
    [(1, {}), (3, {}), (2, {"mesh": "pp=2"}), (4, {"mesh": "dp=2,pp=2", "zero": 1}), (2, {"zero": 3, "steps": 11})],
)
@pytest.mark.parametrize("data", [mine.points, mine.rows])
def test_any_ranks_count_every_test_sample_once(tmp_path, ranks, options, data):
    found = trained(tmp_path, ranks, "mlp", data, hidden=[8], **options)
    test = hpcai.data.from_arrays(*mine.points())
    predicted = found.scores(test.x_test).argmax(1)
    wanted = np.zeros((3, 3), int)
    np.add.at(wanted, (test.y_test, predicted), 1)
    np.testing.assert_array_equal(found.confusion, wanted)
    assert [one["name"] for one in found.summary["classes"]] == ["0", "1", "2"]
    assert [one["support"] for one in found.summary["classes"]] == wanted.sum(1).tolist()
    assert found.confusion.trace() / wanted.sum() == pytest.approx(found.summary["test_accuracy"])


def test_programs_of_ones_own_are_counted_where_they_predict(tmp_path):
    plain = trained(tmp_path, model=mine.model, run="plain", dtype="f64")
    found = trained(tmp_path, model=mine.Program, run="own", dtype="f64")
    np.testing.assert_array_equal(found.confusion, plain.confusion)
    silent = trained(tmp_path, model=mine.Silent, run="silent")
    assert silent.confusion is None
    assert "classes" not in silent.summary


def test_a_run_ends_with_a_line_for_each_class_by_its_name(tmp_path, capsys):
    x, y = mine.points()
    found = trained(tmp_path, data=(x, np.array(["red", "green\x1b[2J", "a very long name of a class indeed"])[y]))
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  class "))
    assert lines[at].split() == ["class", "precision", "recall", "f1", "support", "mostly", "taken", "for"]
    assert [line[2:26].strip() for line in lines[at + 1 : at + 4]] == ["a very long name of a...", "green\\x1b[2J", "red"]
    first = found.summary["classes"][0]
    assert f"{first['precision']:.4f}" in lines[at + 1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["confusion"] == found.confusion.tolist()


def test_a_finished_run_whose_summary_is_gone_is_evaluated_again(tmp_path):
    first = trained(tmp_path)
    (tmp_path / "run" / "summary.json").unlink()
    again = trained(tmp_path, 3, resume="auto")
    np.testing.assert_array_equal(again.confusion, first.confusion)
    assert again.summary["classes"] == first.summary["classes"]


def test_what_ranks_had_counted_that_are_not_there_any_more_is_counted_again(tmp_path, monkeypatch):
    first, finish = trained(tmp_path, run="first"), loop._finish

    def after_others_failed(run):
        run.evaluated.counts[:] = 0  # what others had is not here
        run.resized()
        return finish(run)

    monkeypatch.setattr(loop, "_finish", after_others_failed)
    np.testing.assert_array_equal(trained(tmp_path).confusion, first.confusion)


def test_texts_have_no_figures_of_bytes(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"what follows a byte is no class " * 40)
    options = {"layers": 1, "width": 8, "heads": 2, "context": 8, "steps": 2, "mesh": "tp=2"}
    found = trained(tmp_path, model=None, data=f"text:{tmp_path / 't.txt'}", **options)
    assert not {"classes", "confusion", "test_mae"} & found.summary.keys()


@pytest.mark.parametrize("ranks, options", [(1, {}), (3, {}), (2, {"mesh": "pp=2"}), (2, {"zero": 2, "steps": 11})])
def test_errors_are_in_the_targets_unit_as_sklearn_has_them(tmp_path, ranks, options):
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = quantities()
    found = trained(tmp_path, ranks, "mlp", (x, y), hidden=[8], dtype="f64", **options)
    _, test = hpcai.data.dataset.hold_out(len(x))
    predicted = found.predict(x[test])
    last = found.history[-1]
    assert last["test_mae"] == pytest.approx(metrics.mean_absolute_error(y[test], predicted), rel=1e-6)
    assert last["test_rmse"] == pytest.approx(metrics.root_mean_squared_error(y[test], predicted), rel=1e-6)
    assert last["test_r2"] == pytest.approx(metrics.r2_score(y[test], predicted), rel=1e-6)
    assert {key: found.summary[key] for key in ("test_mae", "test_rmse", "test_r2")} == {
        key: last[key] for key in ("test_mae", "test_rmse", "test_r2")
    }
    assert last["test_accuracy"] is None


class Several:
    """Three quantities of a point, far from 0 compared with how they vary."""

    def __init__(self, x):
        self.x, self.y = x, 1e6 + x[:, :3] * [1.0, 2.0, 30.0]

    def __len__(self):
        return len(self.x)

    def take(self, index):
        return self.x[index], self.y[index]


@pytest.mark.parametrize("ranks", [1, 3])
def test_several_outputs_come_to_the_means_of_each(tmp_path, ranks):
    metrics = pytest.importorskip("sklearn.metrics")
    x, _ = mine.points()

    def model(data):
        return nn.sequential("m", nn.flatten(data.shape), nn.linear("l", 5, 3), loss=nn.mean_squared_error())

    found = trained(tmp_path, ranks, model, (Several(x[:200]), Several(x[200:])), dtype="f64", optimizer="sgd", lr=0.2, steps=200)
    target, predicted, last = Several(x[200:]).y, found.scores(x[200:]), found.history[-1]
    assert last["test_mae"] == pytest.approx(metrics.mean_absolute_error(target, predicted), rel=1e-9)
    assert last["test_rmse"] == pytest.approx(metrics.root_mean_squared_error(target, predicted), rel=1e-9)
    assert last["test_r2"] == pytest.approx(metrics.r2_score(target, predicted), rel=1e-9)
    each = metrics.r2_score(target, predicted, multioutput="raw_values")
    assert [one["test_r2"] for one in found.summary["outputs"]] == pytest.approx(each, rel=1e-9)


def of(y, target, unit=1.0, parts=1):
    dataset, model = Dataset("made", *[np.zeros((0, 1))] * 4, (1,), 0), nn.softmax((1,), 1, nn.mean_squared_error())
    found = []
    for i in range(parts):
        one = figures.Figures(dataset, model)
        one.add(y[i::parts], target[i::parts])
        found.append(one.quantities)
    return figures.in_units([None, *found, None], unit)[0]


def test_r2_of_equal_targets_and_of_one_sample():
    ones = np.ones((4, 1))
    assert of(ones, ones)["test_r2"] == 1.0
    assert of(ones + 1, ones)["test_r2"] == 0.0
    assert of(ones[:1], ones[:1])["test_r2"] is None
    assert of(ones[:0], ones[:0]) == {}


def test_targets_of_one_dim_are_those_of_one_output():
    y, target = np.array([[1.0], [2.0], [4.0]]), np.array([1, 2, 3])
    assert of(y, target) == of(y.reshape(-1), target) == of(y, target.reshape(-1, 1) * 1.0)
    assert of(y, np.ones((3, 2))) == {}


def test_r2_of_targets_far_from_zero_keeps_its_digits():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(1000, 1))
    y = target + 0.1 * rng.normal(size=target.shape)
    near, far = of(y, target, parts=7), of(y + 2.0**30, target + 2.0**30, parts=7)
    assert far["test_r2"] == pytest.approx(near["test_r2"], rel=1e-6)
    assert near == pytest.approx(of(y, target), rel=1e-12)
    assert of(y, target, unit=50.0)["test_mae"] == pytest.approx(50 * near["test_mae"])


def test_an_epochs_line_has_errors_by_the_targets_name(tmp_path, capsys):
    x, y = quantities()
    rows = [f"{','.join(map(str, row))},{value}" for row, value in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(["a,b,c,d,e,price", *rows]))
    found = trained(tmp_path, data=f"csv:{tmp_path / 'd.csv'}", label_column="price")
    out, err = capsys.readouterr()
    last = found.history[-1]
    assert f"test price: MAE {figures.amount(last['test_mae'])}, RMSE" in err
    assert "(in the unit of price)" in out


def test_words_of_what_is_not_finite():
    said = figures.words({"test_mae": math.inf, "test_rmse": math.nan, "test_r2": math.nan}, "")
    assert said == "test: MAE not finite, RMSE not finite, R2 not finite"
    assert figures.words({"test_loss": 1.0}, "price") == ""


def test_figures_survive_a_checkpoint(tmp_path):
    whole = trained(tmp_path, data=quantities, run="whole", steps=24, dtype="f64")
    trained(tmp_path, data=quantities, steps=10, dtype="f64")
    then = trained(tmp_path, 3, data=quantities, steps=24, resume="auto", dtype="f64")
    keys = ("test_mae", "test_rmse", "test_r2")
    for one, other in zip(then.history, whole.history, strict=True):
        assert [one[key] for key in keys] == pytest.approx([other[key] for key in keys], rel=1e-9)


@pytest.mark.parametrize("data", [mine.points, quantities])
def test_the_picture_has_a_panel_of_what_is_tested_with_units(tmp_path, monkeypatch, data):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    trained(tmp_path, data=data, plot=True)
    top, below = drawn[0].axes
    assert [line.get_label() for line in top.lines] == ["step", "mean of epoch", "test"]
    assert below.get_xlabel() == "step"
    if data is quantities:
        assert top.get_ylabel() == "loss (squared deviations of the target)"
        assert below.get_ylabel() == "test error (unit of the target)"
        assert [line.get_label() for line in below.lines] == ["mean absolute", "root mean square"]
    else:
        assert top.get_ylabel() == "loss (nats a sample)"
        assert below.get_ylabel() == "test accuracy (fraction)"
    pyplot.close("all")


def test_a_loss_of_ones_own_has_no_unit():
    dataset = Dataset("made", *[np.zeros((0, 1))] * 4, (1,), 0)
    assert curve.unit("mine", dataset) == curve.unit("mean_squared_error", dataset) == ""
