"""HPCAI_ variables: refused by name where they make no sense, named where nothing reads them."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hpcai
from hpcai import environment
from hpcai.comm import select, threads
from hpcai.comm.diagnosis import stall
from hpcai.errors import UsageError
from hpcai.submit import script
from hpcai.submit.__main__ import main as submit
from hpcai.train.options import parser

PROJECT = Path(hpcai.__file__).parents[1]


@pytest.mark.parametrize(
    "name, values",
    [
        ("TIMEOUT_S", ["abc", "nan", "inf", "-1", "0", "1e300", "3s", "٣ s"]),
        ("LANES", ["x", "v5", "V3"]),
        ("NODE", ["no", "2", "-1"]),
        ("REACH", ["yes", "2"]),
        ("RANKS_PER_NODE", ["0", "-2", "x", "1.5", "²", "٣"]),
        ("ALGORITHM", ["fast", "Ring", "ring "]),
        ("LAUNCHER", ["rsh"]),
        ("KERNELS", ["1"]),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error_that_names_variable_value_and_what_is_wanted(name, values):
    for value in values:
        with pytest.raises(UsageError) as caught:
            environment.check({f"HPCAI_{name}": value})
        text = str(caught.value)
        assert f"HPCAI_{name} is {value!r}; wanted: " in text
        assert "\n" not in text


@pytest.mark.parametrize("value", ["", "0.5", "30", " 30 ", "1e6"])
def test_values_that_make_sense_or_are_empty_pass(value):
    environment.check({"HPCAI_TIMEOUT_S": value, "HPCAI_NODE": "", "HPCAI_LANES": "v3", "HPCAI_DATA": "/nowhere", "OTHER": "x"})


@pytest.mark.parametrize(
    "name, near", [("HPCAI_LANE", "HPCAI_LANES"), ("HPCAI_TIMEOUT", "HPCAI_TIMEOUT_S"), ("HPCAI_OPTIMISER", "HPCAI_OPTIMIZER")]
)
def test_a_variable_that_nothing_reads_is_named_with_the_nearest(name, near):
    assert environment.unknown({name: "1", "HPCAI_SEED": "3", "HPCAI_CONFIG": ""}) == f"nothing reads {name} ({near}?)"
    assert environment.unknown({"HPCAI_SEED": "3", "HPCAI_NODE": "0"}) == ""


def test_every_variable_that_is_read_is_declared():
    read = set()
    for folder in ("hpcai", "kernels", "tests", "slurm", "bench"):
        for path in (PROJECT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".hpp", ".sh", ".sbatch") and path.name != "test_environment.py":
                text = path.read_text()
                read |= set(re.findall(r"(?:environ[^\n]{0,12}|getenv\(|\$\{?)[\"']?HPCAI_([A-Z_]+)", text))
    options = {name.upper() for name in parser.Options.__dataclass_fields__}
    assert {"LANES", "REACH", "SITE", "CACHE"} <= read
    assert read - {"OPTION"} <= set(environment.VARIABLES) | options


def test_the_table_names_what_there_is():
    assert environment.ALGORITHMS[2:] == tuple(sorted(select.ALGORITHMS, key=environment.ALGORITHMS.index))
    assert all(environment.VARIABLES["LAUNCHER"].fine(name) for name in script.LAUNCHERS)


@pytest.mark.parametrize("value, tied", [("0", False), ("no", False), ("1", True), ("TRUE", True)])
def test_switches(value, tied, clean_environment, monkeypatch):
    monkeypatch.setenv("HPCAI_TIED", value)
    assert parser.parse(["--data", "text:x"]).tied is tied


@pytest.mark.parametrize("name", ["HPCAI_LR", "HPCAI_TIED", "HPCAI_CONFIG"])
def test_an_empty_variable_of_an_option_is_refused_by_name(name, clean_environment, monkeypatch):
    monkeypatch.setenv(name, "")
    with pytest.raises(UsageError, match=f"{name} is empty; give it a value or unset it"):
        parser.parse([])


def test_a_switch_that_is_neither_is_named(clean_environment, monkeypatch):
    monkeypatch.setenv("HPCAI_TIED", "maybe")
    with pytest.raises(UsageError, match="HPCAI_TIED wants true or false .*, got 'maybe'"):
        parser.parse([])


def test_programs_refuse_and_name_them(clean_environment, monkeypatch, capsys):
    monkeypatch.setenv("HPCAI_LANE", "v3")
    monkeypatch.setenv("HPCAI_LANES", "x")
    environment.say_unknown.cache_clear()
    assert submit(["--dry-run"]) == 2
    assert capsys.readouterr().err == "hpcai.submit: error: HPCAI_LANES is 'x'; wanted: v3 or none\n"
    for program in ("hpcai.train", "hpcai.doctor"):
        done = subprocess.run([sys.executable, "-m", program], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == f"{program}: error: HPCAI_LANES is 'x'; wanted: v3 or none\n"
    monkeypatch.delenv("HPCAI_LANES")
    submit(["--dry-run"])
    assert "hpcai.submit: nothing reads HPCAI_LANE (HPCAI_LANES?)\n" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1, 0, 1e300, "3", True, None, [3]])
def test_a_time_limit_that_is_none_is_refused(seconds, monkeypatch):
    monkeypatch.setattr(stall.waits, "limit_s", None)
    with pytest.raises(UsageError, match="set_timeout wants a number of seconds above 0"):
        stall.set_timeout(seconds)
    assert stall.timeout_s() == stall.TIMEOUT_S


def test_time_limits_of_any_kind_of_number_pass(monkeypatch):
    monkeypatch.setattr(stall.waits, "limit_s", None)
    for seconds in (1, 0.5, np.float32(2), np.int64(3)):
        threads.run(1, lambda comm, limit=seconds: comm.set_timeout(limit))
        assert stall.timeout_s() == seconds


def test_the_variable_is_checked_where_it_is_read(monkeypatch):
    monkeypatch.setattr(stall.waits, "limit_s", None)
    monkeypatch.setenv("HPCAI_TIMEOUT_S", "abc")
    with pytest.raises(UsageError, match="HPCAI_TIMEOUT_S is 'abc'"):
        threads.run(2, lambda comm: comm.rank)
