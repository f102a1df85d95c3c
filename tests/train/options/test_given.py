"""What options take, over all of them, whichever way they are given: what is no value is refused in one line, the rest is right."""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
import typing

import pytest

from hpcai.errors import UsageError
from hpcai.train.__main__ import main
from hpcai.train.options import given, optionsfile, parser, readers
from hpcai.train.options.options import GROUPS, RENAMED, Options
from tests.train.valid_configs import VALID

pytestmark = pytest.mark.usefixtures("clean_environment")

NAMES = [field.name for field in dataclasses.fields(Options)]
HINTS = typing.get_type_hints(Options)


def of_type(kind):
    hints = {name: HINTS[name] for name in NAMES if typing.get_origin(HINTS[name]) is not tuple}
    return [name for name, hint in hints.items() if kind in (hint, *typing.get_args(hint))]


def flag(name, value):
    return [f"--{name.replace('_', '-')}={value}"]


def refused(arguments):
    """What is said, which is one line of printable characters and not too long."""
    return refused_by(lambda: parser.parse(arguments))


def refused_value(name, value):
    return refused_by(lambda: given._read(Options, name, value, flag(name, value)[0].partition("=")[0]))


def refused_by(parse):
    with pytest.raises(UsageError) as caught:
        parse()
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 1500
    return said


NO_NUMBER = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1_000",
    "\uff11\uff12",
    "\u0663",
    "5%",
    "1,5",
    "0x10",
    "1e999",
    "9" * 400,
    "--",
    "1\n",
    "1\0",
    "1 2",
]


@pytest.mark.parametrize("name", of_type(int))
def test_whole_numbers(name):
    wanted = f"--{name.replace('_', '-')} wants a whole number from "
    for value in [*NO_NUMBER, "1.0", "1e3", "-1", "010", "+1", "1" * 5000, "true", "null", "[1]"]:
        assert wanted in refused_value(name, value)
    assert wanted in refused(flag(name, "1_000"))


@pytest.mark.parametrize("name", of_type(float))
def test_numbers(name):
    wanted = f"--{name.replace('_', '-')} wants "
    for value in [*NO_NUMBER, "-1", "-1e-300", "1" * 5000, "true", "1e", ".", "1..2"]:
        assert wanted in refused_value(name, value)
    assert wanted in refused(flag(name, "nan"))


def test_numbers_that_are_cast_fit():
    for name in ("lr", "weight_decay", "clip_norm"):
        assert "to 3e+38" in refused_value(name, "1e39")


@pytest.mark.parametrize("name", of_type(bool))
def test_flags_take_words(name, monkeypatch):
    for words, wanted in ((("", "=true", "=1", "=Yes", "=on"), True), (("=false", "=0", "=no", "=OFF"), False)):
        for word in words:
            found, _ = given.given(Options, "", [f"--{name.replace('_', '-')}{word}"], {})
            assert found == {name: wanted}
    for value in ("2", "maybe", "\uff10", "1\n"):
        assert "wants true or false" in refused_value(name, value)


TEXTS = [name for name in of_type(str) if name != "mesh"]


@pytest.mark.parametrize("name", [*TEXTS, "ignore_columns", "signals"])
def test_texts_have_one_line(name):
    for value in ("a\nb", "a\0b", "a\rb", "\x1b[2J", "a\u2028b", "a\udc80", "a" * 5000):
        assert f"--{name.replace('_', '-')} wants " in refused_value(name, value)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_have_a_letter_at_least(name):
    assert "got ''" in refused(flag(name, ""))


@pytest.mark.parametrize("name", ["hidden", "channels"])
def test_widths(name):
    for value in ("0", "-1", "1.5", "nan", "1_0", "\uff18", "8,x", "9" * 30, ",".join(["1"] * 2000), "1;2"):
        assert "wants whole numbers above 0" in refused_value(name, value)


def test_choices_are_words():
    for name in NAMES:
        if typing.Literal in (typing.get_origin(HINTS[name]), *map(typing.get_origin, typing.get_args(HINTS[name]))):
            for value in ("", "x", "f32 ", "NEVER\n", "\uff46"):
                assert "wants one of " in refused_value(name, value)


