"""What a run went through, read back from ``metrics.jsonl``: losses, learning rate, evaluations, and their times."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toco_core.errors import RunError
from toco_train.config import LossWeights, TrainConfig

_ALWAYS_ON = ("cls", "aux_cls")


@dataclass(frozen=True)
class Span:
    """A stretch of training in which the same losses are on.

    Attributes:
        first: Its first step, from 1.
        last: Its last step so far.
        losses: Names of the losses that are on.
        seconds: What its steps took, checkpoints among them, without evaluations; NaN if an evaluation in it did not
            record its time.
    """

    first: int
    last: int
    losses: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class History:
    """The lines of a run's metrics, in order.

    Attributes:
        steps: Lines of a step each: ``step``, ``lr``, ``seconds`` since the start, ``losses`` by name.
        evaluations: Lines of an evaluation each: ``step``, ``evaluation_s``, ``evaluation`` as
            ``toco_train.evaluation.evaluate.evaluation_numbers`` has it.
    """

    steps: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]

    def losses(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return steps and values of each loss, by its name; a loss that was off at times has fewer."""
        found: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for line in self.steps:
            for name, value in line["losses"].items():
                found[name][0].append(line["step"])
                found[name][1].append(value)
        return dict(found)

    def evaluation_seconds(self) -> float:
        """Return what the evaluations took together; NaN if one did not record its time."""
        return sum(_evaluation_seconds(line) for line in self.evaluations)

    def spans(self, config: TrainConfig) -> list[Span]:
        """Return the time of each phase that training has reached; between logged steps it is interpolated."""
        if not self.steps:
            return []
        done = int(self.steps[-1]["step"])
        logged = [0, *(line["step"] for line in self.steps)]
        seconds = [0.0, *(line["seconds"] for line in self.steps)]
        borders = [phase.from_step for phase in config.phases if phase.from_step < done] + [done]
        spans = []
        for phase, (begin, end) in zip(config.phases, itertools.pairwise(borders), strict=False):
            elapsed = np.interp(end, logged, seconds) - np.interp(begin, logged, seconds)
            between = sum(_evaluation_seconds(line) for line in self.evaluations if begin <= line["step"] < end)
            on = [name for name in LossWeights.model_fields if name in _ALWAYS_ON
                  or (getattr(phase, name) and getattr(config.weights, name) > 0)]  # fmt: skip
            spans.append(Span(begin + 1, end, tuple(on), float(elapsed - between)))
        return spans


def read_history(path: Path) -> History:
    """Read ``metrics.jsonl``; a run that was imported has none, and so no history.

    Raises:
        RunError: A line is not what ``toco-train`` writes.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    steps: list[Mapping[str, Any]] = []
    evaluations: list[Mapping[str, Any]] = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):  # being written, or cut off by a kill
            continue
        try:
            values = json.loads(line)
            (evaluations if "evaluation" in values else steps).append(values)
        except ValueError as error:
            raise RunError(f"line {number} of {path} is not JSON ({error}); restore the file or remove it") from error
    return History(tuple(steps), tuple(evaluations))


def thinned(steps: Sequence[int], values: Sequence[float], most: int = 300) -> tuple[list[float], list[float]]:
    """Return at most so many points of a curve, each the mean of as many neighbours as the others."""
    size = math.ceil(len(steps) / most) or 1
    groups = [slice(start, start + size) for start in range(0, len(steps), size)]
    return [float(np.mean(steps[g])) for g in groups], [float(np.mean(values[g])) for g in groups]


def _evaluation_seconds(line: Mapping[str, Any]) -> float:
    return float(line.get("evaluation_s", math.nan))
