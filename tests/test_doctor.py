"""What the doctor says is true, alone, with ranks, across nodes; what it tunes is kept and used."""

import json
import threading
from pathlib import Path

import pytest

from hpcai import doctor, tuning
from hpcai.comm import select, threads
from hpcai.comm.algorithms import ring
from hpcai.comm.launch import cores
from hpcai.ops import native
from tests.command import needs_mpirun, run


def found(size):
    return threads.run(size, lambda comm: {name.strip(): (text, fine) for name, text, fine in doctor.findings(comm)})[-1]


def doctors(ranks, *flags, **variables):
    return run(ranks, *flags, program=("-m", "hpcai.doctor"), limit=100, **variables)


@pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")
def test_it_says_how_ranks_share_memory_and_why_not(monkeypatch):
    assert "cross-memory attach" in found(3)["shared memory"][0]
    assert found(1)["all-reduce"] == ("nothing to do", True)
    monkeypatch.setenv("HPCAI_REACH", "0")
    assert "HPCAI_REACH=0" in found(2)["shared memory"][0]
    monkeypatch.setenv("HPCAI_NODE", "0")
    text, fine = found(2)["shared memory"]
    assert "HPCAI_NODE=0" in text
    assert not fine


def test_it_warns_of_an_environment_that_pins_another_blas_kernel(monkeypatch):
    monkeypatch.delenv(cores.PIN, raising=False)
    text, fine = found(1)["BLAS"]
    assert fine
    if text != cores.unpinned_blas() or "openblas" not in text:
        pytest.skip(f"numpy has no OpenBLAS here: {text}")
    monkeypatch.setenv(cores.PIN, "Nehalem")
    assert found(1)["BLAS"] == (text, True), "what is loaded is what counts"
    monkeypatch.setattr(cores, "blas", lambda: "openblas 0.3 Nehalem")
    said, fine = found(1)["BLAS"]
    assert said.startswith(f"openblas 0.3 Nehalem, as $OPENBLAS_CORETYPE says; without it {text}")
    assert not fine


