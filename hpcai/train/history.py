"""The progress of a run, and the results of its epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The number of steps done, a record for each finished epoch, and the running sums of the current epoch.

    best: the best epoch; waited: the number of epochs since then (see best.py).
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    samples: int = 0
    best: dict[str, Any] | None = None
    waited: int = 0

    def add(self, loss_sum: float, samples: int) -> None:
        """Count one step with the sum of its losses and the number of its targets."""
        self.step += 1
        self.loss_sum += loss_sum
        self.samples += samples

    def record(self, found: Mapping[str, float | None]) -> dict[str, Any]:
        """Return the epoch's record. found: figures on other data than the training data."""
        return {"step": self.step, "loss": self.loss_sum / self.samples, **found}

    def close_epoch(self, record: dict[str, Any]) -> None:
        """Keep the record of the epoch that ended, and begin the next epoch."""
        self.history.append(record)
        self.loss_sum, self.samples = 0.0, 0

    def fields(self) -> dict[str, Any]:
        """Return the progress as JSON for a manifest. JSON has no NaN or infinity, so these become text."""
        found = dataclasses.asdict(self) | {"history": [_plain(one) for one in self.history]}
        return found | {"best": None if self.best is None else _plain(self.best)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Progress:
        """Return the progress that a manifest holds."""
        history = [{k: float(v) if isinstance(v, str) else v for k, v in one.items()} for one in fields["history"]]
        best = fields.get("best")
        if best is not None and isinstance(best["value"], str):
            best = best | {"value": float(best["value"])}
        return cls(**fields | {"history": history, "best": best})


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {k: _as_json(v) for k, v in record.items()}


def _as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinity as text."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
