"""Checkpoints: whatever is broken is named and left out, any ranks read what any ranks wrote, and writing never stops the run."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpcai import arena
from hpcai.checkpoint import boxes, format, naming, shards, storage
from hpcai.checkpoint.local import Local
from hpcai.comm import threads
from hpcai.errors import CheckpointError
from hpcai.train import resume, saving
from hpcai.train.history import Progress
from hpcai.train.inputs import load
from hpcai.train.replica import new_replica
from hpcai.train.state import arrays
from tests import owned
from tests.train.test_loop import final, options, train
from tests.train.test_mesh import text  # noqa: F401

pytestmark = pytest.mark.usefixtures("clean_environment")

KILLS, SEED = int(os.environ.get("HPCAI_TORTURE", "25")), int(os.environ.get("HPCAI_TORTURE_SEED", "0"))

SMALL = ["--hidden", "16", "--checkpoint-steps", "3", "--compress", "int8", "--compress-smallest", "1"]


@pytest.fixture(autouse=True)
def every_rank_writes(monkeypatch):
    monkeypatch.setattr(arrays, "SMALLEST_SHARD_BYTES", 1)


def started(ranks, chosen, folder):
    """Where a run would begin."""

    def program(comm):
        mine = new_replica(chosen, load(chosen, comm), comm, resume.cut(chosen, comm))
        return resume.start(chosen, mine, comm, folder).step

    return threads.run(ranks, program)


def flipped(path, at):
    """One byte of a file, changed."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << at % 8
    path.write_bytes(bytes(content))


def test_a_byte_that_changed_anywhere_is_noticed_and_the_older_one_taken(tmp_path, capsys):
    train(2, options(tmp_path, *SMALL, "--steps", "6"))
    older, newer = format.all_in(tmp_path / "run" / "checkpoints")
    files = sorted(newer.iterdir())
    assert [file.name for file in files] == [
        "manifest.json",
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
    ]
    chosen = options(tmp_path, *SMALL, "--resume", "auto")
    rng = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        for at in [0, 9, len(whole) - 2, *rng.integers(0, len(whole), 4), *rng.integers(0, 600, 3)]:
            flipped(file, int(at))
            assert started(2, chosen, tmp_path / "run") == [3, 3], (file.name, at)
            said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
            assert len(said) == 1
            assert str(newer) in said[0]
            assert file.name in said[0] or "its manifest does not say format" in said[0]
            file.write_bytes(whole)
    assert started(2, chosen, tmp_path / "run") == [6, 6]
    flipped(older / "manifest.json", 20)
    assert started(3, chosen, tmp_path / "run") == [6, 6, 6]
    assert "warning" not in capsys.readouterr().err


def test_all_broken_is_an_error_and_so_is_a_named_one(tmp_path):
    train(2, options(tmp_path, *SMALL, "--steps", "6"))
    older, newer = format.all_in(tmp_path / "run" / "checkpoints")
    (newer / "shard-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-000000006 is corrupt: shard-00001-of-00002.safetensors is missing"):
        train(2, options(tmp_path, *SMALL, "--resume", str(newer)))
    os.truncate(older / "shard-00000-of-00002.safetensors", 5000)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are broken; the newest: .*step-000000006"):
        train(2, options(tmp_path, *SMALL, "--resume", "auto"))


def test_a_run_that_left_out_a_broken_checkpoint_ends_where_it_would_have(tmp_path, capsys):
    train(2, options(tmp_path, *SMALL, "--steps", "9", run="one"))
    train(2, options(tmp_path, *SMALL, "--steps", "6", run="two"))
    os.truncate(resume.newest(tmp_path / "two") / "shard-00001-of-00002.safetensors", 100)
    train(2, options(tmp_path, *SMALL, "--steps", "9", "--resume", "auto", run="two"))
    assert "is cut short; it is skipped" in capsys.readouterr().err
    for name, array in final(tmp_path, "one").items():
        assert final(tmp_path, "two")[name].tobytes() == array.tobytes(), name
    assert len(format.all_in(tmp_path / "two" / "checkpoints")) == 2


