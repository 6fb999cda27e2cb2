"""A training step's forward and backward pass as one CUDA graph: the host says once what the GPU does, and then go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from toco_train.config import Phase
from toco_train.data.loader import Batch
from toco_train.method.objective import Losses

TakeStep = Callable[[Batch, Phase], Losses]


class GraphedStep:
    """A step that is recorded the second time it is taken and replayed from then on, until phase or shapes change.

    The first step of a phase is taken as it is: in it libraries choose their kernels and what is compiled is compiled,
    which no recording can hold. Gradients are new with each step, as if they had been ``None`` before it.

    Args:
        take: Computes the losses of a batch and the gradients; it must never make the host wait for the GPU.
        parameters: The weights that may get a gradient; between steps they must stay where they are in memory.
    """

    def __init__(self, take: TakeStep, parameters: Iterable[nn.Parameter]) -> None:
        self._take, self._parameters = take, list(parameters)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._key: object = None
        self._recording: _Recording | None = None

    def __call__(self, batch: Batch, phase: Phase) -> Losses:
        """Return the losses of a batch on the GPU, detached, and leave its gradients in the parameters."""
        for parameter in self._parameters:
            parameter.grad = None
        key = (phase, batch.max_classes, batch.view1.shape)
        if key != self._key:
            self._key, self._recording = key, None
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                losses = self._take(batch, phase)
            torch.cuda.current_stream().wait_stream(self._stream)
            return losses
        if self._recording is None:
            self._recording = _Recording(self._take, batch, phase, self._parameters, self._stream)
        return self._recording.replay(batch)


class _Recording:
    """One graph, the tensors that it reads and those that it writes."""

    def __init__(
        self, take: TakeStep, batch: Batch, phase: Phase, parameters: Iterable[nn.Parameter], stream: torch.cuda.Stream
    ) -> None:
        self._batch = replace(batch, **{name: value.clone() for name, value in _tensors(batch).items()})
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on as they like: one of the loader's brings the next batch to pinned memory.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._losses = take(self._batch, phase)
        self._gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]

    def replay(self, batch: Batch) -> Losses:
        """Take the step with another batch."""
        for name, tensor in _tensors(self._batch).items():
            tensor.copy_(getattr(batch, name), non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        numbers = torch.stack([self._losses.total, *self._losses.parts.values()]).unbind()  # the next step writes there
        return Losses(total=numbers[0], parts=dict(zip(self._losses.parts, numbers[1:], strict=True)))


def _tensors(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
