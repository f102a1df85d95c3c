"""A model that does not fit into memory is refused before any of it is taken."""

import os
import subprocess
import sys
import time

import pytest

from hpcai.comm import threads
from hpcai.data import sources
from hpcai.errors import UsageError
from hpcai.parallel.mesh import sizes
from hpcai.strategies.sharded import memory_bytes
from hpcai.train import fits
from hpcai.train.inputs import share
from hpcai.train.loop import fit
from hpcai.train.options import parser
from hpcai.train.replica import new_replica

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 100)
    return ["--data", f"text:{tmp_path / 't.txt'}", "--context", "16", "--heads", "4"]


def refusal(ranks, *flags):
    options = parser.parse([str(flag) for flag in flags])
    with pytest.raises(UsageError, match="do not fit into memory") as caught:
        threads.run(ranks, lambda comm: fit(options, comm))
    return str(caught.value)


@pytest.mark.parametrize(
    "ranks, flags, words",
    [
        (1, "--hidden 16777216,16777216", "281,476,251,779,088 parameters do not fit into memory: 1 rank needs at least 6,755,"),
        (2, "--hidden 1000000,1000000 --optimizer sgd", "2 ranks need at least"),
        (4, "--hidden 1000000,1000000 --zero 3", "4 ranks need at least"),
        (4, "--hidden 1000000,1000000 --mesh pp=2 --micro-batches 4", "4 ranks need at least"),
        (3, "--hidden 1000000,1000000 --dtype bf16 --compress none --zero 1", "--zero 2 to 3"),
        (2, "--model cnn --channels 16777216,16777216", "a smaller model"),
    ],
)
def test_it_is_one_line_at_once_and_nothing_is_taken(tmp_path, ranks, flags, words):
    begin = time.perf_counter()
    said = refusal(ranks, *flags.split(), "--run-dir", tmp_path / "run")
    assert words in said
    assert "\n" not in said
    assert "GB are free in" in said
    assert time.perf_counter() - begin < 20
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("mesh", ["", "tp=2", "pp=2", "tp=2,pp=2"])
def test_a_language_model_on_any_mesh(tmp_path, text, mesh):
    flags = [*text, "--layers", "1000", "--width", "1048576", "--micro-batches", "2", "--run-dir", tmp_path / "run"]
    said = refusal(4, *flags, "--mesh", mesh)
    assert "a --mesh with more tp or pp" in said


def test_what_is_wanted_is_what_a_rank_keeps(tmp_path, text):
    """On one or more ranks, with and without shards; one pipeline stage may have more than its part."""
    for ranks, mesh in ((1, ""), (4, ""), (2, "tp=2")):
        for flags in (
            "",
            "--optimizer momentum --zero 1",
            "--zero 2",
            "--zero 3 --optimizer sgd",
            "--dtype f64",
            "--dtype bf16 --zero 2",
        ):
            chosen = parser.parse([*text, "--layers", "2", "--width", "64", "--mesh", mesh, *flags.split()])
            axes = sizes(mesh, ranks)

            def program(comm, chosen=chosen, axes=axes):
                dataset = share(comm, lambda: sources.load(chosen.data, None, None, (), chosen.context))
                mine = new_replica(chosen, dataset, comm)
                kept = memory_bytes(mine.buffers)
                computed = 0 if mine.buffers.computed is None else mine.buffers.computed.nbytes
                elements, _, states = fits._parameters(chosen, dataset)
                initial = elements / (axes.tp * axes.pp) * 4 if chosen.zero == 3 else 0
                wanted = fits.needed(chosen, elements, 0, axes, states) - initial
                return wanted, kept["parameters"] + kept["gradients"] + kept["optimizer"] + computed

            for wanted, kept in threads.run(ranks, program):
                assert wanted == pytest.approx(kept, rel=0.1), (ranks, mesh, flags)


def test_ranks_of_a_node_are_counted_together_and_groups_apart(tmp_path, monkeypatch):
    """Each of four ranks fits alone, in pairs they fit, all four on one node do not."""
    options = parser.parse(["--hidden", "64", "--run-dir", str(tmp_path / "run"), "--steps", "1"])
    elements, largest, states = fits._parameters(options, sources.digits())
    assert states == 2
    one = fits.needed(options, elements, largest, sizes("", 4), states)

    def where(nodes):
        """threads.run gives ranks no place of their own: they take turns."""
        turn = iter(range(100))
        monkeypatch.setattr(fits, "pools", lambda: [fits.Pool("node n", f"n{next(turn) * nodes // 4}", 3 * one)])
        return threads.run(4, lambda comm: fits.require(options, share(comm, sources.digits), comm))

    where(2)
    with pytest.raises(UsageError, match="4 ranks need at least"):
        where(1)


def test_a_process_has_its_own_limit():
    check = "from hpcai.train import fits; print(min(pool.free for pool in fits.pools() if 'ulimit' in pool.what))"
    command = ["bash", "-c", f'ulimit -v 8000000; exec "{sys.executable}" -c "{check}"']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert 0 < int(done.stdout) < 8_000_000 * 1024, done.stderr
