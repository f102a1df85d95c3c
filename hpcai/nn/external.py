"""Models whose gradients another library computes, such as JAX or PyTorch; hpcai combines, updates, saves and resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hpcai.errors import UsageError, counted
from hpcai.nn.layers import Cache, Layer, Parameter, Params
from hpcai.nn.losses import Loss
from hpcai.nn.models import Model, sequential
from hpcai.xp import Array, bfloat16

Gradients = Mapping[str, Any]
LossAndGradients = Callable[[Params, Array, Array], tuple[Any, Gradients]]


def external(
    parameters: Mapping[str, Any],
    loss_and_gradients: LossAndGradients,
    *,
    loss: Callable[[Params, Array, Array], Any] | None = None,
    predict: Callable[[Params, Array], Any] | None = None,
    reduction: str = "mean",
    name: str = "external",
) -> Model:
    """Return a model of one layer; a function of the caller computes its loss and gradients.

    Args:
        parameters: name -> initial value, a floating-point array of any shape. Names and shapes must be the same on all ranks;
            training begins with the values of rank 0.
        loss_and_gradients: (parameters, x, target) -> (loss, gradients by name). `parameters` are numpy views in the dtype of
            the run, which the function must not change. x and target: this rank's samples, as the data set gives them.
        loss: (parameters, x, target) -> loss alone, for evaluation. Without `loss`, evaluation computes gradients too.
        predict: (parameters, x) -> (b, outputs), for accuracy and predictions. Without `predict` there are none.
        reduction: "mean" or "sum": how the loss combines the samples of a call.
    Returns: a Model. Its only layer cannot be split among pipeline or tensor-parallel ranks.
    Raises: UsageError for invalid parameters; in training, for gradients that are missing or have a wrong shape or dtype.
    Cost: a copy of the gradients a step.

    >>> def half_square(p, x, target):
    ...     off = x @ p["w"] - target
    ...     return (off**2).mean() / 2, {"w": x.T @ off / len(x)}
    >>> external({"w": np.zeros((3, 1))}, half_square).layout.slots[0].name
    'external.w'
    """
    if reduction not in ("mean", "sum"):
        raise UsageError(f"reduction is {reduction!r}; expected 'mean' or 'sum', as the loss combines its samples")
    if not isinstance(parameters, Mapping):
        raise UsageError(f"parameters are a {type(parameters).__name__}; expected a mapping from names to arrays, such as a dict")
    values = {key: np.asarray(value) for key, value in parameters.items()}
    for key, value in values.items():
        if value.dtype.kind != "f" or not value.size:
            raise UsageError(
                f"parameter {key!r} has dtype {value.dtype} and shape {value.shape}; expected one or more floating-point numbers"
            )
    if not values:
        raise UsageError("there are no parameters; pass at least one named array")
    functions = _Functions(loss_and_gradients, loss, predict, reduction)
    described = {key: Parameter(value.shape, 0.0, "given", values=value) for key, value in values.items()}

    def forward(params: Params, cache: Cache, x: Array) -> Array:
        training = cache.get("moment") is not None
        cache["call"] = call = _Call(functions, params, x, training)
        return _Output.of(call, dtype=next(iter(params.values())).dtype)

    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        found = cache["call"].gradients
        for key, into in grads.items():
            into[...] = found[key]

    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        raise UsageError(f"model {name} computes no gradient of its input, so no layer can come before it")

    layer = Layer(name, described, forward, backward, gradients)
    return sequential(name, layer, loss=Loss(name, _evaluate, counts=predict is not None))


def is_external(model: Model) -> bool:
    """Return whether another library computes the model's gradients."""
    return any(parameter.initial == "given" for layer in model.layers for parameter in layer.parameters.values())


class _Functions(NamedTuple):
    loss_and_gradients: LossAndGradients
    loss: Callable[[Params, Array, Array], Any] | None
    predict: Callable[[Params, Array], Any] | None
    reduction: str


