"""Forward and backward of a batch through a pipeline: one executor for every schedule.

Each rank runs its actions (see schedules.py) on its stages of the model. Sends between stages do not wait; receives are posted
one message ahead, in the order of the sender's plan, and an action waits for the message that it needs.
A single rank with one stage is a pipeline too: several micro-batches are then gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from hpcai.comm import message
from hpcai.comm.communicator import Communicator
from hpcai.nn import memory, models
from hpcai.nn.layers import Params, buffer
from hpcai.nn.models import Model
from hpcai.nn.sequence import BatchPosition
from hpcai.parallel.schedules import Action, Plan, Work
from hpcai.xp import Array

ACTIVATIONS, GRADIENTS = 0, 1
"""Message lanes: activations go to the next stage, gradients to the previous one."""


class Gradients(Protocol):
    """The destination of gradients in backward; see zero.py."""

    def begin(self) -> None:
        """Start a step."""

    def __getitem__(self, i: int, /) -> Params:
        """Return the arrays into which layer i's gradients are written."""

    def filled(self, i: int) -> None:
        """Note that layer i's gradients of one micro-batch are written."""

    def finish(self) -> None:
        """Note that all gradients of the step are written."""


class MicroBatch(NamedTuple):
    """A micro-batch. x: samples. target: None if predictions are wanted, not a loss. first: the number of its first sample in
    the global batch.
    """

    x: Array
    target: Array | None
    first: int


class Stages(NamedTuple):
    """This rank's part of the model. spans: for each chunk, the layers of its stage."""

    model: Model
    spans: tuple[slice, ...]
    entering: tuple[tuple[int, ...], ...]
    """For each chunk, the shape of a sample that enters the stage, (rows, *rest); unused in the first stage, which reads data."""
    leaving: tuple[tuple[int, ...], ...]
    """For each chunk, the shape of a sample that leaves the stage."""
    recompute: tuple[slice, ...] | None = None
    """Spans of layers whose activations backward computes again; None: all activations are kept."""


class _Slot:
    """The data kept for one micro-batch in one stage from its forward to the end of its backward."""

    def __init__(self, model: Model):
        self.caches = models.caches(model)
        self.deferred: list[tuple[int, Array]] = []
        self.inputs: list[Array] = []


class Pipeline:
    """Runs plans on this rank's stages."""

    def __init__(self, stages: Stages, comm: Communicator, dtype: np.dtype):
        self.stages, self.comm, self.dtype = stages, comm, dtype
        self.count = len(stages.spans) * comm.size
        self.timeline: list[Work] = []
        self.output: Array | None = None

    def predict(self, x: Array, params: Sequence[Params], plan: Plan) -> Array | None:
        """Return the last layer's output for samples x on the last stage's rank, else None. plan: forwards of one micro-batch."""
        self.output = None
        self.run(plan, [MicroBatch(x, None, 0)], params, None, 0.0, None)
        return self.output

    def run(
        self,
        plan: Plan,
        micros: Sequence[MicroBatch],
        params: Sequence[Params],
        grads: Gradients | None,
        scale: float,
        step: int | None,
        filled: Callable[[int], None] = lambda layer: None,
        seen: Callable[[Array, Array], None] = lambda y, target: None,
    ) -> tuple[float, int]:
        """Run the plan. Return the sum of losses and the number of correct predictions, 0 except on the last stage's rank.

        plan: for len(micros) micro-batches. grads: the destination of gradients; None if the plan has forwards only. step: of
        training; None: evaluation. filled(i): called when layer i has its gradients of all micro-batches. seen(y, target):
        called on the last stage's rank with the predictions for a micro-batch. Collective.
        """
        return _Run(self, plan, micros, params, grads, scale, step, filled, seen).all()


