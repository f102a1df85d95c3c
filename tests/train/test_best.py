"""The best epoch: which checkpoint is kept for it, and when a run ends since no better one comes."""

import json

import numpy as np
import pytest

import hpcai
from hpcai.checkpoint import format, naming, storage
from hpcai.checkpoint.local import Local
from hpcai.errors import CheckpointError, UsageError
from hpcai.train import best
from hpcai.train.history import Progress
from hpcai.train.options import parser
from tests.train.test_loop import options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

FLAGS = ["--hidden", "16", "--batch", "256", "--lr", "0.05", "--validation", "0.2"]
PER_EPOCH = 5  # 1,150 of 1,438 samples


def textbook(values, patience, rising=False):
    """Where early stopping ends, as ten lines have it: (epochs, best epoch)."""
    best_value, best_at = None, 0
    for at, value in enumerate(values, 1):
        better = value == value and (best_value is None or (value > best_value if rising else value < best_value))
        if better:
            best_value, best_at = value, at
        if at - best_at >= patience:
            return at, best_at
    return len(values), best_at


@pytest.mark.parametrize("metric, rising", [("validation_loss", False), ("validation_accuracy", True)])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_ends_where_the_textbook_ends(metric, rising, patience):
    rng = np.random.default_rng(patience)
    chosen = parser.parse([*FLAGS, "--keep-best", metric, "--patience", str(patience)])
    for _ in range(50):
        values = np.round(rng.normal(size=12), 1).tolist()
        values[int(rng.integers(12))] = float("nan")
        progress = Progress()
        for at, value in enumerate(values, 1):
            progress.step = at
            best.judge(progress, {metric: value}, chosen)
            if best.waits_in_vain(progress, chosen):
                break
        wanted = textbook(values, patience, rising)
        assert (progress.step, progress.best["step"] if progress.best else 0) == wanted


