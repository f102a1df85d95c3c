"""Text as bytes: the last tenth of a file is for testing, and a sample is a window of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcai.data.dataset import Dataset
from hpcai.errors import DataError


def load(path: Path, context: int) -> Dataset:
    """The bytes of a file. Raises: DataError where either part is shorter than a window."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    cut = len(content) - len(content) // 10
    train, test = content[:cut], content[cut:]
    if len(test) < context + 1 or len(train) < 2 * context:
        raise DataError(
            f"text {path} has {len(content):,} bytes, {len(test):,} of them for testing; --context {context} wants "
            f"{max(10 * (context + 1), 3 * context):,} at least: take a longer text or a smaller --context"
        )
    none = np.zeros(0, np.int64)
    return Dataset(path.stem, train, none, test, none, shape=(context,), classes=256, context=context)
