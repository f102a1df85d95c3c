"""The saver: what ranks wait for, what is kept of those that failed, and what becomes of a run's older checkpoints."""

import gc
import threading
import time
import weakref

import pytest

from hpcai.checkpoint import format, local, naming, storage
from hpcai.checkpoint.local import Local
from hpcai.checkpoint.remote import Remote
from hpcai.comm import threads
from hpcai.errors import Leave
from hpcai.train import resume, saving, signals, votes
from hpcai.train.history import Progress
from hpcai.train.inputs import load
from hpcai.train.loop import fit
from hpcai.train.replica import new_replica
from tests.checkpoint.test_format import SMALL, failing, flipped
from tests.command import wait_for
from tests.train.test_loop import options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

fsspec = pytest.importorskip("fsspec")


def there(tmp_path, run="run"):
    return [path.name for path in format.all_in(tmp_path / run / "checkpoints")]


def steps(*numbers):
    return [naming.name_of(number) for number in numbers]


def test_a_run_that_goes_on_from_an_older_checkpoint_leaves_the_branch_of_the_later(tmp_path, capsys):
    flags = ["--hidden", "16", "--checkpoint-steps", "3", "--keep-checkpoints", "9"]
    train(2, options(tmp_path, *flags, "--steps", "12"))
    older = str(tmp_path / "run" / "checkpoints" / naming.name_of(6))
    train(2, options(tmp_path, *flags, "--steps", "6", "--resume", older))
    assert there(tmp_path) == steps(3, 6, 9, 12), "nothing was done, so nothing is left"
    assert "set aside" not in capsys.readouterr().err
    train(2, options(tmp_path, *flags, "--steps", "7", "--resume", older))
    aside = tmp_path / "run" / "checkpoints" / "previous-1"
    assert f"2 later checkpoints were moved to {aside}" in capsys.readouterr().err
    assert there(tmp_path) == steps(3, 6, 7)
    assert Local(aside).names() == steps(9, 12)
    train(2, options(tmp_path, *flags, "--steps", "8", "--resume", "auto"))
    assert there(tmp_path) == steps(3, 6, 7, 8)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8
    train(2, options(tmp_path, *flags, "--steps", "13", "--resume", str(aside), run="other"))
    assert there(tmp_path, "other") == steps(13)


def test_a_run_on_a_url_leaves_the_branch_of_the_later_too(tmp_path):
    url = f"memory://{tmp_path}/there"
    flags = ["--hidden", "16", "--checkpoint-steps", "3", "--keep-checkpoints", "9", "--checkpoint-dir", url]
    train(2, options(tmp_path, *flags, "--steps", "9"))
    train(2, options(tmp_path, *flags, "--steps", "5", "--resume", f"{url}/{naming.name_of(3)}"))
    assert storage.place(url).names() == steps(3, 5)
    assert storage.place(f"{url}/previous-1").names() == steps(6, 9)
    assert format.read(f"{url}/previous-1/{naming.name_of(9)}")[0] == 9


@pytest.mark.parametrize("spoken", [(votes.WRITTEN,), (votes.FAILED,)])
def test_a_checkpoint_is_committed_in_the_step_in_which_all_have_spoken(tmp_path, spoken):
    def program(comm):
        chosen = options(tmp_path, "--hidden", "16")
        mine = new_replica(chosen, load(chosen, comm), comm)
        saver = saving.Saver(mine, comm, storage.place(tmp_path / "there"), 2)
        resume.save(chosen, mine, Progress(5), saver)
        counted = votes.none()
        for _ in range(2):  # so many have spoken before this step
            saver.heard(counted)
            assert saver._writing is not None
            assert Local(tmp_path / "there").names() == []
            counted[list(spoken)] += 1
        saver.heard(counted)
        assert saver._writing is None
        assert saver.under_way
        saver.heard(votes.none())
        assert saver.under_way
        counted[votes.COMMITTED] = 1
        if comm.rank == 0:
            wait_for(lambda: mine.votes[votes.COMMITTED])
        saver.heard(counted)
        assert not saver.under_way
        saver.close()

    threads.run(2, program)
    assert Local(tmp_path / "there").names() == steps(5)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_checkpoint_is_dropped_only_where_another_is_durable(tmp_path, monkeypatch, keep):
    """Whatever of what was done since the last sync a crash takes back."""
    place, durable, dropped = tmp_path / "run" / "checkpoints", set(), []
    sync, move = local._sync_folder, local._move

    def synced(path):
        sync(path)
        if path == place:
            durable.update(Local(place).names())

    def moved(path, to):
        durable.discard(path.name)
        dropped.append(path.name)
        assert durable
        move(path, to)

    monkeypatch.setattr(local, "_sync_folder", synced)
    monkeypatch.setattr(local, "_move", moved)
    train(2, options(tmp_path, *SMALL, "--steps", "6", "--checkpoint-steps", "1", "--keep-checkpoints", str(keep)))
    assert there(tmp_path) == steps(*range(7 - keep, 7))
    assert dropped == steps(*range(1, 7 - keep))


