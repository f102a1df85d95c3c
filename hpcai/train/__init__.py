"""Training: options, the step, the loop around it, checkpoints and reports. `python -m hpcai.train` is its door."""
