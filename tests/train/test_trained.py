"""Training from Python: what comes back, who hears of it, and what a checkpoint gives without MPI."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hpcai
from hpcai import nn, optim
from hpcai.checkpoint import naming
from hpcai.comm import threads
from hpcai.errors import CheckpointError, DataError, RankMismatch, UsageError
from tests.train import mine

pytestmark = pytest.mark.usefixtures("clean_environment")


def trained(tmp_path, ranks=2, model="softmax", data=mine.points, run="run", **options):
    """What all ranks have."""
    chosen = {"run_dir": tmp_path / run, "steps": 30, "batch": 32, "lr": 0.05} | options
    return threads.run(ranks, lambda comm: hpcai.fit(model, data, comm, **chosen))


def test_all_ranks_have_the_same(tmp_path):
    first, *others = trained(tmp_path, 3, zero=1, after_epoch=None)
    x, y = mine.points()
    for one in others:
        assert one.summary == first.summary
        assert one.history == first.history
        assert one.checkpoint == first.checkpoint
        np.testing.assert_array_equal(one.scores(x), first.scores(x))
    test = hpcai.data.from_arrays(x, y)
    labels = np.asarray(test.encoding["label"]["values"])[test.y_test]
    assert (first.predict(test.x_test) == labels).mean() == pytest.approx(first.history[-1]["test_accuracy"])
    assert first.data.x_train.shape == (0, 5)
    assert Path(first.checkpoint).name == naming.name_of(30)


@pytest.mark.parametrize(
    "options", [{}, {"zero": 1}, {"zero": 3}, {"compress": "int8", "compress_smallest": 1}, {"overlap": "always"}]
)
@pytest.mark.parametrize("model", [mine.model, mine.Program, mine.Program(), "mlp"])
def test_any_number_of_ranks_comes_to_the_same_loss(tmp_path, model, options):
    losses = [trained(tmp_path, n, model, run=str(n), hidden=[8], **options)[0].history[-1]["test_loss"] for n in (1, 2, 4)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=2e-2 if options.get("compress") else 1e-4)


def test_models_may_be_values_functions_and_names(tmp_path):
    def local(data):
        return mine.model(data)

    made = nn.softmax((5,), 3, nn.softmax_cross_entropy())
    ways = [made, local, mine.model, "tests.train.mine:model", lambda: made]
    found = [trained(tmp_path, 2, way, run=str(i))[0].history for i, way in enumerate(ways)]
    assert all(history == found[0] for history in found)


def test_optimizers_may_be_too(tmp_path):
    ways = [optim.adam(), lambda: optim.adam(), lambda model: optim.adam(), "adam"]
    found = [trained(tmp_path, 2, optimizer=way, run=str(i))[0].history for i, way in enumerate(ways)]
    assert all(history == found[0] for history in found)
    other = trained(tmp_path, 2, optimizer=mine.optimizer, run="other")[0]
    assert other.history != found[0]


def test_data_may_be_too(tmp_path):
    x, y = mine.points()
    ways = [(x, y), lambda: (x, y), hpcai.data.from_arrays(x, y), "tests.train.mine:points"]
    found = [trained(tmp_path, 2, data=way, run=str(i))[0].history for i, way in enumerate(ways)]
    assert all(history == found[0] for history in found)
    handed = [trained(tmp_path, 2, data=way, run=f"rows{i}")[0].history for i, way in enumerate([mine.rows, mine.rows()])]
    assert handed[0] == handed[1]
    assert [one["test_loss"] for one in handed[0]] == pytest.approx([one["test_loss"] for one in found[0]], rel=1e-5)


def test_of_arrays_only_rank_0s_are_read(tmp_path):
    x, y = mine.points()
    chosen = {"run_dir": tmp_path / "run", "steps": 3}
    threads.run(2, lambda comm: hpcai.fit("softmax", (x, y) if comm.rank == 0 else (None, None), comm, **chosen))


def of_each_rank(tmp_path, make, data=mine.points, **options):
    """Three ranks of which each has what `make(rank)` gives: a model, data, an optimizer."""
    chosen = {"run_dir": tmp_path / "run", "steps": 30, "batch": 32, "lr": 0.05} | options

    def program(comm):
        given = {"model": mine.Program(), "data": data} | make(comm.rank)
        return hpcai.fit(comm=comm, **given, **chosen)

    return threads.run(3, program)


def test_parameters_begin_as_rank_0_has_them(tmp_path):
    def make(rank):
        model = mine.Program()
        model.parameters["bias"] = model.parameters["bias"] + rank
        return {"model": model}

    ours, alone = of_each_rank(tmp_path, make), trained(tmp_path, 3, mine.Program, run="alike")
    for one in ours:
        for name, array in one.parameters.items():
            np.testing.assert_array_equal(array, alone[0].parameters[name])


class Odd(mine.Rows):
    """Points of one rank that are not as the others'."""

    def __init__(self, how, x, y):
        super().__init__(x, y)
        self.how = how

    def take(self, index):
        x, y = super().take(index)
        if len(index) > 1 and self.how == "shape":
            x = x[:, :4]
        return x, y + 3 if len(index) > 1 and self.how == "label" else y