def test_shards_are_safetensors_that_share_out_what_all_have(tmp_path):
    from safetensors.numpy import load_file

    train(3, options(tmp_path, "--hidden", "16", "--steps", "3"))
    path = resume.newest(tmp_path / "run")
    found = {}
    for file in path.glob("*.safetensors"):
        for key, array in load_file(file).items():
            name, start = key.split("/")
            found.setdefault(name, {})[int(start)] = array
    for name, whole in final(tmp_path).items():
        pieces = [found[name][start] for start in sorted(found[name])]
        assert len(pieces) == 3
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_long_arrays_are_cut_and_a_small_model_has_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST_BYTES", 1000)
    monkeypatch.setattr(arrays, "SMALLEST_SHARD_BYTES", 1 << 20)
    flags = ["--hidden", "16", "--checkpoint-steps", "3"]
    train(3, options(tmp_path, *flags, "--steps", "3"))
    manifest = json.loads((resume.newest(tmp_path / "run") / "manifest.json").read_text())
    assert [shard["rank"] for shard in manifest["shards"]] == [0]
    assert max(run[2] - run[1] for run in manifest["shards"][0]["runs"]) == 250
    train(2, options(tmp_path, *flags, "--steps", "6", "--resume", "auto"))


def random_layout(rng, shapes):
    """One process's share of arrays, as boxes of them."""
    parts, at = [], 0
    for name in rng.permutation(list(shapes)):
        cuts = [sorted(rng.integers(0, n + 1, 2)) if rng.random() < 0.5 else (0, n) for n in shapes[name]]
        box = tuple((int(a), int(b)) for a, b in cuts)
        if all(a < b for a, b in box):
            parts.append(boxes.Part(str(name), shapes[name], box, at))
            at = parts[-1].stop + int(rng.integers(0, 20))
    return format.Laid(at, tuple(parts))


