"""Manifests: no field is believed, every refusal names file and field, and what ranks wrote is read as it was."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcai.checkpoint import format, manifest, schema
from hpcai.checkpoint.shards import checksum
from hpcai.errors import CheckpointError
from hpcai.train.history import Progress
from tests.train import mutations
from tests.train.mutations import sealed

pytestmark = pytest.mark.usefixtures("clean_environment")

NAME = "step-000000002"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint's folder, with all kinds of arrays."""
    return mutations.good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def text(good):
    return mutations.text_of(good)


def said(raw, name=NAME):
    """Why a manifest is refused, in a short line and in time; nothing if it is not."""
    why, began = "", time.process_time()
    try:
        manifest.read(raw, name)
    except schema.Refused as refused:
        why = str(refused)
    assert time.process_time() - began < 1
    assert len(why) < 1000
    assert why.isprintable()
    return why


def test_what_ranks_wrote_is_as_the_published_schema_says(good):
    library = pytest.importorskip("jsonschema").Draft202012Validator
    library.check_schema(manifest.schema_file())
    raw = (good / "manifest.json").read_bytes()
    library(manifest.schema_file()).validate(json.loads(raw))
    assert manifest.read(raw, NAME) == json.loads(raw)
    assert manifest.write({k: v for k, v in json.loads(raw).items() if k != "checksum"}) == raw


def test_the_published_schema_has_no_part_that_is_not_used():
    text = json.dumps(manifest.schema_file())
    for name in manifest.schema_file()["$defs"]:
        assert f'"#/$defs/{name}"' in text, name


def test_what_the_published_schema_refuses_is_refused(text):
    library, check = (
        pytest.importorskip("jsonschema").Draft202012Validator(manifest.schema_file()),
        schema.check(manifest.schema_file()),
    )
    fields, refused = json.loads(text + "}"), 0
    for shortened in (fields["layouts"], fields["layouts"][0][1], fields["shards"], fields["shards"][0]["runs"]):
        del shortened[1:]  # the library is slow
    for seed in range(120):
        other, how = mutations.other(random.Random(seed), json.loads(json.dumps(fields)))
        if "within each other" in how or "digits" in how or "parts" in how:
            continue
        value = json.loads(sealed(other), parse_constant=str)
        if not library.is_valid(value):
            refused += 1
            with pytest.raises(schema.Refused):
                check(value)
    assert refused > 50


VALUES = [
    "missing",
    "null",
    '"text"',
    '""',
    "1.5",
    "-1",
    "true",
    "NaN",
    "1e400",
    "1e20",
    "9" * 30,
    "9" * 5000,
    "[]",
    "{}",
    "[" * 10_000 + "]" * 10_000,
]
FREE = {  # what may be many things, none of which are arrays
    "meta.compress",
    "meta.cut",
    "meta.loss_scale",
    "meta.data",
    "meta.options",
    "meta.encoding",
    "meta.progress.history",
    "meta.progress.loss_sum",
    "meta.progress.best",
    "meta.progress.waited",
    "meta.progress.samples",
    "meta.identity",
    "meta.counters",
}


def kinds_of_fields(fields):
    """One way to each field, of which lists have many."""
    seen = {}
    for path in mutations.places(fields):
        seen.setdefault(
            tuple("*" if isinstance(key, int) and len(path) > 2 and i < len(path) - 1 else key for i, key in enumerate(path)),
            path,
        )
    return [path for path in seen.values() if path and all(not isinstance(key, int) or key < 6 for key in path)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:8])
def test_every_field_with_a_value_that_is_none_is_refused_by_name(text, value):
    fields = json.loads(text + "}")
    tried = 0
    for path in kinds_of_fields(fields):
        changed = json.loads(text + "}")
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        if value == "missing":
            del inner[path[-1]]
        else:
            inner[path[-1]] = "@"
        why = said(sealed(json.dumps(changed)[:-1].replace('"@"', value)))
        field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
        if not field.startswith(tuple(FREE)):
            assert why, (field, value)
        if why and not isinstance(path[-1], int):
            assert path[0] in why or path[-1] in why or value in ("9" * 5000, VALUES[-1]), (field, why)
        tried += 1
    assert tried > 60


def edited(text, edit):
    """A manifest with some fields made otherwise, and the right checksum."""
    fields = json.loads(text + "}")
    edit(fields)
    return sealed(json.dumps(fields)[:-1])


