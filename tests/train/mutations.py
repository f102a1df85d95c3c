"""Checkpoints that accidents and forgers damage, seeded: python -m tests.train.mutations FOLDER COUNT SEED.

`mutated` damages the copy of a good checkpoint and says how; `outcome` is what reading it comes to. The command does so many times in
a process whose address space may grow by LARGEST_BYTES, and fails where reading is neither refused by name nor exact.
"""

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpcai import arena
from hpcai.checkpoint import format, naming
from hpcai.checkpoint.shards import checksum
from hpcai.comm import threads
from hpcai.errors import CheckpointError
from hpcai.parallel import stages
from hpcai.train.loop import fit
from hpcai.train.options import parser

LARGEST_BYTES, LONGEST_S = 100 << 20, 1.0

RAW = {
    "1e400": "1e400",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "a number of 5,000 digits": "9" * 5000,
    "a number of 300 digits": "9" * 300,
    "1.0": "1.0",
    "ten thousand lists within each other": "[" * 10_000 + "]" * 10_000,
    "a hundred lists within each other": "[" * 100 + "]" * 100,
    "ten thousand objects within each other": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "a hundred thousand parts": "[" + '["w",[4],[[0,4]],0],' * 100_000 + "0]",
    "text with a newline": '"params\\n"',
    "half a character": '"\\ud800"',
    "a long text": '"' + "x" * 10_000 + '"',
}
VALUES = [
    None,
    "",
    "text",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    0,
    1,
    -1,
    1.5,
    -0.5,
    True,
    False,
    [],
    {},
    [[]],
    2**31,
    2**53,
    2**63,
    2**64,
]


def good(folder):
    """A checkpoint of eight ranks on a mesh, with all kinds of arrays that there are; its folder."""
    (folder / "text.txt").write_bytes(bytes(random.Random(0).choices(b"abcd efgh\n", k=3000)))
    flags = f"--data text:{folder}/text.txt --layers 2 --width 16 --heads 2 --context 8 --batch 8 --mesh dp=2,tp=2,pp=2 "
    flags += "--micro-batches 2 --compress powersgd:2 --compress-smallest 1 --steps 2 --model gpt"
    options = parser.parse(["--run-dir", str(folder / "run"), *flags.split()])
    timed = stages._time  # whose seconds would cut the pipeline elsewhere, and so change what ranks write, from run to run
    stages._time = lambda *part, **how: (1.0, timed(*part, **how)[1])
    try:
        threads.run(8, lambda comm: fit(options, comm))
    finally:
        stages._time = timed
    return folder / "run" / "checkpoints" / naming.name_of(2)


def mutated(rng, folder):
    """Damage a checkpoint's folder in one way, drawn by a random.Random; returns in words how."""
    kind = rng.choice([forged, forged, forged, forged, unsealed, damaged, replaced, shard, shard, lying, elsewhere])
    return f"{kind.__name__}: {kind(rng, folder)}"


def sealed(text):
    """A manifest's JSON without its last brace, with the right checksum."""
    return f'{text},\n "checksum": "{checksum(text.encode())}"}}\n'.encode()


def text_of(folder):
    """A good manifest without its checksum and last brace."""
    return (folder / "manifest.json").read_text().rpartition(',\n "checksum"')[0]


