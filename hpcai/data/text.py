"""Text as bytes: the last tenth of a file is for testing, and a sample is a window of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcai.data import opening
from hpcai.data.dataset import Dataset
from hpcai.errors import DataError, counted


def load(path: Path, context: int) -> Dataset:
    """Return the bytes of a file, decompressed, as a data set. Any encoding without null bytes will do.

    Raises: DataError for a file that is not text, or that is too short for a window in each part.
    """
    raw = opening.read(path)
    kind = opening.kind_of(raw[:16])
    if kind or (null := raw.find(0)) >= 0:
        said = (
            f"is {kind}, not plain text" if kind else f"is not plain text: byte {null:,} is null, as in binary files and UTF-16"
        )
        raise DataError(f"{path} {said}; give its text as UTF-8 (iconv -f UTF-16 -t UTF-8, pdftotext)")
    content = np.frombuffer(raw, np.uint8)
    cut = len(content) - len(content) // 10
    train, test = content[:cut], content[cut:]
    if len(test) < context + 1 or len(train) < 2 * context:
        raise DataError(
            f"text {path} has {counted(len(content), 'byte')}, {len(test):,} of them for testing; --context {context} wants "
            f"{max(10 * (context + 1), 3 * context):,} at least: take a longer text or a smaller --context"
        )
    none = np.zeros(0, np.int64)
    return Dataset(path.stem, train, none, test, none, shape=(context,), classes=256, context=context)
