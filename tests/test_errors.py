import pytest

from hpcai.errors import LONGEST_LINE, DataError, one_line


@pytest.mark.parametrize(
    "given, said",
    [
        ("plain words", "plain words"),
        ("two\nlines\tand  \x1b[31mcolour\x00", "two lines and [31mcolour"),
        ("né \u2028 \ud800", "né"),
    ],
)
def test_an_error_is_one_line_that_can_be_printed(given, said):
    assert one_line(DataError(given)) == said


def test_a_long_one_keeps_its_ends():
    said = one_line(DataError(f"begin {'x' * 10**6} end"))
    assert len(said) <= LONGEST_LINE
    assert said.startswith("begin")
    assert said.endswith("end")
