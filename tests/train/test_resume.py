"""Going on from a checkpoint: only with the data that it was made with, wherever these are now."""

import gzip
import json

import pytest

from hpcai.comm import threads
from hpcai.errors import CheckpointError
from hpcai.train import resume
from hpcai.train.history import Progress
from hpcai.train.loop import fit
from hpcai.train.options import parser

pytestmark = pytest.mark.usefixtures("clean_environment")

ROWS = [[i % 7, (i * 3) % 11, int(i % 4 == 0)] for i in range(60)]


def table(path, rows, header="a,b,y"):
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return f"csv:{path}"


def train(tmp_path, data, steps, *flags, ranks=2):
    given = ["--run-dir", str(tmp_path / "run"), "--batch", "16", "--hidden", "4", "--label-column", "y", "--resume", "auto"]
    chosen = parser.parse([*given, "--data", data, "--steps", str(steps), *flags])
    return threads.run(ranks, lambda comm: fit(chosen, comm))[-1]


def test_the_same_data_go_on_under_another_name_and_form(tmp_path):
    (tmp_path / "there").mkdir()
    train(tmp_path, table(tmp_path / "one.csv", ROWS), 3)
    for i, path in enumerate((tmp_path / "there" / "two.csv.gz", tmp_path / "there" / ".." / "one.csv")):
        assert train(tmp_path, table(path, ROWS), 4 + i)["steps"] == 4 + i
    wider = table(tmp_path / "three.csv", [[*row, 5] for row in ROWS], header="a,b,y,c")
    assert train(tmp_path, wider, 6, "--ignore-columns", "c")["steps"] == 6


CHANGES = {
    "labels inverted": ([[a, b, 1 - y] for a, b, y in ROWS], "other training targets and other test targets"),
    "a cell": ([[99, 2, 0], *ROWS[1:]], "other training inputs"),
    "a row gone": (ROWS[1:], r"12 test samples \(now 11\)"),
    "rows added": (ROWS + ROWS[:5], r"48 training samples \(now 52\)"),
    "rows in another order": (ROWS[::-1], "other training inputs"),
    "a class more": ([[0, 1, 2], *ROWS[1:]], r"2 classes \(now 3\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_refused_by_what_changed(tmp_path, change):
    train(tmp_path, table(tmp_path / "t.csv", ROWS), 3, ranks=1)
    rows, words = CHANGES[change]
    with pytest.raises(CheckpointError, match=words) as caught:
        train(tmp_path, table(tmp_path / "t.csv", rows), 6)
    assert "other data" in str(caught.value)
    assert "start afresh without --resume" in str(caught.value)


def test_another_column_to_predict_is_other_data(tmp_path):
    data = table(tmp_path / "t.csv", ROWS)
    train(tmp_path, data, 3, ranks=1)
    with pytest.raises(CheckpointError, match=r"2 classes \(now 11\)"):
        train(tmp_path, data, 6, "--label-column", "b", ranks=1)


def test_a_checkpoint_that_does_not_say_its_data_goes_on_with_a_word(tmp_path, monkeypatch, capsys):
    data = table(tmp_path / "t.csv", ROWS)
    monkeypatch.setattr("hpcai.train.inputs.contents", lambda dataset: None)
    train(tmp_path, data, 3, ranks=1)
    assert json.loads((resume.newest(tmp_path / "run") / "manifest.json").read_text())["meta"]["data"] is None
    monkeypatch.undo()
    assert train(tmp_path, data, 5, ranks=1)["steps"] == 5
    assert "does not describe its data" in capsys.readouterr().err


def nowhere(tmp_path):
    return tmp_path / "gone" / "run"


def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def of_others(tmp_path):
    for name in "abcdefg":
        (tmp_path / "home" / name).mkdir(parents=True)
    return tmp_path / "home"


def file(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def another_step(tmp_path):
    return tmp_path / "run/checkpoints/step-000000009"


def misspelt(tmp_path):
    return tmp_path / "run/checkpoint"


def run_without(tmp_path):
    (tmp_path / "bare/checkpoints").mkdir(parents=True)
    return tmp_path / "bare"


ABSENT = {
    nowhere: "does not exist; {tmp} has 'new', 'run'",
    empty: "holds no checkpoint: it has nothing",
    of_others: "holds no checkpoint: it has 'a', 'b', 'c', 'd', 'e' and 2 more",
    file: "is not a folder",
    another_step: "does not exist, but beside it there are 2 checkpoints, step-000000002 to step-000000004",
    misspelt: "does not exist; {tmp}/run has '.lock', 'checkpoints', 'metrics.jsonl', 'summary.json'",
    run_without: "holds no checkpoint: it has 'checkpoints'",
}


@pytest.mark.parametrize("where", ABSENT, ids=lambda where: where.__name__)
def test_a_path_without_a_checkpoint_is_refused_with_what_is_there_and_nothing_is_written(tmp_path, where):
    threads.run(1, lambda comm: fit(absent_options(tmp_path, "--run-dir", f"{tmp_path}/run", "--checkpoint-steps", "2"), comm))
    path = where(tmp_path)

    def program(comm):
        with pytest.raises(CheckpointError) as refused:
            fit(absent_options(tmp_path, "--run-dir", f"{tmp_path}/new", "--resume", str(path)), comm)
        return str(refused.value)

    one, other = threads.run(2, program)
    words = ABSENT[where].format(tmp=tmp_path)
    assert one == other
    assert one.startswith(f"--resume {path} {words}; give a run's folder")
    assert "delete" not in one
    assert {path.name for path in (tmp_path / "new").rglob("*") if path.is_file()} == {".lock"}


def absent_options(tmp_path, *flags):
    return parser.parse(["--hidden", "8", "--steps", "4", *flags])


def test_an_epochs_record_is_of_its_own_samples():
    progress = Progress()
    for _ in range(2):
        progress.add(6.0, 4)
        progress.add(2.0, 4)
        record = progress.record({"test_loss": 0.5})
        assert record == {"step": progress.step, "loss": 1.0, "test_loss": 0.5}
        progress.close_epoch(record)
    assert (progress.step, progress.loss_sum, progress.samples) == (4, 0.0, 0)