def test_what_a_folder_has_is_synced_before_the_name_it_is_found_by(tmp_path, monkeypatch):
    """Of a checkpoint that is written, and of those that are set aside."""
    place, synced = Local(tmp_path), []
    monkeypatch.setattr(local, "_sync_folder", lambda path: synced.append((path.name, place.names())))
    name = naming.name_of(1)
    place.write(name, "shard", memoryview(b"x"))
    place.commit(name, b"manifest")
    assert synced == [(f".writing-{name}", []), (tmp_path.name, [name])]
    synced.clear()
    place.set_aside([name])
    assert synced == [("previous-1", []), (tmp_path.name, [])]


def test_a_broken_checkpoint_is_not_counted_as_one_that_is_kept(tmp_path):
    flags = [*SMALL, "--keep-checkpoints", "2"]
    train(2, options(tmp_path, *flags, "--steps", "6"))
    place = tmp_path / "run" / "checkpoints"
    (place / naming.name_of(6)).rename(place / naming.name_of(2))  # an older one now, of a manifest that is whole
    next((place / naming.name_of(2)).glob("*.safetensors")).unlink()
    (place / naming.name_of(1)).mkdir()
    (place / naming.name_of(1) / "manifest.json").write_text('{"format": "of another program"}')
    train(2, options(tmp_path, *flags, "--steps", "4", "--resume", "auto"))
    assert there(tmp_path) == steps(1, 2, 3, 4)
    train(2, options(tmp_path, *flags, "--steps", "5", "--resume", "auto"))
    assert there(tmp_path) == steps(1, 2, 4, 5)


def test_a_broken_newest_one_is_set_aside(tmp_path):
    flags = [*SMALL, "--keep-checkpoints", "2"]
    train(2, options(tmp_path, *flags, "--steps", "6"))
    flipped(tmp_path / "run" / "checkpoints" / naming.name_of(6) / "shard-00000-of-00002.safetensors", 3000)
    train(2, options(tmp_path, *flags, "--steps", "5", "--resume", "auto"))
    assert there(tmp_path) == steps(3, 5)
    assert (tmp_path / "run" / "checkpoints" / "previous-1" / naming.name_of(6)).exists()


