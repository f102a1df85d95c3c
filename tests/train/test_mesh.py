"""Training on a mesh, from the outside: what is refused, checkpoints that fit any mesh, memory, samples, timelines, compression."""

import json

import numpy as np
import pytest

from hpcai import arena
from hpcai.checkpoint import format
from hpcai.comm import threads
from hpcai.errors import DataError, UsageError
from hpcai.nn import models
from hpcai.parallel import stages, zero
from hpcai.strategies import mixed
from hpcai.strategies.mixed import Mixed
from hpcai.strategies.sharded import Sharded, memory_bytes
from hpcai.strategies.strategy import part
from hpcai.strategies.tied import Tied
from hpcai.train import resume
from hpcai.train.inputs import load
from hpcai.train.replica import new_replica
from hpcai.train.step import train_step
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

TINY = ["--layers", "2", "--width", "16", "--heads", "2", "--context", "8", "--batch", "16", "--steps", "6", "--dtype", "f64"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(np.random.default_rng(0).choice(np.frombuffer(b"abcd efgh\n", np.uint8), 3000)))
    return ["--data", f"text:{path}", *TINY]


@pytest.mark.parametrize(
    "ranks, flags, words",
    [
        (4, ["--heads", "2", "--mesh", "tp=4"], "--heads 2 is not divisible by tp=4"),
        (2, ["--heads", "3"], "--width 16 is not divisible by --heads 3"),
        (
            3,
            ["--heads", "3", "--width", "15", "--context", "9", "--mesh", "tp=3"],
            "the vocabulary of 256 is not divisible by tp=3",
        ),
        (2, ["--context", "7", "--mesh", "tp=2"], "--context 7 is not divisible by tp=2"),
        (8, ["--mesh", "pp=8"], "6 groups of layers, too few for 8 pipeline stages"),
        (
            4,
            [
                "--layers",
                "1",
                "--mesh",
                "pp=2,dp=2",
                "--pipeline-schedule",
                "interleaved",
                "--micro-batches",
                "4",
                "--pipeline-chunks",
                "3",
            ],
            "too few for 6",
        ),
        (2, ["--mesh", "pp=2", "--micro-batches", "3"], "--batch 16 is not divisible by --micro-batches 3"),
        (
            2,
            ["--micro-batches", "16"],
            "--batch 16 does not divide into 16 micro-batches on each of dp=2 ranks; --batch 32 divides",
        ),
        (
            2,
            ["--mesh", "pp=2", "--pipeline-schedule", "interleaved", "--micro-batches", "1"],
            "divisible by pp=2, got 1; take 2 or 4",
        ),
        (6, ["--mesh", "dp=2,tp=2"], "there are 6"),
        (2, ["--mesh", "dp=2,sp=1"], "--mesh wants dp=N,tp=N,pp=N"),
        (2, ["--mesh", "pp=2", "--compress", "reproducible", "--dtype", "f32"], "--compress reproducible is for whole models"),
        (2, ["--mesh", "tp=2", "--compress", "auto", "--dtype", "f32"], "--compress auto predicts only for dp"),
        (2, ["--mesh", "tp=2", "--optimizer", "lamb"], "lamb needs norms of whole arrays"),
        (2, ["--mesh", "tp=2", "--overlap", "always"], "--overlap always is only for dp"),
        (2, ["--mesh", "pp=2", "--tied", "--zero", "2"], "keeps the embedding on two stages"),
        (2, ["--pipeline-chunks", "2", "--pipeline-schedule", "interleaved"], "--pipeline-chunks 2 is for pipelines"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(tmp_path, text, ranks, flags, words):
    with pytest.raises(UsageError) as caught:
        train(ranks, options(tmp_path, *text, *flags))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--zero", "4"], "--zero wants a whole number from 0 to 3, got '4'"),
        (["--zero", "2", "--compress", "int8", "--dtype", "f32"], "keeps no whole gradient"),
        (["--zero", "1", "--optimizer", "lamb"], "--zero 1 splits them"),
        (["--recompute", "--pipeline-schedule", "zb-h1"], "leave --recompute out"),
        (["--model", "mlp"], "is text, but --model mlp does not learn from text"),
        (["--data", "digits", "--model", "gpt"], "--model gpt learns from text"),
        (["--micro-batches", "0"], "--micro-batches wants a whole number from 1"),
        (["--compress", "reproducible", "--dtype", "f32", "--trace-file", "t.json"], "leave --trace-file out"),
        (["--pipeline-chunks", "2"], "--pipeline-chunks is for --pipeline-schedule interleaved"),
        (["--sample-bytes", "-1"], "--sample-bytes wants a whole number from 0"),
        (["--pipeline-schedule", "2f2b"], "--pipeline-schedule wants one of gpipe, 1f1b, interleaved, zb-h1, got '2f2b'"),
    ],
)
def test_what_makes_no_sense_anywhere_is_refused_when_it_is_read(tmp_path, text, flags, words):
    with pytest.raises(UsageError) as caught:
        options(tmp_path, *text, *flags)
    assert words in str(caught.value)


def test_a_text_shorter_than_its_windows_is_refused_with_what_would_do(tmp_path, text):
    with pytest.raises(DataError, match="--context 400 wants 4,010 at least"):
        train(1, options(tmp_path, *text, "--context", "400"))


def test_a_model_of_few_layers_has_few_stages(tmp_path):
    with pytest.raises(UsageError, match="1 group of layers, too few for 4 pipeline stages"):
        train(4, options(tmp_path, "--model", "softmax", "--mesh", "pp=4"))


@pytest.mark.parametrize(
    "model", [["--model", "mlp", "--hidden", "16,8"], ["--model", "cnn", "--channels", "4"], ["--model", "softmax"]]
)
@pytest.mark.parametrize(
    "split",
    [
        "--mesh pp=2,dp=1 --micro-batches 4",
        "--mesh pp=2,dp=1 --pipeline-schedule zb-h1 --micro-batches 4",
        "--mesh dp=2 --zero 3",
    ],
)
def test_other_models_take_pipelines_and_shards(tmp_path, model, split):
    if "softmax" in model and "pp" in split:
        pytest.skip("one layer has no stages")
    flags = [*model, "--steps", "12", "--dtype", "f64"]
    one = train(1, options(tmp_path, *flags, run="one"))
    two = train(2, options(tmp_path, *flags, *split.split(), run="two"))
    assert one["epoch_losses"] == pytest.approx(two["epoch_losses"], rel=1e-10)
    for name, array in final(tmp_path, "one").items():
        np.testing.assert_allclose(final(tmp_path, "two")[name], array, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "before, after",
    [
        ((4, "dp=4"), (4, "dp=2,tp=2,pp=1")),
        ((4, "dp=2,tp=2"), (2, "pp=2,dp=1")),
        ((2, "pp=2,dp=1"), (3, "dp=3 --zero 3")),
        ((3, "dp=3 --zero 2"), (1, "dp=1")),
        ((2, "dp=2 --zero 1"), (8, "dp=2,tp=2,pp=2 --zero 3")),
    ],
)
def test_a_checkpoint_fits_any_mesh(tmp_path, text, before, after):
    """Six steps, three on one mesh and three on another, end where six on one process do."""
    flags = [*text, "--tied", "--micro-batches", "2", "--clip-norm", "1", "--batch", "24"]
    tied = [*flags] if "zero" not in before[1] + after[1] else [flag for flag in flags if flag != "--tied"]
    train(1, options(tmp_path, *tied, run="one"))
    (ranks, mesh), (others, other) = before, after
    train(ranks, options(tmp_path, *tied, "--steps", "3", "--mesh", *mesh.split(), run="two"))
    train(others, options(tmp_path, *tied, "--resume", "auto", "--mesh", *other.split(), run="two"))
    for name, array in final(tmp_path, "one").items():
        np.testing.assert_allclose(final(tmp_path, "two")[name], array, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "mesh", ["dp=2,tp=2,pp=2 --zero 1", "dp=4,tp=1,pp=1 --zero 3", "dp=1,tp=1,pp=4 --pipeline-schedule zb-h1"]
)
def test_the_same_mesh_goes_on_bit_for_bit(tmp_path, text, mesh):
    ranks = 8 if "tp=2" in mesh else 4
    flags = [*text, "--dropout", "0.1", "--micro-batches", "4", "--mesh", *mesh.split()]
    train(ranks, options(tmp_path, *flags, run="one"))
    train(ranks, options(tmp_path, *flags, "--steps", "4", run="two"))
    train(ranks, options(tmp_path, *flags, "--resume", "auto", run="two"))
    for name, array in final(tmp_path, "one").items():
        assert final(tmp_path, "two")[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("optimizer, states", [("adamw", 2), ("momentum", 1), ("sgd", 0)])
def test_memory_is_what_the_formula_says(tmp_path, text, stage, optimizer, states):
    flags = [*text, "--width", "64", "--layers", "4", "--dtype", "f32", "--optimizer", optimizer, "--zero", str(stage)]
    unit_bytes = 1 << 16
    chosen = options(tmp_path, *flags, "--bucket-bytes", str(unit_bytes))

    def program(comm):
        mine = new_replica(chosen, load(chosen, comm), comm)
        largest = 4 * max(unit.stop - unit.start for unit in part(mine.state, Sharded).setup.units)
        return memory_bytes(mine.buffers), mine.model.layout.size, largest

    for found, n, largest in threads.run(4, program):
        assert sum(found.values()) == pytest.approx(zero.memory_in_theory(n, 4, stage, 4, states, largest), rel=0.02)
        assert found["optimizer"] == pytest.approx(states * 4 * n / (4 if stage else 1), rel=0.02)


@pytest.mark.parametrize("mesh, ranks", [("dp=1", 1), ("tp=2,dp=1", 2), ("dp=1,tp=2,pp=2", 4), ("dp=2 --zero 3", 2)])
def test_any_mesh_writes_the_same_sample(tmp_path, text, mesh, ranks, capsys):
    train(ranks, options(tmp_path, *text, "--lr", "0.01", "--sample-bytes", "40", "--mesh", *mesh.split()))
    written = capsys.readouterr().out.split("\n\n", 1)[1]
    train(1, options(tmp_path, *text, "--lr", "0.01", "--sample-bytes", "40", run="other"))
    assert written == capsys.readouterr().out.split("\n\n", 1)[1]


def test_the_timeline_is_chromes_and_idle_time_is_reported(tmp_path, text):
    pytest.importorskip("matplotlib")
    trace = tmp_path / "trace" / "t.json"
    flags = ["--mesh", "dp=2,pp=2", "--pipeline-schedule", "zb-h1", "--micro-batches", "4", "--trace-file", str(trace), "--plot"]
    summary = train(4, options(tmp_path, *text, *flags))
    events = json.loads(trace.read_text())["traceEvents"]
    assert len(events) == 4 * 3 * 4
    assert {(event["pid"], event["tid"]) for event in events} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(event["ph"] == "X" and event["ts"] >= 0 and event["dur"] >= 0 for event in events)
    assert trace.with_suffix(".png").stat().st_size > 5000
    assert 0 <= summary["bubble"] < 1
    assert 0 <= summary["bubble_in_theory"] < 1  # 0 where the threads' times came out so


def test_text_is_reported_in_bits_per_byte(tmp_path, text):
    summary = train(2, options(tmp_path, *text))
    assert summary["bits_per_byte"] == pytest.approx(summary["test_loss"] / np.log(2))
    assert summary["memory"]["parameters"] > 0


@pytest.mark.parametrize("mesh, ranks", [("dp=2,tp=2", 4), ("dp=2,pp=2", 4), ("dp=2 --zero 1", 2)])
def test_compression_acts_on_the_data_parallel_axis(tmp_path, text, mesh, ranks):
    """int8 with feedback on a mesh stays near the uncompressed run, and sends less."""
    flags = [*text, "--dtype", "f32", "--micro-batches", "2", "--steps", "30", "--compress-smallest", "1"]
    plain = train(1, options(tmp_path, *flags, run="plain"))
    summary = train(ranks, options(tmp_path, *flags, "--compress", "int8", "--mesh", *mesh.split()))
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=0.01)
    assert summary["compression"]["sent_bytes"] < 0.3 * summary["compression"]["plain_bytes"]


def test_checkpoints_of_a_mesh_are_those_of_one_process(tmp_path, text):
    train(1, options(tmp_path, *text, run="one"))
    train(4, options(tmp_path, *text, "--mesh", "tp=2,pp=2", "--micro-batches", "2", run="two"))
    one, two = (format.read(resume.newest(tmp_path / run))[1] for run in ("one", "two"))
    assert one.arrays.keys() == two.arrays.keys()
    assert one.meta["identity"] == two.meta["identity"]


HALVES = {
    "alone": (1, []),
    "dp": (2, ["--mesh", "dp=2"]),
    "zero 1": (2, ["--mesh", "dp=2", "--zero", "1"]),
    "zero 2": (2, ["--mesh", "dp=2", "--zero", "2"]),
    "zero 3": (2, ["--mesh", "dp=2", "--zero", "3"]),
    "all": (8, ["--mesh", "dp=2,tp=2,pp=2", "--zero", "1", "--pipeline-schedule", "zb-h1"]),
}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("split", HALVES)
def test_16_bits_with_a_master_copy_learn_what_f32_learns_on_any_split(tmp_path, text, dtype, split, monkeypatch):
    timed = stages._time  # whose seconds would cut a pipeline elsewhere, and so change a rank's memory, from run to run
    monkeypatch.setattr(stages, "_time", lambda *part, **how: (1.0, timed(*part, **how)[1]))
    flags = [*text, "--dtype", "f32", "--steps", "60", "--lr", "3e-3", "--micro-batches", "2"]
    plain = train(1, options(tmp_path, *flags, run="plain"))
    ranks, mesh = HALVES[split]
    summary = train(ranks, options(tmp_path, *flags, *mesh, "--dtype", dtype))
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=0.02 if dtype == "bf16" else 0.005)
    assert summary["test_loss"] != plain["test_loss"]
    share = ranks if split == "zero 3" else 4 if split == "all" else 1
    assert summary["memory"]["parameters"] == pytest.approx(2 * summary["parameters"] / share, rel=0.4)


