import numpy as np
import pytest

from hpcai.comm.wires import ordinals


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", ["max", "min"])
def test_the_order_of_floats_is_kept_and_a_NaN_wins(dtype, op):
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    x = np.array([-np.inf, -huge, -1, -tiny, -0.0, 0.0, tiny, 1, huge, np.inf], dtype)
    order = ordinals.of_floats(x, op)
    assert (np.diff(order) > 0).all()
    assert ordinals.floats_into(np.empty_like(x), order).tobytes() == x.tobytes()
    for sign in (np.nan, -np.nan):
        mixed = np.append(x, dtype(sign))
        order = ordinals.of_floats(mixed, op)
        assert (order.argmax() if op == "max" else order.argmin()) == len(x)
        back = ordinals.floats_into(np.empty_like(mixed), order)
        assert np.isnan(back[-1])
        assert not np.isnan(back[:-1]).any()
