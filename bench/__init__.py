"""Benches: `python -m bench.NAME` under a launcher. Results with their commands lie in bench/results/."""
