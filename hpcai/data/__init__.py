"""Data: the sources of samples, and which samples each rank sees at each step."""

from hpcai.data.dataset import Dataset
from hpcai.data.given import from_arrays, from_samples
from hpcai.data.samples import Samples

__all__ = ["Dataset", "Samples", "from_arrays", "from_samples"]