@pytest.mark.parametrize(
    "odd, error, words",
    [
        (
            {"parameters": {"a.weight": np.zeros((4, 3)), "bias": np.zeros(3)}},
            UsageError,
            r"rank 1 has external.a.weight of shape",
        ),
        (
            {"parameters": {"a.weight": np.zeros((5, 3))}},
            UsageError,
            r"rank 0 has external.bias of shape \(3,\) where rank 1 has nothing",
        ),
        ("length", DataError, r"of rank 0 have lengths \[240, 60\], but on rank 1 \[239, 60\]"),
        ("shape", DataError, r"take gave samples of shape \(4,\), but before of shape \(5,\)"),
        ("label", DataError, "take gave the label [345]; wanted are whole numbers from 0 to below the 3 classes"),
        ("optimizer", RankMismatch, "after step 8 the parameters of rank 1 differ from those of rank 0"),
    ],
)
def test_what_is_not_alike_on_all_ranks_is_refused(tmp_path, odd, error, words):
    def make(rank):
        if rank != 1:
            return {}
        if isinstance(odd, dict):
            model = mine.Program()
            model.parameters = odd["parameters"]
            return {"model": model}
        if odd == "optimizer":
            return {"optimizer": optim.adam(beta1=0.5)}
        train, test = mine.rows()
        return {"data": (Odd(odd, train.x[odd == "length" :], train.y[odd == "length" :]), test)}

    alike = {"optimizer": optim.adam()} if odd == "optimizer" else {}
    data = mine.rows() if odd in ("length", "shape", "label") else mine.points
    with pytest.raises(error, match=words):
        of_each_rank(tmp_path, lambda rank: alike | make(rank), data)


def test_sinks_get_copies_and_all_are_closed(tmp_path):
    closed = []

    class Sink:
        def __init__(self, name):
            self.name = name

        def open(self, about):
            about.clear()

        def event(self, event):
            event.values.clear()

        def close(self):
            closed.append(self.name)
            if self.name == "b":
                raise OSError("full")

    steps = []
    with pytest.raises(OSError, match="full"):
        trained(tmp_path, 1, steps=3, sinks=[Sink("a"), Sink("b"), Sink("c")], after_step=steps.append)
    assert sorted(closed) == ["a", "b", "c"]
    assert len(steps) == 3
    assert all("loss" in step for step in steps)


