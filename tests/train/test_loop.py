"""Training on ranks as threads: the number of ranks does not matter, checkpoints continue bitwise, errors are everyone's."""

import itertools
import json
import threading

import numpy as np
import pytest

from hpcai.checkpoint import format, naming, storage
from hpcai.comm import threads
from hpcai.comm.diagnosis import stall
from hpcai.data import sources
from hpcai.errors import CheckpointError, DataError, NonFiniteError, UsageError
from hpcai.parallel.mesh import Sizes, mesh
from hpcai.parallel.zero import WholeGradients
from hpcai.train import resume
from hpcai.train.build import overlaps
from hpcai.train.history import Progress
from hpcai.train.inputs import share
from hpcai.train.loop import fit
from hpcai.train.options import parser
from hpcai.train.replica import new_replica
from hpcai.train.saving import Saver
from hpcai.train.step import train_step

pytestmark = pytest.mark.usefixtures("clean_environment")


def options(tmp_path, *flags, run="run"):
    return parser.parse(["--run-dir", str(tmp_path / run), "--batch", "64", *flags])


def train(ranks, chosen):
    return threads.run(ranks, lambda comm: fit(chosen, comm))[-1]


def final(tmp_path, run="run"):
    return format.read(resume.newest(tmp_path / run))[1].arrays


