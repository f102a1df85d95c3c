import json

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import UsageError
from hpcai.train import inputs, resume
from hpcai.train.loop import fit
from hpcai.train.options import parser

pytestmark = pytest.mark.usefixtures("clean_environment")


def wines(folder):
    kinds = ["barolo", "grignolino", "barbera"]
    rows = [f"{i % 7}.5,{['north', 'south'][i % 2]},{18 + i % 60},{kinds[i % 3]}" for i in range(240)]
    (folder / "wines.csv").write_text("\n".join(["alcohol,region,age,kind", *rows, ""]))
    return f"csv:{folder / 'wines.csv'}"


def options(folder, *flags):
    return parser.parse(["--data", wines(folder), "--run-dir", str(folder / "run"), "--steps", "2", "--hidden", "4", *flags])


def test_names_of_classes_and_categories_go_into_the_summary_and_every_checkpoint(tmp_path):
    chosen = options(tmp_path, "--label-column", "kind", "--categorical-columns", "region")
    threads.run(2, lambda comm: fit(chosen, comm))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    encoding = summary["encoding"]
    assert encoding["label"] == {"name": "kind", "kind": "classes", "values": ["barbera", "barolo", "grignolino"]}
    assert [column["name"] for column in encoding["columns"]] == ["alcohol", "age", "region"]
    assert encoding["columns"][2]["values"] == ["north", "south"]
    assert summary["options"]["categorical_columns"] == ["region"]
    manifest = json.loads((resume.newest(tmp_path / "run") / "manifest.json").read_text())
    assert manifest["meta"]["encoding"] == encoding


def test_what_was_taken_is_said_in_the_head_of_a_run(tmp_path, capsys):
    inputs.prepare(options(tmp_path, "--label-column", "age", "--categorical-columns", "region,kind"), 1)
    said = capsys.readouterr().err.splitlines()
    assert "hpcai: wines.csv: 192 rows for training, 48 for testing, 6 features" in said
    assert "hpcai: column 'region': one-hot, 2 categories (north, south)" in said
    assert "hpcai: label 'age': regression; --task classification takes its values as classes" in said


def test_the_task_is_passed_on(tmp_path):
    for task, classes in (("classification", 60), ("regression", 0)):
        assert (
            inputs.load_alone(
                options(tmp_path, "--label-column", "age", "--ignore-columns", "region,kind", "--task", task)
            ).classes
            == classes
        )
        np.savez(tmp_path / "a.npz", x=np.eye(20), y=np.arange(20) % 2)
        found = inputs.load_alone(parser.parse(["--data", f"npz:{tmp_path / 'a.npz'}", "--task", task]))
        assert (found.classes > 0) == (task == "classification")


@pytest.mark.parametrize("name", ["x_train", "x_test"])
def test_features_that_f16_does_not_hold_are_refused(tmp_path, name):
    arrays = {part: np.ones((20, 3), np.float32) for part in ("x_train", "x_test")} | {
        part: np.arange(20) % 2 for part in ("y_train", "y_test")
    }
    flags = ["--data", f"npz:{tmp_path / 'a.npz'}", "--run-dir", str(tmp_path / "run"), "--dtype"]
    arrays[name][3, 1] = -65504
    np.savez(tmp_path / "a.npz", **arrays)
    inputs.prepare(parser.parse([*flags, "f16"]), 1)
    arrays[name][3, 1] = -65536
    np.savez(tmp_path / "a.npz", **arrays)
    inputs.prepare(parser.parse([*flags, "bf16"]), 1)
    with pytest.raises(UsageError, match="--dtype f16 holds numbers up to 65,504, but the data have -65536; take bf16 or f32"):
        inputs.prepare(parser.parse([*flags, "f16"]), 1)


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            "--label-column y",
            "--label-column, --ignore-columns and --categorical-columns name columns of --data csv:PATH, got digits",
        ),
        ("--categorical-columns y --data npz:a.npz", "name columns of --data csv:PATH, got npz:a.npz"),
        ("--task regression", "--task is for csv:PATH and npz:PATH; digits has a fixed task"),
        ("--label-column y --data table.csv", "got table.csv; write --data csv:table.csv$"),
        ("--ignore-columns y --data a/t.tsv.zst", "; write --data csv:a/t.tsv.zst$"),
        ("--label-column y --data t.npz", "got t.npz$"),
        ("--task regression --data t.npz", "--task is for csv:PATH and npz:PATH; write --data npz:t.npz$"),
        ("--model gpt --data shakespeare.txt", "got shakespeare.txt; write --data text:shakespeare.txt$"),
        ("--model gpt --data t.csv", "got t.csv$"),
        ("--task both --data csv:a", "--task wants one of classification, regression, got 'both'"),
    ],
)
def test_options_of_tables_are_for_tables(flags, words):
    with pytest.raises(UsageError, match=words):
        parser.parse(flags.split())


@pytest.mark.parametrize("flags, kind", [("--label-column y", "csv"), ("--model gpt", "text")])
def test_a_path_without_its_kind_is_given_it_whatever_its_ending_if_there_is_such_a_file(tmp_path, flags, kind):
    (tmp_path / "values").write_text("a,y")
    with pytest.raises(UsageError, match=f"got {tmp_path}/values; write --data {kind}:{tmp_path}/values$"):
        parser.parse([*flags.split(), "--data", f"{tmp_path}/values"])
    with pytest.raises(UsageError, match="other$"):
        parser.parse([*flags.split(), "--data", f"{tmp_path}/other"])