def places(value, path=()):
    """Every field of JSON, as the way to it."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def forged(rng, folder):
    """One field is another, and the checksum is right."""
    text, words = other(rng, json.loads(text_of(folder) + "}"))
    (folder / "manifest.json").write_bytes(sealed(text))
    return words


def unsealed(rng, folder):
    """One field is another, and the checksum is that of before."""
    before = (folder / "manifest.json").read_text().rpartition(',\n "checksum"')
    text, words = other(rng, json.loads(before[0] + "}"))
    (folder / "manifest.json").write_text(text + before[1] + before[2])
    return words


def other(rng, fields, path=None):
    """JSON of which one field is changed, without its last brace, and how."""
    path = path or rng.choice([one for one in places(fields) if one])
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    key, how, raw = path[-1], rng.randrange(10), '"@"'
    words = f"{'.'.join(map(str, path))} "
    if how == 0:
        del inner[key]
        words += "missing"
    elif how == 1:
        name, raw = rng.choice(list(RAW.items()))
        inner[key] = "@"
        raw, words = RAW[name], words + name
    elif how == 2 and isinstance(inner, dict):
        inner[key] = {"@": [inner[key]] * 2}  # becomes two fields of one name
        text = json.dumps(fields)[:-1]
        twice = json.dumps(inner[key]["@"][0])
        return text.replace(json.dumps(inner[key]), f'{twice}, "{key}": {twice}'), words + "twice"
    elif how == 3 and isinstance(inner, list):
        inner.insert(key, inner[key])
        words += "repeated"
    elif how == 4 and type(inner[key]) is int:
        inner[key] += rng.choice([-1, 1, 16, -16, 4096, 2**20])
        words += f"shifted to {inner[key]}"
    elif how == 5 and isinstance(inner[key], dict):
        inner[key]["more"] = rng.choice(VALUES)
        words += "with one more field"
    else:
        inner[key] = rng.choice(VALUES)
        words += f"as {inner[key]!r}"
    return json.dumps(fields)[:-1].replace('"@"', raw), words


def damaged(rng, folder):
    """The manifest's bytes."""
    path = folder / "manifest.json"
    raw = path.read_bytes()
    at = rng.randrange(len(raw))
    text = text_of(folder)
    ways = {
        "empty": b"",
        "cut short": raw[:at],
        "one bit": raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :],
        "a BOM": b"\xef\xbb\xbf" + raw,
        "UTF-16": raw.decode().encode("utf-16"),
        "UTF-32": raw.decode().encode("utf-32-le"),
        "no ASCII": sealed(text.replace("text:", "t\u00e9xt:")),
        "a page of zeros": raw[:at] + bytes(4096) + raw[at + 4096 :],
        "more behind it": raw + b" ",
        "a million parts": sealed(text.replace('"layouts": [', '"layouts": [' + '["w",[4],[[0,4]],0],' * 1_000_000)),
        "three million lists": sealed(text + ', "more": [' + "[]," * 3_000_000 + "0]"),
        "a million objects": sealed(text + ', "more": [' + '{"a":1},' * 900_000 + "0]"),
        "an array": sealed("[" + "1," * 10 + "1"),
        "format 3": sealed(text.replace('"format": 2', '"format": 3')),
        "NaN in a loss": sealed(text.replace('"loss_sum": ', '"loss_sum": NaN, "x": ')),
    }
    name = rng.choice(list(ways))
    path.write_bytes(ways[name])
    return name


def replaced(rng, folder):
    """A file by what is none, or by nothing."""
    path = rng.choice(sorted(folder.iterdir()))
    size = path.stat().st_size
    path.rename(folder.parent / f"{folder.name}.{path.name}")
    ways = {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "a FIFO": lambda: os.mkfifo(path),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to the same elsewhere": lambda: path.symlink_to(folder.parent / f"{folder.name}.{path.name}"),
        "a dangling link": lambda: path.symlink_to("nowhere"),
        "zeros": lambda: sparse(path, size),
        "a terabyte of zeros": lambda: sparse(path, 1 << 40),
        "a hard link to the same": lambda: path.hardlink_to(folder.parent / f"{folder.name}.{path.name}"),
    }
    name = rng.choice(list(ways))
    ways[name]()
    return f"{path.name} by {name}"


def sparse(path, size):
    """A file without blocks."""
    path.touch()
    os.truncate(path, size)


