"""What a run says while it goes on: events, and who hears them."""

from hpcai.monitor.event import Event, Sink, functions

__all__ = ["Event", "Sink", "functions"]
