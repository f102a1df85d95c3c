"""A share of the cases of tests that have many, drawn by a seed: what CI runs under a second MPI, in minutes.

HPCAI_SHARE=4 keeps a quarter of each test's cases, `FEW` at least; HPCAI_SHARE_SEED says which quarter (CI takes the commit's number, so
that all have their turn).
"""

from __future__ import annotations

import math
import os
import zlib
from collections import defaultdict

FEW = 1


def drawn(items):
    """Those of the collected tests that are to run, in their order; all of them unless HPCAI_SHARE is set."""
    share, seed = int(os.environ.get("HPCAI_SHARE", "1")), os.environ.get("HPCAI_SHARE_SEED", "0")
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for same in cases.values():
        count = max(FEW, math.ceil(len(same) / share))
        kept.update(sorted(same, key=lambda item: zlib.crc32(f"{seed} {item.nodeid}".encode()))[:count])
    return [item for item in items if item in kept]