def test_every_option_has_a_reader_that_takes_its_default_and_own_values():
    for field in dataclasses.fields(Options):
        reader = given.readers_of(Options)[field.name]
        assert reader.__doc__
        assert "\n" not in reader.__doc__
        if field.default is not None:
            assert reader(field.default) == field.default


@pytest.mark.parametrize("value", [{"a": "1"}, ["x", ["y"]], [{}], b"1", 1.5j, float("nan"), float("inf"), -1, 10**400, object()])
def test_values_of_any_type_are_a_value_error_or_right(value):
    for name in NAMES:
        reader = given.readers_of(Options)[name]
        with contextlib.suppress(ValueError, TypeError):
            found = reader(value)
            assert reader(found) == found
            assert not isinstance(found, (int, float)) or math.isfinite(found)


def test_an_empty_variable_is_named(monkeypatch):
    for name in [*NAMES, "config"]:
        if name != "data":
            monkeypatch.setenv(f"HPCAI_{name.upper()}", "")
            assert f"$HPCAI_{name.upper()} is empty" in refused([])
            monkeypatch.delenv(f"HPCAI_{name.upper()}")


def test_variables_say_their_name_and_flags_turn_off(monkeypatch):
    monkeypatch.setenv("HPCAI_BATCH", "many")
    assert "$HPCAI_BATCH wants a whole number from 1, got 'many'" in refused([])
    monkeypatch.setenv("HPCAI_BATCH", "7")
    monkeypatch.setenv("HPCAI_TIED", "0")
    monkeypatch.setenv("HPCAI_PLOT", "yes")
    options = parser.parse([])
    assert (options.batch, options.tied, options.plot) == (7, False, True)
    assert parser.parse(["--plot=no"]).plot is False


def written(folder, text):
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config", str(path)]


def test_flags_win_over_variables_and_those_over_files(tmp_path, monkeypatch):
    (tmp_path / "first.yaml").write_text("lr: 0.5\nbatch: 7\nkeep: 9\nseed: 1\n")
    (tmp_path / "then.yaml").write_text("seed: 2\n")
    monkeypatch.setenv("HPCAI_BATCH", "8")
    monkeypatch.setenv("HPCAI_KEEP_CHECKPOINTS", "8")
    monkeypatch.setenv("HPCAI_CONFIG", str(tmp_path / "absent.yaml"))
    files = [f"--config={tmp_path / name}.yaml" for name in ("first", "then")]
    options = parser.parse([*files, "--keep-checkpoints", "6"])
    assert (options.lr, options.batch, options.keep_checkpoints, options.seed) == (0.5, 8, 6, 2)


@pytest.mark.parametrize("text", VALID)
def test_a_right_file_of_options_is_right(tmp_path, text):
    options = parser.parse(written(tmp_path, text))
    assert isinstance(options.lr, float)


def test_words_and_numbers_in_a_file_are_not_taken_for_others(tmp_path):
    text = "data: csv:x\nresume: no\noverlap: no\nelastic: off\nlabel: no\nignore: [1, on, 2026-01-01]\nlr: 1e-3\nsignals: none\n"
    options = parser.parse(written(tmp_path, text))
    assert (options.resume, options.overlap, options.elastic, options.label_column) == ("never", "never", "never", "no")
    assert (options.ignore_columns, options.lr, options.signals) == (("1", "on", "2026-01-01"), 1e-3, ())
    assert parser.parse(written(tmp_path, "overlap: yes\n")).overlap == "always"
    assert "batch in" in refused(written(tmp_path, "batch: 010\n"))


def test_what_is_printed_is_such_a_file(tmp_path, capsys):
    flags = ["--hidden", "8,4", "--compress", "int8", "--compress-layers", "a*=int4", "--seed", str(2**64 - 1), "--plot"]
    with pytest.raises(SystemExit):
        parser.parse([*flags, "--print_config"])
    printed = capsys.readouterr().out
    assert parser.parse(written(tmp_path, printed)) == parser.parse(flags)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)

