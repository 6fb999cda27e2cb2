"""The device, the precision and the processes of a run."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from toco_core.errors import ConfigError
from toco_core.text import one_line
from toco_train.config import TrainConfig


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Set up the device, the precision and the processes that train together.

    Raises:
        ConfigError: There are more processes than GPUs, or the precision is not available.
    """
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and processes > gpus:
        raise ConfigError(f"{processes} processes share {gpus} GPU(s): lower --nproc_per_node of torchrun to {gpus}")
    AcceleratorState._reset_state()  # else a second run in this process keeps the first one's precision; no public way
    try:
        accelerator = Accelerator(
            # Without a GPU, accelerate would otherwise let every process of torchrun train on its own.
            cpu=int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation,
            # Not every phase computes every loss, so not every weight has a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise ConfigError(
            f"mixed_precision {config.mixed_precision} does not work here ({one_line(error)}): use --mixed_precision no"
        ) from error
    if config.mixed_precision == "fp16" and accelerator.scaler is None:  # accelerate would compute in float32 instead
        raise ConfigError(
            f"mixed_precision fp16 needs a GPU, and the device is {accelerator.device.type}: use bf16 or no"
        )
    return accelerator


def require_one_gpu(config: TrainConfig, accelerator: Accelerator) -> None:
    """Check that a step can be one CUDA graph.

    Raises:
        ConfigError: There is no GPU, more than one process, or a step of several micro-batches.
    """
    if accelerator.device.type != "cuda":
        raise ConfigError(f"cuda_graph true needs a GPU, and the device is {accelerator.device.type}: leave it out")
    if accelerator.num_processes > 1:
        raise ConfigError(f"cuda_graph true is for one process, got {accelerator.num_processes}: leave it out")
    if config.gradient_accumulation > 1:
        raise ConfigError(
            f"cuda_graph true is for whole steps, and gradient_accumulation is {config.gradient_accumulation}: "
            "set it to 1, or leave cuda_graph out"
        )
