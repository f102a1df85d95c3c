import os
from pathlib import Path

import pytest

from hpcai.errors import UsageError
from hpcai.train.options import parser

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_defaults_depend_on_other_options():
    assert parser.parse([]).epochs == 20
    assert parser.parse(["--steps", "5"]).epochs is None
    assert parser.parse(["--optimizer", "sgd"]).lr == 0.1
    assert parser.parse(["--data", "csv:some/table.csv.gz", "--model", "softmax"]).run_dir == "runs/table-softmax"
    assert parser.parse(["--data", "mnist"]).run_dir == "runs/mnist-mlp"


def test_flags_win_over_variables_and_those_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("lr: 0.5\nbatch: 7\nhidden: [3, 4]\nseed: 9\n")
    monkeypatch.setenv("HPCAI_BATCH", "8")
    monkeypatch.setenv("HPCAI_SEED", "10")
    monkeypatch.setenv("HPCAI_DATA_DIR", "/data")
    options = parser.parse(["--config", str(tmp_path / "c.yaml"), "--seed", "11"])
    assert (options.lr, options.hidden, options.seed, options.data_dir) == (0.5, (3, 4), 11, "/data")


@pytest.mark.parametrize(
    "value, data",
    [
        ("/", "digits"),
        ("tests", "digits"),
        ("./tests", "digits"),
        ("", "digits"),
        ("mnist", "mnist"),
        ("csv:/some/table.csv", "csv:/some/table.csv"),
        ("CSV:/some/table.csv", "CSV:/some/table.csv"),
        ("cifar", "cifar"),
    ],
)
def test_the_data_variable_is_a_data_set_or_a_folder(monkeypatch, value, data):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setenv("HPCAI_DATA", value)
    assert parser.parse([]).data == data
    assert parser.parse(["--data", "npz:x"]).data == "npz:x"
    assert os.environ["HPCAI_DATA"] == value


@pytest.mark.parametrize("value", ["/some/folder", "./csv", "tests/train/options/test_parser.py"])
def test_a_data_variable_that_is_neither_is_refused(monkeypatch, value):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setenv("HPCAI_DATA", value)
    with pytest.raises(UsageError, match="HPCAI_DATA is .*, which is no folder; wanted a folder, or a data set as in csv:"):
        parser.parse([])


@pytest.mark.parametrize("text, numbers", [("1024,1024", (1024, 1024)), ("7", (7,)), ("", ())])
def test_hidden(text, numbers):
    assert parser.parse(["--hidden", text]).hidden == numbers


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--leraning-rate", "1"], "leraning-rate"),
        (["--batch", "many"], "--batch wants a whole number from 1, got 'many'"),
        (["--batch", "0"], "--batch wants a whole number from 1, got '0'"),
        (["--epochs", "-1"], "--epochs wants a whole number from 1, got '-1'"),
        (["--steps", "0"], "--steps wants a whole number from 1"),
        (["--lr", "-0.1"], "--lr wants a number above 0 to 3e+38, got '-0.1'"),
        (["--lr", "nan"], "--lr wants a number above 0 to 3e+38, got 'nan'"),
        (["--lr", ".inf"], "--lr wants a number above 0 to 3e+38, got '.inf'"),
        (["--image-channels", "first"], "--image-channels is for --model cnn, not for mlp"),
        (
            ["--model", "transformer"],
            "--model wants one of softmax, mlp, cnn, gpt, or package.module:function, got 'transformer'",
        ),
        (["--hidden", "10,x"], "--hidden wants whole numbers above 0, such as 1024,1024, got '10,x'"),
        (["--hidden", "10,-1"], "hidden"),
        (["--momentum", "1.5"], "--momentum wants a number from 0 below 1, got '1.5'"),
        (["--momentum", "0.9", "--optimizer", "adam"], "adam sets its own"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints"),
        (["--seed", "-1"], "--seed wants a whole number from 0 to"),
        (["--seed", str(10**23)], "--seed wants a whole number from 0 to"),
        (
            ["--compress", "zip"],
            "--compress wants one of none, bf16, fp16, fp8, int8, int4, sign, int8sum, topk:RATIO, randomk:RATIO, powersgd:RANK, reproducible; got 'zip'",
        ),
        (["--compress", "topk"], "as in topk:0.01; got 'topk'"),
        (["--compress", "topk:2"], "a ratio above 0 and up to 1"),
        (["--compress", "topk:nan"], "a ratio above 0 and up to 1"),
        (["--compress", "randomk:0.0_1"], "a ratio above 0 and up to 1"),
        (["--compress", "topk:\uff10.5"], "a ratio above 0 and up to 1"),
        (["--compress", "powersgd:\u00b2"], "as in powersgd:4"),
        (["--compress", "powersgd:1_0"], "as in powersgd:4"),
        (["--compress", "powersgd"], "as in powersgd:4; got 'powersgd'"),
        (["--compress", "powersgd:0"], "got 'powersgd:0'"),
        (["--compress", "int8:3"], "got 'int8:3'"),
        (["--compress", "int8", "--dtype", "f64"], "works on f32"),
        (["--compress-layers", "linear1.weight=int8"], "give --compress too"),
        (["--compress", "int8", "--compress-layers", "linear1.weight"], "pattern=choice pairs separated by commas"),
        (["--compress", "int8", "--compress-layers", "linear1.weight=zip"], "got 'zip'"),
        (["--compress", "reproducible", "--compress-layers", "linear1.weight=int8"], "applies to all arrays"),
        (["--compress", "reproducible", "--dtype", "f64"], "works on f32"),
        (["--compress", "reproducible", "--fixed-micro-batch", "0"], "--fixed-micro-batch wants a whole number from 1"),
        (["--compress", "reproducible", "--fixed-micro-batch", "1", "--batch", "100000"], "--fixed-micro-batch 1 is too small"),
        (["--compress-warmup-steps", "-1"], "--compress-warmup-steps"),
        (["--bucket-bytes", "0"], "--bucket-bytes wants a whole number from 1"),
        (["--overlap", "perhaps"], "--overlap wants one of auto, always, never, got 'perhaps'"),
        (["--signals", "USR1,QUUX"], "got QUUX"),
        (["--signals", "KILL"], "cannot be handled"),
        (["--stall-timeout", "0"], "--stall-timeout wants seconds above 0 to 1e+07, got '0'"),
        (["--stall-timeout", "-3"], "--stall-timeout"),
        (["--stall-timeout", "inf"], "--stall-timeout"),
        (["--stall-timeout", "nan"], "--stall-timeout"),
        (["stray"], "stray"),
    ],
)
def test_bad_options_are_one_line_that_names_them(arguments, words):
    with pytest.raises(UsageError) as caught:
        parser.parse(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_with_unknown_keys_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rate: 1\n")
    with pytest.raises(UsageError, match="learning_rate"):
        parser.parse(["--config", str(tmp_path / "c.yaml")])


def test_a_config_file_that_is_none_is_refused_in_few_words(tmp_path):
    (tmp_path / "c.yaml").write_text("just text\n" * 1000)
    with pytest.raises(UsageError, match="--config wants a YAML file of options, got one that starts with 'just text") as caught:
        parser.parse(["--config", str(tmp_path / "c.yaml")])
    assert len(str(caught.value)) < 250


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    text = capsys.readouterr().out
    for name in parser.Options.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "mpirun -n 4" in text
    assert "<function" not in text