def judged(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return records[-1]["step"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_best_checkpoint_stays_and_the_run_ends_early(tmp_path, ranks, capsys):
    flags = [
        *FLAGS,
        "--epochs",
        "40",
        "--keep-best",
        "validation_loss",
        "--patience",
        "2",
        "--keep-checkpoints",
        "1",
        "--dtype",
        "f64",
    ]
    summary = train(ranks, options(tmp_path, *flags))
    losses = [record["validation_loss"] for record in json_history(tmp_path / "run")]
    epochs, at = textbook(losses, 2)
    assert len(losses) == epochs < 40
    assert summary["best"]["step"] == at * PER_EPOCH
    assert summary["best"]["value"] == pytest.approx(losses[at - 1])
    assert "2 epochs without a better validation loss" in summary["stopped_early"]
    kept = [int(path.name[5:]) for path in format.all_in(tmp_path / "run" / "checkpoints")]
    assert kept == [at * PER_EPOCH, epochs * PER_EPOCH]
    assert summary["best"]["checkpoint"].endswith(naming.name_of(at * PER_EPOCH))
    assert hpcai.load(summary["best"]["checkpoint"]).step == at * PER_EPOCH
    assert "early end" in capsys.readouterr().out


def json_history(run):
    return hpcai.load(run).history


def test_it_comes_to_the_same_on_any_number_of_ranks(tmp_path):
    flags = [*FLAGS, "--epochs", "3", "--dtype", "f64"]
    found = []
    for ranks, more in ((1, []), (2, ["--zero", "1"]), (4, ["--zero", "3"])):
        train(ranks, options(tmp_path, *flags, *more, run=str(ranks)))
        found.append([[one["validation_loss"], one["validation_accuracy"]] for one in json_history(tmp_path / str(ranks))])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-9)


def test_a_run_that_is_cut_and_goes_on_ends_where_a_whole_one_does(tmp_path, capsys):
    flags = [*FLAGS, "--epochs", "40", "--keep-best", "validation_loss", "--patience", "2", "--dtype", "f64"]
    whole = train(2, options(tmp_path, *flags, run="whole"))
    last = judged(tmp_path / "whole")
    train(2, options(tmp_path, *flags, "--steps", str(last - 3), run="cut"))
    again = train(3, options(tmp_path, *flags, "--resume", "auto", run="cut"))
    assert again["best"]["step"] == whole["best"]["step"]
    assert again["best"]["value"] == pytest.approx(whole["best"]["value"], rel=1e-9)
    assert again["steps"] == whole["steps"] == last
    capsys.readouterr()
    train(2, options(tmp_path, *flags, "--resume", "auto", run="cut"))
    assert "nothing was left to do; give a greater --patience, or none, to continue" in capsys.readouterr().err
    more = [*flags, "--resume", "auto", "--steps", str(last + 4)]
    more[more.index("--patience") + 1] = "30"
    assert train(2, options(tmp_path, *more, run="cut"))["steps"] == last + 4


def test_more_epochs_go_on_and_fewer_leave_nothing_to_do(tmp_path, capsys):
    train(2, options(tmp_path, *FLAGS, "--epochs", "2"))
    assert train(2, options(tmp_path, *FLAGS, "--epochs", "3", "--resume", "auto"))["steps"] == 3 * PER_EPOCH
    capsys.readouterr()
    assert train(2, options(tmp_path, *FLAGS, "--epochs", "1", "--resume", "auto"))["steps"] == 3 * PER_EPOCH
    assert "nothing was left to do; give more --epochs or --steps to continue" in capsys.readouterr().err


def test_another_fraction_is_refused_by_its_name(tmp_path):
    train(2, options(tmp_path, *FLAGS, "--epochs", "1"))
    for now, said in (
        ("0.1", "made with --validation 0.2, but this run has --validation 0.1"),
        (None, "this run has no --validation"),
    ):
        flags = FLAGS[:-2] + (["--validation", now] if now else [])
        with pytest.raises(CheckpointError, match=said):
            train(2, options(tmp_path, *flags, "--epochs", "2", "--resume", "auto"))


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--keep-best validation_loss", "needs data for validation; give --validation FRACTION"),
        ("--validation 1", "--validation wants a number above 0 below 1, got '1'"),
        ("--validation 0", "--validation wants a number above 0 below 1, got '0'"),
        ("--patience 0", "--patience wants a whole number from 1, got '0'"),
        ("--keep-best f1", "--keep-best wants one of validation_loss, validation_accuracy, test_loss"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        parser.parse(flags.split())


def test_accuracy_of_quantities_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(100, 3)), y=rng.normal(size=100))
    flags = ["--data", f"npz:{tmp_path / 'd.npz'}", "--epochs", "1", "--keep-best", "test_accuracy"]
    with pytest.raises(UsageError, match="test_accuracy is for classes, but these targets are quantities; take test_loss"):
        train(2, options(tmp_path, *flags))


