"""What --dry-run says and --find-lr finds: the same on any number of ranks, and nothing of a run is written."""

import json
import re
import tracemalloc

import numpy as np
import pytest

import hpcai
from hpcai.comm import threads
from hpcai.errors import CheckpointError, UsageError
from hpcai.train import build, inputs, lr_finder, rehearsal
from hpcai.train.lr_finder import Finder, Tried, suggested
from hpcai.train.options import parser
from tests.train import mine
from tests.train.test_loop import options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

HERE = "tests.train.mine"


def rehearse(ranks, chosen):
    threads.run(ranks, lambda comm: rehearsal.run(chosen, comm))


@pytest.mark.parametrize(
    "ranks, flags",
    [
        (1, ""),
        (2, "--zero 1 --validation 0.1"),
        (3, "--zero 3 --dtype bf16"),
        (4, "--mesh dp=2,pp=2 --micro-batches 2"),
        (2, "--compress int8"),
        (2, "--compress reproducible"),
        (2, f"--model {HERE}:model --data {HERE}:points"),
        (2, f"--model {HERE}:Program --data {HERE}:rows"),
    ],
)
def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(tmp_path, capsys, ranks, flags):
    rehearse(ranks, options(tmp_path, *flags.split(), "--dry-run", "--epochs", "2", "--batch", "64"))
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "nothing was written" in out
    assert f"ranks             {ranks} (" in out
    parameters = int(re.search(r"model .*, ([\d,]+) parameters", out)[1].replace(",", ""))
    summary = train(ranks, options(tmp_path, *flags.split(), "--epochs", "2", "--batch", "64"))
    assert parameters == summary["parameters"]
    assert f"  steps             {summary['steps']:,} (" in out
    for name, nbytes in summary["memory"].items():  # rank 0's; what is said is the most that a rank has
        said = re.search(rf"{name} ([0-9.]+)", out)
        assert not nbytes or float(said[1]) >= round(nbytes / 2**20, 1)


def test_layers_are_listed_with_what_they_make_and_have(tmp_path, capsys):
    rehearse(1, options(tmp_path, "--model", "cnn", "--dry-run"))
    out = capsys.readouterr().out
    assert re.search(r"conv1 +8 x 8 x 32 +320\n", out)
    assert re.search(r"linear2 +10 +1,290\n", out)


def test_it_says_what_a_resume_goes_on_from(tmp_path, capsys):
    train(2, options(tmp_path, "--epochs", "1", "--batch", "64"))
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    capsys.readouterr()
    rehearse(2, options(tmp_path, "--epochs", "3", "--batch", "64", "--resume", "auto", "--dry-run"))
    assert re.search(r"steps +69 \(23 an epoch, 23 of them done", capsys.readouterr().out)
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before
    with pytest.raises(CheckpointError):
        rehearse(1, options(tmp_path, "--resume", str(tmp_path / "none"), "--dry-run"))


def found(folder):
    return json.loads((folder / "run" / "find-lr.json").read_text())


def test_the_rate_is_the_same_on_any_number_of_ranks_and_nothing_else_is_written(tmp_path):
    suggestions = []
    for ranks, more in ((1, []), (2, ["--zero", "1"]), (4, ["--mesh", "dp=2,pp=2"])):
        rehearse(ranks, options(tmp_path / str(ranks), "--hidden", "32,16", "--dtype", "f64", "--find-lr", *more))
        assert [path.name for path in (tmp_path / str(ranks) / "run").iterdir()] == ["find-lr.json"]
        suggestions.append(found(tmp_path / str(ranks))["suggestion"])
    assert suggestions[1:] == pytest.approx([suggestions[0]] * 2, rel=1e-9)
    assert 1e-5 < suggestions[0] < 1


def test_its_rate_trains(tmp_path):
    rehearse(2, options(tmp_path, "--hidden", "32", "--optimizer", "sgd", "--find-lr"))
    rate = found(tmp_path)["suggestion"]
    assert (
        train(2, options(tmp_path, "--hidden", "32", "--optimizer", "sgd", "--lr", str(rate), "--epochs", "3"))["test_accuracy"]
        > 0.8
    )


def test_a_picture_of_it(tmp_path):
    pytest.importorskip("matplotlib")
    rehearse(1, options(tmp_path, "--hidden", "8", "--find-lr", "--plot"))
    assert (tmp_path / "run" / "find-lr.png").read_bytes()[:4] == b"\x89PNG"


