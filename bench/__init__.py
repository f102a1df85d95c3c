"""Benches: `python -m bench.NAME` under a launcher. Results with their commands lie in bench/results/.

OpenBLAS takes the processor's own kernel in all of them: a variable that names another one is dropped before numpy is loaded.
"""

import os

PINNED = os.environ.pop("OPENBLAS_CORETYPE", None)
"""The kernel that the environment asked for, which the benches say; None if it asked for none."""
