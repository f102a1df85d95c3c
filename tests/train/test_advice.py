"""`--compress auto` takes what is predicted to be quickest, says why, and stays with it; layers can have their own choice."""

import pytest

from hpcai.comm import threads
from hpcai.comm.communicator import Communicator
from hpcai.data import sources
from hpcai.reduce.advice import KINDS, Curve, Wire
from hpcai.reduce.policy import Parts
from hpcai.strategies.compressed import Compressed
from hpcai.strategies.strategy import part
from hpcai.train import advice
from hpcai.train.inputs import share
from hpcai.train.options import parser
from hpcai.train.replica import new_replica
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def wire(monkeypatch):
    """Pretend that a byte on the wire takes so long."""

    def pretend(byte_s):
        curves = dict.fromkeys(KINDS, Curve((0, 1000), (0.0, 1000 * byte_s)))
        monkeypatch.setattr("hpcai.reduce.advice.measure_wire", lambda comm, largest, algorithm: Wire(curves, 0.0, byte_s, 0.0))

    return pretend


def test_a_slow_wire_makes_it_compress_and_a_free_one_does_not(tmp_path, wire, capsys):
    flags = ["--compress", "auto", "--steps", "3", "--hidden", "64,64", "--compress-smallest", "1"]
    wire(1e-5)
    slow = train(2, options(tmp_path, *flags, run="slow"))
    said = capsys.readouterr().err
    assert slow["options"]["compress"] in said.split("takes ")[1]
    assert slow["options"]["compress"] in ("int4", "powersgd:4")
    assert "none " in said
    assert "bf16 " in said
    wire(1e-15)
    assert train(2, options(tmp_path, *flags, run="fast"))["options"]["compress"] == "none"
    wire(1e-5)
    resumed = train(2, options(tmp_path, *flags, "--resume", "auto", "--steps", "6", run="fast"))
    assert resumed["options"]["compress"] == "none"
    assert "as in the run that is resumed" in capsys.readouterr().err


def test_a_warmup_does_not_hide_what_compression_takes(tmp_path, wire):
    wire(1e-5)
    flags = [
        "--compress",
        "auto",
        "--compress-warmup-steps",
        "100",
        "--compress-smallest",
        "1",
        "--steps",
        "3",
        "--hidden",
        "64,64",
    ]
    assert train(2, options(tmp_path, *flags))["options"]["compress"] != "none"


def test_one_rank_has_nothing_to_compress(tmp_path):
    assert train(1, options(tmp_path, "--compress", "auto", "--steps", "3"))["options"]["compress"] == "none"


def test_the_table_has_a_row_for_every_choice(tmp_path):
    chosen = parser.parse(["--hidden", "32", "--batch", "16"])

    def program(comm: Communicator):
        return advice.table(chosen, share(comm, lambda: sources.load("digits", None, None, ())), comm)

    text = threads.run(2, program)[0]
    for name in advice.ALL:
        assert f"\n| {name} |" in text
    assert text.splitlines()[-1].startswith("advice: ")


def test_layers_can_have_their_own_choice(tmp_path):
    flags = ["--compress", "int8", "--compress-layers", "linear1.bias=bf16,linear1.*=none,linear3.*=topk:0.5"]
    flags += ["--compress-smallest", "1", "--hidden", "16,16"]
    chosen = options(tmp_path, *flags)

    def program(comm):
        return new_replica(chosen, share(comm, lambda: sources.load("digits", None, None, ())), comm)

    mine = threads.run(2, program)[0]
    assert [reducer.name for reducer in part(mine.state, Compressed).reducers] == [
        "none and bf16, error feedback and int8, error feedback and topk:0.5, error feedback"
    ]
    assert isinstance(part(mine.state, Compressed).states[0], Parts)
    flags += ["--checkpoint-steps", "10"]
    train(2, options(tmp_path, *flags, "--steps", "30", run="whole"))
    train(2, options(tmp_path, *flags, "--steps", "17", run="cut"))
    train(2, options(tmp_path, *flags, "--steps", "30", "--resume", "auto", run="cut"))
    whole, cut = final(tmp_path, "whole"), final(tmp_path, "cut")
    assert all(array.tobytes() == cut[name].tobytes() for name, array in whole.items())
    first = mine.model.layout.slots[0]
    assert not whole["memories"][:, first.start : first.stop].any()
    assert whole["memories"].any()


def test_without_error_feedback_nothing_is_remembered(tmp_path):
    summary = train(2, options(tmp_path, "--compress", "sign", "--no-error-feedback", "--compress-smallest", "1", "--steps", "5"))
    assert summary["compression"]["name"] == "sign"
    assert summary["compression"]["buckets"][0]["error"] is None
    assert "memories" not in final(tmp_path)


def test_a_run_reports_bytes_coding_and_error_for_each_bucket(tmp_path, capsys):
    flags = ["--compress", "int8", "--compress-smallest", "100", "--bucket-bytes", "2000", "--hidden", "32,16", "--steps", "5"]
    said = train(2, options(tmp_path, *flags))["compression"]
    assert len(said["buckets"]) > 1
    for bucket in said["buckets"]:
        assert bucket["coding_ms"] > 0
        if bucket["elements"] >= 100:
            assert 3 < bucket["plain_bytes"] / bucket["sent_bytes"] < 4
            assert 0 < bucket["error"] < 0.05
    assert said["sent_bytes"] == sum(bucket["sent_bytes"] for bucket in said["buckets"])
    shown = capsys.readouterr().out
    assert "by bucket" in shown
    assert "bytes a step instead of" in shown
