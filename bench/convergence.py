"""What compression does to accuracy: trainings that differ in --compress alone, with and without error feedback.

    mpirun -n 4 python -m bench.convergence --out runs/convergence.jsonl       # goes on where an earlier call stopped
    python -m bench.convergence --report runs/convergence.jsonl --plot bench/results/convergence.png

Fashion-MNIST, `cnn` and an `mlp` of three layers, three seeds. Every run is what `python -m hpcai.train` does with these options.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

CHOICES = ("none", "bf16", "fp16", "fp8", "int8", "int8sum", "int4", "powersgd:4", "sign", "topk:0.01")
MODELS = {
    "mlp": "--model mlp --hidden 256,128 --epochs 8",
    "cnn": "--model cnn --channels 8,16 --epochs 3",
}
COMMON = (
    "--data fashion-mnist --batch 256 --optimizer sgd --lr 0.2 --lr-schedule cosine --lr-warmup-steps 100 --checkpoint-steps 0"
)
SEEDS = (0, 1, 2)


def cells() -> Iterator[tuple[int, str, str, bool]]:
    """(seed, model, choice, feedback) in the order in which they are run."""
    for seed, model, choice, feedback in itertools.product(SEEDS, MODELS, CHOICES, (True, False)):
        if choice != "none" or feedback:
            yield seed, model, choice, feedback


def run(out: Path, minutes: float) -> None:
    """Run what `out` does not hold yet, until the time is over."""
    import hpcai
    from hpcai.train.loop import fit
    from hpcai.train.options.parser import parse

    comm, begin = hpcai.init(), perf_counter()
    done = comm.on_root(lambda: [key(record) for record in read(out)])
    for cell in cells():
        if list(cell) in done:
            continue
        if comm.on_root(lambda: perf_counter() - begin > 60 * minutes):
            return
        seed, model, choice, feedback = cell
        with tempfile.TemporaryDirectory() as folder:
            flags = f"{COMMON} {MODELS[model]} --seed {seed} --compress {choice} --run-dir {folder}/run".split()
            options = parse(flags + ["--no-error-feedback"] * (not feedback))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                summary = fit(options, comm)
        if comm.rank == 0:
            record = dict(zip(("seed", "model", "choice", "feedback"), cell, strict=True))
            record |= {
                name: summary[name] for name in ("epoch_losses", "epoch_test_accuracies", "test_accuracy", "wall_s", "ranks")
            }
            with out.open("a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            print(cell, summary["test_accuracy"], f"{summary['wall_s']:.1f} s", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(record: dict[str, Any]) -> list[Any]:
    """What tells a record from others."""
    return [record[name] for name in ("seed", "model", "choice", "feedback")]


def report(records: list[dict[str, Any]]) -> None:
    """Tables in Markdown: mean accuracy over the seeds, in points of per cent, and its distance to no compression."""
    for model in MODELS:
        print(f"\n`{MODELS[model]}`, {len(SEEDS)} seeds\n")
        print("| --compress | accuracy | against none | without error feedback | against none |\n|---|---|---|---|---|")
        plain = accuracy(records, model, "none", True)
        for choice in CHOICES:
            cells = []
            for feedback in (True, False):
                here = accuracy(records, model, choice, feedback)
                if here and plain:
                    mean, spread = statistics.mean(here), statistics.pstdev(here)
                    cells += [f"{mean:.2f} ± {spread:.2f}", f"{mean - statistics.mean(plain):+.2f}"]
            print(f"| {choice} | {' | '.join(cells)} |")


def accuracy(records: list[dict[str, Any]], model: str, choice: str, feedback: bool) -> list[float]:
    """Final test accuracies of the seeds, in per cent."""
    return [100 * r["test_accuracy"] for r in records if (r["model"], r["choice"], r["feedback"]) == (model, choice, feedback)]


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Mean test accuracy after each epoch, with error feedback drawn through and without it dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(1, len(MODELS), figsize=(11, 4.5), layout="constrained")
    for axes, model in zip(rows, MODELS, strict=True):
        for number, (choice, feedback) in enumerate(itertools.product(CHOICES, (True, False))):
            curves = [
                r["epoch_test_accuracies"]
                for r in records
                if (r["model"], r["choice"], r["feedback"]) == (model, choice, feedback)
            ]
            if curves:
                means = [100 * statistics.mean(values) for values in zip(*curves, strict=True)]
                style = {"color": f"C{number // 2}", "marker": "o", "markersize": 3, "linestyle": "-" if feedback else "--"}
                axes.plot(range(1, len(means) + 1), means, label=choice if feedback else None, **style)
        axes.set(title=f"Fashion-MNIST, {model}, 4 ranks", xlabel="epoch", ylabel="test accuracy, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    rows[0].legend(title="dashed: without\nerror feedback", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.convergence", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file of JSON lines, one a run")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no run after so long")
    parser.add_argument("--report", type=Path, help="print tables of such a file")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.out:
        run(arguments.out, arguments.minutes)
    if arguments.report:
        records = read(arguments.report)
        report(records)
        if arguments.plot:
            plot(records, arguments.plot)


if __name__ == "__main__":
    main()
