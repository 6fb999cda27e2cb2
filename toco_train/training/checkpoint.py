"""The state of a run on disk: one safetensors file, written whole or not at all; nothing is unpickled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from toco_core.config import FrozenModel
from toco_core.errors import RunError
from toco_core.files import atomic_path
from toco_core.text import one_line
from toco_train.data.source import DataSource

_STATE_KEY = "toco"
_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random."
_MAY_CHANGE = ("data.path", "data.num_workers", "model.sizes", "activation_checkpointing")


class Progress(FrozenModel):
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        evaluated: The last step whose network was evaluated; 0 for none.
        best_step: The step whose segmentation had the best mIoU so far; 0 for none.
        best_miou: That mIoU, 0 to 1; -1 for none.
        seconds: Time of all steps and evaluations so far.
        metrics_bytes: Length of ``metrics.jsonl`` when the checkpoint was written.
    """

    step: int = 0
    evaluated: int = 0
    best_step: int = 0
    best_miou: float = -1.0
    seconds: float = 0.0
    metrics_bytes: int = 0


class _Numbers(FrozenModel):
    """All of a checkpoint but its tensors; JSON in the file's header."""

    progress: Progress
    config: dict[str, Any]
    data: str
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None


class TrainState:
    """Everything that training changes: the network, its teacher, optimiser, schedule, scaler and random generators.

    Args:
        model: The network, unwrapped.
        optimizer: Its optimiser, on the training device.
        schedule: The optimiser's schedule.
        scaler: The scaler of fp16; None at any other precision.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, scaler: torch.amp.GradScaler | None
    ) -> None:
        self.model, self.optimizer, self.schedule, self.scaler = model, optimizer, schedule, scaler

    def save(self, path: Path, progress: Progress, config: Mapping[str, Any], source: DataSource) -> None:
        """Write a checkpoint.

        Args:
            path: The file.
            progress: How far the run is.
            config: The run's configuration as plain values.
            source: The data that it is trained on.

        Raises:
            OSError: The file cannot be written; an existing file is kept.
            SafetensorError: The same, reported by safetensors.
        """
        optimizer = self.optimizer.state_dict()
        tensors = {_MODEL + name: tensor for name, tensor in self.model.state_dict().items()}
        for index, state in optimizer["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in state.items()}
        tensors[_RANDOM + "cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state()
        numbers = _Numbers(
            progress=progress,
            config=dict(config),
            data=fingerprint(source),
            groups=optimizer["param_groups"],
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict() if self.scaler is not None else None,
        )
        write_tensors(path, tensors, {_STATE_KEY: numbers.model_dump_json()})

    def restore(self, path: Path, config: Mapping[str, Any], source: DataSource) -> Progress:
        """Load a checkpoint; on a CPU training then continues bit for bit.

        Args:
            path: A checkpoint.
            config: The configuration as plain values. Only ``data.path``, ``data.num_workers``, ``model.sizes`` and
                ``activation_checkpointing`` may differ from the saved one.
            source: The data, which must be the saved run's.

        Raises:
            RunError: The file cannot be read, or it belongs to other settings or other data.
        """
        numbers, tensors = _read(path)
        _check_settings(numbers.config, config)
        if numbers.data != fingerprint(source):
            raise RunError(
                f"the training images or labels of {source.path} are not those that the run began with, so it cannot "
                "be resumed exactly: give --data with the same data, or start anew with another --out"
            )
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(_OPTIMIZER, tensors).items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = tensor
        try:
            self.model.load_state_dict(_under(_MODEL, tensors))
            self.optimizer.load_state_dict({"state": states, "param_groups": numbers.groups})
        except (RuntimeError, ValueError) as error:
            raise RunError(f"checkpoint {path} does not fit this version's network: {one_line(error)}") from error
        self.schedule.load_state_dict(numbers.schedule)
        if self.scaler is not None and numbers.scaler is not None:
            self.scaler.load_state_dict(numbers.scaler)
        random = _under(_RANDOM, tensors)
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        return numbers.progress


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        OSError: The file cannot be written; an existing file is kept.
        SafetensorError: The same, reported by safetensors.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(on_host, temporary, dict(metadata) if metadata is not None else None)
        temporary.chmod(0o644)  # safetensors lets only the owner read it
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before it replaces an older file: a power cut must not leave it empty


def fingerprint(source: DataSource) -> str:
    """Return a hash of what training reads of a data set: names and labels in order, and classes; not its path."""
    seen = repr((source.classes, [(sample.name, tuple(sample.labels)) for sample in source.train]))
    return hashlib.sha256(seen.encode()).hexdigest()


def _read(path: Path) -> tuple[_Numbers, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            numbers = _Numbers.model_validate_json((file.metadata() or {})[_STATE_KEY])
            return numbers, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValidationError) as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({one_line(error)}): delete it, then --resume goes on from the one "
            "before it, or from the start if there is none"
        ) from error


def _check_settings(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    before, now = _flat(saved), _flat(asked)
    changed = [
        f"{name} {now.get(name)!r} (the run has {before.get(name)!r})"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name) and name not in _MAY_CHANGE
    ]
    if changed:
        raise RunError(
            f"a run is resumed with the settings that it began with, got {', '.join(changed)}: leave them out, or "
            "start anew with another --out"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