def test_rates_grow_by_the_same_factor_until_the_loss_does():
    finder = Finder()
    rates = []
    while True:
        rates.append(finder.lr)
        if not finder.goes_on(1.0):
            break
    np.testing.assert_allclose(rates, np.geomspace(lr_finder.LOWEST, lr_finder.HIGHEST, lr_finder.STEPS))
    finder = Finder()
    losses = [1.0] * 30 + [1e9]
    assert [finder.goes_on(loss) for loss in losses] == [True] * 30 + [False]
    for bad in (float("nan"), float("inf")):
        finder = Finder()
        assert not finder.goes_on(bad)
        assert finder.tried == []


def test_the_steepest_place_is_suggested_and_none_where_nothing_falls():
    rates = np.geomspace(1e-7, 10, 120)
    finder = Finder()
    for rate in rates:  # the loss falls around 1e-3, and rises beyond 1
        finder.goes_on(float(2.3 - 2 / (1 + np.exp(-5 * (np.log10(rate) + 3))) + (rate > 1) * rate))
    assert 10**-3.4 < suggested(finder.tried) < 10**-2.6
    assert suggested([Tried(float(i), 1.0, 1.0) for i in range(30)]) is None
    assert suggested([Tried(float(i), i, i) for i in range(30)]) is None
    assert suggested([Tried(float(i), -i, -i) for i in range(5)]) is None


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--dry-run --find-lr", "give only one of them"),
        ("--dry-run --elastic shrink", "--dry-run starts no run that could recover"),
        ("--find-lr --resume runs/a", "--find-lr begins with fresh parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        parser.parse(flags.split())


def test_from_python_they_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="dry_run is for the command"):
        hpcai.fit(mine.model, mine.points, dry_run=True, run_dir=tmp_path / "run")


def test_a_dry_run_refuses_what_the_run_would(tmp_path):
    taken = ["--checkpoint-dir", str(tmp_path / "c")]
    train(1, options(tmp_path, "--hidden", "8", "--steps", "2", *taken))
    for flags, said in (
        (["--hidden", "9", "--resume", "auto"], "was made with --hidden 8"),
        (["--hidden", "8"], "has checkpoints of an earlier run"),
    ):
        with pytest.raises(CheckpointError, match=said):
            rehearse(2, options(tmp_path, "--dry-run", *taken, *flags))


@pytest.mark.parametrize(
    "ranks, flags, said",
    [
        (1, "", "not sent: there is one data-parallel rank"),
        (2, "", "all-reduce through shared memory, 0.6 MiB in 1 bucket"),
        (2, "--zero 1 --allreduce-algorithm ring", "reduce-scatter by messages, 0.6 MiB in 1 bucket, --zero 1"),
        (2, "--zero 2", "reduce-scatter while backward computes them, --zero 2"),
        (2, "--compress int8 --overlap always", "--compress int8 through shared memory, 0.6 MiB in 1 bucket, during backward"),
    ],
)
def test_a_dry_run_says_how_gradients_travel_and_what_compression_remembers(tmp_path, capsys, ranks, flags, said):
    rehearse(ranks, options(tmp_path, "--dry-run", *flags.split()))
    out = capsys.readouterr().out
    assert said in out
    assert ("compression 0.6" in out) == ("int8" in flags)


def test_a_dry_run_names_options_that_do_not_do_what_they_seem_to(tmp_path, capsys):
    rehearse(1, options(tmp_path, "--dry-run", "--steps", "3", "--lr-warmup-steps", "5"))
    assert "hpcai: --lr-warmup-steps 5 is as long as the run" in capsys.readouterr().err


def test_what_goes_wrong_while_a_model_is_described_goes_wrong_on_all_ranks(tmp_path, monkeypatch):
    def broken(model, dataset):
        raise UsageError("broken")

    monkeypatch.setattr(rehearsal, "_layers", broken)
    heard = []

    def one(comm):
        try:
            rehearsal.run(options(tmp_path, "--dry-run"), comm)
        except UsageError as error:
            heard.append(str(error))

    threads.run(3, one)
    assert heard == ["broken"] * 3


def test_describing_a_model_takes_the_memory_of_one_layer(tmp_path):
    chosen = options(tmp_path, "--hidden", "1000,1000,1000,1000")
    dataset = inputs.load_alone(chosen)
    model = build.build_model(chosen, dataset)
    rehearsal._layers(model, dataset)
    tracemalloc.start()
    rehearsal._layers(model, dataset)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 * model.layout.size * 0.8


def test_a_file_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "run" / "find-lr.json").mkdir(parents=True)
    monkeypatch.setattr(rehearsal, "train_step", None)
    with pytest.raises(UsageError, match=r"find-lr\.json is a folder"):
        rehearse(2, options(tmp_path, "--hidden", "8", "--find-lr"))