def shard(rng, folder):
    """A shard's bytes, or two shards' names."""
    one, two = rng.sample(sorted(folder.glob("*.safetensors")), 2)
    raw = one.read_bytes()
    at = rng.randrange(len(raw)) if rng.random() < 0.5 else rng.randrange(3000)
    how = rng.randrange(5)
    if how == 0:
        one.write_bytes(raw[:at])
        return f"{one.name} cut at {at}"
    if how == 1:
        one.write_bytes(raw + bytes(rng.randrange(1, 9000)))
        return f"{one.name} longer"
    if how == 2:
        one.rename(folder / "third"), two.rename(one), (folder / "third").rename(two)
        return f"{one.name} and {two.name} swapped"
    if how == 3:
        two.write_bytes(raw)
        return f"{two.name} a copy of {one.name}"
    one.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])
    return f"{one.name} with another bit at {at}"


def lying(rng, folder):
    """A shard's header says something else, and the manifest has its checksum."""
    one = rng.choice(sorted(folder.glob("*.safetensors")))
    raw, fields = one.read_bytes(), json.loads(text_of(folder) + "}")
    about = next(entry for entry in fields["shards"] if entry["file"] == one.name)
    end = about["header"][0]
    ways = {
        "a length of 2^63": (1 << 63).to_bytes(8, "little") + raw[8:end],
        "a length of 0": bytes(8) + raw[8:end],
        "a length of one less": (end - 9).to_bytes(8, "little") + raw[8:end],
        "offsets that overlap": raw[:end].replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
        "offsets out of range": raw[:end].replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
        "an unknown dtype": raw[:end].replace(b'"F32"', b'"F99"', 1),
        "a list within lists": raw[:8] + b"[" * (end - 8),
        "names twice": raw[:end].replace(b"optimizer.mean/", b"optimizer.same/", 1).replace(b"params/0", b"params/1", 1),
        "a size of NaN": raw[:end].replace(b'"shape":[', b'"shape":NaN', 1),
        "zeros": bytes(end),
    }
    name = rng.choice(list(ways))
    made = ways[name][:end].ljust(end, b" ")
    one.write_bytes(made + raw[end:])
    about["header"][1] = checksum(made)
    (folder / "manifest.json").write_bytes(sealed(json.dumps(fields)[:-1]))
    return f"{one.name} with {name}"


def elsewhere(rng, folder):
    """The folder is called after another step."""
    other = folder.with_name(naming.name_of(rng.choice([0, 1, 3, 10**9])))
    folder.rename(other)
    folder.symlink_to(other.name)
    return other.name


def parameters(path):
    """What a checkpoint has: every array's elements by parameter, others as they are."""
    step, found = format.read(path)
    where = arena.layout({name: tuple(shape) for name, shape in found.meta["identity"]["parameters"]})
    arrays = {"step": np.array(step)}
    for name, array in found.arrays.items():
        for slot in where.slots if array.shape[-1] == where.size else ():
            arrays[f"{name}/{slot.name}"] = array[..., slot.start : slot.stop]
    return arrays


def outcome(path, wanted):
    """Reading it: "refused", "exact", or what is wrong with how that went."""
    began = time.process_time()
    try:
        found = parameters(path)
    except CheckpointError as error:
        said, took = str(error), time.process_time() - began
        if "\n" in said or len(said) > 1500 or not said.isprintable():
            return f"not one short line: {said[:3000]!r}"
        if "manifest.json" not in said and "shard-" not in said:
            return f"no file is named: {said}"
        return "refused" if took < LONGEST_S else f"{took:.1f} s to say: {said}"
    same = found.keys() == wanted.keys() and all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    return "exact" if same else "other arrays without a word"


def main(folder, count, seed):
    """Mutations of a good checkpoint, each of a fresh copy, with a bound on memory."""
    folder, wanted = Path(folder), parameters(folder)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LARGEST_BYTES, now + LARGEST_BYTES))
    counted = {"refused": 0, "exact": 0}
    for i in range(seed, seed + count):
        with tempfile.TemporaryDirectory() as made:
            copy = Path(made) / folder.name
            shutil.copytree(folder, copy)
            how = mutated(random.Random(i), copy)
            found = outcome(copy, wanted)
        if found not in counted:
            sys.exit(f"seed {i}, {how}: {found}")
        counted[found] += 1
    print(" ".join(f"{number} {what}" for what, number in counted.items()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
