"""Ranks that fail, at every place of a step: the others go on from memory and come to the same parameters. Wants Open MPI."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm.wires.ulfm import RECOVERABLE, why_not
from hpcai.errors import UsageError
from tests.command import start
from tests.train.elastic.runs import FLAGS, parameters, struck, ulfm
from tests.train.test_loop import options, train


@ulfm
@pytest.mark.parametrize(
    "strikes, split",
    [
        ("0 backward 7", ""),
        ("3 reducing 7", "--zero 1"),
        ("2 deciding 7 1 deciding 30", "--zero 2 --bucket-bytes 4000"),
        ("1 decided 7 2! deciding 7", ""),
        ("1 decided 7 2! deciding 7", "--zero 1"),
        ("2 updated 7 0! deciding 7", "--zero 2 --bucket-bytes 4000"),
        ("2 updated 7", "--zero 1"),
        ("1 evaluating 22", ""),
        ("2 saving 19", "--zero 1"),
        ("1 backward 7 3 recovering 7", "--zero 1"),
        ("1 backward 7 3 shrunk 7", ""),
        ("1 backward 7", "--micro-batches 2"),
    ],
)
def test_a_rank_that_dies_anywhere_costs_nothing(tmp_path, undisturbed, strikes, split):
    code, err = struck(tmp_path, strikes, *split.split())
    assert code == 0, err
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    killed = len(re.findall(r"\b\d [a-z]", strikes))
    assert sum(len(one["lost"]) for one in summary["recoveries"]) == killed
    assert summary["ranks"] == 4 - killed
    assert "Traceback" not in err


@ulfm
@pytest.mark.parametrize(
    "strikes, split, more",
    [
        ("0 backward 7 2 deciding 21", "", 0),
        ("3 reducing 7", "--zero 1", 0),
        ("1 backward 7 3 recovering 7", "--zero 1", 0),
        ("1 decided 7 3 updated 14", "--zero 2 --bucket-bytes 4000 --spare-ranks 1", 1),
    ],
)
def test_where_ranks_share_no_memory_it_costs_nothing_either(tmp_path, undisturbed, strikes, split, more):
    code, err = struck(tmp_path, strikes, *split.split(), ranks=4 + more, HPCAI_NODE="0")
    assert code == 0, err
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2 + more + strikes.count("3 reducing")
    assert "Traceback" not in err


@ulfm
@pytest.mark.parametrize("strikes", ["1 deciding 7 3 deciding 21", "2 decided 7 0! deciding 7"])
def test_reproducible_training_comes_to_the_same_bits(tmp_path, strikes):
    flags = ["--compress", "reproducible", "--dtype", "f32"]
    train(2, options(tmp_path, *FLAGS, *flags, run="undisturbed"))
    code, err = struck(tmp_path, strikes, *flags)
    assert code == 0, err
    assert parameters(tmp_path / "run").tobytes() == parameters(tmp_path / "undisturbed").tobytes()


@ulfm
@pytest.mark.parametrize("compress", ["int8", "sign", "powersgd:2", "topk:0.1", "int8sum", "bf16"])
def test_compression_goes_on_with_what_is_owed(tmp_path, compress):
    flags = ["--compress", compress, "--dtype", "f32", "--compress-smallest", "1", "--steps", "100", "--optimizer", "sgd"]
    plain = train(4, options(tmp_path, *FLAGS, *flags, run="undisturbed"))
    code, err = struck(tmp_path, "1 decided 30 2! deciding 30 3 reducing 60", *flags)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=0.03)


@ulfm
def test_shards_that_are_lost_with_both_copies_end_the_run_with_the_way_to_go_on(tmp_path):
    code, err = struck(tmp_path, "1 backward 27 2 backward 27", "--zero", "1")
    assert code == 85
    assert "rank 1's share of the optimizer state is lost" in err
    assert "--resume auto" in err
    train(2, options(tmp_path, *FLAGS, "--zero", "1", "--resume", "auto"))


@ulfm
@pytest.mark.parametrize(
    "elastic, launcher, words",
    [("shrink", [], "mpirun --with-ft ulfm"), ("grow", ["--with-ft", "ulfm"], f"--with-ft ulfm --prtemca {RECOVERABLE} 1")],
)
def test_without_the_launchers_consent_it_is_refused(tmp_path, elastic, launcher, words):
    process = start(2, *FLAGS, "--elastic", elastic, "--run-dir", tmp_path / "run", launcher=launcher)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in err


def test_where_ranks_cannot_fail_alone_it_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--elastic shrink: ranks that are threads"):
        train(2, options(tmp_path, "--elastic", "shrink"))
    assert "cannot go on without a failed rank" in why_not("MPICH 5.0.2")


@pytest.mark.parametrize("chosen, wanted", [("", "^han"), ("^tuned", "^tuned,han"), ("^han", "^han"), ("basic,han", "basic,han")])
def test_open_mpis_han_is_left_out_and_users_choices_stay(monkeypatch, chosen, wanted):
    from hpcai.comm.wires import ulfm

    monkeypatch.setenv(ulfm.ENABLED, "1")
    monkeypatch.setenv(ulfm.COLLECTIVES, chosen)
    monkeypatch.setenv(ulfm.TRANSPORTS, "self,sm,tcp")
    ulfm.prepare()
    assert os.environ[ulfm.COLLECTIVES] == wanted
    assert os.environ[ulfm.TRANSPORTS] == "self,sm,tcp"
    assert bool(ulfm.why_not("Open MPI v5")) == ("han" in wanted and "^" not in wanted)


@pytest.mark.parametrize("enabled, counts", [("1", {1, 2, 3, 4, 5, 6}), ("0", {1, 2, 3})])
def test_errors_without_a_class_are_failures_only_where_ranks_may_fail(monkeypatch, enabled, counts):
    from hpcai.comm.wires import ulfm

    names = ["PROC_FAILED", "PROC_FAILED_PENDING", "REVOKED", "OTHER", "INTERN", "UNKNOWN", "TRUNCATE"]
    classes = SimpleNamespace(**{f"ERR_{name}": number for number, name in enumerate(names, 1)})
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    for number in range(1, 8):
        error = SimpleNamespace(Get_error_class=lambda: number)  # noqa: B023
        assert ulfm.is_failure(classes, error) == (number in counts)
