"""What a run says of its options when it begins."""

import dataclasses
import json

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import CheckpointError, NonFiniteError, UsageError
from hpcai.parallel.mesh import Sizes
from hpcai.train import resume
from hpcai.train.loop import fit
from hpcai.train.options import effects, parser, remarks
from hpcai.train.options.options import RENAMED

pytestmark = pytest.mark.usefixtures("clean_environment")

AROUND = {
    "data_dir sample_bytes trace_file epochs steps run_dir metrics_file plot resume checkpoint_steps checkpoint_dir keep_checkpoints elastic spare_ranks redundancy",
    "stall_timeout signals patience keep_best dry_run find_lr",
}
"""Options that change no parameter: where and how a run is made and what it writes."""

LAST_BITS = "mesh micro_batches pipeline_schedule pipeline_chunks zero recompute allreduce_algorithm overlap bucket_bytes"
"""Options that decide how the same sums are made."""

DATA = "data label_column ignore_columns categorical_columns task image_channels"


def words(*texts):
    return {name for text in texts for name in text.split()}


def options(tmp_path, *flags):
    return parser.parse(["--run-dir", str(tmp_path / "run"), "--hidden", "8", "--batch", "64", *map(str, flags)])


def said(capsys, tmp_path, *flags):
    """What a run says on stderr but of its epochs."""
    chosen = options(tmp_path, *flags)
    threads.run(2, lambda comm: fit(chosen, comm))
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("epoch")]


def test_of_every_option_it_is_known_whether_it_may_change():
    names = {field.name for field in dataclasses.fields(parser.Options)}
    identity = {*[RENAMED.get(name, name) for name in resume.IDENTITY], *resume.GPT_IDENTITY} | words(DATA)
    groups = [identity, set(remarks.MATTER), words(*AROUND), words(LAST_BITS)]
    assert names == set().union(*groups)
    assert len(names) == sum(map(len, groups))
    assert set(remarks.LENGTH) <= names


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            "--steps 5 --lr-warmup-steps 5",
            "hpcai: --lr-warmup-steps 5 is as long as the run of 5 steps or longer: the learning rate rises",
        ),
        ("--epochs 1 --lr-warmup-steps 1000", "hpcai: --lr-warmup-steps 1000 is as long as the run of 23 steps"),
        ("--steps 2 --batch 5000", "hpcai: --batch 5000 is more than the 1,438 training samples: each step uses all of them"),
        ("--steps 2 --batch 9007199254740992", "is more than the 1,438 training samples"),
        ("--epochs 1 --steps 24", "hpcai: --epochs 1 ends the run after 23 steps, before --steps 24"),
        ("--epochs 2 --steps 24", "hpcai: --steps 24 ends the run before --epochs 2, which would take 46 steps"),
        ("--steps 5 --lr-schedule step --lr-decay-steps 5", "never lowers the learning rate in 5 steps"),
        (
            "--steps 5 --compress int8 --compress-warmup-steps 5",
            "hpcai: --compress-warmup-steps 5 is as long as the run of 5 steps",
        ),
    ],
)
def test_an_option_that_does_not_do_what_it_seems_to_is_a_line(tmp_path, capsys, flags, line):
    (found,) = said(capsys, tmp_path, *flags.split())
    assert line in found


@pytest.mark.parametrize(
    "flags",
    [
        "--steps 5 --lr-warmup-steps 4 --lr-schedule cosine",
        "--steps 5 --batch 1438",
        "--epochs 1 --steps 23",
        "--steps 5 --lr-schedule step --lr-decay-steps 4 --compress int8 --compress-warmup-steps 4",
    ],
)
def test_one_that_does_is_none(tmp_path, capsys, flags):
    assert said(capsys, tmp_path, *flags.split()) == []


REFUSED = {
    "label_column": "--label-column a",
    "ignore_columns": "--ignore-columns a",
    "categorical_columns": "--categorical-columns a",
    "task": "--task regression",
    "image_channels": "--image-channels last",
    "sample_bytes": "--sample-bytes 5",
    "pipeline_chunks": "--pipeline-chunks 2",
    "momentum": "--momentum 0.5",
    "compress_layers": "--compress-layers a=int8",
    "spare_ranks": "--spare-ranks 1",
    "redundancy": "--redundancy 1",
    "class_weights": "--task regression --data csv:a --label-column b --class-weights balanced",
}

ALWAYS = (
    "data data_dir model mesh micro_batches recompute trace_file epochs steps batch optimizer lr weight_decay lr_schedule lr_warmup_steps clip_norm "
    "loss_reduction seed dtype compress run_dir metrics_file plot resume checkpoint_steps checkpoint_dir keep_checkpoints elastic stall_timeout signals "
    "validation patience keep_best dry_run find_lr"
)
"""Options that act in any company; those of REFUSED are refused where they would not."""

