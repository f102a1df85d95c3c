"""`python -m hpcai.submit`: a batch script for Slurm, checked before it is queued, submitted and followed."""
