import itertools

import numpy as np
import pytest

from hpcai import arena

SHAPES = {"a": (3, 5), "b": (), "c": (0, 4), "d": (64,), "e": (7, 2, 3)}


def test_views_share_memory_do_not_overlap_and_are_aligned():
    where = arena.layout(SHAPES)
    flat = np.zeros(where.size, np.float32)
    views = arena.views(flat, where)
    for i, (name, view) in enumerate(views.items(), start=1):
        assert view.shape == SHAPES[name]
        view[...] += i
    assert sorted(np.unique(flat).tolist()) == [0, 1, 2, 4, 5]
    assert all(slot.start % arena.ALIGN == 0 for slot in where.slots)
    assert (flat == 4).sum() == 64


@pytest.mark.parametrize("bucket_bytes", [1, 64, 100, 200, 10**9])
def test_buckets_go_from_the_end_and_cover_everything_once(bucket_bytes):
    where = arena.layout(SHAPES)
    cuts = arena.buckets(where, 4, bucket_bytes)
    assert cuts[0].stop == where.size
    assert cuts[-1].start == 0
    assert all(a.start == b.stop for a, b in itertools.pairwise(cuts))
    starts = {slot.start for slot in where.slots}
    assert all(cut.start in starts for cut in cuts)
    for cut in cuts[:-1]:
        slots = [slot for slot in where.slots if cut.start <= slot.start < cut.stop and slot.stop > slot.start]
        assert (cut.stop - cut.start) * 4 >= bucket_bytes
        assert len(slots) == 1 or (cut.stop - slots[1].start) * 4 < bucket_bytes


def test_arrays_and_gaps_cover_everything_once():
    where = arena.layout(SHAPES)
    count = np.zeros(where.size, int)
    for part in [*(slice(slot.start, slot.stop) for slot in where.slots), *arena.gaps(where)]:
        count[part] += 1
    assert (count == 1).all()


def test_elements_have_names():
    where = arena.layout({"a": (3,), "b": (2,)})
    assert [arena.named_slot(where, i) for i in (0, 2, 16, 17)] == ["a", "a", "b", "b"]
