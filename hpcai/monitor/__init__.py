"""Events that a run reports while it trains, and the sinks that receive them."""

from hpcai.monitor.event import Event, Sink, functions

__all__ = ["Event", "Sink", "functions"]
