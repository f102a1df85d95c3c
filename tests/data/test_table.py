import csv as csv_module
import gzip
import io
import json
import zipfile
from decimal import Decimal

import numpy as np
import pytest

from hpcai.data import cells, columns, csv_text, dataset, memory, opening, sources, table
from hpcai.data.targets import MOST_CLASSES
from hpcai.errors import DataError

ROWS = 40
BIG = 2**60


def csv(names, row, rows=ROWS, end="\n"):
    """A table of these names, whose row i is row(i)."""
    return end.join([names, *(row(i) for i in range(rows)), ""])


def ordinary(i):
    return f"{i},{(i * 7) % 5}.5,{int(i % 4 == 0)}"


TABLE = csv("a,b,kind", ordinary)


@pytest.fixture
def load(tmp_path):
    """Load a content as the table t.csv."""

    def loaded(content, label="y", ignore=(), categorical=(), task=None, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return table.load(path, label, ignore, categorical, task)

    return loaded


def wanted_split(rows=ROWS):
    return dataset.hold_out(rows)


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr(f"__MACOSX/._{name}", b"\0\5\x16\7")
    return file.getvalue()


FORMS = {
    "plain": TABLE.encode(),
    "gz": gzip.compress(TABLE.encode()),
    "a Mac's zip": zipped("t.csv", TABLE),
    "byte order mark": b"\xef\xbb\xbf" + TABLE.encode(),
    "UTF-16": TABLE.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + TABLE.encode("utf-16-be"),
    "UTF-16 in gz": gzip.compress(TABLE.encode("utf-16")),
    "UTF-32": TABLE.encode("utf-32"),
    "semicolons": TABLE.replace(",", ";").encode(),
    "tabs": TABLE.replace(",", "\t").encode(),
    "bars": TABLE.replace(",", "|").encode(),
    "Excel's first line": b"sep=;\n" + TABLE.replace(",", ";").encode(),
    "Windows": TABLE.replace("\n", "\r\n").encode(),
    "an old Mac": TABLE.replace("\n", "\r").encode(),
    "no last end": TABLE[:-1].encode(),
    "empty lines": b"\n\n" + TABLE.replace("\n", "\n\n").encode(),
    "spaces": TABLE.replace(",", " , ").encode(),
    "quotes": csv('"a","b","kind"', lambda i: ",".join(f'"{cell}"' for cell in ordinary(i).split(","))).encode(),
    "some quotes": csv("a,b,kind", lambda i: ordinary(i) if i % 3 else f'"{i}",{ordinary(i).split(",", 1)[1]}').encode(),
    "quotes around a line break": TABLE.replace("\n1,", '\n"1\n",').encode(),
    "quotes in the last row": (TABLE.removesuffix("0\n") + '"0"\n').encode(),
    "an index": csv(",a,b,kind", lambda i: f"{i},{ordinary(i)}").encode(),
    "names in quotes with a line break": TABLE.replace("b", '" b\n"', 1).encode(),
}
NOTES = {
    "UTF-16": "its text is UTF-16",
    "UTF-32": "its text is UTF-32",
    "semicolons": "its cells are separated by semicolons",
    "Excel's first line": "separated by semicolons",
    "tabs": "separated by tabs",
    "bars": "separated by bars",
    "an index": "taken for an index and left out",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_table_is_standardised_and_split_whatever_its_form(load, name):
    data = load(FORMS[name], "kind")
    cells = np.array([[float(cell) for cell in ordinary(i).split(",")] for i in range(ROWS)])
    train, test = wanted_split()
    mean, deviation = cells[train, :2].mean(0), cells[train, :2].std(0)
    np.testing.assert_allclose(data.x_train, (cells[train, :2] - mean) / deviation, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(data.x_test, (cells[test, :2] - mean) / deviation, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(data.y_train, cells[train, 2])
    np.testing.assert_array_equal(data.y_test, cells[test, 2])
    assert data.classes == 2
    assert data.encoding["label"] == {"name": "kind", "kind": "classes", "values": [0, 1]}
    assert [column["name"] for column in data.encoding["columns"]] == ["a", "b"]
    assert data.encoding["columns"][0]["mean"] == pytest.approx(mean[0])
    assert data.notes[0] == "t.csv: 32 rows for training, 8 for testing, 2 features"
    assert "classification with 2 classes (0, 1)" in data.notes[-1]
    assert NOTES.get(name, "") in " ".join(data.notes)
    assert len(data.notes) == 2 + (name in NOTES or "UTF-16" in name)


def test_columns_are_left_out_and_tables_found_by_folder(load, tmp_path):
    assert load(TABLE, "kind", ["b"]).shape == (1,)
    assert sources.load("csv:t.csv", tmp_path, " kind ", [" b"]).shape == (1,)
    assert load(csv("a,text,y", lambda i: f"{i},no number,{i % 2}"), ignore=["text"]).shape == (1,)


def test_a_quantity_is_predicted_in_units_of_its_deviation(load):
    data = load(csv("x,y", lambda i: f"{i},{i * 0.37 + 5}", 50))
    assert data.classes == 0
    assert data.y_train.shape == (40, 1)
    assert abs(data.y_train.mean()) < 1e-9
    assert dataset.constant_score(data) == pytest.approx((data.y_test**2).mean())
    assert "'x' determines the label" in data.warnings[0]
    assert "disguise" in data.warnings[0]
    assert "label 'y': regression" in data.notes


@pytest.mark.parametrize("last", ["0", '"0"'])
def test_the_label_may_be_any_column(load, last):
    content = csv("a,y,b", lambda i: f"{i * i},{int(i % 3 == 0)},{i if i < ROWS - 1 else last}")
    train, _ = wanted_split()
    data = load(content)
    np.testing.assert_array_equal(data.y_train, train % 3 == 0)
    assert [column["name"] for column in data.encoding["columns"]] == ["a", "b"]
    assert data.encoding["columns"][0]["mean"] == pytest.approx((train**2).mean())
    data = load(content, "a", ["b"])
    assert data.y_train[:, 0] * data.target_unit == pytest.approx(train**2 - (train**2).mean())
    assert data.encoding["columns"][0]["mean"] == pytest.approx((train % 3 == 0).mean())


def test_names_are_compared_without_spaces_and_in_one_spelling(load):
    assert load(csv("e\u0301,y", lambda i: f"{i % 2},{i}"), "\u00e9").classes == 2
    assert load(csv(" a b , y", lambda i: f"{i},{i % 2}")).encoding["columns"][0]["name"] == "a b"


TWOFOLD = {
    "label": ("a,y,c,y", "columns 2 and 4 are both called 'y'"),
    "feature": ("a,b,a,y", "columns 1 and 3 are both called 'a'.*--ignore-columns a"),
    "but for spaces": ("a , b,a,y", "columns 1 and 3 are both called 'a'"),
    "but for the byte order mark": ("\ufeffa,b,a,y", "columns 1 and 3 are both called 'a'"),
    "but for its spelling": ("\u00e9,b,e\u0301,y", "columns 1 and 3 are both called"),
    "none": (",b,,y", "column 1 of 4 has no name"),
    "none in the middle": ("a,,c,y", "column 2 of 4 has no name"),
}


@pytest.mark.parametrize("name", TWOFOLD)
def test_columns_of_one_name_are_refused_with_their_places(load, name):
    names, words = TWOFOLD[name]
    with pytest.raises(DataError, match=words):
        load(csv(names, lambda i: f"{i},1,2,{i % 2}"))


def test_columns_of_one_name_may_be_left_out_together(load):
    assert load(csv("a,b,a,y", lambda i: f"{i},{i * i},2,{i % 2}"), ignore=["a"]).shape == (1,)


ASKED = {
    "no label": ({"label": None}, "needs --label-column COLUMN.*a, b, kind"),
    "unknown label": ({"label": "sort"}, "no column 'sort'; its columns are a, b, kind$"),
    "unknown to ignore": ({"ignore": ["c"]}, "no column 'c'"),
    "unknown category": ({"categorical": ["c"]}, "no column 'c'"),
    "label left out": ({"ignore": ["kind"]}, "--ignore-columns kind leaves out the column that --label-column is to predict"),
    "both": ({"ignore": ["a"], "categorical": ["a"]}, "'a' is given to both --categorical-columns and --ignore-columns"),
    "nothing but a label": ({"ignore": ["a", "b"]}, "1 column; wanted 5 rows .* and a feature"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_columns_must_make_sense(load, name):
    asked, words = ASKED[name]
    with pytest.raises(DataError, match=words):
        load(TABLE, **{"label": "kind", **asked})


@pytest.mark.parametrize(
    "content, label",
    [
        (csv("5.1,3.5,0", ordinary), "0"),
        (csv("5.1,3.5,setosa", lambda i: f"{i}.5,{i % 3},{'ab'[i % 2]}"), "setosa"),
        (csv("1,3,2,b", lambda i: f"{i}.5,{i % 3},{i % 2},{'ab'[i % 2]}"), "b"),
    ],
)
def test_a_table_without_names_is_refused_instead_of_losing_a_row(load, content, label):
    with pytest.raises(DataError, match="numbers, not names of columns; a table wants a line of names first"):
        load(content, label)
    with pytest.raises(DataError, match="no column 'kind'.*its first line must name them"):
        load(content, "kind")


@pytest.mark.parametrize("names, label", [("0,1,2", "2"), ("2000,2005,y", "y"), ("1e3,m2,y", "y")])
def test_columns_may_be_counted(load, names, label):
    assert load(csv(names, ordinary), label).shape == (2,)


BAD = {
    "text": ("\n5,", "\nfive,", "line 7, column 'a': 'five' is not a number; --categorical-columns a .*--ignore-columns a"),
    "two texts": ("\n5,0.5,", "\nfive,six,", "--categorical-columns a,b .*--ignore-columns a,b"),
    "empty": ("\n5,", "\n,", "line 7, column 'a': '' is not a number; fill it"),
    "many cells": ("\n5,", "\n5,5,", "line 7: 4 cells where the header has 3.*wants quotes"),
    "few cells": ("\n5,", "\n", "line 7: 2 cells where the header has 3$"),
    "nan": ("\n5,", "\nnan,", "line 7, column 'a': 'nan' is not a finite number"),
    "infinity": ("\n5,", "\n1e999,", "line 7, column 'a': '1e999' is not a finite number"),
    "underscore": ("\n5,", "\n1_2,", "line 7, column 'a': '1_2' is not a number in plain digits; write 12"),
    "wide digits": ("\n5,", "\n\uff11\uff12,", "line 7, column 'a': '\uff11\uff12' is not a number in plain digits; write 12"),
    "Arabic digits": ("\n5,", "\n\u0661,", "not a number in plain digits"),
    "null byte": ("\n5,", "\n5\0,", "null bytes"),
    "hexadecimal": ("\n5,", "\n0x5,", "'0x5' is not a number"),
    "decimal comma": ("\n5,", '\n"5,5",', "decimals want a point, as in 5.5"),
    "open quote": ("\n5,", '\n"5,', "unexpected end of data; is a quote missing"),
    "text after a quote": ("\n5,", '\n"5"6,', "line 7: ',' expected after '\"'"),
    "a long cell": ("\n5,", f"\n{'5' * 200_000},", "line 7: field larger than field limit"),
    "many digits": ("\n5,", f"\n{'5' * 5_000},", r"'5+'\.\.\. \(5,000 characters\) is not a finite number"),
    "too large": (
        "\n5,",
        f"\n{BIG + 1},",
        f"line 7, column 'a': '{BIG + 1}' is a whole number beyond 2.53.*--categorical-columns",
    ),
    "many zeros": ("\n5,", f"\n{'0' * 5_000}{BIG + 1},", r"'0+'\.\.\. \(5,019 characters\) is a whole number beyond"),
    "text in the label": ("\n5,0.5,0", "\n5,0.5,x", "line 7, column 'kind': 'x' is not a number, but other labels are"),
    "empty label": ("\n5,0.5,0", "\n5,0.5,", "line 7, column 'kind': '' is not a number; fill it, or leave its row out$"),
}


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_cell_is_named_by_line_and_column(load, name, quoted):
    """Also where quotes before it make lines be read one by one, and behind the first block."""
    old, new, words = BAD[name]
    assert old in TABLE
    content = TABLE.replace(old, new, 1)
    if quoted:
        content = content.replace("\n1,", '\n"1",', 1)
    with pytest.raises(DataError, match=words) as caught:
        load(content, "kind")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_lines_are_counted_over_blocks(load, monkeypatch, end, quote):
    monkeypatch.setattr(csv_text, "BLOCK", 64)
    content = csv("a,y", lambda i: f"{quote if i > 30 else ''}{i if i != 77 else 'x'}{quote if i > 30 else ''},{i % 2}", 100, end)
    with pytest.raises(DataError, match="line 79, column 'a': 'x'"):
        load(content)
    assert len(load(content.replace("x", "77")).x_train) == 80


def test_blocks_hold_the_same_as_one(load, monkeypatch):
    content = csv("a,t,y", lambda i: f'{i * 0.1},"u, {i % 3}\n{i % 2}",{i * i}', 200)
    whole = load(content, categorical=["t"])
    monkeypatch.setattr(csv_text, "BLOCK", 10)
    monkeypatch.setattr(cells, "_ROWS", 3)
    in_parts = load(content, categorical=["t"])
    assert (whole.x_train == in_parts.x_train).all()
    assert (whole.y_test == in_parts.y_test).all()
    assert whole.encoding == in_parts.encoding


def test_numbers_are_read_alike_in_bulk_and_cell_by_cell(load):
    """numpy's parser takes what Python's takes, to the last bit."""
    numbers = np.random.default_rng(0).normal(size=(ROWS, 2)) * 10.0 ** np.random.default_rng(1).integers(-300, 15, (ROWS, 2))
    content = csv("a,b,y", lambda i: f"{float(numbers[i, 0])!r},{numbers[i, 1]:.17e},{i % 2}")
    bulk, single = load(content), load(content.removesuffix(f"{(ROWS - 1) % 2}\n") + f'"{(ROWS - 1) % 2}"\n')
    for one, other in zip(bulk[1:5], single[1:5], strict=True):
        np.testing.assert_array_equal(one, other)
    assert bulk.encoding == single.encoding


LABELS = {
    "texts": (lambda i: ["barolo", "grignolino", "barbera"][i % 3], ["barbera", "barolo", "grignolino"], {}),
    "texts with spaces": (lambda i: [" no", "yes "][i % 2], ["no", "yes"], {}),
    "quoted": (lambda i: ['"a, b"', '"a ""c"""'][i % 2], ['a "c"', "a, b"], {}),
    "beyond 2^53": (lambda i: str(BIG + i % 2), [BIG, BIG + 1], {}),
    "some beyond 2^53": (lambda i: str([7, BIG + 1, -BIG - 1][i % 3]), [-BIG - 1, 7, BIG + 1], {}),
    "beyond 2^64, leading zeros": (lambda i: ["00", ""][i % 2] + str(2**70 + i // 2 % 2), [2**70, 2**70 + 1], {}),
    "decimals beyond 2^53": (lambda i: f"{BIG + i % 2}.0", [BIG, BIG + 1], {}),
    "decimals beyond 2^53 by task": (lambda i: f"{BIG + i % 2}.0", [BIG, BIG + 1], {"task": "classification"}),
    "exponents beyond 2^53": (lambda i: ["9.007199254740992e15", "9.007199254740993E+15"][i % 2], [2**53, 2**53 + 1], {}),
    "several spellings": (lambda i: [f"{BIG + 1}", f"{BIG + 1}.", f"+{BIG + 1}.00", "7e0"][i % 4], [7, BIG + 1], {}),
    "large fractions": (lambda i: [f"{BIG}.25", f"{BIG}.5"][i % 2], [f"{BIG}.25", f"{BIG}.5"], {"task": "classification"}),
    "mixed": (lambda i: ["1", "x"][i % 2], ["1", "x"], {"task": "classification"}),
    "mixed, text first": (lambda i: ["x", "1"][i % 2], ["1", "x"], {"task": "classification"}),
    "mixed, by name": (lambda i: ["1", "x"][i % 2], ["1", "x"], {"categorical": ["y"]}),
    "large and fractions": (lambda i: ["5.5", str(BIG + 1), "x"][i % 3], [str(BIG + 1), "5.5", "x"], {"task": "classification"}),
    "numbers as names": (lambda i: ["10", "9"][i % 2], ["9", "10"], {"categorical": ["y"]}),
    "fractions": (lambda i: ["0.5", "1.5"][i % 2], [0.5, 1.5], {"task": "classification"}),
    "many": (lambda i: str(i % 30 * 2), list(range(0, 60, 2)), {"task": "classification"}),
    "small": (lambda i: str(i % 3), [0, 1, 2], {}),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_become_classes_by_their_exact_value(load, name):
    label, values, asked = LABELS[name]
    data = load(csv("a,y", lambda i: f"{i * i},{label(i)}", 60), **asked)
    assert data.encoding["label"] == {"name": "y", "kind": "classes", "values": values}
    assert data.classes == len(values)
    train, test = wanted_split(60)
    for rows, found in ((train, data.y_train), (test, data.y_test)):
        given = [next(csv_module.reader([label(int(i))]))[0].strip() for i in rows]
        exact = [str(int(Decimal(one))) for one in given] if isinstance(values[-1], int) else given
        assert [str(values[code]) for code in found] == exact
    json.dumps(data.encoding)


@pytest.mark.parametrize("write", [repr, "{:.17e}".format, "{:.18e}".format, "{:.3e}".format, "{:.1f}".format, "{:.20g}".format])
def test_large_quantities_are_numbers_however_programs_write_them(load, write):
    data = load(csv("a,y", lambda i: f"{i * i},{write(6.02214076e23 * (i + 1) / 7)}", 60))
    assert data.classes == 0


REFUSED_LABELS = {
    "mixed": (lambda i: ["1", "x"][i % 2], None, "line 3, column 'y': 'x' is not a number.*--task classification"),
    "mixed, text first": (
        lambda i: ["x", "1"][i % 2],
        None,
        "line 3, column 'y': '1' is a number, but the labels before it are not",
    ),
    "texts": (lambda i: "xy"[i % 2], "regression", "'x' is not a number.*--task regression wants"),
    "large, as a quantity": (lambda i: str(BIG + 1 + i % 2), "regression", "beyond what f64 holds.*--task classification"),
    "many large": (lambda i: str(BIG + 1 + 3 * i), None, "beyond what f64 holds.*--task classification"),
    "large and fractions": (lambda i: ["5.5", str(BIG + 1)][i % 2], None, "'5.5' is beside whole numbers beyond 2.53"),
    "a long text": (lambda i: "x" * 300, None, "line 2, column 'y': 'x+'... .300 characters. is too long for a name"),
    "empty among texts": (lambda i: ["x", " "][i % 2], None, "line 3, column 'y' is empty"),
    "too many texts": (lambda i: f"n{i}", None, f"more than {MOST_CLASSES:,} different values, too many to be classes"),
    "too many large": (lambda i: str(BIG + 1 + 2 * i), None, f"more than {MOST_CLASSES:,} different values"),
}


@pytest.mark.parametrize("name", REFUSED_LABELS)
def test_labels_that_are_neither_classes_nor_a_quantity_are_refused(load, name):
    label, task, words = REFUSED_LABELS[name]
    with pytest.raises(DataError, match=words):
        load(csv("a,y", lambda i: f"{i * i},{label(i)}", MOST_CLASSES + 5 if "too many" in name else ROWS), task=task)


def test_ages_are_a_quantity_and_the_task_may_be_given(load):
    ages = csv("a,y", lambda i: f"{i * i},{18 + i}", 70)
    data = load(ages)
    assert data.classes == 0
    assert data.notes[-1] == "label 'y': regression; --task classification takes its values as classes"
    assert load(ages, task="classification").classes == 70
    assert load(TABLE, "kind", task="regression").classes == 0


def test_categories_become_one_hot(load):
    train, test = wanted_split()
    rare, only = train[3], test[2]

    def region(i):
        return {rare: "west", only: "north"}.get(i, ["south", "east"][i % 2])

    data = load(csv("size,region,y", lambda i: f"{i}, {region(i)} ,{i % 2}"), categorical=["region"])
    categories = ["east", "south", "west"]
    assert data.encoding["columns"][1] == {"name": "region", "kind": "categories", "values": categories}
    for rows, x in ((train, data.x_train), (test, data.x_test)):
        wanted = [[float(region(i) == one) for one in categories] for i in rows]
        np.testing.assert_array_equal(x[:, 1:], wanted)
    assert data.shape == (4,)
    assert "column 'region': one-hot, 3 categories (east, south, west)" in data.notes
    assert any("only rows for testing have north" in warning for warning in data.warnings)


def test_categories_may_be_numbers_beyond_2_53_and_all_there_is(load):
    data = load(csv("a,b,y", lambda i: f"{BIG + i % 2},{[10, 9][i // 2 % 2]},{i % 2}"), categorical=["a", "b"])
    assert [column["values"] for column in data.encoding["columns"]] == [[str(BIG), str(BIG + 1)], ["9", "10"]]
    assert (data.x_train.sum(1) == 2).all()
    assert any("'a" in warning and "determines the label" in warning for warning in data.warnings)


def test_a_column_of_too_many_values_is_no_category(load):
    with pytest.raises(
        DataError, match="column 'a' has more than 1,000 different values, too many to be categories.*--ignore-columns a"
    ):
        load(csv("a,b,y", lambda i: f"n{i},{i},{i % 2}", 1100), categorical=["a"])


def test_what_columns_cannot_say_is_warned_of(load):
    _, test = wanted_split()
    data = load(csv("c,far,y", lambda i: f"{0.1 if i != test[0] else 5},{i % 3 if i != test[1] else 1e7},{i % 2}"))
    assert any("one value in all rows for training, and so left at 0: column c" in warning for warning in data.warnings)
    assert not data.x_train[:, 0].any()
    assert not data.x_test[:, 0].any()
    assert any(f"'far': 10000000.0 in data row {test[1] + 1}, which is for testing" in warning for warning in data.warnings)
    with pytest.raises(DataError, match=f"'far': 1e.300 in data row {test[1] + 1}, .* is beyond any scale"):
        load(csv("far,y", lambda i: f"{i % 3 if i != test[1] else 1e300},{i % 2}"))
    with pytest.raises(DataError, match="beyond any scale"):
        load(csv("far,y", lambda i: f"{i % 3 * 1e-320 if i != test[1] else 1},{i % 2}"))


FILES = {
    "empty": (b"", "no column 'y'; its columns are .none: the file is empty"),
    "header alone": (b"a,y\n", "0 rows and 2 columns; wanted 5 rows"),
    "few rows": (b"a,y\n1,2\n2,3\n1,4\n5,6\n", "4 rows and 2 columns; wanted 5 rows .a fifth is for testing"),
    "one column": (b"y\n1\n2\n3\n4\n5\n", "5 rows and 1 column"),
    "latin-1": ("größe,y\n1,2\n".encode("latin-1"), r"not UTF-8.*invalid start byte at b'gr\\xf6.*iconv -f latin1 -t utf-8"),
    "latin-1 behind": (csv("a,y", lambda i: f"{i},{i % 2}", 9000).encode() + "ß".encode("latin-1"), "not UTF-8.*iconv -f latin1"),
    "UTF-16 without a mark": (TABLE.encode("utf-16-le"), "null bytes.*iconv -f UTF-16LE -t UTF-8"),
    "UTF-16 cut off": (TABLE.replace("kind", "y").encode("utf-16")[:-1], "not UTF-16 as it should be: truncated data"),
    "PDF": (b"%PDF-1.4 and so on", "not a table but PDF; wanted CSV"),
    "zip in gz": (gzip.compress(zipped("t.csv", TABLE)), "not a table but zip"),
    "npy": (b"\x93NUMPY\1\0", "not a table but npy"),
    "gz of 100 MB of zeros": (gzip.compress(bytes(100 << 20)), "null bytes"),
    "gz of 100 MB of one line": (gzip.compress(b"a,y\n" + b"1" * (100 << 20)), "more than 200 times its size"),
    "gz of short rows": (gzip.compress(b"a,y\n" + b"\n" * (50 << 20)), "more than 200 times its size"),
    "a line of 70 MB": (b"a,y\n" + b"1" * (70 << 20), "line of more than 67,108,864 characters after line 1"),
    "a first line of 70 MB": (b"a" * (70 << 20), "begins with a line of more than 67,108,864 characters"),
    "two million columns": (b"a," * (2 << 20) + b"y\n", "more than 1,048,576 columns"),
    "two million cells": (b"a,y\n" + b"1," * (2 << 20) + b"1\n", "more than 1,048,576 cells where the header has fewer"),
    "a name of 200,000 characters": (b"a" * 200_000 + b",y\n", "line 1 does not name columns: field larger"),
    "a quote that does not end": (b'a,"y\n' + b"1,2\n" * 100_000, "line 1 does not name columns"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_table_are_refused_in_a_line(load, name):
    content, words = FILES[name]
    with pytest.raises(DataError, match=words) as caught:
        load(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_line_may_have_more_characters_than_it_may_have_cells(load):
    """In columns that are left out."""
    long = [f"text{i}" for i in range(11)]
    rows = "".join(f'{i},{",".join(["a" * 100_000] * len(long))},"{i % 2}"\n' for i in range(6))
    found = load(f"x,{','.join(long)},y\n{rows}", ignore=long)
    assert len(found.x_train) + len(found.x_test) == 6


def test_memory_is_looked_at_before_it_is_taken(load, monkeypatch):
    monkeypatch.setattr(csv_text, "BLOCK", 1000)
    content = csv("a,b,y", lambda i: f"{i},{i * i},{i % 2}", 20_000)
    needed = 20_000 * (15 * 3 + 48)
    monkeypatch.setattr(cells, "available", lambda: needed + 300_000)
    assert len(load(content).x_train) == 16_000
    monkeypatch.setattr(cells, "available", lambda: needed // 2)
    added, add = [], cells._Reader.add
    monkeypatch.setattr(cells._Reader, "add", lambda self, block: (added.append(block), add(self, block)))
    with pytest.raises(DataError, match=r"does not fit into memory: at least 1\d,\d\d\d rows of 93 bytes .*--ignore-columns"):
        load(content)
    assert len(added) < 20  # of some 300: it is foreseen
    monkeypatch.setattr(opening, "RATIO", 1e9)
    with pytest.raises(DataError, match="does not fit into memory: at least 10,... rows"):  # nobody knows how much is to come
        load(gzip.compress(content.encode()))


def test_long_rows_are_taken_a_few_at_a_time(load, monkeypatch):
    """Rows of 100,000 cells, read one by one."""
    seen = []
    add = cells._Reader._add
    monkeypatch.setattr(cells._Reader, "_add", lambda self, batch: (seen.append(len(batch)), add(self, batch)))
    content = csv(",".join(f"c{i}" for i in range(100_000)) + ",y", lambda i: '"t",' + "1," * 99_999 + f"{i % 2}", 20)
    assert load(content, ignore=["c0"]).shape == (99_999,)
    assert sum(seen) == 20
    assert max(seen) <= 1 + csv_text.BLOCK // 200_000


def test_a_manifest_takes_descriptions_of_some_size(load, monkeypatch):
    content = csv("a,c,y", lambda i: f"{i},n{i % 10},{i % 2}")
    whole = load(content, categorical=["c"]).encoding
    size = len(json.dumps(whole))
    monkeypatch.setattr("hpcai.data.columns._DESCRIBED_BYTES", size - 1)
    assert load(content, categorical=["c"]).encoding == whole | {"columns": None}
    monkeypatch.setattr("hpcai.data.columns._DESCRIBED_BYTES", 40)
    assert load(content, categorical=["c"]).encoding == {"columns": None, "label": None}


def test_memory_of_one_hot_columns_is_looked_at(load, monkeypatch):
    monkeypatch.setattr("hpcai.data.columns.available", lambda: 10_000)
    with pytest.raises(DataError, match="one-hot, the table has 100 features in each of 200 rows, more than fit into memory"):
        load(csv("a,c,y", lambda i: f"{i},n{i % 100},{i % 2}", 200), categorical=["c"])


@pytest.mark.skipif(memory.available() < 1 << 30, reason="wants 1 GiB")
def test_a_wide_table_is_read(load):
    names = ",".join(f"c{i}" for i in range(100_000))
    content = csv(f"{names},y", lambda i: ",".join("0123456789"[(i * j) % 10] for j in range(100_000)) + f",{i % 2}", 6)
    data = load(content)
    assert data.shape == (100_000,)
    assert data.encoding["columns"] is None  # a checkpoint's manifest would not hold it
    assert len(data.warnings) < 30


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_the_column_to_predict_is_the_one_that_is_named(tmp_path, label):
    values = {"a": [0, 1] * 5, "b": [0, 1, 2, 3, 4] * 2, "c": [*([7, 8, 9] * 3), 7]}
    rows = zip(*values.values(), strict=True)
    (tmp_path / "t.csv").write_text("a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    data = sources.load(f"csv:{tmp_path / 't.csv'}", label=label)
    assert data.encoding["label"]["values"] == sorted(set(values[label]))
    order = np.concatenate(dataset.hold_out(10))
    labels = np.concatenate([data.y_train, data.y_test])
    assert [data.encoding["label"]["values"][i] for i in labels] == [values[label][i] for i in order]
    assert [column["name"] for column in data.encoding["columns"]] == [name for name in values if name != label]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("row", [None, 0, 7, 5000])
def test_a_null_character_anywhere_is_refused_by_its_line(tmp_path, encoding, row):
    lines = ["a,y", *(f"{i},red" for i in range(6000))]
    at = 0 if row is None else row + 1
    lines[at] += "\0"
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode(encoding))
    words = "null bytes" if encoding == "utf-8" and at < 100 else f"line {at + 1} has a null character"
    with pytest.raises(DataError, match=words):
        sources.load(f"csv:{tmp_path / 't.csv'}", label="y")


def test_long_lines_and_names_are_read_up_to_their_limits(load):
    wide = ",".join(f"c{i}" for i in range(11)) + ",y"
    pad = " " * 120_000
    data = load(csv(wide, lambda i: ",".join(f'"{i * j % 7}{pad * (i == 3)}"' for j in range(11)) + f",{i % 2}", 20))
    assert data.shape == (11,)
    names = ["n" * 200, "m"]
    assert load(csv("a,y", lambda i: f"{i},{names[i % 2]}", 20)).encoding["label"]["values"] == sorted(names)
    with pytest.raises(DataError, match="too long for a name"):
        load(csv("a,y", lambda i: f"{i},n{names[i % 2]}", 20))


def test_the_delimiter_is_the_one_at_which_the_label_is_found(load):
    data = load(csv("a,x;b;y", lambda i: f"{i};{i * 7 % 5};{i % 2}"))
    assert (data.shape, data.classes) == ((2,), 2)


def test_only_a_column_that_is_the_label_in_disguise_is_said_to_be_one():
    rng = np.random.default_rng(0)
    y = rng.normal(size=200)
    x = np.stack([rng.normal(size=200), 3 - 2 * y, np.zeros(200), y + rng.normal(size=200), 1e-8 * y], 1)
    said = columns.leaks(x, y, ["a", "b", "c=1", "d", "e"])
    assert [line.split("'")[1] for line in said] == ["b", "e"]
    assert "(correlation 1.0000)" in said[0]
    assert columns.leaks(x[:, [0, 2, 3]] * 1e6, y * 1e3, ["a", "c", "d"]) == ()


def test_whole_labels_are_told_apart_at_the_last_that_f64_has(load):
    for first in (2**53 - 1, 2**53, 2**53 + 1, -(2**53)):
        data = load(csv("a,y", lambda i, first=first: f"{i},{first + i % 2}"))
        assert data.classes == 2
        assert sorted(map(int, data.encoding["label"]["values"])) == [first, first + 1]