ALONE = Sizes(1, 1, 1)
IDLE = [
    ("--hidden 8 --model cnn", "--hidden does nothing with --model cnn; it is for --model mlp"),
    ("--activation gelu --model softmax", "--activation does nothing with --model softmax; it is for --model mlp"),
    ("--channels 4", "--channels does nothing with --model mlp; it is for --model cnn"),
    ("--dropout 0.5", "--dropout does nothing with --model mlp; it is for --model gpt"),
    ("--layers 2 --model cnn", "--layers does nothing with --model cnn; it is for --model gpt"),
    ("--width 8", "--width does nothing with --model mlp"),
    ("--heads 2", "--heads does nothing with --model mlp"),
    ("--context 8", "--context does nothing with --data digits"),
    ("--norm rms", "--norm does nothing with --model mlp"),
    ("--tied", "--tied does nothing with --model mlp"),
    (
        "--lr-decay-steps 5 --lr-schedule cosine",
        "--lr-decay-steps does nothing with --lr-schedule cosine; it is for --lr-schedule step",
    ),
    ("--compress-warmup-steps 5", "--compress-warmup-steps does nothing with --compress none; it is for a codec of --compress"),
    ("--compress-smallest 5 --compress reproducible", "--compress-smallest does nothing with --compress reproducible"),
    ("--no-error-feedback", "--no-error-feedback does nothing with --compress none"),
    (
        "--fixed-micro-batch 4 --compress int8",
        "--fixed-micro-batch does nothing with --compress int8; it is for --compress reproducible",
    ),
    ("--pipeline-schedule gpipe", "--pipeline-schedule does nothing with pp=1; it is for a --mesh with pp=2 or more"),
    ("--zero 1", "--zero does nothing with dp=1; it is for a --mesh with dp=2 or more"),
    ("--allreduce-algorithm ring", "--allreduce-algorithm does nothing with dp=1"),
    ("--overlap always", "--overlap does nothing with dp=1"),
    ("--bucket-bytes 5 --compress reproducible", "--bucket-bytes does nothing with --compress reproducible"),
]


@pytest.mark.parametrize("flags, line", IDLE)
def test_an_option_that_does_nothing_is_named_with_what_it_is_for(flags, line):
    (found,) = effects.idle(parser.parse(flags.split()), ALONE)
    assert found.startswith(line)


def test_each_option_that_can_do_nothing_has_its_case():
    assert {flags.split()[0][2:].replace("-", "_") for flags, _ in IDLE} == effects.OF.keys()


def test_of_every_option_it_is_known_with_what_it_acts():
    names = [field.name for field in dataclasses.fields(parser.Options)]
    assert sorted(names) == sorted([*effects.OF, *REFUSED, *words(ALWAYS)])


@pytest.mark.parametrize(
    "axes, flags, line",
    [
        (Sizes(2, 1, 1), "--allreduce-algorithm ring --zero 1", "--allreduce-algorithm does nothing with --zero 1; it is for"),
        (
            Sizes(2, 1, 1),
            "--overlap always --compress reproducible",
            "--overlap does nothing with --compress reproducible; it is for",
        ),
    ],
)
def test_an_option_may_want_two_things(axes, flags, line):
    (found,) = effects.idle(parser.parse(flags.split()), axes)
    assert found.startswith(line)


def test_those_that_are_refused_where_they_do_nothing_are():
    for flags in REFUSED.values():
        with pytest.raises(UsageError, match=flags.split()[0]):
            parser.parse(flags.split())


def test_options_in_good_company_are_not_remarked_on_nor_all_defaults_of_a_file(tmp_path, capsys):
    axes = Sizes(2, 1, 2)
    for flags in (
        "--hidden 8 --activation gelu --compress int8 --compress-smallest 5 --allreduce-algorithm ring --zero 1",
        "--model cnn --channels 4 --lr-schedule step --lr-decay-steps 5 --overlap always --bucket-bytes 5",
        "--data text:x --layers 2 --tied --dropout 0.5 --pipeline-schedule gpipe --mesh pp=2",
        "--compress reproducible --fixed-micro-batch 4",
        "--compress auto --no-error-feedback --compress-layers a=int8",
    ):
        assert effects.idle(parser.parse(flags.split()), axes) == []
    with pytest.raises(SystemExit):
        parser.parse(["--model", "cnn", "--print-config"])
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert effects.idle(parser.parse(["--config", str(tmp_path / "all.yaml")]), ALONE) == []


