"""Models, data and optimizers of one's own: the same results as hpcai's, whichever way they are given, or a clear refusal."""

import sys

import numpy as np
import pytest

from hpcai import data, nn
from hpcai.errors import DataError, UsageError
from hpcai.train import own
from hpcai.train.options import own_name, parser
from tests.train import mine
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

HERE = "tests.train.mine"
PLAIN = ["--steps", "30", "--batch", "32", "--dtype", "f64", "--optimizer", "momentum", "--lr", "0.1"]


def flat(tmp_path, run):
    return final(tmp_path, run)["params"]


@pytest.fixture
def layers(tmp_path):
    """What the model of layers comes to on one rank."""
    train(1, options(tmp_path, *PLAIN, "--model", f"{HERE}:model", "--data", f"{HERE}:points", run="layers"))
    return flat(tmp_path, "layers")


@pytest.mark.parametrize(
    "flags, ranks",
    [
        ("", 3),
        ("--micro-batches 2", 2),
        ("--zero 1 --bucket-bytes 64", 3),
        ("--zero 2", 2),
        ("--zero 3", 3),
        ("--overlap always", 2),
        ("--batch 31 --clip-norm 0.5", 4),
    ],
)
@pytest.mark.parametrize("program", ["Program", "Summing", "Silent"])
def test_a_program_that_gives_gradients_trains_as_its_layers_do(tmp_path, flags, ranks, program):
    flags = [*PLAIN, "--data", f"{HERE}:points", *flags.split()]
    train(1, options(tmp_path, *flags, "--model", f"{HERE}:model", run="layers"))
    summary = train(ranks, options(tmp_path, *flags, "--model", f"{HERE}:{program}", run="own"))
    np.testing.assert_allclose(flat(tmp_path, "own"), flat(tmp_path, "layers"), rtol=1e-9, atol=1e-12)
    assert (summary["test_accuracy"] is None) == (program == "Silent")


def test_it_is_reproducible_too(tmp_path):
    flags = [
        "--steps",
        "12",
        "--batch",
        "32",
        "--data",
        f"{HERE}:points",
        "--model",
        f"{HERE}:Program",
        "--compress",
        "reproducible",
    ]
    found = []
    for ranks in (1, 2, 3):
        train(ranks, options(tmp_path, *flags, run=str(ranks)))
        found.append(flat(tmp_path, str(ranks)).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("ranks", [1, 3])
def test_samples_that_are_handed_out_train_as_those_in_memory(tmp_path, layers, ranks):
    summary = train(ranks, options(tmp_path, *PLAIN, "--model", f"{HERE}:model", "--data", f"{HERE}:rows", run="rows"))
    np.testing.assert_allclose(flat(tmp_path, "rows"), layers, rtol=1e-6)
    assert summary["test_accuracy"] > 0.7


@pytest.mark.parametrize("optimizer", ["optimizer", "signed"])
@pytest.mark.parametrize("flags", ["", "--zero 1", "--zero 2 --redundancy 1"])
def test_an_optimizer_of_ones_own_is_like_any(tmp_path, optimizer, flags):
    flags = [*PLAIN[:-4], "--data", f"{HERE}:points", "--model", "softmax", "--optimizer", f"{HERE}:{optimizer}", *flags.split()]
    train(1, options(tmp_path, *flags, run="one"))
    train(3, options(tmp_path, *flags, "--steps", "11", run="many"))
    train(2, options(tmp_path, *flags, "--resume", "auto", run="many"))
    one, many = final(tmp_path, "one"), final(tmp_path, "many")
    assert one.keys() == many.keys()
    for name, array in one.items():
        np.testing.assert_allclose(many[name], array, rtol=1e-9, atol=1e-12)


def test_a_file_may_be_named_instead_of_a_module(tmp_path, layers):
    name = f"{mine.__file__}:model"
    train(2, options(tmp_path, *PLAIN, "--model", name, "--data", f"{mine.__file__}:points", run="file"))
    np.testing.assert_allclose(flat(tmp_path, "file"), layers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--model nowhere.at_all:model", "--model nowhere.at_all:model: there is no module nowhere here"),
        ("--model tests.train.nowhere:model", "there is no module tests.train.nowhere here"),
        (f"--model {HERE}:modle", f"{HERE} has no modle (is model meant?)"),
        ("--model /nowhere/mine.py:model", "there is no file /nowhere/mine.py"),
        (f"--model {HERE}:wants_two", "takes data, more, but is called with nothing or the data set"),
        (f"--model {HERE}:wrong", "gave int; expected an hpcai.nn.Model"),
        (f"--model {HERE}:THREE", "gave int; expected an hpcai.nn.Model"),
        (f"--data {HERE}:wrong", "gave int; expected (x, y)"),
        (f"--data {HERE}:model", "takes data, but is called with nothing"),
        (f"--optimizer {HERE}:wrong", "gave int; expected an hpcai.optim.Optimizer"),
        (f"--model {HERE}:Program --recompute", "--recompute is for layers of hpcai"),
        (f"--model {HERE}:Program --dtype bf16", "--dtype bf16 is for layers of hpcai"),
        (f"--model {HERE}:Program --mesh pp=2", "too few for 2 pipeline stages"),
        (f"--model {HERE}:model --mesh tp=2", "tensor parallelism is for --model gpt"),
        ("--model mpl", "one of softmax, mlp, cnn, gpt, or package.module:function, got 'mpl' (is mlp meant?)"),
        ("--model a:b:c", "or package.module:function, got 'a:b:c'"),
    ],
)
def test_what_is_none_is_refused_in_a_line(tmp_path, flags, words):
    flags = ["--data", f"{HERE}:points", "--model", f"{HERE}:model", "--steps", "2", *flags.split()]
    with pytest.raises(UsageError) as refused:
        train(2, options(tmp_path, *flags))
    assert words in str(refused.value)


