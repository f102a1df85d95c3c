"""Every mesh, schedule and stage of ZeRO trains the same model as one process, compared parameter by parameter.

HPCAI_ALL=1 makes 20 steps, and compares all in both dtypes; otherwise there are 6 steps, and a third of them in f32 too.
"""

import functools
import json
import os

import numpy as np
import pytest

from hpcai.parallel import schedules
from tests.train.test_loop import final, options, train

pytestmark = pytest.mark.usefixtures("clean_environment")

STEPS = "20" if os.environ.get("HPCAI_ALL") else "6"
MESHES = [(1, 1, 1), (4, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]
MODEL = [
    *["--layers", "4", "--width", "16", "--heads", "4", "--context", "12"],
    *["--steps", STEPS, "--batch", "16", "--micro-batches", "4", "--clip-norm", "1"],
]
DTYPES = {"f64": (1e-10, "adamw"), "f32": (1e-5, "momentum")}
"""How near, relative to the largest of an array; Adam in f32 would make rounding of gradients that are zero into steps."""


def cases():
    for dp, tp, pp in MESHES:
        for name in schedules.NAMES if pp > 1 else ["1f1b"]:
            for zero in (0, 1, 2, 3) if dp > 1 else (0,):
                yield f"dp={dp},tp={tp},pp={pp}", name, zero


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = [b"the ", b"quick ", b"brown ", b"fox ", b"jumps, ", b"over; ", b"a ", b"lazy ", b"dog.\n"]
    path.write_bytes(b"".join(np.random.default_rng(0).choice(words, 800)))
    return path


def run(tmp_path, text, dtype, *flags, ranks=1, name="run"):
    chosen = ["--data", f"text:{text}", *MODEL, "--dtype", dtype, "--optimizer", DTYPES[dtype][1], *flags]
    summary = train(ranks, options(tmp_path, *chosen, run=name))
    return summary, final(tmp_path, name)


@pytest.fixture(scope="session")
def alone(tmp_path_factory, text):
    """What one process without micro-batches comes to, computed once for each set of flags."""
    return functools.cache(lambda dtype, *flags: run(tmp_path_factory.mktemp("one"), text, dtype, "--micro-batches", "1", *flags))


def assert_same(found, wanted, dtype):
    assert found[0]["epoch_losses"] == pytest.approx(wanted[0]["epoch_losses"], rel=DTYPES[dtype][0])
    assert found[0]["test_loss"] == pytest.approx(wanted[0]["test_loss"], rel=DTYPES[dtype][0])
    assert found[0]["test_accuracy"] == pytest.approx(wanted[0]["test_accuracy"], abs=0.01 if dtype == "f32" else 1e-9)
    assert found[1].keys() == wanted[1].keys()
    for name, array in wanted[1].items():
        np.testing.assert_allclose(found[1][name], array, rtol=0, atol=DTYPES[dtype][0] * np.abs(array).max(), err_msg=name)


CASES = [(*case, "f64") for case in cases()]
CASES += [(*case, "f32") for case in list(cases())[:: 1 if os.environ.get("HPCAI_ALL") else 3]]


@pytest.mark.parametrize("mesh, schedule, zero, dtype", CASES)
def test_any_split_trains_the_model_of_one_process(tmp_path, text, alone, mesh, schedule, zero, dtype):
    ranks = int(np.prod([int(part.split("=")[1]) for part in mesh.split(",")]))
    flags = ["--mesh", mesh, "--pipeline-schedule", schedule, "--zero", str(zero), "--bucket-bytes", "5000"]
    assert_same(run(tmp_path, text, dtype, *flags, ranks=ranks), alone(dtype), dtype)


VARIANTS = {
    "tied": ["--tied"],
    "rms": ["--norm", "rms"],
    "dropout": ["--dropout", "0.2"],
    "recompute": ["--recompute"],
    "sum": ["--loss-reduction", "sum", "--lr", "1e-4"],
    "uneven": ["--batch", "24"],
}
SPLITS = {
    "tp": "--mesh dp=1,tp=2,pp=1",
    "pp": "--mesh dp=1,tp=1,pp=2",
    "all": "--mesh dp=2,tp=2,pp=2 --zero 1",
    "zero 2": "--mesh dp=2 --zero 2",
    "zero 3": "--mesh dp=2,tp=2 --zero 3",
    "interleaved": "--mesh pp=2 --pipeline-schedule interleaved",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", SPLITS)
def test_variants_of_the_model_do_not_depend_on_the_split(tmp_path, text, alone, variant, split):
    flags = VARIANTS[variant]
    ranks = 8 if split == "all" else 4 if "tp=2" in SPLITS[split] and "dp=2" in SPLITS[split] else 2
    reference = [flag for flag in flags if flag != "--recompute"]
    assert_same(run(tmp_path, text, "f64", *flags, *SPLITS[split].split(), ranks=ranks), alone("f64", *reference), "f64")


@pytest.mark.parametrize("more", ["--tied", "--zero 1", "--zero 2"])
@pytest.mark.parametrize("mesh", ["dp=2", "dp=1,tp=2", "dp=1,pp=2", "dp=2,tp=2", "dp=2,pp=2", "dp=2,tp=2,pp=2"])
def test_any_mesh_has_the_norm_of_one_process_and_clips_alike(tmp_path, text, mesh, more):
    """By sgd, as Adam's steps are the same for gradients of any length; the limit is below each norm."""
    flags = ["--optimizer", "sgd", "--lr", "0.1", "--clip-norm", "0.5", "--steps", "6", "--layers", "2"]
    ranks = int(np.prod([int(part.split("=")[1]) for part in mesh.split(",")]))
    one = run(tmp_path, text, "f64", *flags, *(["--tied"] if more == "--tied" else []), name="one")
    many = run(tmp_path, text, "f64", *flags, *more.split(), "--mesh", mesh, ranks=ranks, name="many")
    assert_same(many, one, "f64")
    norms = [
        [json.loads(line)["grad_norm"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "many")
    ]
    assert min(norms[0]) > 0.5
    assert norms[1] == pytest.approx(norms[0], rel=1e-9)
