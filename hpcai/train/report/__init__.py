"""The outputs of a run, during it and at its end: metrics, progress, summary, timelines."""