def test_it_shows_nodes_and_tries_every_algorithm_that_can_run(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCAI_CACHE", str(tmp_path))
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")
    across = found(4)
    assert across["nodes"][0] == "2, 2 on each"
    assert "untuned" in across["all-reduce"][0]
    for name in ("ring", "halving_doubling", "hierarchical"):
        assert across[name] == ("sums are right", True)
    assert found(3)["nodes"][0] == "2, of different sizes"


def test_a_wrong_sum_is_found(monkeypatch):
    plain = ring.allreduce
    monkeypatch.setattr(ring, "allreduce", lambda x, wire, op: plain(x, wire, "max"))
    assert found(3)["ring"] == ("SUMS ARE WRONG", False)


@needs_mpirun
def test_the_command_prints_once_and_what_it_tunes_is_used(tmp_path):
    code, out, err = doctors(2, HPCAI_CACHE=str(tmp_path))
    assert (code, out.count("\nMPI ")) == (0, 1), err
    variables = {"HPCAI_RANKS_PER_NODE": "1", "HPCAI_CACHE": str(tmp_path / "cache")}
    code, out, err = doctors(2, "--tune", "--largest", "4096", **variables)
    assert code == 0, out + err
    assert "| 4 KiB |" in out
    assert "untuned" in out
    kept = json.loads((tmp_path / "cache" / "allreduce.json").read_text())
    assert [set(entry) for entry in kept.values()] == [set(select.Constants._fields)]
    code, out, err = doctors(2, **variables)
    assert "(tuned)" in out
    code, out, err = doctors(2, "--tune", "--largest", "64", **(variables | {"HPCAI_CACHE": "/proc/nowhere"}))
    assert code != 0
    assert "set HPCAI_CACHE" in err
    assert not Path("/proc/nowhere").exists()


def test_times_are_of_one_call_on_the_slowest_rank(monkeypatch):
    """Rank r's clock goes on by r + 1 seconds in each of four calls."""
    clock = threading.local()
    monkeypatch.setattr(tuning, "perf_counter", lambda: getattr(clock, "now", 5.0))

    def program(comm):
        def call():
            clock.now = getattr(clock, "now", 5.0) + comm.rank + 1

        return tuning._seconds(comm, call, 4)

    assert threads.run(3, program) == [3.0] * 3


def test_a_measurement_is_the_median_of_at_least_three(monkeypatch):
    """The first call only tells how many fit into the time."""
    times = iter([0.2, 5.0, 1.0, 2.0])
    monkeypatch.setattr(tuning, "_seconds", lambda comm, call, count: next(times))
    assert threads.run(1, lambda comm: list(tuning.measure(comm, ["ring"], 8))) == [[(8, "ring", 2.0)]]


def test_what_it_tunes_are_the_constants_behind_the_times(monkeypatch, tmp_path, capsys):
    """Times as a model with these constants has them; the choice of what was kept is never slower than the best."""
    true = select.Constants(2e-5, 8e-9, 3e-10, 1e-5, 4e-10)
    monkeypatch.setenv("HPCAI_CACHE", str(tmp_path))
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")
    shape = select.Shape(2, 2, 4)
    monkeypatch.setattr(tuning, "_reduction", lambda comm, x, name: (name, x.nbytes))
    monkeypatch.setattr(tuning, "_seconds", lambda comm, call, count: select.predict(*call, shape, true))
    assert threads.run(4, lambda comm: (tuning.tune(comm, 1 << 24), comm.wire.describe())[0]) == [0] * 4
    library = threads.run(1, lambda comm: comm.wire.describe())[0]
    found, source = select.load(library, shape)
    assert source == "tuned"
    assert list(found[:5]) == pytest.approx(list(true[:5]), rel=1e-6)
    assert found[5:] == (0.0, 0.0)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8
    assert {row[-1].strip() for row in rows} == {"0%"}
    first = [float(cell) for cell in rows[0][1:4]]
    names = ("ring", "halving_doubling", "hierarchical")
    assert first == [round(1e6 * select.predict(name, 8, shape, true)) for name in names]


def test_the_table_says_what_a_choice_that_is_not_the_best_costs(capsys):
    shape, constants = select.Shape(4, 1, 4), select.Constants()
    measured = [("ring", 8, 3e-4), ("halving_doubling", 8, 4e-4), ("ring", 1 << 24, 0.02), ("halving_doubling", 1 << 24, 0.01)]
    tuning.show(measured, ["ring", "halving_doubling"], shape, constants)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| 8 B | 300 | 400 | halving_doubling | 33% |", "| 16 MiB | 20,000 | 10,000 | ring | 100% |"]


@needs_mpirun
def test_on_one_node_it_tunes_up_to_which_size_arrays_pass_through_segments(tmp_path):
    code, out, err = doctors(2, "--tune", "--largest", "65536", HPCAI_CACHE=str(tmp_path))
    assert code == 0, err
    if not native.is_native():
        assert "nothing to tune" in out
        return
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")] == [
        "bytes",
        "16 KiB",
        "32 KiB",
        "64 KiB",
    ]
    (kept,) = json.loads((tmp_path / "node.json").read_text()).values()
    assert kept["staged_bytes"] in (0, 1 << 14, 1 << 15, 1 << 16)
    _, out, _ = doctors(2, HPCAI_CACHE=str(tmp_path))
    assert f"those of at most {tuning.size_in_words(kept['staged_bytes'])} are copied through segments" in out
    _, out, _ = doctors(2, HPCAI_CACHE=str(tmp_path), HPCAI_STAGED_BYTES="3072")
    assert "those of at most 3 KiB are copied" in out


@needs_mpirun
def test_it_predicts_what_each_compression_takes_and_refuses_bad_options_once():
    code, out, err = doctors(2, "--compress", "--hidden", "32,16", "--batch", "32")
    assert code == 0, err
    assert out.count("| powersgd:4 |") == 1
    assert out.splitlines()[-1].startswith("advice: ")
    for flags, words in (
        (["--hidden", "32"], "unknown: --hidden 32"),
        (["--compress", "--model", "zip"], "--model wants one of"),
        (["--compress", "--data", "csv:absent.csv", "--label-column", "y"], "there is no file absent.csv"),
    ):
        code, out, err = doctors(2, *flags)
        assert code != 0
        assert err.count(words) == 1, err


WRONG = {
    "below zero": (["--tune", "--largest", "-8"], "--largest: wants a whole number from 8 to 134,217,728, got '-8'"),
    "too small": (["--tune", "--largest=7"], "wants a whole number from 8"),
    "too large": (["--tune", "--largest", "9" * 30], "wants a whole number from 8"),
    "a word": (["--tune", "--largest", "much"], "got 'much'"),
    "of nothing": (["--largest", "64"], "--largest bounds what --tune measures"),
    "no option": (["tune"], "unknown: tune"),
    "an abbreviation": (["--tun"], "unknown: --tun (is --tune meant?)"),
    "a value too many": (["--compress=int8"], "--compress: ignored explicit argument 'int8'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_in_one_line(capsys, case):
    flags, words = WRONG[case]
    assert doctor.main(flags) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("hpcai.doctor: error: ")
    assert words in err


def test_options_of_training_are_refused_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "report", lambda comm: 0)
    threads.run(1, lambda comm: doctor.compress(comm, ["--batch", "-3"]))
    assert capsys.readouterr().err.count("\n") == 1