def put(*path_and_value):
    """An edit of one field."""
    *path, last, value = path_and_value

    def edit(fields):
        for key in path:
            fields = fields[key]
        fields[last] = value

    return edit


def overlapping(fields):
    """The second run of a memory begins within the first; the file is as large as it must be."""
    run = next(run for run in fields["shards"][1]["runs"][4:] if run[0] == "memory.0")
    run[1:3] = [run[1] - 1, run[2] - 1] if run[1] else [0, run[2]]
    fields["shards"][1]["runs"][4][1:3] = [2000, 2000 + run[2] - run[1]]


def swapped_layouts(fields):
    fields["layouts"][0], fields["layouts"][1] = fields["layouts"][1], fields["layouts"][0]
    fields["layouts"][1][1][0][2] = fields["layouts"][0][1][0][2]


def one_layout_less(fields):
    del fields["layouts"][3], fields["meta"]["counters"][3]


def another_mesh(fields):
    fields["meta"]["mesh"] = {"dp": 4, "tp": 2, "pp": 1}
    del fields["layouts"][2:], fields["meta"]["counters"][2:]


def without_a_shard(fields):
    del fields["shards"][1]


def twice_a_shard(fields):
    fields["shards"].append(fields["shards"][0])


def memories_of_others(fields):
    run = [run for run in fields["shards"][0]["runs"] if run[0] == "memory.0"][-1]
    run[1:3] = [run[1] + 8, run[2] + 8]


def another_dtype(fields):
    for run in fields["shards"][0]["runs"]:
        run[3] = "int32"


def parameters_that_end_early(fields):
    shard = fields["shards"][0]
    shard["runs"][0][2] -= 16
    shard["bytes"] -= 64
    for run in shard["runs"][1:]:
        run[4] -= 64


def optimizer_of_some(fields):
    for shard in fields["shards"][4:]:
        for run in shard["runs"]:
            run[0] = run[0].replace("optimizer.mean", "optimizer.other")


FALSE = {
    "another step": (put("step", 3), "step is 3, in a checkpoint that is called step-000000002"),
    "another step done": (put("meta", "progress", "step", 1), "meta.progress.step is 1, where step is 2"),
    "epochs that were not": (
        put("meta", "progress", "history", [{"step": 3, "loss": 1.0, "test_loss": 1, "test_accuracy": None}]),
        "meta.progress.history[0].step is 3; wanted is one after 0, up to 2",
    ),
    "ranks": (put("meta", "ranks", 9), "meta.ranks is 9, where the mesh is 2 x 2 x 2"),
    "a mesh of others": (another_mesh, "layouts do not have each element of the parameter"),
    "layouts": (one_layout_less, "layouts has 3, where the mesh has 2 x 2 places"),
    "no layouts": (put("layouts", []), "layouts is a list of 0"),
    "cut": (put("meta", "cut", [[0, 3], [2, 6]]), "meta.cut[1] is [2, 6]; wanted are layers from 3 on"),
    "cut of three": (put("meta", "cut", [[0, 3], [3, 4], [4, 6]]), "meta.cut has 3 stages"),
    "parameter twice": (
        put("meta", "identity", "parameters", 0, ["embedding.position", [8, 16]]),
        "meta.identity.parameters[1][0] is",
    ),
    "a box beyond": (
        put("layouts", 0, 1, 0, 2, [[0, 257], [0, 16]]),
        "layouts[0][1][0][2] is [[0, 257], [0, 16]], of shape [256, 16]",
    ),
    "a box of other dims": (put("layouts", 0, 1, 0, 2, [[0, 256]]), "layouts[0][1][0][2] is"),
    "a part that lies elsewhere": (put("layouts", 0, 1, 1, 3, 2049), "layouts[0][1][1][3] is 2049; the part before ends at 2048"),
    "a size of 4 G": (put("layouts", 0, 0, 1 << 32), "layouts[0][0] is 4294967296; its parts end at"),
    "boxes that overlap": (swapped_layouts, "layouts do not have each element of the parameter 'embedding.token'"),
    "a path": (put("shards", 0, "file", "../../etc/passwd"), "shards[0].file is '../../etc/passwd'; wanted is text like shard-"),
    "an absolute path": (put("shards", 0, "file", "/etc/passwd"), "shards[0].file is '/etc/passwd'; wanted is text like shard-"),
    "another's file": (
        put("shards", 0, "file", "shard-00001-of-00008.safetensors"),
        "shards[0].file is 'shard-00001-of-00008.safetensors'; the file of rank 0 is shard-00000-of-00008.safetensors",
    ),
    "a rank that is none": (put("shards", 0, "rank", 8), "shards[0].rank is 8, of 8 ranks"),
    "another layout": (put("shards", 0, "layout", 1), "shards[0].layout is 1; the layout of rank 0 is 0"),
    "a shard less": (without_a_shard, "shards have"),
    "a shard twice": (twice_a_shard, "shards[8].rank is 0, which is also the rank of an earlier shard"),
    "memories of other elements": (memories_of_others, "shards have memories of layout 0 that cover different elements"),
    "a larger file": (put("shards", 0, "bytes", 1 << 40), "shards[0].bytes is 1099511627776; its runs end at"),
    "a longer header": (
        put("shards", 0, "header", 0, 1 << 40),
        "shards[0].header[0] is 1,099,511,627,776 bytes; wanted are",
    ),
    "a run elsewhere": (put("shards", 0, "runs", 0, 4, 8), "shards[0].runs[0][4] is 8; the run before ends at"),
    "a run of nothing": (put("shards", 0, "runs", 0, 1, 1 << 30), "shards[0].runs[0] has elements 1073741824 to"),
    "a run of 4 TB": (
        put("shards", 0, "runs", 0, 2, 1 << 40),
        "shards[0].runs[0] has elements 0 to 1099511627776; wanted are 1 to",
    ),
    "runs that overlap": (overlapping, "shards have memory.0 of layout 1"),
    "another dtype": (another_dtype, "shards have params as"),
    "parameters that end early": (parameters_that_end_early, "shards have "),
    "optimizer state of some": (optimizer_of_some, "shards have optimizer."),
    "arrays of no kind": (
        put("shards", 0, "runs", 0, 0, "paramz"),
        "shards[0].runs[0][0] is 'paramz'; wanted is text like (params|",
    ),
    "ranks that have no memory": (
        put("shards", 4, "runs", 3, 0, "memory.7"),
        "shards have memory.7 from rank 4, which is rank 0 along dp",
    ),
}