@pytest.mark.parametrize("seed", range(30))
def test_what_two_layouts_share_is_copied_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (7, 5), "b": (3, 4, 2), "c": (11,), "d": (), "e": (1, 6)}
    whole = {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    theirs, mine = random_layout(rng, shapes), random_layout(rng, shapes)
    source = np.full(theirs.size, np.nan)
    for part in theirs.parts:
        part.view(source, part.box)[...] = whole[part.name][tuple(slice(a, b) for a, b in part.box)]
    begin, end = sorted(rng.integers(0, mine.size + 1, 2))
    shared = boxes.shared(theirs.parts, mine.parts, [slice(int(begin), int(end))])
    needed = np.zeros(theirs.size, bool)
    for run in boxes.merged(one.run for one in shared):
        needed[run] = True
    into = np.full(mine.size, np.nan)
    for one in shared:
        one.copy(np.where(needed, source, np.nan), into)
    for part in mine.parts:
        known = np.zeros(part.shape, bool)
        for other in theirs.parts:
            if other.name == part.name:
                known[(*(slice(a, b) for a, b in other.box), ...)] = True
        at = tuple(slice(a, b) for a, b in part.box)
        here, there = part.view(into, part.box).reshape(-1), np.asarray(known[at]).reshape(-1)
        values = np.asarray(whole[part.name][at]).reshape(-1)
        wanted = np.arange(part.start, part.stop)
        wanted = (wanted >= begin) & (wanted < end)
        np.testing.assert_array_equal(here[wanted & there], values[wanted & there])
        written = ~np.isnan(here)
        np.testing.assert_array_equal(here[written], values[written])
        assert not (written & ~there).any()


BITWISE = {
    "tp, int4": (4, "--mesh dp=2,tp=2 --compress int4 --compress-smallest 1"),
    "tp, pp, powersgd": (8, "--mesh dp=2,tp=2,pp=2 --micro-batches 2 --compress powersgd:2 --compress-smallest 1"),
    "three ranks, owners": (3, "--mesh dp=3 --batch 18 --compress int4 --compress-smallest 1"),
    "pp, clip": (4, "--mesh dp=2,pp=2 --micro-batches 2 --clip-norm 0.5"),
    "interleaved, clip": (2, "--mesh pp=2 --layers 4 --micro-batches 2 --pipeline-schedule interleaved --clip-norm 0.5"),
    "zero 3, clip": (3, "--mesh dp=3 --batch 18 --zero 3 --clip-norm 0.5"),
}


@pytest.mark.parametrize("case", BITWISE)
def test_the_same_mesh_goes_on_bit_for_bit_with_all_that_it_remembers(tmp_path, text, case, monkeypatch):  # noqa: F811
    from hpcai.parallel import stages

    ranks, flags = BITWISE[case]
    flags = [*text, "--dtype", "f32", *flags.split()]
    train(ranks, options(tmp_path, *flags, run="one"))
    cut = format.read(resume.newest(tmp_path / "one"))[1].meta["cut"]
    spans = [slice(*span) for span in cut] if cut else []
    with monkeypatch.context() as same:  # both runs cut alike, however long layers take here
        same.setattr(stages, "cut", lambda costs, count: spans)
        train(ranks, options(tmp_path, *flags, "--steps", "3", run="two"))
    if cut:  # going on, the measurement would cut otherwise
        count, layers = len(spans), spans[-1].stop
        early = [*(slice(i, i + 1) for i in range(count - 1)), slice(count - 1, layers)]
        late = [slice(0, layers - count + 1), *(slice(i, i + 1) for i in range(layers - count + 1, layers))]
        monkeypatch.setattr(stages, "cut", lambda costs, count: late if spans == early else early)
    train(ranks, options(tmp_path, *flags, "--resume", "auto", run="two"))
    one, two = final(tmp_path, "one"), final(tmp_path, "two")
    assert one.keys() == two.keys()
    assert "compress" not in case or one["memories"].any()
    for name, array in one.items():
        assert two[name].tobytes() == array.tobytes(), name


def test_memories_find_their_places_on_another_mesh(tmp_path, text):  # noqa: F811
    """As many data-parallel ranks: each has its own again; another number: the mean stays."""
    flags = [*text, "--dtype", "f32", "--compress", "int8", "--compress-smallest", "1"]
    train(4, options(tmp_path, *flags, "--mesh", "dp=2,tp=2"))
    before = final(tmp_path)
    assert before["memories"].any(axis=1).all()
    for ranks, mesh, dp in ((4, "dp=2,pp=2", 2), (2, "dp=2", 2), (4, "dp=4", 4), (2, "dp=1,tp=2", 1)):
        chosen = options(tmp_path, *flags, "--mesh", mesh, "--micro-batches", "2", "--resume", "auto")

        def program(comm, chosen=chosen):
            mine = new_replica(chosen, load(chosen, comm), comm)
            progress = resume.start(chosen, mine, comm, tmp_path / "run")
            again = saving.Saver(mine, comm, storage.place(tmp_path / "again"), 1)
            resume.save(chosen, mine, progress, again)
            again.close()

        threads.run(ranks, program)
        after = format.read(tmp_path / "again" / naming.name_of(6))[1].arrays
        assert len(after["memories"]) == dp
        whole = arena.layout(
            {n: tuple(s) for n, s in format.read(resume.newest(tmp_path / "run"))[1].meta["identity"]["parameters"]}
        )
        for slot in whole.slots:
            here, there = (one["memories"][:, slot.start : slot.stop] for one in (after, before))
            if dp == 2 and here.any():
                np.testing.assert_array_equal(here, there, err_msg=slot.name)
            elif here.any():
                np.testing.assert_allclose(here.mean(0), there.mean(0), atol=1e-8, err_msg=slot.name)
        assert any(after["memories"][0])


CURVES = {
    "3, 2, 4 ranks": ([], [(3, []), (2, []), (4, [])]),
    "3, 2, 4 ranks, shards": (["--optimizer", "momentum"], [(3, ["--zero", "3"]), (2, ["--zero", "1"]), (4, ["--zero", "2"])]),
}
MESHES = [(4, ["--mesh", "dp=4"]), (4, ["--mesh", "dp=2,tp=2"]), (2, ["--mesh", "pp=2"])]


def losses(tmp_path, run):
    return np.array([json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()])


def continues(tmp_path, flags, stages, relative=1e-4):
    """Hundred steps on three worlds, against as many on the first."""
    train(stages[0][0], options(tmp_path, *flags, *stages[0][1], "--steps", "100", run="one"))
    for (ranks, more), steps in zip(stages, (30, 60, 100), strict=True):
        train(ranks, options(tmp_path, *flags, *more, "--steps", str(steps), "--resume", "auto", run="two"))
    one, two = losses(tmp_path, "one"), losses(tmp_path, "two")
    assert len(one) == len(two) == 100
    worst = np.abs(two / one - 1).max()
    print(f"largest relative difference of the loss: {worst:.2e}")
    assert worst < relative


@pytest.mark.parametrize("case", CURVES)
def test_the_loss_goes_on_with_other_numbers_of_ranks(tmp_path, case):
    flags, stages = CURVES[case]
    continues(tmp_path, ["--hidden", "32", *flags], stages)


def test_the_loss_goes_on_on_other_meshes(tmp_path, text):  # noqa: F811
    continues(tmp_path, [*text, "--dtype", "f32", "--micro-batches", "2"], MESHES)


class Slow(Local):
    """A folder whose writes take a while; it knows how many were under way at once."""

    now = most = 0
    lock = threading.Lock()

    def write(self, name, file, content):
        with Slow.lock:
            Slow.now += 1
            Slow.most = max(Slow.most, Slow.now)
        before = bytes(content)
        time.sleep(0.05)
        assert before == bytes(content), "the copy changed while it was written"
        super().write(name, file, content)
        with Slow.lock:
            Slow.now -= 1


def test_at_most_one_is_under_way_and_steps_do_not_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "Local", Slow)
    Slow.most = 0
    flags = ["--hidden", "16", "--checkpoint-steps", "1", "--keep-checkpoints", "9"]
    train(2, options(tmp_path, *flags, "--steps", "6"))
    assert Slow.most == 2  # the two ranks'
    assert len(format.all_in(tmp_path / "run" / "checkpoints")) == 6
    began = time.perf_counter()

    def program(comm):
        chosen = options(tmp_path, *flags)
        mine = new_replica(chosen, load(chosen, comm), comm)
        saver = saving.Saver(mine, comm, Slow(tmp_path / "other"), 1)
        for step in range(2):
            comm.barrier()
            began = time.perf_counter()
            resume.save(chosen, mine, Progress(step), saver)
            waited = time.perf_counter() - began
            mine.params[:] = 7
            assert saver.under_way
        saver.close()
        return waited

    assert min(threads.run(2, program)) > 0.03
    assert time.perf_counter() - began < 60


