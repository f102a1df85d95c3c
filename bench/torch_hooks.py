"""torch's ways to reduce a gradient over Gloo, as a training with DistributedDataParallel has them, for benches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Bucket:
    """What torch's communication hooks ask of a bucket of gradients: here one flat tensor with the matrices in it."""

    def __init__(self, flat: Any, side: int):
        self.flat, self.side = flat, side

    def buffer(self) -> Any:
        """All of it."""
        return self.flat

    def gradients(self) -> Sequence[Any]:
        """The matrices, as views."""
        area = self.side * self.side
        return [self.flat[at : at + area].view(self.side, self.side) for at in range(0, len(self.flat) - area + 1, area)]

    def index(self) -> int:
        """The first bucket of all."""
        return 0

    def is_last(self) -> bool:
        """And the last."""
        return True


def calls(torch: Any, gradient: np.ndarray, side: int, approximation_rank: int) -> dict[str, Callable[[], Any]]:
    """Name -> a call that reduces a copy of `gradient` once more: plain, by the fp16 hook, by the PowerSGD hook."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    def bucket() -> Bucket:
        return Bucket(torch.from_numpy(gradient.copy()), side)

    plain, halves, low = bucket(), bucket(), bucket()
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=approximation_rank, start_powerSGD_iter=2)
    return {
        "torch Gloo, f32": lambda: torch.distributed.all_reduce(plain.flat),
        "torch Gloo, fp16 hook": lambda: default_hooks.fp16_compress_hook(None, halves).wait(),
        f"torch Gloo, PowerSGD-{approximation_rank} hook": lambda: powerSGD_hook.powerSGD_hook(state, low).wait(),
    }