BAD_FILES = {
    "alias bomb": (BOMB, "has more than 2,000 values"),
    "alias of itself": ("hidden: &a [*a]\n", "or its value contains it"),
    "alias of nothing": ("hidden: *a\n", "the alias *a"),
    "a million keys": ("".join(f"k{i}: 1\n" for i in range(1_000_000)), "has more than 65,536 bytes"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(5000)), "has more than 2,000 values"),
    "deep lists": ("hidden: " + "[" * 30_000 + "]" * 30_000, "is nested deeper than 5 levels"),
    "deep mappings": ("{a: " * 10_000 + "}" * 10_000, "is nested deeper than 5 levels"),
    "deep blocks": ("- " * 30_000 + "x\n", "is nested deeper than 5 levels"),
    "one long value": ("run_dir: " + "x" * 60_000, "run_dir in"),
    "a long key": ("? " + "x" * 60_000 + "\n: 1\n", "which is not an option"),
    "another file": ("config: other.yaml\n", "names another file of options"),
    "merge": ("<<: {lr: 0.1}\n", "not an option"),
    "a name twice": ("lr: 0.1\nlr: 0.2\n", "has 'lr' twice (line 2)"),
    "a name that is a list": ("[1]: 2\n", "a name that is not text (line 1)"),
    "two documents": ("lr: 1\n---\nlr: 2\n", "is not YAML in line 2"),
    "Python": ("run_dir: !!python/object/apply:os.system [touch x]\n", "has the tag"),
    "own tag": ("run_dir: !mine x\n", "has the tag"),
    "empty": ("", "is empty"),
    "comments alone": ("# lr: 1\n", "is empty"),
    "null": ("null\n", "one that starts with 'null"),
    "a list": ("- lr\n", "one that starts with '- lr"),
    "a tab": ("lr:\t1\n\tbatch: 2\n", "is not YAML in line"),
    "open quote": ("run_dir: 'x\n", "is not YAML in line"),
    "binary": (bytes(range(256)) * 10, "is not UTF-8 text"),
    "control characters": (b"run_dir: \x01\n", "is not YAML"),
    "UTF-16": ("lr: 1\n".encode("utf-16"), "is not UTF-8 text"),
    "nested options": ("train: {lr: 1}\n", "'train', which is not an option"),
    "mapping as a value": ("lr: {a: 1}\n", "lr in"),
    "a list as a text": ("run_dir: [a]\n", "run_dir in"),
    "an escape": ('"a\\u001b[2J": 1\n', "is not an option"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_of_options_is_one_line_at_once(tmp_path, case):
    text, words = BAD_FILES[case]
    arguments, begin = written(tmp_path, text), time.perf_counter()
    assert words in refused(arguments)
    assert time.perf_counter() - begin < 5


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "fifo", "/dev/zero", "/dev/null"):
        assert f"--config {path} is not a regular file" in refused(["--config", str(path)])
    for path in (tmp_path / "absent", tmp_path / "loop"):
        assert f"--config {path} cannot be read" in refused(["--config", str(path)])
    for value in ("", "a\0b", "a\nb"):
        assert "--config wants a file of options" in refused([f"--config={value}"])


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(10 << 30)
    begin = time.perf_counter()
    assert "has more than 65,536 bytes" in refused(["--config", str(tmp_path / "huge.yaml")])
    assert time.perf_counter() - begin < 1


def test_a_list_may_be_as_long_as_names_may_be_many(tmp_path):
    assert len(optionsfile.read(written(tmp_path, f"ignore: {json.dumps(['c'] * 1000)}\n")[1])["ignore"]) == 1000
    assert readers.MOST_NAMES < optionsfile.MOST_VALUES