@pytest.mark.parametrize("split", ["alone", "zero 1", "zero 3"])
def test_16_bits_go_on_bit_for_bit(tmp_path, text, split):
    ranks, mesh = HALVES[split]
    flags = [*text, "--dtype", "f16", *mesh]
    train(ranks, options(tmp_path, *flags, run="one"))
    train(ranks, options(tmp_path, *flags, "--steps", "4", run="two"))
    train(ranks, options(tmp_path, *flags, "--resume", "auto", run="two"))
    for name, array in final(tmp_path, "one").items():
        assert final(tmp_path, "two")[name].tobytes() == array.tobytes(), name


def test_a_step_whose_gradients_overflow_f16_is_left_out_and_the_scale_is_halved(tmp_path, text, monkeypatch):
    monkeypatch.setattr(mixed, "FIRST_SCALE", 2.0**40)
    summary = train(2, options(tmp_path, *text, "--dtype", "f16", "--steps", "40", "--lr", "1e-2"))
    meta = format.read(resume.newest(tmp_path / "run"))[1].meta
    assert meta["loss_scale"][0] < 2.0**30
    assert summary["epoch_losses"][-1] < 5.4
    monkeypatch.setattr(mixed, "GROW_AFTER", 3)
    monkeypatch.setattr(mixed, "FIRST_SCALE", 1.0)
    train(2, options(tmp_path, *text, "--dtype", "f16", run="other"))
    assert format.read(resume.newest(tmp_path / "other"))[1].meta["loss_scale"] == [4.0, 0]


