"""How far a run has come, and what its epochs came to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass
class Progress:
    """Steps done, a record for each finished epoch, and the running sums of the current one."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    samples: int = 0

    def add(self, loss_sum: float, samples: int) -> None:
        """Count one step."""
        self.step += 1
        self.loss_sum += loss_sum
        self.samples += samples

    def close_epoch(
        self, test_loss: float, test_accuracy: float | None, more: Mapping[str, float | None] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Turn the running sums into an epoch's record, with what else was found."""
        record = {
            "step": self.step,
            "loss": self.loss_sum / self.samples,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **more,
        }
        self.history.append(record)
        self.loss_sum, self.samples = 0.0, 0
        return record

    def fields(self) -> dict[str, Any]:
        """For a manifest: JSON, which has no number that is not finite."""
        return dataclasses.asdict(self) | {"history": [{k: _as_json(v) for k, v in one.items()} for one in self.history]}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Progress:
        """From a manifest."""
        history = [{k: float(v) if isinstance(v, str) else v for k, v in one.items()} for one in fields["history"]]
        return cls(**fields | {"history": history})


def _as_json(value: Any) -> Any:
    """A number that is not finite as text."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
