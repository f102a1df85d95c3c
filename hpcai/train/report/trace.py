"""The timeline of a step: when each rank worked on which micro-batch. It becomes a file in Chrome's trace format, a picture, and
the fraction of idle time.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from hpcai.parallel import schedules
from hpcai.parallel.schedules import Work
from hpcai.train import strict
from hpcai.train.options.options import Options
from hpcai.train.replica import Replica

COLORS = {"F": "tab:blue", "B": "tab:green", "I": "tab:cyan", "W": "tab:olive"}
NAMES = {"F": "forward", "B": "backward", "I": "backward, input", "W": "backward, weights"}


def gather(replica: Replica) -> list[list[Work]]:
    """Return the work of all ranks of the world in the last step, in seconds since the first start. Collective.

    A barrier aligns the clocks of different nodes.
    """
    replica.mesh.world.barrier()
    now = perf_counter()
    found = replica.mesh.world.allgather_object(
        [(*work.action, work.start - now, work.end - now) for work in replica.pipeline.timeline]
    )
    begin = min((work[3] for works in found for work in works), default=0.0)
    return [[Work(schedules.Action(*work[:3]), work[3] - begin, work[4] - begin) for work in works] for works in found]


def write(path: Path, timelines: list[list[Work]], replica: Replica) -> None:
    """Write a file in Chrome's trace format, for chrome://tracing or Perfetto. Each pair of data- and tensor-parallel rank is
    shown as a process, and each pipeline rank as a thread.
    """
    events: list[dict[str, Any]] = []
    for rank, works in enumerate(timelines):
        (dp, tp), stage = _place(replica, rank)
        for work in works:
            events.append(
                {
                    "name": f"{work.action.kind}{work.action.micro}",
                    "cat": NAMES[work.action.kind],
                    "ph": "X",
                    "ts": round(1e6 * work.start, 1),
                    "dur": round(1e6 * (work.end - work.start), 1),
                    "pid": dp * replica.mesh.tp.size + tp,
                    "tid": stage,
                    "args": {"rank": rank, "micro_batch": work.action.micro, "chunk": work.action.chunk},
                }
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(strict.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n", encoding="utf-8")


def picture(path: Path, timelines: list[list[Work]], title: str) -> None:
    """Write a picture with bars for each rank. A bar has its micro-batch's number if there is room."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(figsize=(12, 0.6 + 0.45 * len(timelines)), layout="constrained")
    draw(axes, timelines, max(work.end for works in timelines for work in works))
    kinds = sorted({work.action.kind for works in timelines for work in works})
    figure.legend(
        [Patch(color=COLORS[kind]) for kind in kinds], [NAMES[kind] for kind in kinds], loc="outside right upper", fontsize=8
    )
    axes.set(xlabel="ms", ylabel="rank", yticks=range(len(timelines)), title=title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw(axes: Any, timelines: list[list[Work]], end: float) -> None:
    """Draw the bars of one picture, which ends at `end` seconds."""
    for rank, works in enumerate(timelines):
        for work in works:
            axes.barh(
                rank,
                1e3 * (work.end - work.start),
                left=1e3 * work.start,
                color=COLORS[work.action.kind],
                alpha=0.95 if work.action.chunk % 2 == 0 else 0.6,
                edgecolor="white",
                linewidth=0.5,
            )
            if work.end - work.start > 0.015 * end:
                middle = 500 * (work.start + work.end)
                axes.text(middle, rank, str(work.action.micro), ha="center", va="center", color="white", fontsize=7)
    axes.invert_yaxis()


def bubbles(options: Options, replica: Replica, timelines: list[list[Work]]) -> tuple[float, float]:
    """Return the measured fraction of idle time in rank 0's pipeline, and the theoretical one for stages with this mean time."""
    here = [works for rank, works in enumerate(timelines) if _place(replica, rank)[0] == (0, 0)]
    mean = {}
    for kind in "FBIW":
        times = [work.end - work.start for works in here for work in works if work.action.kind == kind]
        mean[kind] = fmean(times) if times else 0.0
    seconds = {"F": mean["F"], "I": mean["I"] + mean["B"] / 2, "W": mean["W"] + mean["B"] / 2}
    theory = schedules.bubble_in_theory(
        options.pipeline_schedule, replica.mesh.pp.size, replica.micro_batches, seconds, replica.chunks
    )
    return schedules.bubble(here), theory


def _place(replica: Replica, rank: int) -> tuple[tuple[int, int], int]:
    """Return ((dp rank, tp rank), pp rank) of a rank of the world."""
    at, tp = divmod(rank, replica.mesh.tp.size)
    pp, dp = divmod(at, replica.mesh.dp.size)
    return (dp, tp), pp