class _Run:
    """One pass through a plan."""

    def __init__(self, pipeline, plan, micros, params, grads, scale, step, filled, seen):
        self.pipeline, self.plan, self.micros, self.params, self.grads = pipeline, plan, micros, params, grads
        self.scale, self.step, self.report, self.seen = scale, step, filled, seen
        self.stages, self.comm, self.count = pipeline.stages, pipeline.comm, pipeline.count
        self.model: Model = self.stages.model
        self.slots: dict[tuple[int, int], _Slot] = {}
        self.dy: dict[int, Array] = {}
        self.sent: list[tuple[Any, Array]] = []
        self.loss, self.correct = 0.0, 0
        self.left = [len(micros)] * len(self.model.layers)
        self.inbox = {lane: _Inbox(self, lane) for lane in (ACTIVATIONS, GRADIENTS)}

    def all(self) -> tuple[float, int]:
        """Run every action of this rank."""
        if self.grads is not None:
            self.grads.begin()
        works = {"F": self.forward, "B": self.backward, "I": self.backward, "W": self.weights}
        timeline = []
        for action in self.plan[self.comm.rank]:
            begin = works[action.kind](action)
            timeline.append(Work(action, begin, perf_counter()))
        if self.grads is not None:
            self.grads.finish()
        for pending, _ in self.sent:
            pending.wait()
        self.pipeline.timeline = timeline
        return self.loss, self.correct

    def forward(self, action: Action) -> float:
        """Run F. Return the time when its input had arrived."""
        micro, stage, span = self.micros[action.micro], self.stage(action), self.stages.spans[action.chunk]
        slot = self.slots[action.micro, action.chunk] = _Slot(self.model)
        x = micro.x if stage == 0 else self.inbox[ACTIVATIONS].take(stage, action.micro)
        begin = perf_counter()
        moment = None if self.step is None else BatchPosition(self.step, micro.first)
        y = self._through(slot, span, x, moment)
        if stage == self.count - 1 and micro.target is None:
            self.pipeline.output = y
        elif stage == self.count - 1:
            self.seen(y, micro.target)
            dy = self.dy[action.micro] = buffer(y.shape, y)
            loss, correct = self.model.loss.evaluate(dy, y, micro.target, self.scale)
            self.loss += loss
            self.correct += correct
        else:
            self._send(y, stage + 1, ACTIVATIONS)
        if self.grads is None:
            self.release(action)
        return begin

    def backward(self, action: Action) -> float:
        """Run B or I. Return the time when the output's gradient had arrived."""
        stage, span = self.stage(action), self.stages.spans[action.chunk]
        slot = self.slots[action.micro, action.chunk]
        dy = self.dy.pop(action.micro) if stage == self.count - 1 else self.inbox[GRADIENTS].take(stage, action.micro)
        begin = perf_counter()
        dx = self._back(slot, span, dy, self.micros[action.micro], stage > 0, action.kind == "I")
        if stage > 0:
            self._send(dx, stage - 1, GRADIENTS)
        if action.kind == "B":
            self.release(action)
        return begin

    def weights(self, action: Action) -> float:
        """Run W. Return its start time."""
        begin = perf_counter()
        slot = self.slots[action.micro, action.chunk]
        models.gradients(self.model, self.params, self.grads, slot.caches, slot.deferred, self.filled)
        self.release(action)
        return begin

    def filled(self, i: int) -> None:
        """Note that layer i's gradients of one micro-batch are written; report the layer after the last micro-batch."""
        self.grads.filled(i)
        self.left[i] -= 1
        if self.left[i] == 0:
            self.report(i)

    def release(self, action: Action) -> None:
        """Free the data of a micro-batch in a stage, after its last action there."""
        del self.slots[action.micro, action.chunk]

    def stage(self, action: Action) -> int:
        """Return the index, among all stages, of the stage that an action works on."""
        return action.chunk * self.comm.size + self.comm.rank

    def _send(self, y: Array, stage: int, lane: int) -> None:
        self.sent = [(pending, x) for pending, x in self.sent if not pending.done()]
        if y.size:
            y = np.ascontiguousarray(y)
            self.sent.append((message.send_bare(self.comm, y, stage % self.comm.size, lane), y))

    def _through(self, slot: _Slot, span: slice, x: Array, moment: BatchPosition | None) -> Array:
        if self.stages.recompute is None or self.grads is None:
            return models.forward(self.model, self.params, slot.caches, x, span, moment)
        for group in _inside(self.stages.recompute, span):
            slot.inputs.append(x)
            x = models.forward(self.model, self.params, slot.caches, x, group, moment)
            for cache in slot.caches[group]:
                cache.clear()
        return x

    def _back(self, slot: _Slot, span: slice, dy: Array, micro: MicroBatch, need_input_grad: bool, split: bool) -> Array:
        grads: Any = self.grads
        if self.stages.recompute is None:
            deferred = slot.deferred if split else None
            return models.backward(
                self.model,
                self.params,
                grads,
                slot.caches,
                dy,
                self.filled,
                span,
                need_input_grad=need_input_grad,
                deferred=deferred,
            )
        moment = None if self.step is None else BatchPosition(self.step, micro.first)
        for group in reversed(_inside(self.stages.recompute, span)):
            further = need_input_grad or group.start > span.start
            models.forward(self.model, self.params, slot.caches, slot.inputs.pop(), group, moment)
            dy = models.backward(self.model, self.params, grads, slot.caches, dy, self.filled, group, need_input_grad=further)
        return dy


def _inside(groups: Sequence[slice], span: slice) -> list[slice]:
    return [group for group in groups if span.start <= group.start and group.stop <= span.stop]


class _Inbox:
    """Receives the messages of one lane to this rank, in the order in which they are sent."""

    def __init__(self, run: _Run, lane: int):
        self.run, self.lane = run, lane
        self.rank, self.size = run.comm.rank, run.comm.size
        self.source = (self.rank - 1 if lane == ACTIVATIONS else self.rank + 1) % self.size
        self.coming = list(reversed(self._expected())) if self.size > 1 else []
        self.posted: dict[tuple[int, int], tuple[Array, Any]] = {}

    def take(self, stage: int, micro: int) -> Array:
        """Wait for the message for this stage and micro-batch, and return it."""
        while (stage, micro) not in self.posted:
            self._post()
        x, pending = self.posted.pop((stage, micro))
        if not self.posted:
            self._post()
        if pending is not None:
            pending.wait()
        return x

    def _post(self) -> None:
        """Start to receive the next message."""
        if not self.coming:
            return
        stage, micro = self.coming.pop()
        chunk = stage // self.size
        stages = self.run.stages
        rows, *rest = stages.entering[chunk] if self.lane == ACTIVATIONS else stages.leaving[chunk]
        x = memory.empty((rows * len(self.run.micros[micro].x), *rest), self.run.pipeline.dtype)
        self.posted[stage, micro] = x, message.receive_bare(self.run.comm, x, self.source, self.lane) if x.size else None

    def _expected(self) -> list[tuple[int, int]]:
        """Return (stage here, micro-batch) of all messages, in the order of the sender's plan."""
        ahead = 1 if self.lane == ACTIVATIONS else -1
        kinds = "F" if self.lane == ACTIVATIONS else "BI"
        sent = [(a.chunk * self.size + self.source + ahead, a.micro) for a in self.run.plan[self.source] if a.kind in kinds]
        return [(stage, micro) for stage, micro in sent if 0 <= stage < self.run.count]
