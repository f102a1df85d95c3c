"""What training comes to is what was recorded (golden.py): bit for bit on the machine of the record, to rounding elsewhere."""

import json

import pytest

from tests.train import golden

pytestmark = pytest.mark.usefixtures("clean_environment")
RECORD = json.loads(golden.RECORD.read_text())


@pytest.mark.parametrize("name", golden.CONFIGURATIONS)
def test_training_comes_to_what_was_recorded(tmp_path, name):
    found, recorded = golden.outcome(*golden.CONFIGURATIONS[name], tmp_path), RECORD["outcomes"][name]
    assert found["losses"] == pytest.approx(recorded["losses"], rel=1e-3)
    if golden.machine() == RECORD["machine"]:
        assert found == recorded


def test_all_that_is_recorded_is_compared():
    assert RECORD["outcomes"].keys() == golden.CONFIGURATIONS.keys()
