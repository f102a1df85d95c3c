import re
from pathlib import Path

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


NOUNS = (
    "ranks|rows|steps|samples|epochs|files|columns|checkpoints|processes|nodes|features|elements|cells|layers|stages|runs|tasks|"
    "shards|folders|groups|buckets|items"
)


def test_a_count_that_may_be_one_is_written_by_the_function_that_knows_the_singular():
    """`{n} ranks` in a message is "1 ranks" some day. Names in capitals are constants, and what is known to be more is listed."""
    known = {
        "sweep.py: {count:,} runs",  # more than MOST
        "stages.py: {count} pipeline stages",
        "fits.py: {count} ranks",
        "checks.py: {dp} ranks",  # a batch without a sample for each is refused from 2 on
        "columns.py: {cells.rows:,} rows",
        "absent.py: {len(names)} checkpoints",
        "job.py: {said.size} ranks",
        "resume.py: {len(failures)} checkpoints",
        "opening.py: {len(members)} files",
        "columns.py: {width:,} features",
        "select.py: {shape.ranks} ranks",  # a key of files
        "select.py: {shape.nodes} nodes",
        "job.py: {said.size} processes",
    }
    found = set()
    for path in sorted((Path(__file__).parent.parent / "hpcai").rglob("*.py")):
        for match in re.finditer(rf"\{{([^{{}}]+)\}} ([a-z]+[ -])?({NOUNS})\b", path.read_text()):
            what = match[1].partition(":")[0]
            if not what.isupper() and not what.startswith("counted(") and match[2] not in ("has ", "counts "):
                found.add(f"{path.name}: {match[0]}")
    assert found == known
