"""The checkpoints of a run: saving, finding, checking, resuming."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hpcai.checkpoint import format, naming, storage
from hpcai.checkpoint.format import Broken, Opened
from hpcai.checkpoint.local import Local
from hpcai.checkpoint.storage import Store
from hpcai.comm.communicator import Communicator
from hpcai.data.contents import changed as changed_data
from hpcai.errors import CheckpointError, counted
from hpcai.parallel.mesh import sizes
from hpcai.train import absent, lock
from hpcai.train.build import Cut
from hpcai.train.history import Progress
from hpcai.train.options import own_name, remarks
from hpcai.train.options.arguments import shown
from hpcai.train.options.options import RENAMED, Options
from hpcai.train.replica import Replica
from hpcai.train.saving import Saver
from hpcai.train.state import arrays

WRITTEN = ("checkpoints", "metrics.jsonl", "summary.json", "loss.png")
"""The names of the files and folders that a run writes into its folder."""

IDENTITY = (
    "model",
    "hidden",
    "channels",
    "image_channels",
    "activation",
    "batch",
    "optimizer",
    "reduction",
    "seed",
    "dtype",
    "validation",
)
"""The options that must be equal in a run and in the checkpoint from which it resumes."""

GPT_IDENTITY = ("layers", "width", "heads", "context", "norm", "tied", "dropout")
"""Further options that must be equal for a gpt."""


def place(options: Options) -> Store:
    """Return the place of the run's checkpoints. Raises: CheckpointError for a URL that cannot be used."""
    return storage.place(_kept(options))


def folders(options: Options) -> list[Path]:
    """Return the local folders that a run writes into and locks: its own, and that of its checkpoints."""
    kept = storage.local(_kept(options))
    return [Path(options.run_dir or "runs"), *([] if kept is None else [kept])]


def _kept(options: Options) -> str | Path:
    return options.checkpoint_dir or Path(options.run_dir or "runs") / "checkpoints"


def prepare(options: Options, comm: Communicator) -> Store:
    """Return the place of checkpoints, on all ranks. Rank 0 has checked that it can be written, and removed incomplete files of
    an earlier run. Collective. Raises: CheckpointError or OSError, on all ranks alike.
    """
    said = ""
    try:
        where = place(options)
    except CheckpointError as error:
        said = str(error)
    if refused := next((one for one in comm.allgather_object(said) if one), ""):
        raise CheckpointError(refused)

    def tried() -> None:
        try:
            where.probe()
            where.discard()
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {options.checkpoint_dir or options.run_dir}: {error}"
            ) from None

    comm.on_root(lambda: require_there(options))
    comm.on_root(tried)
    return where


def require_there(options: Options) -> None:
    """Raise CheckpointError if --resume names no checkpoint. Runs before any file is written."""
    if options.resume not in ("never", "auto"):
        where, name = _named(options)
        if name and (said := absent.refusal(options.resume, where, name)):
            raise CheckpointError(said)


def earlier(options: Options) -> dict[str, Any]:
    """Return the metadata of the checkpoint that the run resumes; empty if there is none. On one rank."""
    for where, name in _candidates(options):
        with contextlib.suppress(Broken):
            return format.opened(where, name).meta
    return {}


def changed(options: Options, step: int) -> str:
    """Describe the options that differ from those of the resumed checkpoint, which has this step. On one rank."""
    with contextlib.suppress(CheckpointError, OSError):
        for where, name in _candidates(options):
            if name == naming.name_of(step):
                return remarks.changed(format.opened(where, name).meta.get("options"), options)
    return ""


def compression(options: Options) -> str | None:
    """Return the choice of --compress in the checkpoint that the run resumes; None if there is none."""
    return earlier(options).get("compress")


def cut(options: Options, comm: Communicator) -> Cut:
    """Return the cut of pipeline stages in the resumed checkpoint, if it has as many stages; else None. Collective."""

    def find() -> Cut:
        meta = earlier(options) if options.mesh else {}
        same = meta.get("cut") and meta["mesh"]["pp"] == sizes(options.mesh, comm.size).pp
        return meta["cut"] if same and len(meta["cut"]) == meta["mesh"]["pp"] * (options.pipeline_chunks or 1) else None

    return comm.on_root(find)


