"""Checks of a run before it waits in a queue."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hpcai.comm import membership
from hpcai.data import sharding, sources
from hpcai.data.dataset import Dataset
from hpcai.errors import HpcaiError, UsageError
from hpcai.submit import walltime
from hpcai.train import build, inputs, resume
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.report import curve

SMALL_BYTES = 256 << 20
"""Data up to this size in bytes is read as training would read it; of larger data only the existence of the files is checked."""

NAME_BYTES = 255
"""The longest name, in bytes, that file systems accept."""

TAKEN = {
    **dict.fromkeys(("--job-name", "-J"), "--name"),
    **dict.fromkeys(("--nodes", "-N"), "--nodes"),
    **dict.fromkeys(("--ntasks-per-node", "--ntasks", "-n"), "--ranks-per-node"),
    **dict.fromkeys(("--time", "-t"), "--time"),
    **dict.fromkeys(("--partition", "-p"), "--partition"),
    **dict.fromkeys(("--account", "-A"), "--account"),
    **dict.fromkeys(("--cpus-per-task", "-c"), "--cpus-per-rank"),
    **dict.fromkeys(("--array", "-a"), "--sweep"),
    "--gpus-per-task": "--gpus-per-rank",
    "--signal": "--signal-seconds",
    **dict.fromkeys(("--output", "-o", "--chdir", "-D", "--open-mode", "--requeue", "--no-requeue", "--wrap"), ""),
}
"""Options of sbatch that the script sets or depends on, each with the option of hpcai.submit that sets it; "" if none does."""

NO_RESUME = "--resume is auto for a job that may be requeued; leave --resume out, and give another --run-dir to start afresh"


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UsageError for an option of training with which a job cannot be requeued."""
    for i, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name == "--resume" and (value or next(iter(arguments[i + 1 :]), "")) != "auto":
            raise UsageError(NO_RESUME)


def check_further(options: Sequence[str]) -> None:
    """Raise UsageError for a --sbatch that is no option of sbatch, or is an option that the script sets."""
    for option in options:
        found = re.match(r"--[a-z][a-z-]*|-[A-Za-z]", option)
        if not found:
            raise UsageError(f"--sbatch wants an option of sbatch, as in --sbatch=--qos=high, got {option!r}")
        if found[0] in TAKEN:
            instead = f"give {TAKEN[found[0]]} instead" if TAKEN[found[0]] else "the script depends on it"
            raise UsageError(f"--sbatch={option!r}: {found[0]} is set by the script itself; {instead}")
        value = option.removeprefix(found[0])
        if value.startswith(" ") and (not value.strip() or value.strip().startswith("-")):
            raise UsageError(f"--sbatch wants one option each, with its value after = or a space, got {option!r}")


def check_launcher(options: Options, launcher: str) -> None:
    """Raise UsageError for a launcher that ends all ranks when one fails, if the run is elastic."""
    if options.elastic != "never" and launcher.startswith("srun"):
        raise UsageError(
            f"--elastic {options.elastic} with --launcher {launcher}: srun ends all ranks when one fails; take mpirun, or auto"
        )


def check(options: Options, ranks: int, time: str, lead_s: int) -> str:
    """Check that a run could train; returns its expected duration in words. Raises: UsageError, one line, if it could not."""
    if options.resume not in ("never", "auto"):  # from a file of options; never is also the default
        raise UsageError(NO_RESUME)
    ranks = membership.training_ranks(ranks, options.spare_ranks)
    build.check(options, ranks)
    if "USR1" not in options.signals:
        raise UsageError(f"the batch script asks training to leave by USR1; add it to --signals {','.join(options.signals)}")
    if options.plot:
        curve.require_matplotlib()
    dataset = data(options)
    for folder in [*resume.folders(options), *(Path(path).parent for path in (options.metrics_file, options.trace_file) if path)]:
        _writable(folder)
    found = walltime.measured(options, ranks)
    goes_on = found is not None and found.where == Path(str(options.run_dir))
    return walltime.check(time, lead_s, found, total_steps(options, dataset), goes_on)


def data(options: Options) -> Dataset | None:
    """The data set, or None if its files are too large to be read here. Raises: UsageError if it cannot be read."""
    where = Path(options.data_dir) if options.data_dir else None
    try:
        files = [] if own_name.is_own(options.data) else sources.files(options.data, where)
        if sum(path.stat().st_size for path in files) > SMALL_BYTES:
            return None
        return inputs.load_alone(options)
    except (HpcaiError, OSError) as error:
        raise UsageError(str(error)) from None


def total_steps(options: Options, dataset: Dataset | None) -> int | None:
    """The number of steps of a whole run; None if it depends on a data set that is not given."""
    per_epoch = sharding.steps_per_epoch(dataset.train_samples, options.batch) if dataset else None
    by_epochs = options.epochs * per_epoch if options.epochs and per_epoch else None
    return min((n for n in (options.steps, by_epochs) if n is not None), default=None)


def _writable(folder: Path) -> None:
    """Raise UsageError unless files can be written to the folder, or the nearest existing one above it. Leaves nothing behind."""
    place = folder.absolute()
    try:
        while not place.exists() and place != place.parent:
            _nameable(place.name)
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UsageError(f"nothing can be written to {folder}: {error.strerror or error} ({place})") from None


def _nameable(name: str) -> None:
    """Raise OSError for a name that is too long for any folder."""
    if len(os.fsencode(name)) > NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