def test_a_result_stays_its_own_runs_when_another_run_takes_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = trained(Path(), 1, lr=1e-4)[0]
    second = trained(Path(), 1, lr=0.1)[0]
    monkeypatch.chdir("/")
    x, y = mine.points()
    test = hpcai.data.from_arrays(x, y)
    for one in (first, second):
        right = (one.predict(test.x_test) == test.y_test).mean()
        assert right == pytest.approx(one.history[-1]["test_accuracy"])
    assert first.history[-1]["test_accuracy"] < second.history[-1]["test_accuracy"]
    lost = trained(tmp_path, 1, run="lost")[0]
    shutil.rmtree(tmp_path / "lost")
    with pytest.raises(CheckpointError, match="does not exist any more"):
        lost.predict(x)
    other = trained(tmp_path, 1, run="lost", lr=0.01)[0]
    assert other.parameters
    with pytest.raises(CheckpointError, match="give each fit its own run_dir"):
        lost.predict(x)


def test_a_home_folder_may_be_written_as_people_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = threads.run(1, lambda comm: hpcai.fit("softmax", mine.points, comm, steps=3, run_dir="~/there"))[0]
    assert Path(found.checkpoint).parents[1] == tmp_path / "there"


def test_a_model_that_gives_no_predictions_has_none(tmp_path):
    found = trained(tmp_path, 1, mine.Silent())[0]
    with pytest.raises(UsageError, match=r"model external has no predict\(parameters, x\)"):
        found.predict(mine.points()[0])


def wrong_layers(data):
    return nn.sequential("m", nn.linear("a", 5, 8), nn.relu(), nn.linear("b", 7, 3), loss=nn.softmax_cross_entropy())


def wrong_loss(data):
    return nn.sequential("m", nn.linear("a", 5, 3), loss=nn.mean_squared_error())


def state(**arrays):
    return optim.Optimizer("own", lambda params: {key: make(params) for key, make in arrays.items()}, lambda *a, **k: None)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"model": wrong_layers}, r"layer 'b' does not take float32 of shape \(8,\) a sample"),
        ({"model": wrong_loss}, r"its loss does not take outputs of shape \(3,\) and targets of int64"),
        (
            {"model": lambda data: nn.sequential("m", print, loss=nn.mean_squared_error())},
            "a part of the model is builtin_function",
        ),
        ({"optimizer": state(expAvg=np.zeros_like)}, "has state of the name 'expAvg'; expected lower-case letters"),
        ({"optimizer": state(count=lambda params: np.zeros(1))}, r"keeps count as float64 of shape \(1,\) for 3 parameters"),
        ({"optimizer": state(count=lambda params: 0)}, "keeps count as int for 3 parameters"),
        ({"optimizer": optim.Optimizer("own", lambda params: [], lambda *a, **k: None)}, "is list; expected a dict"),
        ({"comm": "world"}, "comm is str; expected an hpcai.Communicator"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, given, words):
    given = {"model": "softmax", "data": mine.points, "run_dir": tmp_path / "run", "steps": 3} | given
    with pytest.raises(UsageError, match=words):
        threads.run(1, lambda comm: hpcai.fit(**({"comm": comm} | given)))
    assert not (tmp_path / "run").exists()


def test_ranks_that_give_other_kinds_of_things_are_refused(tmp_path):
    def program(comm):
        return hpcai.fit(mine.Program() if comm.rank else "softmax", mine.points, comm, steps=3, run_dir=tmp_path / "run")

    with pytest.raises(UsageError, match="not given in the same way on rank 1 as on rank 0"):
        threads.run(2, program)


def test_a_resumed_run_goes_on_also_on_other_ranks(tmp_path):
    whole = trained(tmp_path, 2, mine.Program, run="whole", dtype="f64")[0]
    trained(tmp_path, 2, mine.Program(), steps=13, dtype="f64")
    then = trained(tmp_path, 3, mine.Program, resume="auto", dtype="f64", zero=1)[0]
    for name, array in whole.parameters.items():
        np.testing.assert_allclose(then.parameters[name], array, rtol=1e-9)
    with pytest.raises(CheckpointError, match="other parameters|--model"):
        trained(tmp_path, 2, "mlp", resume="auto", dtype="f64")
    with pytest.raises(CheckpointError, match="other data"):
        trained(tmp_path, 2, mine.Program, data=(mine.points()[0] + 1, mine.points()[1]), resume="auto", dtype="f64")


