"""hpcai: MPI-native distributed training on arrays.

>>> import hpcai
>>> comm = hpcai.init()                       # starts MPI, or a world of one without a launcher
>>> comm.rank < comm.size
True

Importing the package starts neither MPI nor CUDA nor Numba; each name below loads its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcai.comm.background import Background as Background
    from hpcai.comm.communicator import Communicator as Communicator
    from hpcai.comm.job import init as init
    from hpcai.comm.threads import run as run_threads  # noqa: F401
    from hpcai.errors import DataError as DataError
    from hpcai.errors import HpcaiError as HpcaiError
    from hpcai.errors import NonFiniteError as NonFiniteError
    from hpcai.errors import RankMismatch as RankMismatch
    from hpcai.errors import UsageError as UsageError

__version__ = "0.1.0"

_HOME = {
    "init": "hpcai.comm.job:init",
    "run_threads": "hpcai.comm.threads:run",
    "Communicator": "hpcai.comm.communicator:Communicator",
    "Background": "hpcai.comm.background:Background",
    "HpcaiError": "hpcai.errors:HpcaiError",
    "UsageError": "hpcai.errors:UsageError",
    "DataError": "hpcai.errors:DataError",
    "RankMismatch": "hpcai.errors:RankMismatch",
    "NonFiniteError": "hpcai.errors:NonFiniteError",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hpcai' has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
