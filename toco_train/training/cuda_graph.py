"""Captures the forward and backward pass of a training step as one CUDA graph and replays it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from toco_train.config import Phase
from toco_train.data.loader import Batch
from toco_train.method.objective import Losses

ForwardBackward = Callable[[Batch, Phase], Losses]


class GraphedStep:
    """A forward and backward pass that is captured at its second call and replayed until phase or shapes change.

    The first call of a phase runs as usual: libraries choose their kernels and blocks are compiled then, which cannot
    be captured. Gradients are not accumulated: each call replaces them.

    Args:
        forward_backward: Computes the losses of a batch and the gradients, without ever making the host wait for the
            GPU.
        parameters: The weights that may get a gradient; between steps they must keep their place in memory.
    """

    def __init__(self, forward_backward: ForwardBackward, parameters: Iterable[nn.Parameter]) -> None:
        self._forward_backward, self._parameters = forward_backward, list(parameters)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._key: object = None
        self._capture: _Capture | None = None

    def __call__(self, batch: Batch, phase: Phase) -> Losses:
        """Return the losses of a batch on the GPU, detached, and leave its gradients in the parameters."""
        for parameter in self._parameters:
            parameter.grad = None
        key = (phase, batch.max_classes, batch.view1.shape)
        if key != self._key:
            self._key, self._capture = key, None
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                losses = self._forward_backward(batch, phase)
            torch.cuda.current_stream().wait_stream(self._stream)
            return losses
        if self._capture is None:
            self._capture = _Capture(self._forward_backward, batch, phase, self._parameters, self._stream)
        return self._capture.replay(batch)


class _Capture:
    """One graph, the tensors that it reads and those that it writes."""

    def __init__(
        self,
        forward_backward: ForwardBackward,
        batch: Batch,
        phase: Phase,
        parameters: Iterable[nn.Parameter],
        stream: torch.cuda.Stream,
    ) -> None:
        self._batch = replace(batch, **{name: value.clone() for name, value in _tensors(batch).items()})
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local" allows CUDA calls of other threads meanwhile: the data loader's pins the next batch.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._losses = forward_backward(self._batch, phase)
        self._gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]

    def replay(self, batch: Batch) -> Losses:
        """Run the graph on another batch."""
        for name, tensor in _tensors(self._batch).items():
            tensor.copy_(getattr(batch, name), non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        # A copy: the next replay overwrites the losses.
        numbers = torch.stack([self._losses.total, *self._losses.parts.values()]).unbind()
        return Losses(total=numbers[0], parts=dict(zip(self._losses.parts, numbers[1:], strict=True)))


def _tensors(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