@pytest.mark.parametrize("more, refused", [(0, False), (1, True)])
def test_a_header_is_as_long_as_its_runs_can_make_it(text, more, refused):
    """4,160 bytes, and for each run 200 beside its array's name."""
    runs = json.loads(text + "}")["shards"][0]["runs"]
    most = 4160 + sum(200 + len(run[0]) for run in runs)
    why = said(edited(text, put("shards", 0, "header", 0, most + more)))
    assert why.startswith(f"shards[0].header[0] is {most + more:,} bytes") == refused


@pytest.mark.parametrize("case", FALSE)
def test_what_cannot_be_true_together_is_refused_by_name(text, case):
    edit, words = FALSE[case]
    assert said(edited(text, edit)).startswith(words)


def test_bytes_that_are_no_manifest_are_refused(text):
    raw = sealed(text)
    assert said(raw) == ""
    for other, words in {
        b"": "does not end with a checksum",
        b"\xef\xbb\xbf" + raw: "not ASCII",
        raw.decode().encode("utf-16"): "not ASCII",
        raw.decode().encode("utf-16-le"): "does not end with a checksum",
        raw[:-1]: "does not end with a checksum",
        raw + b"\n": "does not end with a checksum",
        raw.replace(b'"step": 2', b'"step": 3'): "differs from its checksum",
        sealed("[1"): "is not JSON",
        sealed('{"format": 2' + "," * 10): "is not JSON",
        sealed(text + ', "more": ' + "9" * 5000): "has a number of thousands of digits",
        sealed(re.sub('"loss_sum": [^,]*', '"loss_sum": 1e400', text)): "meta.progress.loss_sum is inf; wanted is number",
        sealed(text + ', "step": 2'): "has the field 'step' twice",
        sealed(text + ', "more": 2'): "has the unknown field 'more'",
        sealed(text.replace('"format": 2', '"format": 3')): "does not say format 2 but 3",
        sealed(text.replace('"format": 2', '"format": true')): "does not say format 2 but true",
        sealed(text.replace('"format": 2', '"format": 2.0')): "format is 2.0; wanted is 2",
        sealed(
            text.replace('"compress"', '"deep": ' + "[" * 40 + "]" * 40 + ', "compress"')
        ): "meta has more than 32 levels of nested lists",
        sealed(text + ', "deep": ' + "[" * 100_000 + "]" * 100_000): "deep",
        sealed(text + ', "more": [' + "[]," * 1_000_000 + "0]"): "more than 1,000,000 values",
        sealed(text + " " * manifest.LARGEST_BYTES): "more than 16,777,216 bytes",
    }.items():
        why = said(other)
        assert words in why or (words == "deep" and ("levels of nested" in why or "unknown field" in why)), (words, why)


