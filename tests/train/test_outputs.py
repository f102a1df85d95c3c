"""What cannot be written is refused before the first step, also what only the run's end opens."""

import os

import pytest

from hpcai.comm import threads
from hpcai.errors import HpcaiError, UsageError
from hpcai.train import loop
from hpcai.train.loop import fit
from hpcai.train.options import parser
from hpcai.train.outputs import require_writable

pytestmark = pytest.mark.usefixtures("clean_environment")


def folder(path):
    path.mkdir(parents=True)


def fifo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def circle(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)


def file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


PLACES = {
    "trace is a folder": (["--trace-file", "x"], "x", folder, "x is a folder, but must be a file to write"),
    "trace is a FIFO": (["--trace-file", "x"], "x", fifo, "x is not a regular file"),
    "trace below a file": (["--trace-file", "x/t.json"], "x", file, "x"),
    "trace in a circle of links": (["--trace-file", "x"], "x", circle, "x"),
    "trace of a long name": (["--trace-file", "x" * 300], "y", file, "File name too long"),
    "trace where nothing can be": (["--trace-file", "/proc/t.json"], "y", file, "/proc/t.json"),
    "picture of the trace is a folder": (["--plot", "--trace-file", "x.json"], "x.png", folder, "x.png is a folder"),
    "picture of the loss is a folder": (["--plot"], "run/loss.png", folder, "loss.png is a folder"),
    "metrics are a folder": (["--metrics-file", "x"], "x", folder, "x is a folder"),
    "metrics are a FIFO": (["--metrics-file", "x"], "x", fifo, "x is not a regular file"),
    "metrics are a device": (["--metrics-file", "/dev/zero"], "y", file, "/dev/zero is not a regular file"),
    "summary is a folder": ([], "run/summary.json", folder, "summary.json is a folder"),
    "run is a file": ([], "run", file, "run is a file, but a folder is needed"),
    "run below a file": (["--run-dir", "x/run"], "x", file, "x"),
    "checkpoints are a file": (["--checkpoint-dir", "x"], "x", file, "x is a file, but a folder is needed"),
    "checkpoints in the run are a file": ([], "run/checkpoints", file, "checkpoints is a file"),
    "one file for two": (["--metrics-file", "x", "--trace-file", "./x"], "y", file, "two of the run's files would be"),
    "metrics are the summary": (["--metrics-file", "run/summary.json"], "y", file, "summary.json; give --metrics-file"),
}


def contents(root):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("case", PLACES)
def test_what_cannot_be_written_is_refused_before_the_first_step(tmp_path, monkeypatch, case):
    flags, name, make, words = PLACES[case]
    if "--plot" in flags:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train_step", lambda *a: pytest.fail("a step was made"))
    make(tmp_path / name)
    before = {path: what for path, what in contents(tmp_path).items() if what is not None}
    options = parser.parse(["--run-dir", "run", "--hidden", "8", "--steps", "2", *flags])

    def program(comm):
        with pytest.raises((HpcaiError, OSError)) as caught:
            fit(options, comm)
        return str(caught.value)

    said = threads.run(3, program)
    assert len(set(said)) == 1
    assert words in said[0]
    assert "\n" not in said[0]
    assert {path: what for path, what in contents(tmp_path).items() if what is not None} == before


def test_a_trial_leaves_files_links_and_other_runs_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text("old\n")
    (tmp_path / "link").symlink_to("target.json")
    require_writable(parser.parse(["--run-dir", "run", "--metrics-file", "m.jsonl", "--trace-file", "link"]))
    assert (tmp_path / "m.jsonl").read_text() == "old\n"
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "target.json").exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == []
    require_writable(parser.parse(["--run-dir", "run", "--metrics-file", os.devnull]))


def test_a_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(UsageError, match="Permission"):
        require_writable(parser.parse(["--run-dir", str(tmp_path / "run")]))