def failing(monkeypatch, number, steps, rank=1):
    """One rank's writes at these steps fail."""
    real = Local.write

    def write(self, name, file, content):
        if int(name[5:]) in steps and f"shard-{rank:05d}" in file:
            (self.folder / f".writing-{name}").mkdir(parents=True, exist_ok=True)
            (self.folder / f".writing-{name}" / file).write_bytes(bytes(content[:10]))
            raise OSError(number, os.strerror(number), file)
        real(self, name, file, content)

    monkeypatch.setattr(Local, "write", write)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_is_one_warning_and_the_next_interval_tries_again(tmp_path, number, monkeypatch, capsys):
    failing(monkeypatch, number, {6, 9})
    train(2, options(tmp_path, *SMALL, "--steps", "12"))
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 2
    assert "step-000000006 could not be written: rank 1: " in said[0]
    assert os.strerror(number) in said[0]
    assert "the last good checkpoint is" in said[0]
    assert "step-000000003" in said[1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob(".*")] == [".lock"]
    assert [path.name for path in format.all_in(tmp_path / "run" / "checkpoints")] == ["step-000000003", "step-000000012"]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path, monkeypatch):
    failing(monkeypatch, errno.ENOSPC, {5})
    chosen = options(tmp_path, *SMALL, "--steps", "5")
    from hpcai.train.loop import fit

    def program(comm):
        with pytest.raises(CheckpointError, match=r"step-000000005 could not be written: rank 1: .*No space left"):
            fit(chosen, comm)
        return True

    assert threads.run(2, program) == [True, True]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [".lock", "step-000000003"]


def test_a_folder_that_nodes_do_not_share_is_said(tmp_path, monkeypatch):
    real = resume.prepare

    def prepare(chosen, comm):
        return storage.place(tmp_path / "elsewhere") if real(chosen, comm) and comm.rank else storage.place(tmp_path / "here")

    monkeypatch.setattr(resume, "prepare", prepare)
    with pytest.raises(CheckpointError, match=r"the shard that rank 1 wrote .* file system that all nodes share"):
        train(2, options(tmp_path, "--hidden", "16", "--steps", "3"))


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounts a small file system: needs root")
def test_a_disk_that_fills_up_and_is_emptied_again(tmp_path, capsys):
    with owned.disk(tmp_path, "512k") as disk:
        if disk is None:
            pytest.skip("mount is not allowed here")
        flags = [*SMALL[:-4], "--keep-checkpoints", "1", "--checkpoint-dir", str(disk / "here")]
        train(2, options(tmp_path, *flags, "--steps", "3"))
        (disk / "filler").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(2, options(tmp_path, *flags, "--steps", "6", "--resume", "auto"))
        assert sorted(path.name for path in (disk / "here").iterdir()) == [".lock", "step-000000003"]
        (disk / "filler").unlink()
        capsys.readouterr()
        train(2, options(tmp_path, *flags, "--steps", "6", "--resume", "auto"))
        assert "warning" not in capsys.readouterr().err
        assert sorted(path.name for path in (disk / "here").iterdir()) == [".lock", "step-000000006"]


def test_no_kill_while_checkpoints_are_written_loses_or_breaks_one(tmp_path):
    """HPCAI_TORTURE=1000 makes so many kills, HPCAI_TORTURE_SEED other ones."""
    command = [sys.executable, "-m", "tests.train.torture", str(tmp_path / "checkpoints"), str(KILLS), str(SEED)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100 + KILLS,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "none lost or broken" in done.stdout