def test_what_is_wrong_is_said_in_one_line_where_options_are_only_printed_too(capsys):
    assert main(["--print_config", "--lr", "abc"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("hpcai.train: error: --lr wants a number above 0")
    assert said.err.count("\n") == 1


MISSPELT = [
    (["--bacth", "32"], "unrecognized arguments: --bacth 32 (is --batch meant?)"),
    (["--bacth=32"], "(is --batch meant?)"),
    (["-batch", "32"], "(is --batch meant?)"),
    (["batch=32"], "(is --batch meant?)"),
    (["--data_dir", "x"], "(is --data-dir meant?)"),
    (["--LR", "1"], "(is --lr meant?)"),
    (["--confg", "x"], "(is --config meant?)"),
    (["--optimizer", "adamm"], "got 'adamm' (is adam meant?)"),
    (["--optimizer", "SGD"], "got 'SGD' (is sgd meant?)"),
    (["--model", "mpl"], "(is mlp meant?)"),
    (["--pipeline-schedule", "zbh1"], "(is zb-h1 meant?)"),
    (["--compress", "int-8"], "(is int8 meant?)"),
    (["--compress", "top-k:0.1"], "(is topk meant?)"),
]


@pytest.mark.parametrize("arguments, words", MISSPELT)
def test_what_is_nearly_an_option_or_a_choice_is_refused_with_what_is_meant(arguments, words):
    assert words in refused(arguments)


@pytest.mark.parametrize(
    "arguments",
    [["--elephant", "32"], ["x"], ["--" + "bacth" * 10_000], ["--optimizer", "9"], ["--model", "[" * 5000], ["--x=\n"]],
)
def test_what_is_far_from_all_is_refused_without_a_guess(arguments):
    assert "meant?" not in refused(arguments)


def test_misspelt_keys_of_files_and_values_of_variables_too(tmp_path, monkeypatch):
    path = tmp_path / "o.yaml"
    path.write_text("bacth: 32\n")
    assert "'bacth', which is not an option (is batch meant?)" in refused(["--config", str(path)])
    path.write_text("optimizer: adamm\n")
    assert "(is adam meant?)" in refused(["--config", str(path)])
    monkeypatch.setenv("HPCAI_LR_SCHEDULE", "cosin")
    assert "$HPCAI_LR_SCHEDULE wants one of constant, cosine, step, got 'cosin' (is cosine meant?)" in refused([])


@pytest.mark.parametrize("old", RENAMED)
def test_an_earlier_name_is_read_and_the_new_one_said(old, capsys, tmp_path, monkeypatch):
    new, flag = RENAMED[old], "--" + old.replace("_", "-")
    value = {"spares": "0", "chunks": "1", "schedule": "cosine", "pipeline": "gpipe", "reduction": "sum", "algorithm": "ring"}
    value = value.get(old, "" if old in ("label", "ignore", "categorical", "sample", "trace") else "7")
    if not value:
        pytest.skip("wants other options beside it")
    wanted = getattr(parser.parse([f"--{new.replace('_', '-')}={value}"]), new)
    assert capsys.readouterr().err == ""
    assert getattr(parser.parse([f"{flag}={value}"]), new) == wanted
    assert capsys.readouterr().err == f"hpcai.train: {flag} is called --{new.replace('_', '-')} now\n"
    (tmp_path / "options.yaml").write_text(f"{old}: {value}\n")
    assert getattr(parser.parse(["--config", str(tmp_path / "options.yaml")]), new) == wanted
    assert getattr(parser.of({old: value}), new) == wanted
    assert len(re.findall(rf"hpcai.train: {old} .*is called {new}", capsys.readouterr().err)) == 2
    if old != "algorithm":  # a variable of its own, which communicators read
        monkeypatch.setenv(f"HPCAI_{old.upper()}", value)
        assert getattr(parser.parse([]), new) == wanted
        assert f"$HPCAI_{old.upper()} is called $HPCAI_{new.upper()} now" in capsys.readouterr().err


def test_an_earlier_name_and_the_new_one_are_refused_together():
    assert "--clip is the earlier name of --clip-norm; give one of them, not both" in refused(["--clip", "1", "--clip-norm", "2"])


def test_help_has_its_options_in_groups_and_no_earlier_names(capsys):
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    out = capsys.readouterr().out
    places = [out.index(f"\n{name}:") for name in GROUPS]
    assert places == sorted(places)
    assert "--clip-norm" in out
    assert not any(f"  --{old.replace('_', '-')} " in out for old in RENAMED)
