"""A run's summary: the file summary.json, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.errors import counted
from hpcai.reduce import states
from hpcai.reduce.counting import Sent, sent_bytes
from hpcai.strategies.compressed import Compressed
from hpcai.strategies.strategy import part
from hpcai.train import strict
from hpcai.train.replica import Replica
from hpcai.train.report import stragglers
from hpcai.train.report.figures import amount

SHOWN_BUCKETS = 8


def write(path: Path, summary: dict[str, Any]) -> None:
    """Write summary.json: first to a file beside it, which is then renamed."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(strict.dumps(summary, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read an earlier summary.json; empty if it does not exist or cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def table(summary: dict[str, Any], written: list[Path], target: str = "") -> str:
    """Return the final table, for stdout. target: the name of the predicted quantity, or ""."""
    unit = "bytes" if "bits_per_byte" in summary else "samples"
    rows = [
        ("ranks", f"{summary['ranks']}{_axes(summary['mesh'])} ({summary['mpi']})"),
        ("parameters", f"{summary['parameters']:,}"),
        ("steps", f"{summary['steps']:,}"),
        ("training loss", _shown(summary["epoch_losses"][-1]) if summary["epoch_losses"] else "-"),
        ("test loss", f"{_shown(summary['test_loss'])}{_bits(summary)}"),
    ]
    rows += _of_quality(summary, target)
    rows += [
        ("throughput", f"{summary['samples_per_s']:,.0f} {unit}/s"),
        ("step", f"{summary['step_ms']:.2f} ms, of which communication {summary['comm_ms']:.2f} ms"),
        ("wall time", f"{summary['wall_s']:.1f} s"),
    ]
    if "recoveries" in summary:
        worst = max(one["seconds"] for one in summary["recoveries"])
        lost = sum(len(one["lost"]) for one in summary["recoveries"])
        rows.append(("failures", f"{counted(lost, 'rank')} failed; the others continued after {worst:.2f} s at most"))
    rows += stragglers.row(summary)
    if "bubble" in summary:
        rows.append(("pipeline", f"{summary['bubble']:.1%} idle in the last step, {summary['bubble_in_theory']:.1%} in theory"))
    if any(count > 1 for count in summary["mesh"].values()) and (summary["options"]["zero"] or not _only_dp(summary["mesh"])):
        kept = {name: size for name, size in summary["memory"].items() if size}
        rows.append(("memory of a rank", ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in kept.items())))
    rows += _of_compression(summary)
    rows += [("written" if i == 0 else "", str(path)) for i, path in enumerate(written)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _of_quality(summary: dict[str, Any], target: str) -> list[tuple[str, str]]:
    """Return rows for test figures that only some tasks have, for the best epoch, and for an early end."""
    rows = list[tuple[str, str]]()
    if summary.get("test_r2") is not None:
        rows.append(("test R2", f"{_shown(summary['test_r2'])}   (a constant predictor: 0)"))
    if "test_rmse" in summary:
        mae, rmse = (amount(summary[key]) for key in ("test_mae", "test_rmse"))
        rows.append(("test error", f"mean absolute {mae}, root mean square {rmse}   (in the unit of {target or 'the target'})"))
    if summary["test_accuracy"] is not None:
        constant = summary["constant_score"]
        beside = "" if constant is None else f"   (a constant predictor: {constant:.4f})"
        rows.append(("test accuracy", f"{summary['test_accuracy']:.4f}{beside}"))
    if (best := summary.get("best")) is not None:
        rows.append(("best epoch", f"{best['metric'].replace('_', ' ')} {best['value']:.4f}, after step {best['step']:,}"))
    if "stopped_early" in summary:
        rows.append(("early end", summary["stopped_early"]))
    return rows


def _of_compression(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows about the bytes that compression saved, in all and by bucket."""
    if (said := summary.get("compression")) is None:
        return []
    rows = [("compression", f"{said['name']}: {_compressed(said)}")]
    shown = said["buckets"][:SHOWN_BUCKETS] if len(said["buckets"]) > 1 else []
    rows += [
        ("" if i else "  by bucket", f"{counted(one['elements'], 'element')}: {_compressed(one)}") for i, one in enumerate(shown)
    ]
    if len(shown) < len(said["buckets"]) and shown:
        rows.append(("", f"and {len(said['buckets']) - len(shown)} more (in summary.json)"))
    return rows


def _shown(value: float | None, form: str = ".4f") -> str:
    return "not finite" if value is None else f"{value:{form}}"


def _bits(summary: dict[str, Any]) -> str:
    return f"   ({_shown(summary['bits_per_byte'])} bits per byte)" if "bits_per_byte" in summary else ""


def _axes(mesh: dict[str, int]) -> str:
    """Describe a mesh in words; empty for data parallelism alone."""
    return "" if _only_dp(mesh) else f" ({', '.join(f'{axis}={count}' for axis, count in mesh.items())})"


def _only_dp(mesh: dict[str, int]) -> bool:
    return mesh["tp"] == mesh["pp"] == 1


def compression(replica: Replica, comm: Communicator) -> dict[str, Any]:
    """Return the bytes of the last step and the mean coding time of compression, in all and for each bucket. Collective.

    error: on this rank, the norm of its residual over the norm of the mean gradient; None without a memory.
    """
    buckets, ranks = [], comm.size
    reduced = part(replica.state, Compressed)
    assert reduced is not None
    for where, tally, state in zip(reduced.buckets, reduced.tallies, reduced.states, strict=True):
        sent = sum(sent_bytes(call, ranks) for call in tally.calls)
        plain = sent_bytes(Sent("allreduce", 4 * (where.stop - where.start)), ranks)
        owed, norm = states.norm(state, comm), float(np.linalg.norm(replica.buffers.grads[where]))
        buckets.append(
            {
                "elements": where.stop - where.start,
                "sent_bytes": sent,
                "plain_bytes": plain,
                "coding_ms": 1e3 * tally.coding_s / max(1, tally.count),
                "error": None if owed is None or not norm else owed / norm,
            }
        )
    names = dict.fromkeys(reducer.name for reducer in reduced.reducers)
    total = {key: sum(one[key] for one in buckets) for key in ("elements", "sent_bytes", "plain_bytes", "coding_ms")}
    return {"name": " and ".join(names), **total, "buckets": buckets}


def _compressed(said: dict[str, Any]) -> str:
    """Describe the bytes sent with compression and without, the coding time, and the memory."""
    ratio = f" ({said['plain_bytes'] / said['sent_bytes']:.1f}x)" if said["sent_bytes"] else ""
    text = f"a rank sends {said['sent_bytes']:,.0f} bytes a step instead of {said['plain_bytes']:,.0f}{ratio}, "
    owed = f", memory {said['error']:.0%} of the mean" if said.get("error") is not None else ""
    return f"{text}coding {said['coding_ms']:.2f} ms{owed}"
