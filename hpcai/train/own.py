"""A user's own models, data and optimizers, given by name (package.module:function or file.py:function) or as Python objects.

Ranks that are started later receive names only. So they can build a Python object only if it is a function that can be found by
its name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset, take
from hpcai.data.given import from_arrays, from_samples
from hpcai.data.validation import Validation, split
from hpcai.errors import UsageError, meant
from hpcai.nn.external import external, is_external
from hpcai.nn.models import Model, caches
from hpcai.optim.optimizers import Optimizer
from hpcai.train.options.own_name import NAME, Own, called
from hpcai.xp import Array

_ALIAS = "hpcai_own_"
"""The prefix of the names of modules that are read from a file."""


def require_guard() -> None:
    """Raise UsageError if a script starts to train while it is only imported for the user's own objects in it."""
    frame: Any = sys._getframe(2)
    if frame.f_globals.get("__name__", "").startswith(_ALIAS):
        raise UsageError(
            f"{frame.f_globals['__file__']} trains when it is imported, but ranks that are started later import it; put the call "
            'of fit below if __name__ == "__main__":'
        )


PROBED = 3
"""The number of parameters of a trial state of an optimizer, which is checked."""

STATE_NAME = re.compile("[a-z][a-z0-9_]{0,99}")
"""Valid names of optimizer state in checkpoints (see manifest.schema.json)."""


def model(name: str, data: Dataset) -> Model:
    """Return the model of that name, for this data. Raises: UsageError."""
    flag = f"--model {name}"
    found = _made(flag, name, data)
    if isinstance(found, Model):
        return found
    if hasattr(found, "parameters") and callable(getattr(found, "loss_and_gradients", None)):
        more = {key: getattr(found, key) for key in ("loss", "predict", "reduction") if hasattr(found, key)}
        return external(found.parameters, found.loss_and_gradients, **more)
    raise UsageError(
        f"{flag} gave {type(found).__name__}; expected an hpcai.nn.Model, or an object with parameters (names to arrays) and "
        "loss_and_gradients(parameters, x, target)"
    )


def fitting(model: Model, recompute: bool, dtype: str) -> Model:
    """Return the model if it allows these options. Raises: UsageError."""
    if not is_external(model):
        return model
    if recompute:
        raise UsageError(f"--recompute is for layers of hpcai; model {model.name} keeps its own activations; leave it out")
    if dtype in ("bf16", "f16"):
        raise UsageError(f"--dtype {dtype} is for layers of hpcai; model {model.name} does its own arithmetic; take f32 or f64")
    return model


def try_out(name: str, model: Model, dataset: Dataset) -> None:
    """Raise UsageError if layers or the loss do not accept one training sample. Runs before any file is written.

    All parameters are zeros, and only one layer's are in memory at a time. A model that computes its own gradients is not called.
    """
    if is_external(model):
        return
    width = dataset.x_train.shape[-1]
    x, target = take(dataset, np.zeros(1, np.int64), np.empty((0 if dataset.context else 1, width), np.float32))
    for layer, cache in zip(model.layers, caches(model), strict=True):
        cache["moment"] = None
        zeros = {key: np.zeros(parameter.shape, np.float32) for key, parameter in layer.parameters.items()}
        given = f"{x.dtype} of shape {x.shape[1:]} a sample"
        x = _fitting(f"--model {name}: layer {layer.name!r} does not take {given}", layer.forward, zeros, cache, x)
    words = f"--model {name}: its loss does not take outputs of shape {x.shape[1:]} and targets of {target.dtype} a sample"
    _fitting(words, model.loss.evaluate, np.empty_like(x), x, target, 1.0)


