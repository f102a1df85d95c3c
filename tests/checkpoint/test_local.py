"""What lies in a checkpoint's folder may be anything: links, FIFOs, folders, files of others. None is followed, none hangs, none is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcai.checkpoint import format, manifest, naming, storage
from hpcai.checkpoint.local import Local
from hpcai.errors import CheckpointError, UsageError
from hpcai.train import resume
from tests.checkpoint.test_format import SMALL, started
from tests.train import mutations
from tests.train.test_loop import options, train

pytestmark = [pytest.mark.usefixtures("clean_environment"), pytest.mark.timeout(60)]

SHARD = "shard-00000-of-00001.safetensors"


def write(place, step, content=b"x" * 5000):
    name = naming.name_of(step)
    place.write(name, SHARD, memoryview(content))
    return place.commit(name, b"manifest")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A run's folder with two checkpoints, of steps 3 and 6, and its options."""
    folder = tmp_path_factory.mktemp("twice")
    train(2, options(folder, *SMALL, "--steps", "6"))
    return folder


def damage(kind):
    """How a file of the newest checkpoint becomes something else."""

    def forge(path, edit):
        fields = json.loads(mutations.text_of(path.parent) + "}")
        edit(fields)
        path.write_bytes(mutations.sealed(json.dumps(fields)[:-1]))

    return {
        "FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
        "/dev/zero": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        "folder": lambda path: (path.unlink(), path.mkdir()),
        "link": lambda path: (path.rename(path.parent.parent / "away"), path.symlink_to("../away")),
        "the older's": lambda path: shutil.copy(path.parent.parent / naming.name_of(3) / path.name, path),
        "nothing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "a terabyte": lambda path: os.truncate(path, 1 << 40),
        "a part missing": lambda path: forge(path, lambda fields: fields["layouts"][0][1].pop()),
        "null": lambda path: forge(path, lambda fields: fields["meta"].update(progress=None)),
        "a path": lambda path: forge(
            path, lambda fields: fields["shards"][0].update(file="../step-000000003/" + fields["shards"][0]["file"])
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["FIFO", "/dev/zero", "folder", "link", "the older's", "nothing", "empty", "a terabyte", "a part missing", "null", "a path"],
)
@pytest.mark.parametrize("file", ["manifest.json", "shard-00001-of-00002.safetensors"])
def test_auto_takes_the_older_one_and_says_in_a_line_which_file_it_is(twice, tmp_path, capsys, kind, file):
    if kind in ("a part missing", "null", "a path") and file != "manifest.json":
        return
    shutil.copytree(twice / "run", tmp_path / "run")
    newer = tmp_path / "run" / "checkpoints" / naming.name_of(6)
    damage(kind)(newer / file)
    capsys.readouterr()
    assert started(2, options(tmp_path, *SMALL, "--resume", "auto"), tmp_path / "run") == [3, 3]
    said = [line for line in capsys.readouterr().err.splitlines() if "is skipped" in line]
    assert len(said) == 1
    assert str(newer) in said[0]
    assert f"{file} is no regular file" in said[0] if kind in ("FIFO", "/dev/zero", "folder", "link") else file in said[0]
    with pytest.raises(CheckpointError, match=file):
        started(2, options(tmp_path, *SMALL, "--resume", str(newer)), tmp_path / "run")


def test_a_named_link_to_a_checkpoint_is_taken_and_one_in_a_place_is_not(twice, tmp_path):
    place = twice / "run" / "checkpoints"
    (tmp_path / "latest").symlink_to(place / naming.name_of(6))
    (tmp_path / "best").symlink_to("latest")
    assert format.read(tmp_path / "best")[0] == 6
    assert started(2, options(tmp_path, *SMALL, "--resume", str(tmp_path / "latest"), run="none"), tmp_path / "none") == [6, 6]
    (tmp_path / naming.name_of(6)).symlink_to(place / naming.name_of(6))
    assert Local(tmp_path).names() == []
    (tmp_path / "linked").symlink_to(place)
    assert Local(tmp_path / "linked").names() == [naming.name_of(3), naming.name_of(6)]
    assert storage.place(f"file://{place}").names() == [naming.name_of(3), naming.name_of(6)]
    shutil.copytree(place / naming.name_of(6), tmp_path / "copy")
    assert format.read(tmp_path / "copy")[0] == 6


NAMES = [
    "step-9999999999999999999999",
    "step-99999999999999999",
    "step-" + "9" * 200,
    "step-1e3",
    "step--00000001",
    "step-+00000001",
    "step-00000000x",
    "step-1_0000000",
    "step-\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663",
    "step-\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11\uff11",
    "step-000000007 ",
    "step-000000007\n",
    "step-0000000070",
    "Step-000000007",
    "step-7",
    "previous-1",
    ".writing-step-000000007",
]


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_only_names_of_steps_are_checkpoints(tmp_path, where):
    place = storage.place(tmp_path if where == "folder" else f"memory://{tmp_path}")
    write(place, 5)
    for name in NAMES:
        if where == "folder":
            (tmp_path / name).mkdir()
            (tmp_path / name / "manifest.json").touch()
        else:
            place.system.pipe_file(f"{place.root}/{name}/manifest.json", b"x")
    (tmp_path / naming.name_of(8)).write_text("a file")
    (tmp_path / naming.name_of(9)).symlink_to(naming.name_of(5))
    (tmp_path / naming.name_of(10)).symlink_to("nowhere")
    os.mkfifo(tmp_path / naming.name_of(11))
    assert place.names() == [naming.name_of(5)]


def test_a_step_of_more_than_nine_digits_is_a_name_too():
    assert naming.in_order([naming.name_of(10**12), naming.name_of(10**9), naming.name_of(10**16)]) == [
        naming.name_of(10**9),
        naming.name_of(10**12),
    ]
    assert naming.next_previous(["previous-" + "9" * 100, "previous-\u0663", "previous-2"]) == "previous-3"


def theirs(tmp_path):
    """A folder of somebody else, as links may lead to it, and whether it is as it was."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / SHARD).write_bytes(b"theirs" * 1000)
    (folder / "manifest.json").write_bytes(b"theirs")
    return (
        folder,
        lambda: {p.name: p.read_bytes() for p in folder.iterdir()} == {SHARD: b"theirs" * 1000, "manifest.json": b"theirs"},
    )


@pytest.mark.parametrize(
    "linked", [".spare", ".writing-step-000000002", ".replaced-step-000000002", "step-000000002", ".writing-step-000000009"]
)
def test_what_a_link_leads_to_stays_whatever_its_name(tmp_path, linked):
    folder, untouched = theirs(tmp_path)
    place = Local(tmp_path / "checkpoints")
    write(place, 1)
    (place.folder / linked).symlink_to(folder)
    place.discard()
    if linked == naming.name_of(2):
        with pytest.raises(OSError, match="in the way"):
            write(place, 2)
    else:
        write(place, 2)
    write(place, 3)
    place.remove(naming.name_of(1))
    write(place, 4)
    place.set_aside([naming.name_of(4)])
    place.discard()
    assert untouched()
    assert place.names() == [naming.name_of(step) for step in ([3] if linked == naming.name_of(2) else [2, 3])]
    assert not [path for path in place.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("link", ["symbolic", "hard", "FIFO", "folder"])
def test_a_file_of_a_checkpoint_that_was_dropped_is_written_over_only_if_it_is_ours_alone(tmp_path, link):
    folder, untouched = theirs(tmp_path)
    place = Local(tmp_path / "checkpoints")
    write(place, 1)
    shard = place.folder / naming.name_of(1) / SHARD
    shard.unlink()
    {
        "symbolic": lambda: shard.symlink_to(folder / SHARD),
        "hard": lambda: shard.hardlink_to(folder / SHARD),
        "FIFO": lambda: os.mkfifo(shard),
        "folder": shard.mkdir,
    }[link]()
    place.remove(naming.name_of(1))
    write(place, 2, b"new" * 3000)
    assert untouched()
    assert place.read(naming.name_of(2), SHARD) == b"new" * 3000
    place.discard()
    assert untouched()
    assert [path.name for path in place.folder.iterdir()] == [naming.name_of(2)]


def test_files_of_others_in_a_checkpoint_outlive_it(tmp_path):
    place = Local(tmp_path)
    for step in (1, 2, 3):
        write(place, step)
    (tmp_path / naming.name_of(1) / "notes.txt").write_text("mine")
    (tmp_path / naming.name_of(2) / "plots").mkdir()
    place.remove(naming.name_of(1))
    place.write(naming.name_of(4), SHARD, memoryview(b"x"))
    assert place.commit(naming.name_of(4), b"manifest", [naming.name_of(2)]) == [naming.name_of(2)]
    place.discard()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*-00000000[12]/*")) == [
        "step-000000001/notes.txt",
        "step-000000002/plots",
    ]


@pytest.mark.parametrize("crash", [False, True])
def test_files_of_others_are_in_the_checkpoint_that_replaces_another(tmp_path, crash, monkeypatch):
    place = Local(tmp_path)
    write(place, 1, b"old")
    (tmp_path / naming.name_of(1) / "notes.txt").write_text("mine")
    with monkeypatch.context() as killed:
        if crash:
            killed.setattr(Local, "_delete_replaced", lambda *_: None)
        write(place, 1, b"new")
    place.discard()
    assert {path.name for path in tmp_path.glob("**/*")} == {naming.name_of(1), SHARD, "manifest.json", "notes.txt"}
    assert place.read(naming.name_of(1), SHARD) == b"new"


@pytest.mark.parametrize("kind", ["link", "dangling", "FIFO", "folder", "file"])
def test_a_trial_writes_nothing_but_its_own_file(tmp_path, kind):
    (tmp_path / "other").write_text("theirs")
    trial = tmp_path / ".writable"
    {
        "link": lambda: trial.symlink_to("other"),
        "dangling": lambda: trial.symlink_to("nowhere"),
        "FIFO": lambda: os.mkfifo(trial),
        "folder": trial.mkdir,
        "file": trial.touch,
    }[kind]()
    before = (tmp_path / "other").stat()
    if kind == "folder":
        with pytest.raises(FileExistsError):
            Local(tmp_path).probe()
    else:
        Local(tmp_path).probe()
    assert (tmp_path / "other").stat() == before
    assert not (tmp_path / "nowhere").exists()


def test_a_run_keeps_so_many_beside_what_is_none(tmp_path):
    """Links, files and checkpoints of other steps do not count, and stay."""
    flags = [*SMALL, "--keep-checkpoints", "2"]
    train(2, options(tmp_path, *flags, "--steps", "6"))
    place = tmp_path / "run" / "checkpoints"
    shutil.copytree(place / naming.name_of(3), tmp_path / "elsewhere")
    (place / naming.name_of(1)).symlink_to(tmp_path / "elsewhere")
    shutil.copytree(place / naming.name_of(3), place / naming.name_of(2))
    (place / naming.name_of(0)).write_text("a file")
    train(2, options(tmp_path, *flags, "--steps", "12", "--resume", "auto"))
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("step-")) == [
        naming.name_of(s) for s in (0, 1, 2, 9, 12)
    ]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_a_folder_that_only_had_shards_without_a_manifest_goes_too_at_a_url(tmp_path):
    place = storage.place(f"memory://{tmp_path}")
    for step in (1, 2):
        place.write(naming.name_of(step), SHARD, memoryview(b"x"))
    place.system.pipe_file(f"{place.root}/{naming.name_of(2)}/notes.txt", b"mine")
    place.discard(naming.name_of(1))
    place.discard(naming.name_of(2))
    assert [name.rpartition("/")[2] for name in place.system.ls(place.root, detail=False)] == [naming.name_of(2)]
    assert [name.rpartition("/")[2] for name in place.system.ls(f"{place.root}/{naming.name_of(2)}", detail=False)] == [
        "notes.txt"
    ]


@pytest.mark.timeout(20)
def test_a_fifo_in_place_of_a_shard_keeps_nobody_waiting(tmp_path):
    write(Local(tmp_path), 1)
    shard = tmp_path / naming.name_of(1) / SHARD
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(OSError, match="no regular file"):
        Local(tmp_path).read(naming.name_of(1), SHARD)


@pytest.mark.parametrize("kind", ["nothing", "folder", "empty", "longer", "forged"])
def test_the_same_doors_are_at_a_url(twice, tmp_path, kind):
    place = storage.place(f"memory://{tmp_path}")
    name, shard = naming.name_of(6), "shard-00001-of-00002.safetensors"
    for path in (twice / "run" / "checkpoints" / name).iterdir():
        place.system.pipe_file(f"{place.root}/{name}/{path.name}", path.read_bytes())
    assert format.read(place.path(name))[0] == 6
    at = f"{place.root}/{name}/{shard}"
    if kind in ("nothing", "folder"):
        place.system.rm_file(at)
    if kind == "folder":
        place.system.pipe_file(f"{at}/inner", b"x")
    if kind in ("empty", "longer"):
        place.system.pipe_file(at, place.system.cat_file(at) + b"x" if kind == "longer" else b"")
    if kind == "forged":
        raw = place.system.cat_file(f"{place.root}/{name}/manifest.json")
        text = raw.decode().rpartition(',\n "checksum"')[0].replace(shard, f"../{shard}")
        place.system.pipe_file(f"{place.root}/{name}/manifest.json", mutations.sealed(text))
    with pytest.raises(CheckpointError, match="manifest.json" if kind == "forged" else shard):
        format.read(place.path(name))


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_no_more_of_a_manifest_is_read_than_it_may_have(tmp_path, monkeypatch, where):
    place, asked = storage.place(tmp_path if where == "folder" else f"memory://{tmp_path}"), []
    write(place, 1)
    read = type(place).read
    monkeypatch.setattr(type(place), "read", lambda self, *which: asked.append(which) or read(self, *which))
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged or of another version"):
        format.opened(place, naming.name_of(1))
    assert asked == [(naming.name_of(1), "manifest.json", 0, manifest.LARGEST_BYTES + 1)]


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    loop = tmp_path / "run"
    loop.mkdir()
    (loop / "checkpoints").symlink_to("checkpoints")
    with pytest.raises((CheckpointError, UsageError), match="checkpoints"):
        train(2, options(tmp_path, *SMALL, "--steps", "3", "--resume", "auto"))


def test_the_command_ends_in_one_line_for_a_manifest_that_is_a_fifo(twice, tmp_path):
    shutil.copytree(twice / "run", tmp_path / "run")
    newer = tmp_path / "run" / "checkpoints" / naming.name_of(6)
    damage("FIFO")(newer / "manifest.json")
    command = [
        sys.executable,
        "-m",
        "hpcai.train",
        *SMALL,
        "--batch",
        "64",
        "--run-dir",
        str(tmp_path / "run"),
        "--resume",
        str(newer),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "manifest.json is no regular file" in done.stderr
    assert "Traceback" not in done.stderr
    assert resume.newest(tmp_path / "run") == newer
