"""Training: options, the step, the loop around the step, checkpoints and reports. Start it with `python -m hpcai.train`."""
