"""Checks of a manifest's fields against each other and against the files of its checkpoint, on integers and names only.

All checks run before an array is allocated or a shard is opened. Their time grows like that of sorting the manifest's entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any

from hpcai.arena import ALIGN
from hpcai.checkpoint import boxes, naming
from hpcai.checkpoint.boxes import Box
from hpcai.checkpoint.schema import Refused, shown
from hpcai.checkpoint.shards import LONGEST_BYTES, Stored, itemsize
from hpcai.errors import counted

LARGEST_PADDING_BYTES, LARGEST_ENTRY_BYTES = 4096 + 64, 200
"""Limits of a shard's header: bytes around all entries, and of one run's entry without the array's name. The header's content is
compared when it is read.
"""

Runs = dict[tuple[int, str], list[tuple[int, Stored]]]
"""For each (layout, array): pairs of a rank and a run that the rank wrote."""


def check(fields: dict[str, Any], name: str) -> None:
    """Check that fields that fit the schema agree with each other. name: of the checkpoint. Raises: Refused, with the field."""
    meta, layouts = fields["meta"], fields["layouts"]
    _steps(fields["step"], name, meta["progress"])
    _mesh(meta, len(layouts))
    shapes = _shapes(meta["identity"]["parameters"])
    shared: dict[str, set[Box]] = {name: set() for name in shapes}
    for i, (size, parts) in enumerate(layouts):
        _parts(f"layouts[{i}]", size, parts, shapes, shared)
    for name, shape in shapes.items():
        if not _tiled(sorted(shared[name]), shape):
            raise Refused(f"do not have each element of the parameter {shown(name)} of shape {shape} exactly once", "layouts")
    runs: Runs = {}
    ranks = set[int]()
    for i, shard in enumerate(fields["shards"]):
        _shard(f"shards[{i}]", shard, meta, runs)
        if shard["rank"] in ranks:
            raise Refused(f"is {shard['rank']}, which is also the rank of an earlier shard", f"shards[{i}].rank")
        ranks.add(shard["rank"])
    _arrays(runs, [size for size, _ in layouts], meta["mesh"])


def files(fields: dict[str, Any], there: dict[str, int]) -> str:
    """Describe what is wrong with the shards' files; empty if they match the manifest. there: bytes by name (`Store.files`)."""
    for shard in fields["shards"]:
        file, wanted = shard["file"], shard["bytes"]
        found = there.get(file)
        if found is None:
            return f"{file} is missing"
        if found < 0:
            return f"{file} is no regular file"
        if found != wanted:
            return f"{file} is cut short" if found < wanted else f"{file} is longer than it was"
    return ""


def _steps(step: int, name: str, progress: dict[str, Any]) -> None:
    if naming.in_order([name]) and name != naming.name_of(step):
        raise Refused(f"is {step}, in a checkpoint that is called {name}", "step")
    if progress["step"] != step:
        raise Refused(f"is {progress['step']}, where step is {step}", "meta.progress.step")
    before = 0
    for i, record in enumerate(progress["history"]):
        if not before < record["step"] <= step:
            raise Refused(f"is {record['step']}; wanted is one after {before}, up to {step}", f"meta.progress.history[{i}].step")
        before = record["step"]


def _mesh(meta: dict[str, Any], layouts: int) -> None:
    mesh = meta["mesh"]
    if mesh["dp"] * mesh["tp"] * mesh["pp"] != meta["ranks"]:
        raise Refused(f"is {meta['ranks']}, where the mesh is {mesh['dp']} x {mesh['tp']} x {mesh['pp']}", "meta.ranks")
    for field, count in (("layouts", layouts), ("meta.counters", len(meta["counters"]))):
        if count != mesh["tp"] * mesh["pp"]:
            raise Refused(f"has {count}, where the mesh has {mesh['tp']} x {mesh['pp']} places", field)
    end, cut = 0, meta.get("cut") or []
    for i, (start, stop) in enumerate(cut):
        if start != end or stop <= start:
            raise Refused(f"is {[start, stop]}; wanted are layers from {end} on", f"meta.cut[{i}]")
        end = stop
    if len(cut) % mesh["pp"]:
        raise Refused(f"has {counted(len(cut), 'stage')}, where the mesh has pp={mesh['pp']}", "meta.cut")