def test_what_ones_own_code_raises_is_shown_as_it_is(tmp_path):
    with pytest.raises(KeyError, match="absent"):
        train(2, options(tmp_path, "--data", f"{HERE}:points", "--model", f"{HERE}:fails"))


def test_a_module_that_lacks_another_is_not_taken_for_absent(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        own.data("lacking:points")


def test_a_file_that_trains_when_it_is_imported_is_refused(tmp_path):
    (tmp_path / "script.py").write_text("import hpcai\nhpcai.fit(steps=1)\n")
    with pytest.raises(UsageError, match="put the call of fit below"):
        own.data(f"{tmp_path / 'script.py'}:points")
    assert not [name for name in sys.modules if name.startswith("hpcai_own_") and name.endswith("script_py")]


def test_objects_have_no_name_and_functions_theirs():
    assert own_name.wrapped("mlp", "model") == "mlp"
    assert own_name.wrapped(mine.model, "model") == f"{HERE}:model"
    for value in (lambda data: None, mine.Program(), nn.softmax((2,), 2, nn.softmax_cross_entropy()), (1, 2)):
        assert own_name.wrapped(value, "model") == "own-model"
        assert own_name.wrapped(value, "model").value is value
    with pytest.raises(UsageError, match="--elastic grow starts ranks that must build the model too"):
        own_name.require_names({"--model": own_name.wrapped(mine.Program(), "model")})
    own_name.require_names({"--model": own_name.wrapped(mine.model, "model"), "--data": "digits"})


def test_runs_are_called_after_what_they_train(tmp_path):
    chosen = parser.parse(["--model", "package.mine:net", "--data", "work/sets.py:points"])
    assert chosen.run_dir == "runs/points-net"
    assert chosen.lr == 1e-3


@pytest.mark.parametrize("form", [dict, tuple, list])
def test_data_may_be_given_in_some_forms(form):
    x, y = mine.points()
    value = {"x": x, "y": y} if form is dict else form((x, y))
    found = own.data(own_name.Own("points", value))
    assert (found.name, found.train_samples) == ("points", 240)
    four = {"x_train": x[:200], "y_train": y[:200], "x_test": x[200:], "y_test": y[200:]}
    found = own.data(own_name.Own("points", four if form is dict else form(four.values())))
    assert (found.train_samples, found.test_samples) == (200, 100)


def test_arrays_with_a_method_take_are_arrays():
    class Frame:
        """As pandas has them."""

        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.values, dtype)

        def take(self, index):
            raise AssertionError("rows are not asked for by numbers")

    x, y = mine.points()
    found = own.data(own_name.Own("points", (Frame(x), Frame(y))))
    assert (found.train_samples, found.classes) == (240, 3)


def test_data_that_a_rank_cannot_make_are_everyones_error(tmp_path):
    ranks = []

    def rows():
        ranks.append(1)
        if len(ranks) > 1:
            raise OSError("no such disk")
        return mine.rows()

    chosen = options(tmp_path, "--model", f"{HERE}:model", "--data", "other:rows")
    object.__setattr__(chosen, "data", own_name.Own("rows", rows))
    with pytest.raises((OSError, DataError), match="no such disk"):
        train(2, chosen)


def test_a_text_trains_a_model_of_ones_own(tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox " * 200)

    def model(dataset):
        bytes_in = nn.embedding("embedding", 256, 8, dataset.context)
        return nn.sequential("bytes", bytes_in, nn.linear("out", 8, 256), loss=nn.token_cross_entropy())

    chosen = options(
        tmp_path, "--data", f"text:{tmp_path / 't.txt'}", "--model", "m:m", "--context", "16", "--steps", "60", "--lr", "0.1"
    )
    object.__setattr__(chosen, "model", own_name.Own("bytes", model))
    assert train(2, chosen)["test_loss"] < np.log(256) / 2


def test_data_sets_are_taken_as_they_are():
    found = data.from_arrays(*mine.points())
    assert own.data(own_name.Own("points", found)) is found