def test_handed_out_samples_are_known_again(tmp_path):
    train, test = mine.rows()
    trained(tmp_path, 2, data=(train, test), steps=5)
    trained(tmp_path, 2, data=(train, test), steps=9, resume="auto")
    with pytest.raises(CheckpointError, match="240 training samples .now 239."):
        trained(tmp_path, 2, data=(mine.Rows(train.x[:-1], train.y[:-1]), test), resume="auto")
    with pytest.raises(CheckpointError, match="first or last training input"):
        trained(tmp_path, 2, data=(mine.Rows(train.x[::-1], train.y), test), resume="auto")


def test_quantities_are_predicted_in_their_unit_and_texts_as_they_were(tmp_path):
    x, y = mine.points()
    metres = 1000 + 250 * x[:, 0]
    found = trained(tmp_path, 2, data=(x, metres), optimizer="sgd", epochs=20, steps=None)[0]
    assert np.abs(found.predict(x) - metres).mean() < 25
    names = np.array(["red", "green", "blue"])
    named = trained(tmp_path, 2, data=(x, names[y]), run="named")[0]
    assert set(named.predict(x)) <= set(names)
    assert (named.predict(x) == names[y]).mean() > 0.7


def test_images_of_bytes_are_predicted_as_they_are_trained(tmp_path):
    found = trained(tmp_path, 2, "cnn", "digits", channels=[4])[0]
    digits = hpcai.data.sources.digits()
    images = digits.x_test.reshape(-1, 8, 8)
    assert (found.predict(images) == digits.y_test).mean() == pytest.approx(found.history[-1]["test_accuracy"], abs=0.003)
    assert found.predict(images[:0]).shape == (0,)
    with pytest.raises(UsageError, match=r"x has shape \(3, 7, 8\).*expected numbers, \(n, 8, 8\)"):
        found.predict(np.zeros((3, 7, 8)))
    with pytest.raises(UsageError, match="x has nan or infinity"):
        found.predict(np.full((1, 8, 8), np.nan))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_parameters_are_saved_by_name(tmp_path, ending):
    found = trained(tmp_path, 1, mine.Program)[0]
    found.save(tmp_path / f"weights.{ending}")
    load = np.load if ending == "npz" else pytest.importorskip("safetensors.numpy").load_file
    saved = load(tmp_path / f"weights.{ending}")
    assert {name: saved[name].tolist() for name in saved} == {name: array.tolist() for name, array in found.parameters.items()}
    with pytest.raises(UsageError, match=r"ends in .npz or .safetensors, got .*weights.txt"):
        found.save(tmp_path / "weights.txt")
    with pytest.raises(UsageError, match=r"ends in .npz or .safetensors, got None"):
        found.save(None)
    with pytest.raises(OSError, match="No such file"):
        found.save(tmp_path / "nowhere" / f"weights.{ending}")
    assert {path.name for path in tmp_path.iterdir()} == {"run", f"weights.{ending}"}, "nothing is left beside it"