def _fitting(words: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(f"{words}: {' '.join(str(error).split())}") from error


def share(model: Model, initial: Array, comm: Communicator) -> None:
    """Make a user's own model begin alike on all ranks. A model that computes its own gradients begins with rank 0's parameters.

    Collective. Raises: UsageError, on all ranks, if names or shapes of parameters differ between ranks.
    """
    slots = [(slot.name, slot.shape) for slot in model.layout.slots]
    for rank, theirs in enumerate(everyones := comm.allgather_object(slots)):
        if theirs != everyones[0]:
            ours, other = next(pair for pair in zip_longest(everyones[0], theirs) if pair[0] != pair[1])
            raise UsageError(
                f"the model is not the same on all ranks: rank 0 has {_named(ours)} where rank {rank} has {_named(other)}"
            )
    if is_external(model):
        comm.broadcast(initial)


def _named(slot: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if slot is None else f"{slot[0]} of shape {slot[1]}"


def optimizer(name: str, model: Model) -> Optimizer:
    """Return the optimizer of that name. Raises: UsageError."""
    found = _made(f"--optimizer {name}", name, model)
    if not isinstance(found, Optimizer):
        raise UsageError(f"--optimizer {name} gave {type(found).__name__}; expected an hpcai.optim.Optimizer")
    _require_state(name, found.init(np.zeros(PROBED, np.float32)))
    return found


def _require_state(name: str, state: Any) -> None:
    """Raise UsageError if checkpoints could not hold this state, which an optimizer made for PROBED parameters."""
    if not isinstance(state, dict):
        raise UsageError(f"the state of --optimizer {name} is {type(state).__name__}; expected a dict of arrays by name")
    for key, value in state.items():
        if not isinstance(key, str) or not STATE_NAME.fullmatch(key):
            raise UsageError(
                f"--optimizer {name} has state of the name {key!r}; expected lower-case letters, digits and _, as in moment1"
            )
        if not isinstance(value, np.ndarray) or value.shape != (PROBED,) or value.dtype.kind != "f":
            given = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise UsageError(
                f"--optimizer {name} keeps {key} as {given} for {PROBED} parameters; expected an array of floats as long as the "
                "parameters, since ranks divide both"
            )


def data(name: str, validation: Validation | None = None) -> Dataset:
    """Return the data set of that name, with samples held out if `validation` asks for it. Raises: UsageError, DataError."""
    found = _made(f"--data {name}", name, None)
    if isinstance(found, Dataset):
        _require_none(name, found.validates, validation)
        return split(found, validation)
    theirs: Any = validation
    if isinstance(found, dict) and {"x_validation", "y_validation"} <= set(found):
        _require_none(name, True, validation)
        theirs = found["x_validation"], found["y_validation"]
        found = {key: value for key, value in found.items() if not key.endswith("_validation")}
    if isinstance(found, dict) and set(found) <= {"x", "y", "x_test", "y_test", "x_train", "y_train"}:
        found = tuple(found.get(key, found.get(f"{key}_train")) for key in ("x", "y")) + tuple(
            found[key] for key in ("x_test", "y_test") if key in found
        )
    if isinstance(found, (tuple, list)) and len(found) in (2, 4):
        if all(hasattr(one, "take") and hasattr(one, "__len__") and not hasattr(one, "__array__") for one in found):
            made = from_samples(*found, classes=getattr(found[0], "classes", 0), name=called(name))
            return split(made, validation)
        return from_arrays(*found, name=called(name), validation=theirs)
    raise UsageError(
        f"--data {name} gave {type(found).__name__}; expected (x, y), (x, y, x_test, y_test), a pair of objects with "
        "__len__ and take(index) for training and testing, or the result of hpcai.data.from_arrays or from_samples"
    )


def _require_none(name: str, has: bool, wanted: Validation | None) -> None:
    """Raise UsageError if --validation is given for data that have their own samples for validation."""
    if has and wanted is not None:
        raise UsageError(
            f"--validation {wanted.fraction:g} would hold samples out, but --data {name} already has samples for validation; "
            "leave --validation out"
        )


def _made(flag: str, name: str, argument: Any) -> Any:
    """Return the object of a name, or the result if it is a function, which may take `argument`. Raises: UsageError."""
    value = name.value if isinstance(name, Own) else _found(flag, name)
    is_model = hasattr(value, "loss_and_gradients") and not inspect.isclass(value)  # a model may be callable too
    if isinstance(value, tuple) or not callable(value) or is_model:
        return value
    try:
        wants = [one for one in inspect.signature(value).parameters.values() if one.default is one.empty]
    except (TypeError, ValueError):
        wants = []
    wants = [one for one in wants if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    most = 0 if argument is None else 1
    if len(wants) > most or any(one.kind is one.KEYWORD_ONLY for one in wants):
        may = "nothing" if not most else f"nothing or the {'data set' if isinstance(argument, Dataset) else 'model'}"
        raise UsageError(f"{flag} takes {', '.join(one.name for one in wants)}, but is called with {may}")
    return value(argument) if wants else value()


@functools.cache
def _found(flag: str, name: str) -> Any:
    found = NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{flag} is an object of another process, and has no name by which this process could build it")
    module = _file(flag, Path(found["place"])) if found["place"].endswith(".py") else _module(flag, found["place"])
    if not hasattr(module, found["function"]):
        near = meant(found["function"], [one for one in vars(module) if not one.startswith("_")])
        raise UsageError(f"{flag}: {found['place']} has no {found['function']}{near}")
    return getattr(module, found["function"])


def _module(flag: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # another module is missing, which this module imports
        raise UsageError(
            f"{flag}: there is no module {error.name} here; its folder must be in $PYTHONPATH or be the current folder"
        ) from None


def _file(flag: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{flag}: there is no file {path}")
    alias = f"{_ALIAS}{re.sub(r'[^0-9A-Za-z]', '_', str(path.absolute()))}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module