def five_steps(chosen, comm, samples):
    """A replica after five steps on so many random windows for each data-parallel rank."""
    mine = new_replica(chosen, load(chosen, comm), comm)
    rng = np.random.default_rng(mine.mesh.dp.rank)
    for step in range(5):
        x, y = rng.integers(0, 256, (2, samples, 8))
        train_step(mine, x, y, samples * mine.mesh.dp.size, step, 1e-2)
    return mine


def test_arrays_that_tensor_parallel_ranks_all_have_stay_the_same_bits(tmp_path, text):
    """Whatever compression makes of their neighbours."""
    flags = [*text, "--dtype", "f32", "--mesh", "dp=2,tp=2", "--compress", "topk:0.05", "--compress-smallest", "0"]
    chosen = options(tmp_path, *flags)

    def program(comm):
        mine = five_steps(chosen, comm, 8)
        views = arena.views(mine.params, mine.model.layout)
        return {name: views[name].tobytes() for name, p in models.parameters(mine.model).items() if p.whole is None}

    first, *others = threads.run(4, program)
    assert len(first) > 5
    assert all(other == first for other in others)


@pytest.mark.parametrize("zero", ["0", "1"])
def test_two_copies_of_a_tied_embedding_stay_the_same_bits_on_a_ring(tmp_path, text, zero, monkeypatch):
    monkeypatch.setenv("HPCAI_NODE", "0")
    flags = [
        *text,
        "--batch",
        "12",
        "--dtype",
        "f32",
        "--mesh",
        "dp=3,pp=2",
        "--tied",
        "--zero",
        zero,
        "--allreduce-algorithm",
        "ring",
    ]
    chosen = options(tmp_path, *flags)

    def program(comm):
        mine = five_steps(chosen, comm, 4)
        return mine.params[part(mine.state, Tied).parameter.where].tobytes()

    assert len(set(threads.run(6, program))) == 1