def start(options: Options, replica: Replica, comm: Communicator, folder: Path) -> Progress:
    """Return the progress from which to begin. With a checkpoint, `replica` is filled from it. Without one, files of an earlier
    run in `folder` are moved to previous-N, so that runs do not mix. Collective.

    Of several checkpoints, the newest readable one is used. Each broken one is named in a line on rank 0's stderr.
    Raises: CheckpointError, on all ranks, if no candidate can be read, or the checkpoint belongs to another run.
    """
    progress = restored(options, replica, comm)
    if progress is None:
        comm.on_root(lambda: _refuse_or_set_aside(options, folder))
        replica.strategy.restored(replica.state)
        return Progress()
    return progress


def restored(options: Options, replica: Replica, comm: Communicator) -> Progress | None:
    """Fill `replica` from a checkpoint as in `start`; return None if there are no checkpoints. Writes nothing. Collective."""
    candidates = comm.on_root(lambda: [name for _, name in _candidates(options)])
    if not candidates:
        return None
    failures: list[str] = []
    for name in candidates:
        found, failure = _tried(name, options, replica, comm)
        if found is not None:
            return _restored(found, replica)
        failures.append(failure)
        if comm.rank == 0 and len(candidates) > 1:
            print(f"hpcai: warning: {failure}; it is skipped", file=sys.stderr, flush=True)
    if len(failures) == 1:
        raise CheckpointError(f"{failures[0]}; delete that folder to start afresh, or give another one with --resume")
    raise CheckpointError(f"all {len(failures)} checkpoints are broken; the newest: {failures[0]}; start afresh without --resume")


def _tried(name: str, options: Options, replica: Replica, comm: Communicator) -> tuple[_Found | None, str]:
    """Return this rank's data of a checkpoint if all ranks can read their data; else None and the reason. Collective."""
    opened: list[Opened] = []

    def find() -> tuple[dict[str, Any] | None, str]:
        where, _ = _named(options)
        try:
            opened.append(format.opened(where, name))
        except Broken as error:
            return None, str(error)
        _check(opened[0], options, replica)
        return opened[0].manifest, ""

    manifest, failure = comm.on_root(find)
    if manifest is None:
        return None, failure
    found = None
    try:
        source = opened[0] if opened else Opened(_named(options)[0], name, manifest)
        found = _Found(source, arrays.read(replica, source))
    except (CheckpointError, OSError) as error:
        failure = str(error)
    failure = next((one for one in comm.allgather_object(failure) if one), "")
    return (None if failure else found), failure


class _Found(NamedTuple):
    """The data that a rank has read of a checkpoint."""

    source: Opened
    read: arrays.Read


def _restored(found: _Found, replica: Replica) -> Progress:
    meta = found.source.meta
    here, counters = arrays.number(replica), meta["counters"]
    arrays.restore(replica, found.read, counters[here if here < len(counters) else 0], meta["loss_scale"])
    return Progress.of(meta["progress"])


def leave_branch(place: Store, step: int) -> None:
    """Set aside all checkpoints of steps later than `step`, after which a run continues. They are broken, or of a branch that
    the run leaves, and --resume auto would use them. On rank 0.
    """
    later = [name for name in place.names() if naming.step_of(name) > step]
    if later:
        aside = place.set_aside(later)
        some = f"{counted(len(later), 'later checkpoint')} {'was' if len(later) == 1 else 'were'}"
        said = f"the run continues after step {step:,}; {some} moved to {aside}"
        print(f"hpcai: warning: {said}", file=sys.stderr, flush=True)


def save(options: Options, replica: Replica, progress: Progress, saver: Saver) -> None:
    """Start to write a checkpoint (see Saver.save). Collective."""
    meta: dict[str, Any] = {"identity": _identity(options, replica), "progress": progress.fields()}
    meta |= {"compress": options.compress, "cut": replica.cut, "data": replica.contents, "options": remarks.recorded(options)}
    meta["loss_scale"] = next((one.counter for one in replica.kept() if one.name == "loss_scale"), None)
    if options.keep_best is not None:
        meta["keeps_best"] = True
    if replica.encoding is not None:
        meta["encoding"] = replica.encoding
    saver.save(progress.step, meta)


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder; None if there is none."""
    found = format.all_in(folder / "checkpoints")
    return found[-1] if found else None


def _candidates(options: Options) -> list[tuple[Store, str]]:
    """Return the checkpoints that --resume names, newest first: a single one, or all in a run's folder or another place."""
    if options.resume == "never":
        return []
    where, name = _named(options)
    return [(where, one) for one in ([name] if name else where.names()[::-1])]


def _named(options: Options) -> tuple[Store, str]:
    """Return the place that --resume means, and the name of the checkpoint there; an empty name means any."""
    return (place(options), "") if options.resume == "auto" else meant(options.resume)


