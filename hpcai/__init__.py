"""hpcai: MPI-native distributed training on arrays.

>>> import hpcai
>>> comm = hpcai.init()                       # starts MPI, or a world of one without a launcher
>>> comm.rank < comm.size
True

Importing the package starts neither MPI nor CUDA nor Numba: each name below imports its module at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcai import comm as comm
    from hpcai import compress as compress
    from hpcai import data as data
    from hpcai import errors as errors
    from hpcai import monitor as monitor
    from hpcai import nn as nn
    from hpcai import optim as optim
    from hpcai import reduce as reduce
    from hpcai.comm.background import Background as Background
    from hpcai.comm.communicator import Communicator as Communicator
    from hpcai.comm.job import init as init
    from hpcai.comm.threads import run as run_threads  # noqa: F401
    from hpcai.errors import CheckpointError as CheckpointError
    from hpcai.errors import DataError as DataError
    from hpcai.errors import HpcaiError as HpcaiError
    from hpcai.errors import NonFiniteError as NonFiniteError
    from hpcai.errors import RankMismatch as RankMismatch
    from hpcai.errors import UsageError as UsageError
    from hpcai.train.trained import Saved as Saved
    from hpcai.train.trained import Trained as Trained
    from hpcai.train.trained import fit as fit
    from hpcai.train.trained import load as load

__version__ = "0.1.0"

_HOME = {
    "init": "hpcai.comm.job:init",
    "run_threads": "hpcai.comm.threads:run",
    "fit": "hpcai.train.trained:fit",
    "load": "hpcai.train.trained:load",
    "Trained": "hpcai.train.trained:Trained",
    "Saved": "hpcai.train.trained:Saved",
    "Communicator": "hpcai.comm.communicator:Communicator",
    "Background": "hpcai.comm.background:Background",
    "HpcaiError": "hpcai.errors:HpcaiError",
    "UsageError": "hpcai.errors:UsageError",
    "DataError": "hpcai.errors:DataError",
    "CheckpointError": "hpcai.errors:CheckpointError",
    "RankMismatch": "hpcai.errors:RankMismatch",
    "NonFiniteError": "hpcai.errors:NonFiniteError",
}
_ROOMS = ("comm", "compress", "data", "errors", "monitor", "nn", "optim", "reduce")
__all__ = ["__version__", *_HOME, *_ROOMS]


if not TYPE_CHECKING:  # with it type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"hpcai.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'hpcai' has no attribute {name!r}")
        module, attribute = _HOME[name].split(":")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