def test_a_step_at_which_f16s_scale_grows_is_no_shorter(tmp_path, text, monkeypatch):
    flags = [*text, "--dtype", "f16", "--optimizer", "sgd", "--lr", "0.1"]
    chosen = options(tmp_path, *flags)

    def moved(grow_after):
        monkeypatch.setattr(mixed, "GROW_AFTER", grow_after)

        def program(comm):
            mine = new_replica(chosen, load(chosen, comm), comm)
            before = mine.params.copy()
            x, y = np.random.default_rng(0).integers(0, 256, (2, 16, 8))
            done = train_step(mine, x, y, 16, 0, 0.1)
            return done.grad_norm, float(np.linalg.norm(mine.params - before)), part(mine.state, Mixed).scale

        return threads.run(1, program)[0]

    usual, growing = moved(1000), moved(1)
    assert growing[2] == 2 * usual[2]
    assert growing[:2] == usual[:2]


def test_steps_of_warm_up_are_counted_on_across_checkpoints_of_a_mesh(tmp_path, text):
    flags = [
        *text,
        "--dtype",
        "f32",
        "--mesh",
        "dp=2,tp=2",
        "--compress",
        "int8",
        "--compress-smallest",
        "1",
        "--compress-warmup-steps",
        "4",
    ]
    train(4, options(tmp_path, *flags, run="one"))
    train(4, options(tmp_path, *flags, "--steps", "4", run="two"))
    train(4, options(tmp_path, *flags, "--resume", "auto", run="two"))
    for name, array in final(tmp_path, "one").items():
        assert final(tmp_path, "two")[name].tobytes() == array.tobytes(), name


def test_a_finished_run_has_no_step_to_trace(tmp_path, text, capsys):
    pytest.importorskip("matplotlib")
    flags = [*text, "--resume", "auto", "--trace-file", str(tmp_path / "t.json"), "--plot"]
    train(1, options(tmp_path, *text))
    (tmp_path / "run" / "summary.json").unlink()
    train(1, options(tmp_path, *flags))
    assert "no step was made, so there is no trace" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
