"""What the tests of --elastic compare with."""

import pytest

from tests.train.elastic.runs import FLAGS, parameters
from tests.train.test_loop import options, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The parameters of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(4, options(folder, *FLAGS))
    return parameters(folder / "run")