def test_a_run_says_which_options_do_nothing(tmp_path, capsys):
    found = said(capsys, tmp_path, "--steps", 1, "--dropout", 0.5, "--pipeline-schedule", "gpipe")
    assert found == [
        "hpcai: --dropout does nothing with --model mlp; it is for --model gpt",
        "hpcai: --pipeline-schedule does nothing with pp=1; it is for a --mesh with pp=2 or more",
    ]


def test_a_run_that_goes_on_says_what_is_other_than_before(tmp_path, capsys):
    said(capsys, tmp_path, "--steps", 6)
    flags = [
        "--steps",
        9,
        "--resume",
        "auto",
        "--lr",
        0.1,
        "--clip-norm",
        1,
        "--compress",
        "int8",
        "--compress-layers",
        "a*=none,b=int4",
    ]
    assert said(capsys, tmp_path, *flags, "--keep-checkpoints", 3, "--overlap", "never", "--checkpoint-steps", 7) == [
        "continuing after step 6 of 9 with --lr 0.1 (was 0.001), --clip-norm 1 (was 0), --compress int8 (was none), "
        "--compress-layers a*=none,b=int4 (was none)"
    ]
    assert said(capsys, tmp_path, *flags, "--steps", 12) == ["continuing after step 9 of 12"]
    (line,) = said(
        capsys, tmp_path, "--steps", 15, "--resume", tmp_path / "run/checkpoints/step-000000009", "--no-error-feedback"
    )[:1]
    assert "continuing after step 9 of 15 with --lr 0.001 (was 0.1)" in line
    assert "--no-error-feedback True (was False)" in line


def test_more_steps_are_another_course_of_a_cosine_alone(tmp_path, capsys):
    said(capsys, tmp_path, "--steps", 6)
    assert said(capsys, tmp_path, "--steps", 8, "--resume", "auto") == ["continuing after step 6 of 8"]
    (line,) = said(capsys, tmp_path, "--steps", 9, "--resume", "auto", "--lr-schedule", "cosine")
    assert line == "continuing after step 8 of 9 with --lr-schedule cosine (was constant), --steps 9 (was 8)"


def test_an_option_that_may_not_change_is_refused_by_name(tmp_path, capsys):
    said(capsys, tmp_path, "--steps", 6)
    for flags, name in ((["--batch", "32"], "batch"), (["--seed", "3"], "seed"), (["--loss-reduction", "sum"], "loss-reduction")):
        with pytest.raises(CheckpointError, match=rf"was made with .*{name}"):
            said(capsys, tmp_path, "--steps", 9, "--resume", "auto", *flags)


@pytest.mark.parametrize("before", [None, [], "x", {}, {"lr": None}, {"lr": [1]}, {"lr": {"a": 1}}, {"other": 1}])
def test_options_in_a_manifest_may_be_anything(before):
    found = remarks.changed(before, parser.parse([]))
    assert found == "" or found.startswith(" with --lr 0.001 (was ")


def test_what_is_recorded_is_json():
    flags = ["--compress", "int8", "--compress-layers", "a=none", "--lr", "0.5"]
    recorded = remarks.recorded(parser.parse(flags))
    assert json.loads(json.dumps(recorded)) == recorded
    assert remarks.changed(recorded, parser.parse(flags)) == ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "compress, words", [("fp16", "Try --compress bf16, since fp16 ends at 65504"), ("none", "Try a smaller --lr")]
)
def test_gradients_beyond_fp16_are_told_of_bf16(tmp_path, compress, words):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(64, 4)), y=rng.normal(size=64))
    flags = [
        "--data",
        f"npz:{tmp_path / 'd.npz'}",
        "--loss-reduction",
        "sum",
        "--steps",
        "60",
        "--optimizer",
        "sgd",
        "--lr",
        "1e4",
    ]
    with pytest.raises(NonFiniteError, match=words):
        threads.run(2, lambda comm: fit(options(tmp_path, *flags, "--compress", compress, "--compress-smallest", "1"), comm))


def test_a_grain_or_batch_beyond_the_data_takes_no_memory(tmp_path, capsys):
    flags = ["--compress", "reproducible", "--fixed-micro-batch", 2**40, "--steps", 1]
    assert said(capsys, tmp_path, *flags) == []
    lines = said(capsys, tmp_path, "--batch", 2**40, "--steps", 1, "--model", "mlp", "--mesh", "pp=2,dp=1")
    assert len([line for line in lines if "--batch" in line]) == 1
    assert len([line for line in lines if "earlier run" in line]) == 1
    assert len(lines) == 2
