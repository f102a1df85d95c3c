"""`python -m hpcai.submit`: write a batch script into the run's folder, submit it, and follow its log.

    python -m hpcai.submit --nodes 2 --ranks-per-node 4 --time 1:00:00 -- --data fashion-mnist --model cnn --epochs 50
    python -m hpcai.submit --sweep lr=0.1,0.01 --sweep seed=0,1,2 -- --optimizer sgd    # an array of six runs

After -- come the options of hpcai.train. Options with which the run would fail are rejected before the job is queued. The job
goes on from its newest checkpoint, and asks for another allocation when its time is up, it is pre-empted, or a node fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import hpcai
from hpcai import environment
from hpcai.errors import HpcaiError, UsageError, counted, one_line
from hpcai.submit import checks, quoting, script, slurm, sweep
from hpcai.submit.walltime import seconds
from hpcai.train.options.arguments import Parser, whole_number
from hpcai.train.options.options import Options
from hpcai.train.options.parser import asks_only, parse

MANY = 1_000_000
"""The upper limit of the numbers of nodes, of ranks on a node, and of restarts."""

LONGEST_LEAD_S = 65_535
"""The largest number of seconds before the end that Slurm accepts for a signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with these arguments (default: the command line's); returns the exit code, with --follow the job's."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    try:
        chosen, training = _parser().parse_args(given[:cut]), given[cut + 1 :]
        if asks_only(training):
            parse(training)
            return 0
        return _submit(chosen, training)
    except (HpcaiError, OSError) as error:
        _say(f"error: {one_line(error)}")
        return getattr(error, "exit_code", 1)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("hpcai.submit", __doc__)
    count = whole_number(1, MANY)
    parser.add_argument("--nodes", type=count, default=1, help="nodes (1)")
    parser.add_argument("--ranks-per-node", type=count, default=1, help="ranks on each node (1)")
    parser.add_argument("--time", default="1:00:00", help="walltime of one allocation, as sbatch takes it (1:00:00)")
    parser.add_argument("--partition", help="partition")
    parser.add_argument("--account", help="account")
    parser.add_argument("--cpus-per-rank", type=count, help="cores for each rank")
    parser.add_argument("--gpus-per-rank", type=count, help="GPUs for each rank")
    parser.add_argument("--launcher", choices=script.LAUNCHERS, default="auto", help="how ranks are started (auto)")
    lead = whole_number(1, LONGEST_LEAD_S)
    parser.add_argument("--signal-seconds", type=lead, default=120, help="seconds before the end to write a checkpoint (120)")
    parser.add_argument("--max-restarts", type=whole_number(0, MANY), default=100, help="requeue no more often than this (100)")
    parser.add_argument("--sweep", action="append", default=[], metavar="OPTION=V,V,...", help="an array job; may be repeated")
    parser.add_argument("--name", help="the job's name (that of the run's folder)")
    parser.add_argument("--site", type=Path, help="the site's settings (slurm/site.sh here, else beside the package)")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="=--OPTION", help="a further option of sbatch; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    parser.add_argument("--follow", action="store_true", help="print the log until the job ends, and end with its exit code")
    return parser


def _submit(chosen: argparse.Namespace, training: list[str]) -> int:
    environment.check()
    environment.say_unknown("hpcai.submit")
    seconds(chosen.time)
    checks.check_further(chosen.sbatch)
    checks.check_flags(training)
    if not chosen.dry_run:
        slurm.require()
    runs = sweep.runs(training, chosen.sweep)
    whole = parse(training)
    checks.check_launcher(whole, chosen.launcher)
    ranks = chosen.nodes * chosen.ranks_per_node
    expected = [checks.check(options, ranks, chosen.time, chosen.signal_seconds) for _, options in runs]
    folder = Path(str(whole.run_dir)).absolute()
    text = script.train(_job(chosen, training, whole, [flags for flags, _ in runs if flags]))
    if chosen.dry_run:
        _print(text)
        return 0
    slurm.trial(text)
    job = slurm.submit(_written(folder / "train.sbatch", text))
    for said in dict.fromkeys(expected):
        _say(said)
    logs = [folder / f"slurm-{job}_{i}.log" for i in range(len(runs))] if chosen.sweep else [folder / f"slurm-{job}.log"]
    many = f" ({counted(len(runs), 'task')})" if chosen.sweep else ""
    print(f"job {job}{many}, log {logs[0] if len(logs) == 1 else folder / f'slurm-{job}_*.log'}", flush=True)
    if not chosen.follow:
        return 0
    try:
        return slurm.follow(job, logs)
    except KeyboardInterrupt:
        _say(f"no longer following; job {job} goes on (scancel {job} ends it)")
        return 130


def _print(script: str) -> None:
    """Print the script on stdout, in UTF-8 as in the file if the terminal's encoding lacks a character."""
    try:
        sys.stdout.write(script)
    except UnicodeEncodeError:
        sys.stdout.buffer.write(script.encode())


def _say(text: str) -> None:
    """Print one line on stderr."""
    print(f"hpcai.submit: {text}", file=sys.stderr, flush=True)


def _job(chosen: argparse.Namespace, training: list[str], whole: Options, tasks: list[list[str]]) -> script.Job:
    """The settings of the script. Paths are absolute, except in options of training, so that any folder can submit it again."""
    folder = Path(str(whole.run_dir)).absolute()
    return script.Job(
        name=os.path.basename(os.path.abspath(folder)) or "hpcai" if chosen.name is None else chosen.name,
        nodes=chosen.nodes,
        ranks_per_node=chosen.ranks_per_node,
        time=chosen.time,
        partition=chosen.partition,
        account=chosen.account,
        cpus_per_rank=chosen.cpus_per_rank,
        gpus_per_rank=chosen.gpus_per_rank,
        signal_seconds=chosen.signal_seconds,
        max_restarts=chosen.max_restarts,
        launcher=chosen.launcher,
        elastic=whole.elastic,
        log=quoting.log_pattern(str(folder), "slurm-%A_%a.log" if tasks else "slurm-%j.log"),
        python=sys.executable,
        site=_site(chosen.site),
        arguments=training,
        tasks=tasks,
        more=chosen.sbatch,
    )


def _site(given: Path | None) -> str:
    """The file of the site's settings: the given one, else the first that exists, else slurm/site.sh here.

    Raises: UsageError if the given one is no file.
    """
    if given is not None and not given.is_file():
        raise UsageError(f"--site {str(given)!r} is not a file")
    beside, installed = Path(hpcai.__file__).parents[1], Path(sysconfig.get_path("data"), "share", "hpcai")
    near = [folder / "slurm" / "site.sh" for folder in (Path(), beside, installed)]
    found = given or next((path for path in near if path.is_file()), near[0])
    return str(found.absolute())


def _written(path: Path, text: str) -> Path:
    """Write the script to a temporary file beside `path`, rename it to `path`, and return that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with beside.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            beside.replace(path)
        except BaseException:
            beside.unlink()
            raise
    return path


if __name__ == "__main__":
    sys.exit(main())