def test_a_step_that_is_complete_is_not_written_again_after_a_recovery(tmp_path, monkeypatch):
    chosen, url, written = options(tmp_path, "--hidden", "16"), f"memory://{tmp_path}/there", []
    real = Remote.write
    monkeypatch.setattr(Remote, "write", lambda self, name, *more: written.append(name) or real(self, name, *more))

    def program(comm):
        mine = new_replica(chosen, load(chosen, comm), comm)
        saver = saving.Saver(mine, comm, storage.place(url), 2)
        resume.save(chosen, mine, Progress(5), saver)
        saver.close()
        before = comm.on_root(lambda: len(written))
        saver = saver.moved(mine, comm)
        resume.save(chosen, mine, Progress(5), saver)
        saver.close()
        assert comm.on_root(lambda: len(written)) == before
        assert comm.rank or saver.retention.last.endswith(naming.name_of(5))
        resume.save(chosen, mine, Progress(6), saver)
        saver.close()

    threads.run(2, program)
    assert set(written) == set(steps(5, 6))
    assert storage.place(url).names() == steps(5, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_the_votes_of_a_step_say_when_a_checkpoint_is_durable(tmp_path, monkeypatch, capsys, fails):
    """Nobody has to ask then. Of one that failed `finish` says why."""
    chosen = options(tmp_path, "--hidden", "16")
    real = Local.commit

    def commit(self, *more):
        if fails:
            raise OSError(28, "No space left on device")
        return real(self, *more)

    def program(comm):
        mine = new_replica(chosen, load(chosen, comm), comm)
        saver = saving.Saver(mine, comm, storage.place(tmp_path / "there"), 2)
        resume.save(chosen, mine, Progress(5), saver)
        counted = votes.none()
        while saver.under_way and not counted[votes.FAILED]:
            counted = comm.allreduce(mine.votes.copy())
            saver.heard(counted)
        calls = comm.calls
        assert bool(saver.finish()) == fails
        assert (comm.calls == calls) != fails

    monkeypatch.setattr(Local, "commit", commit)
    threads.run(2, program)
    assert Local(tmp_path / "there").names() == ([] if fails else steps(5))
    assert ("No space left" in capsys.readouterr().err) == fails


class Slow(Local):
    """A folder whose writes wait."""

    go = threading.Event()

    def write(self, name, file, content):
        assert Slow.go.wait(60)
        super().write(name, file, content)


def test_of_ranks_that_failed_only_the_threads_are_kept(tmp_path):
    chosen = options(tmp_path, "--hidden", "16")
    Slow.go.clear()

    def program(comm):
        mine = new_replica(chosen, load(chosen, comm), comm)
        saver = saving.Saver(mine, comm, Slow(tmp_path / "there"), 2)
        resume.save(chosen, mine, Progress(5), saver)
        was, other = weakref.ref(saver), new_replica(chosen, load(chosen, comm), comm)
        gone = weakref.ref(mine)
        saver, mine = saver.moved(other, comm), other
        gc.collect()
        assert (was(), gone()) == (None, None)
        Slow.go.set()
        resume.save(chosen, mine, Progress(6), saver)
        saver.close()

    def alive():
        return sum(thread.name == "hpcai checkpoint" for thread in threading.enumerate())

    gc.collect()
    before = alive()
    threads.run(1, program)
    gc.collect()
    wait_for(lambda: alive() <= before)
    assert Local(tmp_path / "there").names() == steps(6)


@pytest.mark.parametrize("slow", ["write", "commit", "discard"])
def test_a_disk_that_is_slower_than_ranks_wait_for_each_other_is_waited_for(tmp_path, slow, monkeypatch):
    real = getattr(Local, slow)

    def slowly(self, name=None, *more):
        if slow != "write" or "shard-00000" in more[0]:
            time.sleep(2.5)
        return real(self, name, *more)

    chosen = options(tmp_path, "--hidden", "16", "--zero", "1")

    def program(comm):
        comm.set_timeout(1.0)
        mine = new_replica(chosen, load(chosen, comm), comm)
        comm.barrier()
        saver = saving.Saver(mine, comm, storage.place(tmp_path / "there"), 2)
        for step in (5, 6):
            resume.save(chosen, mine, Progress(step), saver)
        saver.close()

    monkeypatch.setattr(Local, slow, slowly)
    threads.run(2, program)
    assert Local(tmp_path / "there").names() == steps(5, 6)


@pytest.mark.parametrize("vote, code", [(votes.LEAVE, signals.REQUEUE), (votes.INTERRUPT, signals.INTERRUPTED)])
def test_leaving_with_a_checkpoint_that_cannot_be_written_keeps_its_code(tmp_path, vote, code, monkeypatch, capsys):
    failing(monkeypatch, 28, {4})
    real, chosen = saving.Saver.heard, options(tmp_path, *SMALL, "--steps", "9")

    def heard(self, counted):
        real(self, counted)
        if (self.replica.decided or [0])[0] == 2:
            self.replica.votes[vote] = 1

    monkeypatch.setattr(saving.Saver, "heard", heard)

    def program(comm):
        with pytest.raises(Leave, match="left after step 4 without a checkpoint of it") as left:
            fit(chosen, comm)
        return left.value.exit_code

    assert threads.run(2, program) == [code, code]
    assert there(tmp_path) == steps(3)
    assert capsys.readouterr().err.count("hpcai: warning") == 1


def test_what_takes_long_beside_is_named_for_what_it_is(monkeypatch, capsys):
    monkeypatch.setattr(saving, "SAID_AFTER_S", 0.0)
    slow = lambda: time.sleep(0.05)  # noqa: E731
    threads.run(2, lambda comm: saving.on_root_beside(comm, slow, "the folders are still not locked"))
    assert capsys.readouterr().err.count("the folders are still not locked") == 1
    threads.run(2, lambda comm: saving.on_root_beside(comm, slow))
    assert "checkpoints are still not on disk" in capsys.readouterr().err
