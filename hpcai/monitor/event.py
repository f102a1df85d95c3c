"""Events of a run, and the protocol of those that hear them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from hpcai.errors import UsageError


class Event(NamedTuple):
    """An event of all ranks, reported on rank 0.

    Args:   kind: "step" (loss, lr, grad_norm, samples_per_s, step_ms, comm_ms, epoch), "epoch" (loss, test_loss, test_accuracy,
                epoch; of quantities test_mae, test_rmse, test_r2), "recovery" (lost, of, ranks, seconds) or "end" (the summary).
            step: the number of steps done.
            values: JSON values by name.
    """

    kind: Literal["step", "epoch", "recovery", "end"]
    step: int
    values: dict[str, Any]


class Sink(Protocol):
    """Receives the events of a run, on rank 0. If rank 0 fails, the sink of the next rank 0 is opened."""

    def open(self, about: dict[str, Any], /) -> None:
        """Called when the run begins, or goes on here.

        Args:   about: "options", the options of the run by name, and "step", the number of steps done before.
        """

    def event(self, event: Event, /) -> None:
        """Called with each event. Training waits until it returns, so a slow sink makes a slow run."""

    def close(self) -> None:
        """Called when the run has ended here, well or not."""


Heard = Callable[[dict[str, Any]], object]


def require(sinks: Any) -> None:
    """Raise UsageError for what is not a list of sinks."""
    if not isinstance(sinks, (list, tuple)):
        raise UsageError(f"sinks is {type(sinks).__name__}; wanted is a list of objects with open, event and close")
    for sink in sinks:
        if not all(callable(getattr(sink, name, None)) for name in ("open", "event", "close")) or isinstance(sink, type):
            raise UsageError(f"a sink is {type(sink).__name__}; wanted is an object with open(about), event(event) and close()")


def functions(after_step: Heard | None = None, after_epoch: Heard | None = None) -> Sink:
    """A sink that calls functions with the values of events.

    Args:   after_step, after_epoch: functions of the values of "step" and "epoch" events, a dict with the number of steps done
                under "step".
    Returns: the sink.
    """
    for name, function in (("after_step", after_step), ("after_epoch", after_epoch)):
        if function is not None and not callable(function):
            raise UsageError(f"{name} is {type(function).__name__}; wanted is a function of a dict")
    return _Functions({"step": after_step, "epoch": after_epoch})


class _Functions:
    def __init__(self, by_kind: dict[str, Heard | None]):
        self.by_kind = by_kind

    def open(self, about: dict[str, Any]) -> None:
        """Nothing to open."""

    def event(self, event: Event) -> None:
        """Call the function of this kind."""
        function = self.by_kind.get(event.kind)
        if function is not None:
            function({"step": event.step, **event.values})

    def close(self) -> None:
        """Nothing to close."""
