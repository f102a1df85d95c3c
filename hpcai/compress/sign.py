"""One bit per element: its sign. The scale is the mean magnitude of each block of 256 elements.

Sources: Seide et al., Interspeech 2014, doi:10.21437/Interspeech.2014-274; Karimireddy et al., arXiv:1901.09847, who show that it
needs error feedback to converge.
"""

from __future__ import annotations

from hpcai.compress.blockwise import blockwise
from hpcai.compress.codec import Codec


def sign() -> Codec:
    """Signs, scaled by a block's mean magnitude. Payload: n/8 bytes and 4 bytes a block.

    A block with a value that is not finite decodes to NaN.
    """
    return blockwise("sign", stochastic=False, seed=0)