def _shapes(parameters: list[Any]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for i, (name, shape) in enumerate(parameters):
        if name in shapes:
            raise Refused(f"is {shown(name)}, which is also an earlier parameter's name", f"meta.identity.parameters[{i}][0]")
        shapes[name] = shape
    return shapes


def _parts(field: str, size: int, parts: list[Any], shapes: dict[str, list[int]], into: dict[str, set[Box]]) -> None:
    """Check that a layout's parts are boxes of existing parameters, placed as an arena places them; add the boxes to `into`."""
    end = 0
    for i, (name, shape, box, start) in enumerate(parts):
        here = f"{field}[1][{i}]"
        if shapes.get(name) != shape:
            wanted = f"of shape {shapes[name]} " if name in shapes else "not "
            raise Refused(f"is {shown(name)} of shape {shape}, which is {wanted}in meta.identity.parameters", here)
        if len(box) != len(shape) or not all(a <= b <= n for (a, b), n in zip(box, shape, strict=True)):
            raise Refused(f"is {box}, of shape {shape}", f"{here}[2]")
        if start != end:
            raise Refused(f"is {start}; the part before ends at {end}", f"{here}[3]")
        end += -(-prod(b - a for a, b in box) // ALIGN) * ALIGN
        into[name].add(tuple((a, b) for a, b in box))
    if size != end:
        raise Refused(f"is {size}; its parts end at {end}", f"{field}[0]")


def _tiled(cut: Sequence[Box], shape: Sequence[int]) -> bool:
    """Return whether sorted boxes cover each element of an array of this shape exactly once, cut along one dim after the other.

    >>> _tiled([((0, 2), (0, 1)), ((0, 2), (1, 3)), ((2, 4), (0, 3))], (4, 3))
    True
    >>> _tiled([((0, 2), (0, 1)), ((1, 4), (0, 3))], (4, 3))
    False
    >>> _tiled([((0, 3), (0, 3))], (4, 3)), _tiled([((0, 4), (0, 2))], (4, 3)), _tiled([], (4, 3))
    (False, False, False)
    """
    if not shape:
        return len(cut) == 1
    end = 0
    for (start, stop), group in groupby(cut, key=itemgetter(0)):
        if start != end or not _tiled([box[1:] for box in group], shape[1:]):
            return False
        end = stop
    return bool(cut) and end == shape[0]


def _shard(field: str, shard: dict[str, Any], meta: dict[str, Any], into: Runs) -> None:
    """Check that a shard's file name and layout belong to its rank, and that its runs fill the file; add the runs to `into`."""
    rank, ranks, mesh, file = shard["rank"], meta["ranks"], meta["mesh"], shard["file"]
    if rank >= ranks:
        raise Refused(f"is {rank}, of {counted(ranks, 'rank')}", f"{field}.rank")
    if file != naming.shard(rank, ranks):
        raise Refused(f"is {shown(file)}; the file of rank {rank} is {naming.shard(rank, ranks)}", f"{field}.file")
    layout = rank // (mesh["dp"] * mesh["tp"]) * mesh["tp"] + rank % mesh["tp"]
    if shard["layout"] != layout:
        raise Refused(f"is {shard['layout']}; the layout of rank {rank} is {layout}", f"{field}.layout")
    runs = [Stored(*run) for run in shard["runs"]]
    end = shard["header"][0]
    most = LARGEST_PADDING_BYTES + sum(LARGEST_ENTRY_BYTES + len(run.array) for run in runs)
    if end > most:
        raise Refused(f"is {counted(end, 'byte')}; wanted are {most} at most for its runs", f"{field}.header[0]")
    for i, run in enumerate(runs):
        here = f"{field}.runs[{i}]"
        nbytes = (run.stop - run.start) * itemsize(run.dtype)
        if not 0 < nbytes <= LONGEST_BYTES:
            raise Refused(f"has elements {run.start} to {run.stop}; wanted are 1 to {LONGEST_BYTES:,} bytes", here)
        if run.at != end:
            raise Refused(f"is {run.at}; the run before ends at {end}", f"{here}[4]")
        end += nbytes
        into.setdefault((layout, run.array), []).append((rank, run))
    if shard["bytes"] != end:
        raise Refused(f"is {shard['bytes']}; its runs end at {end}", f"{field}.bytes")


def _arrays(runs: Runs, sizes: list[int], mesh: dict[str, int]) -> None:
    """Check that runs of an array do not overlap, lie within its layout and have one dtype, and that parameters and optimizer
    state are complete.
    """
    dtypes: dict[str, str] = {}
    for (layout, array), found in runs.items():
        end, whole = 0, array.startswith(("params", "optimizer.", "reducer."))
        for _, run in sorted(found, key=lambda one: one[1].start):
            if run.start < end or (whole and run.start > end):
                raise Refused(
                    f"have {array} of layout {layout} from element {run.start}, where the run before ends at {end}", "shards"
                )
            if dtypes.setdefault(array, run.dtype) != run.dtype:
                raise Refused(f"have {array} as {run.dtype} and as {dtypes[array]}", "shards")
            end = run.stop
        for rank in {rank for rank, _ in found}:
            _writer(array, rank // mesh["tp"] % mesh["dp"], rank)
        if not array.startswith("reducer.") and (end > sizes[layout] or (whole and end < sizes[layout])):
            raise Refused(f"have {counted(end, 'element')} of {array}, where layout {layout} has {sizes[layout]}", "shards")
    found_in, filled = Counter(array for _, array in runs), sum(size > 0 for size in sizes)
    for array in {"params", *dtypes}:
        if array.startswith(("params", "optimizer.")) and found_in[array] != filled:
            raise Refused(f"have {array} of {found_in[array]} layouts instead of {filled}", "shards")
    _memories(runs, mesh["dp"])


def _memories(runs: Runs, ranks: int) -> None:
    """Check that either no data-parallel rank of a layout has memories, or all have them, of the same elements."""
    spans: dict[int, list[list[slice]]] = {}
    for (layout, array), found in runs.items():
        if array.startswith("memory."):
            spans.setdefault(layout, []).append(boxes.merged(slice(run.start, run.stop) for _, run in found))
    for layout, all_of_them in spans.items():
        if len(all_of_them) != ranks:
            raise Refused(
                f"have memories of {counted(len(all_of_them), 'rank')} of layout {layout}, where the mesh has dp={ranks}",
                "shards",
            )
        if any(one != all_of_them[0] for one in all_of_them):
            raise Refused(f"have memories of layout {layout} that cover different elements on different ranks", "shards")


def _writer(array: str, data_parallel: int, rank: int) -> None:
    """Check that this rank may write the array: its own memory, or a reducer's state if its place along dp is 0."""
    kind, _, number = array.partition(".")
    wanted = {"memory": number.split(".")[0], "reducer": "0"}.get(kind, str(data_parallel))
    if wanted != str(data_parallel):
        raise Refused(f"have {array} from rank {rank}, which is rank {data_parallel} along dp", "shards")
