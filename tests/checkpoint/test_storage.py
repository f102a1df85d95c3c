"""Places of checkpoints: a folder, any URL of fsspec, and a server that speaks S3."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hpcai.checkpoint import format, naming, storage
from hpcai.checkpoint.local import ALIGNED, Local, buffer
from hpcai.checkpoint.shards import Run, ShardBuffer
from hpcai.errors import CheckpointError, UsageError
from hpcai.train import resume
from hpcai.train.options import parser
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

fsspec = pytest.importorskip("fsspec")
safetensors = pytest.importorskip("safetensors.numpy")

SHARD = "shard-00000-of-00001.safetensors"


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def where(request, tmp_path):
    """The name of an empty place of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("bucket") + f"/{tmp_path.name}/checkpoints"
    if request.param == "memory":
        return f"memory://{tmp_path}/checkpoints"
    return f"file://{tmp_path}/checkpoints" if request.param == "file" else str(tmp_path / "checkpoints")


SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
input()
"""


@pytest.fixture(scope="session")
def s3_server():
    """A process of its own, which ends with its input."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield process.stdout.readline().strip()
    process.communicate("\n", timeout=30)


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A bucket on a real S3-speaking server; all as a user would say it, by the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "some",
        "AWS_SECRET_ACCESS_KEY": "thing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    if not files.exists("bucket"):
        files.mkdir("bucket")
    return "s3://bucket"


def test_a_checkpoint_appears_at_its_commit_alone(where):
    place = storage.place(where)
    place.probe()
    assert place.names() == []
    for name in ("step-000000003", "step-000000012"):
        content = np.random.default_rng(0).bytes(10_000)
        place.write(name, SHARD, memoryview(content))
        assert place.sizes(name) == {SHARD: 10_000}
        assert name not in place.names()
        place.commit(name, b"manifest")
        assert place.names()[-1] == name
        assert place.read(name, SHARD) == content
        assert place.read(name, SHARD, 4095, 4097) == content[4095:4097]
        assert place.read(name, SHARD, 9_999, 20_000) == content[9_999:]
        assert place.read(name, naming.MANIFEST) == b"manifest"
    place.remove("step-000000003")
    assert place.names() == ["step-000000012"]
    with pytest.raises(FileNotFoundError):
        place.read("step-000000003", SHARD)


def test_superseded_ones_go_with_the_commit_or_are_left(where):
    place = storage.place(where)
    for step, superseded in ((1, []), (2, []), (3, [naming.name_of(1), naming.name_of(7)])):
        place.write(naming.name_of(step), SHARD, memoryview(b"x"))
        gone = place.commit(naming.name_of(step), b"manifest", superseded)
    assert gone == ([naming.name_of(1)] if isinstance(place, Local) else [])
    assert place.names() == [naming.name_of(step) for step in (1, 2, 3) if naming.name_of(step) not in gone]


@pytest.mark.parametrize("before, after", [(9000, 9000), (20_000, 5001), (100, 50_000)])
def test_a_removed_checkpoints_shard_is_written_over_by_the_next(tmp_path, before, after):
    place = Local(tmp_path)
    place.write("step-000000001", SHARD, memoryview(b"old" * before))
    place.commit("step-000000001", b"manifest")
    number = (tmp_path / "step-000000001" / SHARD).stat().st_ino
    place.remove("step-000000001")
    assert place.names() == []
    place.write("step-000000002", SHARD, memoryview(b"new" * after))
    place.commit("step-000000002", b"manifest")
    assert place.read("step-000000002", SHARD) == b"new" * after
    assert (tmp_path / "step-000000002" / SHARD).stat().st_ino == number
    place.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]


def test_a_backup_that_is_a_hard_link_keeps_its_bytes(tmp_path):
    place = Local(tmp_path / "checkpoints")
    place.write("step-000000001", SHARD, memoryview(b"old" * 9000))
    place.commit("step-000000001", b"manifest")
    os.link(tmp_path / "checkpoints" / "step-000000001" / SHARD, tmp_path / "backup")
    place.remove("step-000000001")
    place.write("step-000000002", SHARD, memoryview(b"new" * 9000))
    assert (tmp_path / "backup").read_bytes() == b"old" * 9000