@pytest.mark.parametrize(
    "flags",
    [
        "--model softmax --optimizer sgd --batch 100",
        "--model mlp --hidden 16 --optimizer momentum --batch 37",
        "--model mlp --hidden 16,8 --activation gelu --optimizer adamw --batch 64 --lr-schedule cosine --lr-warmup-steps 5 --clip-norm 0.5",
        "--model cnn --channels 4 --optimizer nesterov --batch 10 --loss-reduction sum --lr 0.001",
        "--model mlp --hidden 16 --optimizer lamb --batch 360",
        "--model mlp --hidden 16 --bucket-bytes 64 --optimizer adam",
        "--model mlp --hidden 16 --bucket-bytes 64 --optimizer adam --overlap always",
        "--model mlp --hidden 16 --allreduce-algorithm halving_doubling",
    ],
)
def test_any_number_of_ranks_gives_the_parameters_of_one(tmp_path, flags):
    """Batch 360 leaves an epoch's tail of 358, batch 37 one of 32, on 5 ranks: uneven shares. f64, 25 steps."""
    flags = [*flags.split(), "--dtype", "f64", "--steps", "25"]
    train(1, options(tmp_path, *flags, run="one"))
    one = final(tmp_path, "one")
    for ranks in (2, 3, 5):
        train(ranks, options(tmp_path, *flags, run=f"run{ranks}"))
        for name, array in final(tmp_path, f"run{ranks}").items():
            np.testing.assert_allclose(array, one[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", ["--model mlp --hidden 16,16", "--model cnn --channels 4,4"])
def test_overlap_changes_no_bit(tmp_path, model, monkeypatch):
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")  # several nodes: auto means to overlap
    for overlap in ("never", "always", "auto"):
        flags = [*model.split(), "--bucket-bytes", "2000", "--steps", "10", "--overlap", overlap]
        train(4, options(tmp_path, *flags, run=overlap))
    for overlap in ("always", "auto"):
        for name, array in final(tmp_path, overlap).items():
            assert array.tobytes() == final(tmp_path, "never")[name].tobytes()


def test_overlap_is_chosen_where_ranks_span_nodes_and_threads_are_served(tmp_path, monkeypatch):
    def chosen(overlap, size=4):
        given = options(tmp_path, "--overlap", overlap)
        return threads.run(size, lambda comm: overlaps(given, mesh(comm, Sizes(size))))[0]

    assert (chosen("auto"), chosen("always"), chosen("always", 1)) == (False, True, False)
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")
    assert (chosen("auto"), chosen("never")) == (True, False)
    monkeypatch.setattr(threads.ThreadWire, "serves_threads", lambda wire: wire.rank != 3)
    assert chosen("auto") is False
    with pytest.raises(UsageError, match="MPI_THREAD_SERIALIZED"):
        chosen("always")


def test_a_tail_smaller_than_the_ranks_is_counted_once(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(29, 6)), np.arange(29) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    flags = ["--data", f"npz:{tmp_path / 'd.npz'}", "--batch", "7", "--epochs", "2", "--dtype", "f64", "--hidden", "4"]
    losses = [train(ranks, options(tmp_path, *flags, run=str(ranks)))["epoch_losses"] for ranks in (1, 5)]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_reduction_sum_is_the_mean_times_the_batch(tmp_path):
    for reduction, lr in (("mean", 0.1), ("sum", 0.1 / 50)):
        chosen = options(
            tmp_path,
            "--optimizer",
            "sgd",
            "--lr",
            str(lr),
            "--batch",
            "50",
            "--steps",
            "10",
            "--dtype",
            "f64",
            "--loss-reduction",
            reduction,
            run=reduction,
        )
        train(2, chosen)
    np.testing.assert_allclose(final(tmp_path, "sum")["params"], final(tmp_path, "mean")["params"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "lamb"])
@pytest.mark.parametrize("cut", [7, 23, 30])
def test_going_on_is_bitwise_the_undisturbed_run(tmp_path, cut, optimizer):
    """23 steps are an epoch: a cut within the first, at its end, and within the second."""
    flags = ["--optimizer", optimizer, "--hidden", "16", "--checkpoint-steps", "10"]
    whole = train(2, options(tmp_path, *flags, "--steps", "50", run="whole"))
    train(2, options(tmp_path, *flags, "--steps", str(cut), run="cut"))
    went_on = train(2, options(tmp_path, *flags, "--steps", "50", "--resume", "auto", run="cut"))
    for name, array in final(tmp_path, "whole").items():
        assert array.tobytes() == final(tmp_path, "cut")[name].tobytes()
    assert went_on["epoch_losses"] == whole["epoch_losses"]
    assert went_on["test_accuracy"] == whole["test_accuracy"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 51))


COMPRESSIONS = ["bf16", "fp16", "fp8", "int8", "int8sum", "int4", "sign", "topk:0.02", "randomk:0.1", "powersgd:2"]


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_going_on_with_compression_is_bitwise_the_undisturbed_run(tmp_path, compress):
    flags = ["--compress", compress, "--compress-smallest", "100", "--compress-warmup-steps", "3", "--bucket-bytes", "2000"]
    flags += ["--hidden", "16,16", "--checkpoint-steps", "10", "--overlap", "always"]
    summary = train(3, options(tmp_path, *flags, "--steps", "30", run="whole"))
    assert summary["compression"]["name"] == f"{compress}, error feedback"
    assert summary["compression"]["plain_bytes"] > 1.3 * summary["compression"]["sent_bytes"]
    train(3, options(tmp_path, *flags, "--steps", "17", run="cut"))
    train(3, options(tmp_path, *flags, "--steps", "30", "--resume", "auto", run="cut"))
    whole, cut = final(tmp_path, "whole"), final(tmp_path, "cut")
    assert whole["memories"].shape == (3, whole["params"].size)
    assert whole["memories"].any()
    for name, array in whole.items():
        assert array.tobytes() == cut[name].tobytes()


@pytest.mark.parametrize("ranks_before", [2, 3])
def test_with_another_number_of_ranks_the_mean_of_memories_stays(tmp_path, ranks_before):
    """Two ranks gather payloads, more scatter them, and then the owners owe something too."""
    flags = ["--compress", "int4", "--compress-smallest", "1", "--hidden", "16"]
    train(ranks_before, options(tmp_path, *flags, "--steps", "12"))
    before = final(tmp_path)
    assert ("owed" in before and before["owed"].any()) == (ranks_before > 2)

    def resumed(comm):
        chosen = options(tmp_path, *flags, "--steps", "12", "--resume", "auto")
        mine = new_replica(chosen, share(comm, lambda: sources.load("digits", None, None, ())), comm)
        resume.start(chosen, mine, comm, tmp_path / "run")
        again = Saver(mine, comm, storage.place(tmp_path / f"again{comm.size}"), 1)
        resume.save(chosen, mine, Progress(12), again)
        again.close()
        return format.read(tmp_path / f"again{comm.size}" / naming.name_of(12))[1].arrays

    for ranks in (1, 2, 3, 4):
        after = threads.run(ranks, resumed)[0]
        assert after["memories"].shape == (ranks, before["memories"].shape[1])
        total, wanted = (found["memories"].mean(0) + found.get("owed", 0) for found in (after, before))
        np.testing.assert_allclose(total, wanted, atol=1e-8)
        if ranks == ranks_before:
            assert after.keys() == before.keys()
            assert all(after[name].tobytes() == array.tobytes() for name, array in before.items())


OTHERS = [
    ((2, "int8"), (4, "int8")),
    ((4, "int8"), (2, "int8")),
    ((2, "int8"), (2, "powersgd:2")),
    ((3, "powersgd:2"), (2, "int8")),
    ((2, "int4"), (2, "reproducible")),
    ((2, "reproducible"), (3, "sign")),
    ((2, "int8 --compress-layers linear1.*=none"), (2, "int8 --compress-layers linear2.*=topk:0.1,*.bias=bf16")),
    ((2, "int8 --bucket-bytes 500"), (2, "randomk:0.1")),
]


@pytest.mark.parametrize(("before", "after"), OTHERS)
def test_a_run_goes_on_with_other_ranks_or_another_choice(tmp_path, before, after):
    for steps, (ranks, choice) in ((5, before), (10, after), (15, after)):
        flags = f"--compress-smallest 1 --hidden 16,16 --steps {steps} --resume auto --compress {choice}"
        train(ranks, options(tmp_path, *flags.split()))
    arrays = final(tmp_path)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert "reproducible" in after[1] or arrays["memories"].any()


def test_compression_can_begin_or_end_at_a_resume(tmp_path):
    train(2, options(tmp_path, "--steps", "5"))
    train(2, options(tmp_path, "--steps", "10", "--resume", "auto", "--compress", "int8"))
    assert final(tmp_path)["memories"].any()
    train(2, options(tmp_path, "--steps", "15", "--resume", "auto"))
    assert "memories" not in final(tmp_path)


def test_until_the_warmup_is_over_nothing_is_compressed(tmp_path):
    for name, flags in (
        ("plain", []),
        ("warm", ["--compress", "sign", "--compress-warmup-steps", "12"]),
        ("cold", ["--compress", "sign"]),
    ):
        train(2, options(tmp_path, *flags, "--compress-smallest", "1", "--steps", "12", run=name))
    plain, warm, cold = (final(tmp_path, name)["params"] for name in ("plain", "warm", "cold"))
    np.testing.assert_allclose(warm, plain, atol=1e-6)
    assert not np.allclose(cold, plain, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_a_gradient_that_is_not_finite_is_named_through_any_codec(tmp_path, compress, monkeypatch):
    def spoilt(gradients, layer):
        if layer == 3:
            gradients.views[3]["weight"][0, 0] = np.nan

    monkeypatch.setattr(WholeGradients, "filled", spoilt)
    with pytest.raises(NonFiniteError, match="gradient of linear2"):
        flags = ["--compress", compress, "--compress-smallest", "1", "--hidden", "16", "--steps", "3", "--bucket-bytes", "100"]
        train(2, options(tmp_path, *flags))


def test_a_run_that_outlives_no_failure_does_not_inherit_that_from_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(stall.waits, "fail", True)
    train(1, options(tmp_path, "--steps", "1", "--hidden", "8"))
    assert not stall.waits.fail


@pytest.mark.parametrize("overlap", ["always", "never"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, NonFiniteError("in a layer of mine"), KeyError("in a layer of mine")])
def test_an_error_within_backward_is_what_is_seen_and_the_step_can_be_made_again(tmp_path, monkeypatch, overlap, error):
    chosen = options(tmp_path, "--hidden", "16", "--bucket-bytes", "100", "--overlap", overlap)

    begun = set()  # of ranks, which are threads

    def broken(gradients, layer):
        if layer == 1 and threading.current_thread() not in begun:
            begun.add(threading.current_thread())
            raise error

    monkeypatch.setattr(WholeGradients, "filled", broken)

    def program(comm):
        dataset = share(comm, lambda: sources.load("digits", None, None, ()))
        again, mine = new_replica(chosen, dataset, comm), new_replica(chosen, dataset, comm)
        x, y = dataset.x_train[:10].astype("f4"), dataset.y_train[:10]
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            train_step(mine, x, y, 20, 0, 0.1)
        comm.barrier()
        for one in (mine, again):
            train_step(one, x, y, 20, 0, 0.1)
        return mine.params.tobytes() == again.params.tobytes()

    assert threads.run(2, program) == [True, True]


def test_metrics_and_summary_have_their_keys(tmp_path):
    pytest.importorskip("matplotlib")
    summary = train(2, options(tmp_path, "--epochs", "1", "--metrics-file", str(tmp_path / "m.jsonl"), "--plot"))
    keys = {
        "ranks",
        "seed",
        "versions",
        "mpi",
        "epoch_losses",
        "test_loss",
        "test_accuracy",
        "samples_per_s",
        "step_ms",
        "wall_s",
    }
    assert keys <= summary.keys()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(lines) == 23
    assert {"step", "epoch", "loss", "lr", "samples_per_s", "step_ms", "comm_ms"} <= lines[0].keys()
    mean = sum(line["loss"] * (64 if i < 22 else 1438 - 22 * 64) for i, line in enumerate(lines)) / 1438
    assert mean == pytest.approx(summary["epoch_losses"][0])
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = train(1, options(tmp_path, "--steps", "5"))
    assert train(1, options(tmp_path, "--steps", "5", "--resume", "auto")) == first


def test_starting_afresh_moves_the_earlier_run_aside(tmp_path):
    for _ in range(3):
        train(1, options(tmp_path, "--steps", "3"))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
        "checkpoints",
        "metrics.jsonl",
        "previous-1",
        "previous-2",
        "summary.json",
    ]


def test_checkpoints_behind_a_link_are_moved_aside_there(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    for _ in range(3):
        train(1, options(tmp_path, "--steps", "3"))
    assert (tmp_path / "run" / "checkpoints").is_symlink()
    assert sorted(p.name for p in (tmp_path / "scratch").iterdir()) == [".lock", "previous-1", "previous-2", "step-000000003"]
    assert sorted(p.name for p in (tmp_path / "run" / "previous-2").iterdir()) == ["metrics.jsonl", "summary.json"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(1, options(tmp_path, "--steps", "50", "--checkpoint-steps", "10", "--keep-checkpoints", "3"))
    assert [p.name for p in format.all_in(tmp_path / "run" / "checkpoints")] == [
        "step-000000040",
        "step-000000046",
        "step-000000050",
    ]


@pytest.mark.parametrize("flags", ["--lr 1e30 --optimizer sgd", "--lr 1e38 --optimizer sgd --model cnn"])
def test_a_loss_that_is_not_finite_stops_all_with_step_layer_and_checkpoint(tmp_path, flags):
    train(2, options(tmp_path, *flags.split()[2:], "--steps", "2"))
    with pytest.raises(NonFiniteError, match=r"step \d+.*(layer \w+|gradient of \w+).*last good checkpoint is .*step-000000002"):
        train(2, options(tmp_path, *flags.split(), "--steps", "20", "--resume", "auto"))


def test_bad_input_data_is_blamed_on_the_data(tmp_path, monkeypatch):
    from hpcai.data import sources

    data = sources.digits()
    monkeypatch.setattr(sources, "digits", lambda: data._replace(scale=np.inf))
    with pytest.raises(NonFiniteError, match=r"step 1;.*the input data on rank 0; no checkpoint"):
        train(2, options(tmp_path))


def one_shard(path):
    (found,) = path.glob("*.safetensors")
    return found


SPOILS = {
    "shard changed": (
        lambda p: one_shard(p).write_bytes(one_shard(p).read_bytes()[:-1] + b"?"),
        r"shard-00000-of-00001.safetensors differs from its checksum, in optimizer.square\[0:",
    ),
    "shard cut": (lambda p: one_shard(p).write_bytes(one_shard(p).read_bytes()[:-1]), "shard-00000-of-00001.* is cut short"),
    "shard empty": (lambda p: one_shard(p).write_bytes(b""), "is cut short"),
    "shard absent": (lambda p: one_shard(p).unlink(), "shard-00000-of-00001.safetensors is missing"),
    "manifest cut": (lambda p: (p / "manifest.json").write_text('{"format"'), "manifest.json is damaged or of another version"),
    "manifest changed": (
        lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text().replace('"samples": 192', '"samples": 193')),
        "manifest.json differs from its checksum",
    ),
    "manifest foreign": (lambda p: (p / "manifest.json").write_text("[]"), "format"),
    "manifest of an older version": (lambda p: (p / "manifest.json").write_text('{"format": 1}'), "format"),
    "manifest absent": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_corrupt_checkpoint_is_named(tmp_path, spoil):
    train(1, options(tmp_path, "--steps", "3"))
    path = resume.newest(tmp_path / "run")
    SPOILS[spoil][0](path)
    for how in ("auto", str(path), str(tmp_path / "run")):
        with pytest.raises(CheckpointError, match=SPOILS[spoil][1]) as caught:
            train(2, options(tmp_path, "--steps", "6", "--resume", how))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--batch 32", "--batch 64, but this run has --batch 32"),
        ("--hidden 8", "hidden"),
        ("--optimizer lamb", "optimizer"),
        ("--seed 3", "seed 0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, flags, words):
    train(1, options(tmp_path, "--steps", "3"))
    with pytest.raises(CheckpointError, match=words):
        train(1, options(tmp_path, "--steps", "6", "--resume", "auto", *flags.split()))


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    train(1, options(tmp_path, "--steps", "3"))
    (tmp_path / "run" / "checkpoints" / ".writing-000000009").mkdir()
    assert resume.newest(tmp_path / "run").name == "step-000000003"
    train(1, options(tmp_path, "--steps", "9", "--resume", "auto"))
    assert resume.newest(tmp_path / "run").name == "step-000000009"


def test_refusals(tmp_path):
    (tmp_path / "file").touch()
    for ranks, flags, error in [
        (4, ["--batch", "3"], UsageError),
        (2, ["--data", "nothing"], UsageError),
        (2, ["--data", "csv:nothing"], DataError),
        (2, ["--resume", str(tmp_path / "nothing")], CheckpointError),
    ]:
        with pytest.raises(error):
            train(ranks, options(tmp_path, *flags))
    with pytest.raises(UsageError, match="cannot be written to: Not a directory"):
        train(2, parser.parse(["--run-dir", str(tmp_path / "file" / "run")]))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_regression_reports_its_error_in_the_labels_unit(tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 3))
    np.savez(tmp_path / "d.npz", x=x, y=1000 * x[:, 0] - 300 * x[:, 1] + 5)
    summary = train(
        2,
        options(
            tmp_path,
            "--data",
            f"npz:{tmp_path / 'd.npz'}",
            "--model",
            "softmax",
            "--optimizer",
            "sgd",
            "--lr",
            "0.05",
            "--epochs",
            "20",
        ),
    )
    assert summary["test_accuracy"] is None
    assert summary["test_r2"] > 0.999
    assert 0 < summary["test_rmse"] < 20


def test_every_rank_gets_the_same_summary_and_model(tmp_path):
    results = threads.run(3, lambda comm: fit(options(tmp_path, "--steps", "4"), comm))
    assert all(a == b for a, b in itertools.pairwise(results))