class _Call:
    """A forward pass that the loss completes, since only the loss gets the targets."""

    def __init__(self, functions: _Functions, params: Params, x: Array, training: bool):
        self.functions, self.params, self.x, self.training = functions, params, x, training
        self.gradients: dict[str, Array] = {}


class _Output(np.ndarray):
    """Predictions (zeros in training), and the call that they belong to."""

    call: _Call

    @classmethod
    def of(cls, call: _Call, dtype: np.dtype) -> _Output:
        predict = None if call.training or not len(call.x) else call.functions.predict
        found = np.zeros((len(call.x), 1)) if predict is None else np.asarray(predict(call.params, call.x))
        if found.ndim != 2 or len(found) != len(call.x):
            raise UsageError(
                f"predict gave shape {found.shape} for {counted(len(call.x), 'sample')}; expected ({len(call.x)}, outputs)"
            )
        made = np.ascontiguousarray(found, dtype).view(cls)
        made.call = call
        return made


def _evaluate(dy: Array, y: Array, target: Array, scale: float) -> tuple[float, int]:
    """Return the sum of the loss over samples and the number of correct predictions, as any loss does."""
    call = y.call  # type: ignore[attr-defined]  # an array that knows the call that made it
    weight = len(call.x) if call.functions.reduction == "mean" else 1
    if not call.training:
        return weight * _loss(call, target), _correct(call, np.asarray(y), target)
    if not len(call.x):
        call.gradients = {key: np.zeros_like(value) for key, value in call.params.items()}
        return 0.0, 0
    loss, gradients = _answered(call, target)
    call.gradients = {key: _scaled(key, gradients, value, weight * scale) for key, value in call.params.items()}
    return weight * loss, 0


def _answered(call: _Call, target: Array) -> tuple[float, Gradients]:
    """Call loss_and_gradients. Raises: UsageError unless the result is a loss and the gradients of all parameters."""
    found = call.functions.loss_and_gradients(call.params, call.x, target)
    if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[1], Mapping):
        raise UsageError(f"loss_and_gradients gave {_shape_of(found)}; expected (loss, gradients), with gradients by name")
    for key in call.params:
        if key not in found[1]:
            raise UsageError(
                f"loss_and_gradients gave no gradient of {key!r}; it gave {', '.join(map(repr, found[1])) or 'none'}"
            )
    if len(found[1]) > len(call.params):
        extra = next(key for key in found[1] if key not in call.params)
        known = ", ".join(map(repr, call.params))
        raise UsageError(f"loss_and_gradients gave a gradient of {extra!r}, which is not a parameter; parameters are {known}")
    return _number(found[0], "loss_and_gradients"), found[1]


def _shape_of(found: Any) -> str:
    if not isinstance(found, (tuple, list)):
        return type(found).__name__
    return f"({', '.join(type(one).__name__ for one in found)})"


def _number(loss: Any, name: str) -> float:
    """The loss as a float. Raises: UsageError for a value that is not one number."""
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError):  # torch raises RuntimeError
        shape = f" of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else ""
        raise UsageError(f"the loss of {name} is {type(loss).__name__}{shape}; expected one number") from None


def _loss(call: _Call, target: Array) -> float:
    if not len(call.x):
        return 0.0
    if call.functions.loss is not None:
        return _number(call.functions.loss(call.params, call.x, target), "loss")
    return _answered(call, target)[0]


def _scaled(key: str, gradients: Gradients, parameter: Array, scale: float) -> Array:
    found = np.asarray(gradients[key])
    if found.shape != parameter.shape:
        raise UsageError(f"the gradient of {key!r} has shape {found.shape}; expected the parameter's shape, {parameter.shape}")
    if found.dtype.kind not in "fiu" and found.dtype != bfloat16:
        raise UsageError(f"the gradient of {key!r} has dtype {found.dtype}; expected real numbers")
    return np.multiply(found, scale, dtype=parameter.dtype, casting="same_kind")


def _correct(call: _Call, y: Array, target: Array) -> int:
    has_classes = call.functions.predict is not None and target.dtype.kind == "i" and target.ndim == 1
    return int((y.argmax(1) == target).sum()) if has_classes else 0