def test_what_did_not_become_complete_is_deleted(where):
    place = storage.place(where)
    for name in ("step-000000001", "step-000000002", "step-000000003"):
        place.write(name, SHARD, memoryview(b"x" * 5000))
    place.commit("step-000000001", b"manifest")
    place.discard("step-000000002")
    assert place.sizes("step-000000002") == {}
    assert place.sizes("step-000000003") == {SHARD: 5000}
    place.discard()
    assert place.sizes("step-000000003") == {}
    assert place.read("step-000000001", SHARD) == b"x" * 5000


def put(where, path, content=b"theirs"):
    """An object of somebody else, in a place of any kind."""
    files, root = fsspec.core.url_to_fs(where)
    if not where.startswith("s3:"):
        files.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
    files.pipe_file(f"{root}/{path}", content)
    return lambda: files.invalidate_cache() or files.exists(f"{root}/{path}")


def test_what_others_have_in_the_same_place_stays(where):
    theirs = [
        "step-1000/model.pt",
        "step-000001000/model.pt",
        "step-1000/shard-00000-of-00001.safetensors",
        "step-3/manifest.json",
    ]
    theirs += ["step-000000002/notes.txt", ".writing-mine/x"]
    there = {path: put(where, path) for path in theirs}
    place = storage.place(where)
    place.write("step-000000002", SHARD, memoryview(b"x"))
    place.discard()
    assert place.sizes("step-000000002").keys() <= {"notes.txt"}
    assert [path for path, exists in there.items() if not exists()] == []
    assert not {"step-1000", "step-3"} & set(place.names())


def test_what_is_set_aside_is_found_there_alone(where):
    place = storage.place(where)
    for step in (1, 2, 3):
        place.write(naming.name_of(step), SHARD, memoryview(b"x" * step))
        place.commit(naming.name_of(step), b"manifest")
    aside = storage.place(place.set_aside([naming.name_of(2), naming.name_of(3)]))
    assert place.names() == [naming.name_of(1)]
    assert aside.names() == [naming.name_of(2), naming.name_of(3)]
    assert aside.read(naming.name_of(3), SHARD) == b"xxx"
    assert aside.read(naming.name_of(3), naming.MANIFEST) == b"manifest"
    assert place.set_aside([naming.name_of(1)]).endswith("previous-2")


def test_a_checkpoint_of_the_same_name_is_replaced(where):
    place = storage.place(where)
    for content in (b"old", b"newer"):
        place.write("step-000000001", SHARD, memoryview(content))
        place.commit("step-000000001", content)
    assert place.read("step-000000001", SHARD) == place.read("step-000000001", naming.MANIFEST) == b"newer"


def test_a_crash_while_one_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    place = storage.place(tmp_path)
    place.write("step-000000001", SHARD, memoryview(b"old"))
    place.commit("step-000000001", b"old")
    place.write("step-000000001", SHARD, memoryview(b"newer"))

    def dies(self, to):
        if self.name.startswith(".writing"):
            raise KeyboardInterrupt
        return rename(self, to)

    rename = type(tmp_path).rename
    with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
        crash.setattr(type(tmp_path), "rename", dies)
        place.commit("step-000000001", b"newer")
    assert place.names() == []
    place.discard()
    assert place.names() == ["step-000000001"]
    assert place.read("step-000000001", SHARD) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 300_000])
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("past_cache", [True, False])
def test_every_byte_is_written_past_the_page_cache_or_through_it(tmp_path, size, skip, past_cache, monkeypatch):
    """From a page's start, and from where the kernel refuses to go past the cache."""
    if not past_cache:
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    memory = buffer(size + skip)
    memory[:] = np.random.default_rng(size).integers(0, 256, memory.size, np.uint8)
    content = memoryview(memory)[skip : size + skip]
    storage.place(tmp_path).write("step-1", SHARD, content)
    assert (tmp_path / ".writing-step-1" / SHARD).read_bytes() == bytes(content)