def test_losses_that_are_not_finite_come_back_also_from_manifests_of_before(text):
    progress = Progress(2, [{"step": 1, "loss": math.inf, "test_loss": math.nan, "test_accuracy": None}], 1.5, 3)
    now = edited(text, put("meta", "progress", progress.fields()))
    before = sealed(
        text.replace(
            json.dumps(Progress(2).fields())[:0] or '"history": []', '"history": [' + json.dumps(progress.history[0]) + "]"
        )
    )
    assert b"NaN" in before
    for raw in (now, before):
        found = Progress.of(manifest.read(raw, NAME)["meta"]["progress"]).history[0]
        assert found["loss"] == math.inf
        assert math.isnan(found["test_loss"])
        assert found["step"] == 1


def test_checkpoints_of_before_are_read(good, tmp_path):
    """The first of this format did not say how a pipeline was cut nor how gradients travelled, and padded shards to other sizes."""
    wanted = mutations.parameters(good)
    folder = tmp_path / NAME
    shutil.copytree(good, folder)
    fields = json.loads(mutations.text_of(folder) + "}")
    del fields["meta"]["cut"], fields["meta"]["compress"]
    for shard in fields["shards"]:
        raw, end = (folder / shard["file"]).read_bytes(), shard["header"][0]
        header = raw[8:end].rstrip(b" ")
        header += b" " * (-(8 + len(header)) % 64)
        header = len(header).to_bytes(8, "little") + header
        (folder / shard["file"]).write_bytes(header + raw[end:])
        shard["header"] = [len(header), checksum(header)]
        shard["bytes"] += len(header) - end
        for run in shard["runs"]:
            run[4] += len(header) - end
    (folder / "manifest.json").write_bytes(sealed(json.dumps(fields)[:-1]))
    assert mutations.outcome(folder, wanted) == "exact"


def test_a_manifest_that_no_reader_would_take_is_not_written(text, monkeypatch):
    fields = json.loads(text + "}")
    monkeypatch.setattr(manifest, "MOST_VALUES", 100)
    with pytest.raises(CheckpointError, match=r"manifest.json would have .* bytes for 8 shards, more than can be read again"):
        manifest.write(fields)
    fields["meta"]["progress"]["loss_sum"] = math.nan
    with pytest.raises(CheckpointError, match="cannot be written"):
        manifest.write(fields)


def test_a_checkpoint_that_does_not_fit_into_memory_is_one_line(good, monkeypatch):
    def none(*_):
        raise MemoryError

    monkeypatch.setattr(format, "_together", none)
    with pytest.raises(CheckpointError, match="step-000000002 has .* bytes, for which there is not enough memory here"):
        format.read(good)


def test_mutated_checkpoints_are_refused_by_name_or_exact(good, tmp_path):
    wanted = mutations.parameters(good)
    assert mutations.outcome(good, wanted) == "exact"
    for seed in range(60):
        copy = tmp_path / str(seed) / good.name
        shutil.copytree(good, copy)
        how = mutations.mutated(random.Random(seed), copy)
        outcome = mutations.outcome(copy, wanted)
        assert outcome in ("refused", "exact"), (seed, how, outcome)
        shutil.rmtree(tmp_path / str(seed))


def test_a_shard_whose_header_says_something_else_is_refused(good, tmp_path):
    for seed in range(20):
        copy = tmp_path / str(seed) / good.name
        shutil.copytree(good, copy)
        how = mutations.lying(random.Random(seed), copy)
        if (copy / "manifest.json").read_bytes() == (good / "manifest.json").read_bytes():
            continue  # that shard has no such array
        with pytest.raises(CheckpointError, match=r"shard-.* has a header that differs from manifest.json"):
            mutations.parameters(copy)
            pytest.fail(how)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="knows by /proc how much memory a process has")
def test_mutated_checkpoints_take_little_memory(good, tmp_path):
    command = [sys.executable, "-m", "tests.train.mutations", str(good), "40", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout


def test_reading_a_manifest_takes_a_few_milliseconds(good):
    raw = (good / "manifest.json").read_bytes()
    took = []
    for _ in range(20):
        began = time.process_time()
        manifest.read(raw, NAME)
        took.append(time.process_time() - began)
    assert min(took) < 0.02
