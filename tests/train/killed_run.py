"""A run of ``toco-train`` as a process of its own, forked at once from a server that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.train.small_runs import make_small
from toco_train.commands.train import main
from toco_train.training import loop as engine  # noqa: F401  (for the server to have)


def start(
    argv: list[str],
    output: Path,
    *,
    largest_file: int = resource.RLIM_INFINITY,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> BaseProcess:
    """Start a small run.

    Args:
        argv: Its command line.
        output: Where what it prints goes.
        largest_file: Bytes that a file may have; a longer one cannot be written, as on a disk that is full.
        environment: Further variables: those of torchrun make it one of several processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(argv, output, largest_file, dict(environment)))
    process.start()
    return process


def _run(argv: list[str], output: Path, largest_file: int, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    monkeypatch = pytest.MonkeyPatch()
    make_small(monkeypatch)
    monkeypatch.setattr("toco_train.commands.train._SECONDS_TO_SPEAK", 0.0)
    monkeypatch.setattr("toco_train.training.checkpoint.save_file", _save_slowly)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    sys.exit(main(argv))


def _save_slowly(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write as a slow disk does, so that a kill often comes in the midst of it."""
    content = save(tensors, metadata)
    with path.open("wb", buffering=0) as file:
        file.write(content[: len(content) // 2])
        time.sleep(0.05)
        file.write(content[len(content) // 2 :])