def meant(path: str) -> tuple[Store, str]:
    """Return the place that a path or URL means, and the name of the checkpoint there; an empty name means any."""
    for one in (path.rstrip("/") + "/checkpoints", path):
        if (where := storage.place(one)).names():
            return where, ""
    return storage.located(path)


def _refuse_or_set_aside(options: Options, folder: Path) -> None:
    """Before a fresh run, move an earlier run's files aside. Raises: CheckpointError if --checkpoint-dir has checkpoints."""
    require_free(options)
    if _set_aside(folder):
        said = f"files of an earlier run in {folder} were moved to its previous-N folders; --resume auto would have continued it"
        print(f"hpcai: {said}", file=sys.stderr, flush=True)


def require_free(options: Options) -> None:
    """Raise CheckpointError if a fresh run would mix its checkpoints with those of another run."""
    if options.checkpoint_dir and place(options).names():
        raise CheckpointError(
            f"{options.checkpoint_dir} has checkpoints of an earlier run; continue that run with --resume auto, "
            "or give another --checkpoint-dir"
        )


def _set_aside(folder: Path) -> bool:
    """Move all files of an earlier run except locks; return whether there were any. A link's target stays on its file system."""
    present = [folder / name for name in WRITTEN if (folder / name).exists()]
    present = [path for path in present if not path.is_dir() or _has_files(path)]
    old = folder / naming.next_previous(path.name for path in folder.iterdir())
    for path in present:
        if path.is_dir() and path.is_symlink():
            Local(path).set_aside(Local(path).names())
            continue
        old.mkdir(exist_ok=True)
        if not path.is_dir():
            path.rename(old / path.name)
            continue
        (old / path.name).mkdir()
        for one in sorted(path.iterdir(), reverse=True):  # the newest first, as in Local.set_aside
            if one.name != lock.NAME:
                one.rename(old / path.name / one.name)
    return bool(present)


def _has_files(folder: Path) -> bool:
    """Return whether a folder has files other than a lock; for a link, whether its target has a checkpoint."""
    names = Local(folder).names() if folder.is_symlink() else [one.name for one in folder.iterdir() if one.name != lock.NAME]
    return bool(names)


def _identity(options: Options, replica: Replica) -> dict[str, Any]:
    names = (*IDENTITY, *GPT_IDENTITY) if options.model == "gpt" else IDENTITY
    values = {name: getattr(options, RENAMED.get(name, name)) for name in names}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if own_name.is_own(options.model or ""):  # its function may have moved to another module
        values["model"] = replica.whole.name
    return values | {
        "optimizer": replica.optimizer_name,
        "parameters": [[s.name, list(s.shape)] for s in arrays.whole_layout(replica.whole).slots],
    }


def _check(found: Opened, options: Options, replica: Replica) -> None:
    """Raise CheckpointError if the checkpoint is of another run: one with another model, order of samples, or data."""
    old, new = found.meta.get("identity", {}), _identity(options, replica)
    if old.get("validation") == new["validation"]:  # otherwise the message is about --validation, the cause of other data
        _check_data(found, replica)
    differing = [name for name in new if old.get(name) != new[name]]
    if differing:
        name = differing[0]
        said = "other parameters"
        if name != "parameters":
            said = f"{_as_option(name, old.get(name))}, but this run has {_as_option(name, new[name])}"
        raise CheckpointError(
            f"checkpoint {found.path} was made with {said}; give the same options, or start afresh without --resume"
        )
    for one in replica.kept():
        if one.held in ("all", "shard") and one.array is not None and found.dtypes.get(one.name) != one.array.dtype:
            raise CheckpointError(f"checkpoint {found.path} has no array {one.name} of {one.array.dtype}")


def _as_option(name: str, value: Any) -> str:
    """Return an option as it is written on the command line."""
    if value is None:
        return f"no --{name}"
    return shown(
        f"--{RENAMED.get(name, name).replace('_', '-')} {','.join(map(str, value)) if isinstance(value, list) else value}"
    ).strip("'")


def _check_data(found: Opened, replica: Replica) -> None:
    """Raise CheckpointError if the contents of the data have changed; their location may change."""
    then, now = found.meta.get("data"), replica.contents
    if not isinstance(then, dict) or now is None:
        print(f"hpcai: warning: {found.path} does not describe its data, so data are not compared", file=sys.stderr, flush=True)
    elif said := changed_data(then, now):
        raise CheckpointError(
            f"checkpoint {found.path} was made with other data: {said}; give the same data, or start afresh without --resume"
        )
