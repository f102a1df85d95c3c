"""The outputs of a run while it goes on and at its end: metrics, progress, summary, timelines."""