@pytest.mark.parametrize("sizes", [{"f4": 1001, "f8": 9}, {"f4": 5000}, {"f8": 7, "i4": 2}])
def test_a_shard_ends_with_a_page_so_that_none_of_it_goes_through_the_cache(sizes):
    arrays = {name: np.arange(size, dtype=name) for name, size in sizes.items()}
    image = ShardBuffer()
    image.fill([Run(name, 0, array) for name, array in arrays.items()])
    rest = -sum(array.nbytes for array in arrays.values()) % 8  # a safetensors header is padded to 8 bytes
    assert len(image.content) % ALIGNED == (ALIGNED - rest) % ALIGNED
    found = safetensors.load(bytes(image.content))
    assert all(found[f"{name}/0"].tobytes() == array.tobytes() for name, array in arrays.items())


@pytest.mark.parametrize("split", ["--mesh dp=3 --zero 3", "--mesh dp=3 --compress int8 --compress-smallest 1"])
def test_a_run_on_a_url_goes_on_bit_for_bit_and_its_bytes_are_those_of_a_folder(tmp_path, bucket, split):
    url = f"{bucket}/{tmp_path.name}"
    flags = ["--hidden", "16", "--steps", "9", "--keep-checkpoints", "1", "--checkpoint-steps", "6", *split.split()]
    train(3, options(tmp_path, *flags, run="one"))
    train(3, options(tmp_path, *flags, "--steps", "6", "--checkpoint-dir", url, run="two"))
    train(3, options(tmp_path, *flags, "--resume", "auto", "--checkpoint-dir", url, run="two"))
    place = storage.place(url)
    assert place.names() == ["step-000000009"]
    assert not (tmp_path / "two" / "checkpoints").exists()
    for file in (tmp_path / "one" / "checkpoints" / "step-000000009").glob("*.safetensors"):
        assert place.read("step-000000009", file.name) == file.read_bytes()
    step, found = format.read(f"{url}/step-000000009")
    assert step == 9
    assert all(found.arrays[name].tobytes() == array.tobytes() for name, array in final(tmp_path, "one").items())
    train(2, options(tmp_path, *flags[:-2], "--steps", "12", "--mesh", "dp=2", "--resume", url, run="three"))
    assert resume.newest(tmp_path / "three").name == "step-000000012"


def test_a_fresh_run_does_not_mix_with_what_a_url_has(tmp_path):
    url = f"memory://{tmp_path}/there"
    train(1, options(tmp_path, "--steps", "2", "--checkpoint-dir", url))
    with pytest.raises(CheckpointError, match="has checkpoints of an earlier run; continue that run with --resume auto"):
        train(2, options(tmp_path, "--steps", "2", "--checkpoint-dir", url))


def test_a_place_that_cannot_be_written_is_one_error_before_training(tmp_path, bucket, monkeypatch):
    (tmp_path / "file").touch()
    places = [f"{bucket}-that-is-not-there/run", "nothing://there", str(tmp_path / "file" / "below")]
    for where in places:
        with pytest.raises((CheckpointError, UsageError)) as caught:
            train(2, options(tmp_path, "--steps", "2", "--checkpoint-dir", where))
        assert where.split("/run")[0] in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be written to s3://elsewhere/run"):
        train(2, options(tmp_path, "--steps", "2", "--checkpoint-dir", "s3://elsewhere/run"))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_without_fsspec_a_url_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(CheckpointError, match=r"pip install 'hpcai\[s3\]'"):
        train(2, options(tmp_path, "--checkpoint-dir", "s3://bucket/run"))
    assert parser.parse(["--checkpoint-dir", "s3://bucket/run"]).checkpoint_dir == "s3://bucket/run"
