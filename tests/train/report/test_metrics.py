"""Metrics: no step that a checkpoint has is missing in them, and a full disk does not end the run."""

import json
import os
from pathlib import Path

import pytest

from hpcai.comm import threads
from hpcai.errors import CheckpointError
from hpcai.train import resume, saving, votes
from hpcai.train.history import Progress
from hpcai.train.inputs import load
from hpcai.train.loop import fit
from hpcai.train.outcome import Report
from hpcai.train.replica import new_replica
from hpcai.train.report.metrics import Metrics
from hpcai.train.report.reporter import Reporter
from tests import owned
from tests.train.test_loop import options, train

pytestmark = pytest.mark.usefixtures("clean_environment")


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def begun(path, after_step=0):
    made = Metrics(path, after_step)
    made.open()
    return made


def test_going_on_keeps_the_whole_lines_of_steps_until_then(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    made = begun(path, after_step=2)
    assert steps(path) == [1, 2]
    made.write({"step": 3})
    made.close()
    made.close()
    assert steps(path) == [1, 2, 3]
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    begun(path, after_step=5).close()
    assert steps(path) == [1, 2]
    begun(path).close()
    assert path.read_text() == ""


def test_steps_that_a_checkpoint_has_are_in_the_metrics_before_it(tmp_path, monkeypatch):
    found, real = [], saving.Saver.save

    def save(self, step, meta):
        if self.comm.rank == 0:
            found.append((step, steps(tmp_path / "run" / "metrics.jsonl")))
        real(self, step, meta)

    monkeypatch.setattr(saving.Saver, "save", save)
    train(2, options(tmp_path, "--steps", "6", "--checkpoint-steps", "3"))
    assert found == [(3, [1, 2, 3]), (6, [1, 2, 3, 4, 5, 6])]


def test_lines_that_could_not_be_written_follow_later_with_one_warning(tmp_path, capsys):
    made = begun(tmp_path / "m.jsonl")
    real = made._file

    class Full:
        left = 5

        def write(self, content):
            if not self.left:
                raise OSError(28, os.strerror(28))
            written, self.left = real.write(content[: self.left]), 0
            return written

    made._file = Full()
    for step in range(3):
        made.write({"step": step})
        made.flush()
    made._file = real
    made.close()
    assert steps(tmp_path / "m.jsonl") == [0, 1, 2]
    assert capsys.readouterr().err.count("warning") == 1


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounts a small file system: needs root")
def test_a_run_whose_disk_is_full_goes_on_to_its_end(tmp_path, capsys, monkeypatch):
    with owned.disk(tmp_path, "512k") as disk:
        if disk is None:
            pytest.skip("mount is not allowed here")
        monkeypatch.setattr("hpcai.train.report.metrics.FLUSH_S", 0.0)
        flags = ["--hidden", "16", "--batch", "16", "--checkpoint-steps", "0"]
        train(2, options(disk, *flags, "--steps", "5"))
        (disk / "filler").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        capsys.readouterr()
        chosen, made, real = options(disk, *flags, "--steps", "100", "--resume", "auto"), [], resume.save
        monkeypatch.setattr(resume, "save", lambda o, m, progress, s: made.append(progress.step) or real(o, m, progress, s))

        def program(comm):
            with pytest.raises(CheckpointError, match="step-000000100 could not be written: .*No space left on device"):
                fit(chosen, comm)

        threads.run(2, program)
        assert max(made) == 100
        said = [line for line in capsys.readouterr().err.splitlines() if "metrics.jsonl cannot be written" in line]
        assert len(said) == 1
        (disk / "filler").unlink()
        train(2, chosen)
        assert steps(disk / "run" / "metrics.jsonl") == list(range(1, 101))


def reporter(tmp_path, comm, chosen, step):
    """One that has seen no step."""
    data = load(chosen, comm)
    progress = Progress(step, [{"step": step, "loss": 1.0, "test_loss": 1.0, "test_accuracy": 0.5}])
    return Reporter(chosen, comm, data, new_replica(chosen, data, comm), progress, step, 23)


def test_a_rank_that_became_the_first_after_the_last_step_writes_a_summary_of_its_own(tmp_path, capsys):
    chosen = options(tmp_path, "--hidden", "16")
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "summary.json"
    path.write_text('{"steps": 20}')

    def program(comm):
        late = reporter(tmp_path, comm, chosen, 23)
        late.open()
        return late.finish([], b"", {})["steps"]

    assert threads.run(1, program) == [23]
    assert "nothing was left" not in capsys.readouterr().err
    path.write_text('{"steps": 23, "own": true}')

    def went_on(comm):
        late = reporter(tmp_path, comm, chosen, 23)
        late.first = 20  # this run made steps, though this rank has no reports of them
        late.open()
        return late.finish([], b"", {})

    assert "own" not in threads.run(1, went_on)[0]
    assert json.loads(path.read_text())["steps"] == 23


@pytest.mark.parametrize("tail_bytes", [1, 20, 1 << 16])
@pytest.mark.parametrize(
    "there, after_step, wanted",
    [
        ('{"step": 1}\n{"step": 2}\n{"ste', 5, [1, 2, 3, 4, 5]),  # the last line was cut short
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n{"step": 5}\n', 5, [1, 2, 3, 4, 5]),
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n{"step": 5}\n', 4, [1, 2, 3, 4]),  # step 5 is to be made again
        ('{"step": 1}\n{"step": 2}', 5, [1, 2, 3, 4, 5]),  # whole, but for the end of the line
        ('{"step": 1}\n\0\0\0\n\r[]\n', 5, [1, 2, 3, 4, 5]),
        ("", 5, [2, 3, 4, 5]),  # what nobody keeps any more is lost
        ("nothing", 5, [2, 3, 4, 5]),
    ],
)
def test_a_new_first_rank_writes_the_lines_that_the_file_lacks(tmp_path, monkeypatch, there, after_step, wanted, tail_bytes):
    monkeypatch.setattr("hpcai.train.report.metrics.TAIL_BYTES", tail_bytes)
    path = tmp_path / "m.jsonl"
    path.write_text(there)
    made = Metrics(path, after_step, owed=[{"step": step} for step in range(2, after_step + 1)])
    made.flush()
    assert steps(path) == wanted
    made.write({"step": after_step + 1})
    made.close()
    assert steps(path) == [*wanted, after_step + 1]


def test_where_the_disk_is_full_what_is_owed_waits_too(tmp_path, capsys):
    path = tmp_path / "folder" / "m.jsonl"
    path.parent.write_text("a file where the folder should be")
    made = Metrics(path, 2, owed=[{"step": 1}, {"step": 2}])
    made.write({"step": 3})
    made.flush()
    path.parent.unlink()
    path.parent.mkdir()
    path.write_text('{"step": 1}\n')
    made.close()
    assert steps(path) == [1, 2, 3]
    assert capsys.readouterr().err.count("warning") == 1


def test_ranks_keep_the_last_steps_until_they_are_the_first(tmp_path, monkeypatch):
    """Rank 0 dies with all its lines in memory."""
    monkeypatch.setattr("hpcai.train.report.metrics.FLUSH_S", 1e9)
    chosen = options(tmp_path, "--hidden", "16")
    made = {}

    def program(comm):
        mine = reporter(tmp_path, comm, chosen, 0)
        mine.progress.step = 0
        if comm.rank == 0:
            mine.open()
        for number in range(1, 4):
            mine.step(number, 0.1, Report(3.0, 2, 1.0, 0.01, 0.001, votes.none()))
            mine.progress.step = number
        made[comm.rank] = mine

    threads.run(2, program)
    assert steps(tmp_path / "run" / "metrics.jsonl") == []
    first, second = made[0], made[1]
    first.metrics._waiting.clear()
    first.close()
    threads.run(1, lambda comm: second.moved(comm, second.replica, second.progress))
    assert steps(tmp_path / "run" / "metrics.jsonl") == [1, 2, 3]
    assert len(second.reports) == 3
    second.close()