def test_from_python(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = np.hypot(*x.T) > 0.6
    found = hpcai.fit(
        "mlp", (x, y), epochs=4, validation=0.25, keep_best="validation_accuracy", run_dir=tmp_path / "run", hidden=[8]
    )
    assert found.best["metric"] == "validation_accuracy"
    assert found.best["value"] == max(one["validation_accuracy"] for one in found.history)
    assert found.data.x_train.shape == (0, 2)


def test_a_run_without_checkpoints_between_keeps_its_best(tmp_path):
    flags = [*FLAGS, "--epochs", "6", "--checkpoint-steps", "0", "--keep-best", "loss", "--keep-checkpoints", "1"]
    summary = train(2, options(tmp_path, *flags))
    kept = [int(path.name[5:]) for path in format.all_in(tmp_path / "run" / "checkpoints")]
    assert summary["best"]["step"] in kept
    assert kept[-1] == summary["steps"]


def kept(folder):
    return [int(path.name[5:]) for path in format.all_in(folder / "checkpoints")]


def test_where_the_best_cannot_be_written_the_former_best_stays(tmp_path, monkeypatch, capsys):
    """Losses fall, so every epoch is the best; the third one's checkpoint fails, and those behind it are no better."""
    write, steps = Local.write, [PER_EPOCH * epoch for epoch in range(1, 7)]
    figures = dict(zip(steps, (0.5, 0.4, 0.3, 0.6, 0.7, 0.8), strict=True))

    def failing(place, name, file, content):
        if name == naming.name_of(steps[2]):
            raise OSError("No space left on device")
        write(place, name, file, content)

    monkeypatch.setattr(Local, "write", failing)
    record = Progress.record
    monkeypatch.setattr(Progress, "record", lambda self, found: record(self, found) | {"validation_loss": figures[self.step]})
    flags = [*FLAGS, "--keep-best", "validation_loss", "--keep-checkpoints", "2"]
    summary = train(2, options(tmp_path, *flags, "--epochs", "5"))
    assert summary["best"] == {"metric": "validation_loss", "step": steps[2], "value": 0.3, "checkpoint": None}
    assert kept(tmp_path / "run") == [steps[1], steps[3], steps[4]]
    assert (
        f"the best epoch, which ended after step {steps[2]}, has no checkpoint; the best one kept is" in capsys.readouterr().err
    )
    train(2, options(tmp_path, *flags, "--epochs", "6", "--resume", "auto"))
    assert kept(tmp_path / "run") == [steps[1], steps[4], steps[5]], "also by a run that goes on"


def test_the_former_best_goes_only_when_the_next_is_durable(tmp_path, monkeypatch):
    commit, seen = Local.commit, []

    def watched(place, name, manifest, superseded=()):
        seen.append((name, list(superseded)))
        return commit(place, name, manifest, superseded)

    monkeypatch.setattr(Local, "commit", watched)
    figures = iter((0.5, 0.6, 0.4, 0.7))
    record = Progress.record
    monkeypatch.setattr(Progress, "record", lambda self, found: record(self, found) | {"loss": next(figures)})
    train(1, options(tmp_path, *FLAGS, "--keep-best", "loss", "--keep-checkpoints", "2", "--epochs", "4"))
    third = naming.name_of(3 * PER_EPOCH)
    assert dict(seen)[third] == [], "a power cut in this commit may take the new one and what it supersedes"
    assert kept(tmp_path / "run") == [2 * PER_EPOCH, 3 * PER_EPOCH, 4 * PER_EPOCH]


@pytest.mark.parametrize("how", ["patience before", "another folder"])
def test_a_best_checkpoint_that_is_not_there_is_not_named(tmp_path, how, monkeypatch, capsys):
    figures = iter((0.1, 0.5, 0.6, 0.7))
    record = Progress.record
    monkeypatch.setattr(Progress, "record", lambda self, found: record(self, found) | {"validation_loss": next(figures)})
    keep, other = ["--keep-best", "validation_loss"], how == "another folder"
    flags = [*FLAGS, "--keep-checkpoints", "1"]
    train(1, options(tmp_path, *flags, *(keep if other else ["--patience", "9"]), "--epochs", "3"))
    again = ["--resume", str(tmp_path / "run"), *flags, *keep, "--epochs", "4"]
    summary = train(1, options(tmp_path, *again, run="other" if other else "run"))
    assert summary["best"]["step"] == PER_EPOCH
    assert summary["best"]["checkpoint"] is None
    assert "has no checkpoint" in capsys.readouterr().err


def test_a_run_that_ends_within_an_epoch_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    flags = [*FLAGS, "--keep-best", "loss", "--patience", "9"]
    record = Progress.record
    monkeypatch.setattr(
        Progress, "record", lambda self, found: record(self, found) | {"loss": 1.0 if self.step % PER_EPOCH else 2.0 + self.step}
    )
    summary = train(1, options(tmp_path, *flags, "--steps", str(PER_EPOCH + 2)))
    assert summary["best"]["step"] == PER_EPOCH + 2
    again = train(1, options(tmp_path, *flags, "--epochs", "3", "--resume", "auto"))
    assert again["best"]["step"] == PER_EPOCH
    assert again["best"]["value"] == 2.0 + PER_EPOCH
    assert hpcai.load(again["best"]["checkpoint"]).step == PER_EPOCH


def test_the_best_stays_on_a_url_too(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    figures = iter((0.5, 0.4, 0.6, 0.7, 0.8))
    record = Progress.record
    monkeypatch.setattr(Progress, "record", lambda self, found: record(self, found) | {"loss": next(figures)})
    url = f"memory://{tmp_path}/there"
    flags = [*FLAGS, "--keep-best", "loss", "--keep-checkpoints", "1", "--checkpoint-dir", url]
    train(1, options(tmp_path, *flags, "--epochs", "4"))
    summary = train(1, options(tmp_path, *flags, "--epochs", "5", "--resume", "auto"))
    assert storage.place(url).names() == [naming.name_of(2 * PER_EPOCH), naming.name_of(5 * PER_EPOCH)]
    assert hpcai.load(summary["best"]["checkpoint"]).step == 2 * PER_EPOCH


def test_more_epochs_go_on_along_a_longer_cosine(tmp_path, capsys):
    flags = [*FLAGS, "--lr-schedule", "cosine"]
    train(1, options(tmp_path, *flags, "--epochs", "2"))
    capsys.readouterr()
    train(1, options(tmp_path, *flags, "--epochs", "3", "--resume", "auto"))
    assert "--epochs 3 (was 2)" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line][2 * PER_EPOCH :]
    total = 3 * PER_EPOCH
    wanted = [0.05 * (1 + np.cos(np.pi * at / total)) / 2 for at in range(2 * PER_EPOCH, total)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


class Uncounted:
    """A model of one's own whose loss does not tell which rows are correct."""

    parameters = {"w": np.zeros((2, 3))}

    def loss_and_gradients(self, parameters, x, target):
        return float((parameters["w"] ** 2).sum()), {"w": 2 * parameters["w"]}


def test_accuracy_of_a_model_that_has_none_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(UsageError, match="--keep-best test_accuracy .* no accuracy; take test_loss"):
        hpcai.fit(Uncounted(), (x, np.arange(60) % 3), epochs=1, keep_best="test_accuracy", run_dir=tmp_path / "run")


def given(rng, n):
    x = rng.uniform(-1, 1, (n, 2))
    return x, (np.hypot(*x.T) > 0.6).astype(int)


def test_data_with_validation_of_their_own_decide_by_it(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = hpcai.data.from_arrays(*given(rng, 200), validation=given(rng, 40))
    found = hpcai.fit("mlp", data, epochs=3, patience=2, run_dir=tmp_path / "run", hidden=[8])
    assert found.best["metric"] == "validation_loss"
    assert found.best["value"] == min(one["validation_loss"] for one in found.history)
    assert "ends the run by the test data" not in capsys.readouterr().err
    with pytest.raises(UsageError, match="--validation 0.2 would hold samples out.* already has samples for validation"):
        hpcai.fit("mlp", data, epochs=3, validation=0.2, run_dir=tmp_path / "other", hidden=[8])
    x, y = given(rng, 40)
    other = hpcai.data.from_arrays(*given(np.random.default_rng(0), 200), validation=(x, y))
    with pytest.raises(CheckpointError, match="other validation inputs"):
        hpcai.fit("mlp", other, epochs=4, run_dir=tmp_path / "run", hidden=[8], resume="auto")


def test_without_validation_the_end_is_by_test_data_and_that_is_said(tmp_path, capsys):
    x, y = given(np.random.default_rng(0), 200)
    found = hpcai.fit("mlp", (x, y), epochs=2, patience=2, run_dir=tmp_path / "run", hidden=[8])
    assert found.best["metric"] == "test_loss"
    assert "ends the run by the test data" in capsys.readouterr().err