def test_events_are_heard_in_order_on_rank_0(tmp_path):
    heard = []

    class Sink:
        def open(self, about):
            heard.append(("open", about["step"], about["options"]["steps"]))

        def event(self, event):
            heard.append((event.kind, event.step, event.values))

        def close(self):
            heard.append(("close", None, None))

    steps, epochs = [], []
    trained(tmp_path, 3, steps=10, sinks=[Sink()], after_step=steps.append, after_epoch=epochs.append)
    assert [kind for kind, _, _ in heard] == ["open", *["step"] * 8, "epoch", *["step"] * 2, "epoch", "end", "close"]
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert {"loss", "lr", "grad_norm", "epoch"} <= steps[0].keys()
    assert heard[-2][2]["steps"] == 10
    heard.clear()
    with pytest.raises(RuntimeError, match="enough"):
        trained(tmp_path, 1, run="other", sinks=[Sink()], after_step=lambda step: (_ for _ in ()).throw(RuntimeError("enough")))
    assert [kind for kind, _, _ in heard] == ["open", "step", "close"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lr_rate": 0.1}, "there is no option 'lr_rate'"),
        ({"step": 3}, "there is no option 'step' (is steps meant?)"),
        ({"lr": "high"}, "lr wants a number above 0 to 3e+38, got 'high'"),
        ({"lr": -1}, "lr wants a number above 0"),
        ({"batch": 1.5}, "batch wants a whole number from 1, got 1.5"),
        ({"compress": 8}, "compress wants a text"),
        ({"model": 7}, "gave int; expected an hpcai.nn.Model"),
        ({"data": 7}, "gave int; expected (x, y)"),
        ({"zero": 2, "compress": "int8"}, "take --zero 1"),
        ({"sinks": [3]}, "a sink is int; wanted is an object with open(about)"),
        ({"sinks": print}, "sinks is builtin_function_or_method; wanted is a list"),
        ({"after_step": "print"}, "after_step is str; wanted is a function of a dict"),
        ({"elastic": "shrink"}, "elastic='shrink' is for all ranks that the launcher started; leave comm out"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(tmp_path, options, words):
    with pytest.raises(UsageError) as refused:
        trained(tmp_path, 2, **options)
    assert words in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_options_may_be_numpys_and_paths(tmp_path):
    found = trained(
        tmp_path, 1, batch=np.int64(16), lr=np.float32(0.5), hidden=(8,), signals=["USR1"], metrics_file=tmp_path / "m"
    )[0]
    assert (found.options.batch, found.options.lr) == (16, 0.5)
    with pytest.raises(DataError, match="there is no file"):
        trained(tmp_path, 1, data=f"csv:{tmp_path}/absent.csv")


@pytest.mark.parametrize("what", ["run", "checkpoints", "checkpoint"])
def test_a_checkpoint_is_read_on_one_rank_whatever_mesh_wrote_it(tmp_path, what):
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox " * 300)
    gpt = {"layers": 2, "width": 16, "heads": 2, "context": 16, "dtype": "f64", "steps": 4, "batch": 8}
    one = trained(tmp_path, 1, None, f"text:{text}", run="one", **gpt)[0]
    split = trained(tmp_path, 4, None, f"text:{text}", run="run", mesh="tp=2,pp=2", **gpt)[0]
    path = {"run": tmp_path / "run", "checkpoints": tmp_path / "run/checkpoints", "checkpoint": split.checkpoint}[what]
    found = hpcai.load(path)
    assert found.step == 4
    assert list(found.optimizer) == ["mean", "square"]
    assert found.history == []  # no epoch has ended
    assert found.parameters.keys() == one.parameters.keys()
    for name, array in one.parameters.items():
        np.testing.assert_allclose(found.parameters[name], array, rtol=1e-9, atol=1e-9)
    window = np.arange(16)[None]
    np.testing.assert_allclose(split.scores(window), one.scores(window), rtol=1e-6, atol=1e-9)


def test_reading_one_starts_no_mpi(tmp_path):
    found = trained(tmp_path, 2)[0]
    check = (
        f"import hpcai, sys; print(sorted(hpcai.load({str(tmp_path / 'run')!r}).parameters)); assert 'mpi4py' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted(found.parameters)), done.stderr


def test_the_newest_that_is_whole_is_read(tmp_path):
    found = trained(tmp_path, 1, steps=20, checkpoint_steps=10)[0]
    next(Path(found.checkpoint).glob("*.safetensors")).unlink()
    assert hpcai.load(tmp_path / "run").step == 16
    with pytest.raises(CheckpointError, match="step-000000020"):
        hpcai.load(found.checkpoint)


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_what_holds_none_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint; give a run's folder"):
        hpcai.load(tmp_path / name)
