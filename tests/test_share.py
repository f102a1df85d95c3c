"""The share of cases that CI draws: as many as it says, by a seed, in their order."""

from types import SimpleNamespace

import pytest

from tests import share

NAMES = [*(f"test_many[{i}]" for i in range(9)), "test_one", "test_two[a]", "test_two[b]"]


class Item(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.fixture
def items():
    return [Item(nodeid=f"tests/test_a.py::{name}") for name in NAMES]


def names(found):
    return [item.nodeid.partition("::")[2] for item in found]


def test_all_are_kept_unless_a_share_is_asked_for(items, monkeypatch):
    monkeypatch.delenv("HPCAI_SHARE", raising=False)
    assert share.drawn(items) == items


def test_a_share_of_each_tests_cases_is_kept_one_at_least(items, monkeypatch):
    monkeypatch.setenv("HPCAI_SHARE", "3")
    kept = names(share.drawn(items))
    assert sum(name.startswith("test_many") for name in kept) == 3
    assert kept[3] == "test_one"
    assert kept[4:] in (["test_two[a]"], ["test_two[b]"])
    assert kept == [name for name in names(items) if name in kept]


def test_another_seed_draws_others_and_in_time_all(items, monkeypatch):
    monkeypatch.setenv("HPCAI_SHARE", "3")
    drawn = set()
    for seed in range(30):
        monkeypatch.setenv("HPCAI_SHARE_SEED", str(seed))
        kept = names(share.drawn(items))
        assert kept == names(share.drawn(items))
        drawn |= set(kept)
    assert drawn == set(names(items))
