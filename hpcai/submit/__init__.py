"""`python -m hpcai.submit`: writes a batch script for Slurm, checks it before it is queued, submits it and follows its log."""
