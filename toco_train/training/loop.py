"""The training loop."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from toco_core.errors import ConfigError, DataError
from toco_core.text import one_line
from toco_train.config import Phase, TrainConfig
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import Batch, training_batches
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource
from toco_train.distributed import rank, world_size
from toco_train.evaluation.evaluate import Evaluation
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.models.toco import ToCo
from toco_train.training.checkpoint import Progress, TrainState
from toco_train.training.cuda_graph import GraphedStep, TakeStep
from toco_train.training.nonfinite import PendingStep, forbid_update, measure, raise_if_nonfinite
from toco_train.training.optimizer import build_optimizer
from toco_train.training.run_folder import RunFolder
from toco_train.training.schedule import build_schedule
from toco_train.training.signals import StopSignals
from toco_train.training.validation import validate

log = logging.getLogger(__name__)


class TrainingCallback(Protocol):
    """Who is told how a run goes: the command shows it, a test may ignore it."""

    def started(self, source: DataSource, device: torch.device, progress: Progress) -> None:
        """Training is about to begin, or to go on."""

    def stepped(self, step: int, losses: dict[str, float] | None) -> None:
        """A step is done; its losses come every ``log_every`` steps."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has done so many images."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation is done."""


def train(config: TrainConfig, run: RunFolder, watcher: TrainingCallback, stop: StopSignals) -> Progress:
    """Train a network as the configuration says, from the run folder's last checkpoint on, and leave it there.

    Training reads images and image-level labels; masks are opened by the evaluations alone, and only if they exist.
    Under ``torchrun`` every process calls this; together they make the steps that one alone would make.

    Args:
        config: The configuration; that of the run if one is resumed.
        run: Where everything goes.
        watcher: Is told how it goes.
        stop: Entered for as long as there is something to save; asks for a stop at the end of a step.

    Returns:
        How far the run came; it is finished if ``evaluated`` is ``config.steps``, else a stop was asked for.

    Raises:
        DataError: The data set or an image cannot be used.
        ConfigError: The backbone cannot be built, or the precision is not to be had.
        RunError: The checkpoint cannot be resumed, or the run folder cannot be written.
        TrainingError: A loss or gradient is not finite.
    """
    set_seed(config.seed)
    training = _Training(config, run, watcher, stop)
    progress = training.run()
    training.accelerator.end_training()
    return progress


class _Training:
    """A run in progress."""

    def __init__(self, config: TrainConfig, run: RunFolder, watcher: TrainingCallback, stop: StopSignals) -> None:
        self.accelerator = accelerator = _accelerator(config)
        self._source = source = open_source(config.data, seed=config.seed)
        config = config.model_copy(update={"model": config.model.model_copy(update={"classes": source.classes})})
        self._config, self._run, self._watcher, self._stop = config, run, watcher, stop
        checkpoint = run.last_checkpoint()
        self._model = _network(config, resumed=checkpoint is not None).to(accelerator.device)
        objective = ToCoObjective(
            self._model,
            cam=config.cam,
            contrast=config.contrast,
            regularization=config.regularization,
            weights=config.weights,
        )
        optimizer = build_optimizer(self._model, config.optimizer)
        self._schedule = build_schedule(optimizer, config.optimizer, config.steps)
        self._objective, self._optimizer = accelerator.prepare(objective, optimizer)
        self._take: TakeStep = self._forward_and_backward
        if config.cuda_graph:
            require_one_gpu(config, accelerator)
            graphed = GraphedStep(self._forward_and_backward, self._model.parameters())
            most = max((len(sample.labels) for sample in source.train), default=0)  # one shape for all batches
            self._take = lambda batch, phase: graphed(replace(batch, max_classes=most), phase)
        self._learner = TrainState(self._model, self._optimizer, self._schedule, accelerator.scaler)
        self._progress = self._saved = Progress()
        self._unseen: PendingStep | None = None
        if checkpoint is not None:
            self._progress = self._saved = self._learner.restore(checkpoint, config.model_dump(mode="json"), source)
        self._batches = training_batches(
            source,
            Augmentation(config.augmentation, config.model.image_size),
            batch_size=config.batch_size,
            num_workers=config.data.num_workers,
            seed=config.seed,
            start_step=self._progress.step,
            num_micro_batches=config.gradient_accumulation,
            rank=rank(),
            world_size=world_size(),
        )
        run.start(config, self._progress, source.class_list)
        self._began = time.perf_counter() - self._progress.seconds

    def run(self) -> Progress:
        """Train to the last step, or until a stop is asked for."""
        source, progress = self._source, self._progress
        log.info("training on %s from step %d: %d images, classes %s", source.path, progress.step, len(source.train),
                 ", ".join(source.classes))  # fmt: skip
        self._watcher.started(source, self.accelerator.device, progress)
        self._objective.train()
        with self._stop:
            while True:
                if self._evaluation_is_due() and not self._evaluated():
                    break
                if self._progress.step == self._config.steps:
                    break
                micro_batches = self._fetch()
                if self._stopping():
                    break
                self._step(micro_batches)
                if self._progress.step % self._config.checkpoint.every == 0 or self._evaluation_is_due():
                    self._save()
            if self._saved != self._progress:
                self._save()
        return self._progress

    def _step(self, micro_batches: Sequence[Batch]) -> None:
        """Make one step of the optimiser."""
        config, accelerator = self._config, self.accelerator
        step, losses = self._progress.step + 1, []
        for batch in micro_batches:
            losses.append(self._take(batch.to(accelerator.device), config.phase_at(step - 1)))
        taken = PendingStep(
            step=step,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            measurement=measure(accelerator, self._model.parameters(), losses),
            micro_batches=micro_batches,
            losses=losses,
        )
        self._settle()  # the step before: its numbers came while the device went on with this one
        self._unseen = taken
        if accelerator.scaler is None:
            forbid_update(self._optimizer.optimizer, taken.measurement)
        else:  # the scaler, which decides in fp16, looks at gradients alone
            self._settle()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        self._model.update_teacher(config.contrast.momentum)
        seconds = time.perf_counter() - self._began
        self._progress = self._progress.model_copy(update={"step": step, "seconds": seconds})

    def _forward_and_backward(self, batch: Batch, phase: Phase) -> Losses:
        """Compute the losses of a micro-batch, detached, and add their gradients up."""
        with self.accelerator.accumulate(self._objective):
            losses: Losses = self._objective(batch, phase)
            self.accelerator.backward(losses.total)
        return replace(losses, total=losses.total.detach())

    def _settle(self) -> None:
        """Bring the numbers of the last step to the host: refuse what is not finite, and log."""
        taken, self._unseen = self._unseen, None
        if taken is None:
            return
        losses, norm = raise_if_nonfinite(
            taken, scaler=self.accelerator.scaler, run=self._run, class_list=self._source.class_list
        )
        due = taken.step % self._config.log_every == 0 or taken.step in (1, self._config.steps)
        if due:
            self._run.append_metrics({
                "step": taken.step,
                "lr": taken.learning_rate,
                "seconds": time.perf_counter() - self._began,
                "losses": losses,
                "gradient_norm": norm if math.isfinite(norm) else None,  # fp16 overflowed
            })  # fmt: skip
        self._watcher.stepped(taken.step, losses if due else None)

    def _fetch(self) -> list[Batch]:
        """Return the micro-batches of a step; fewer if a signal that asks for a stop has ended the readers, too."""
        try:
            return list(itertools.islice(self._batches, self._config.gradient_accumulation))
        except DataError:
            if not self._stop.requested:
                raise
            return []

    def _stopping(self) -> bool:
        """Whether this process or any other was asked to stop: they all come to the same answer."""
        if self.accelerator.num_processes == 1:
            return self._stop.requested
        if self._stop.requested:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _evaluation_is_due(self) -> bool:
        """Whether the network is one to evaluate, and has not been."""
        step, config = self._progress.step, self._config
        return self._progress.evaluated < step and (step % config.evaluation.every == 0 or step == config.steps)

    def _evaluated(self) -> bool:
        """Evaluate the network; False if a stop was asked for before the scores were there."""
        self._settle()
        # Images of every size come now: for each of them, compiled blocks would be compiled anew.
        with torch.compiler.set_stance("force_eager") if self._config.compile else nullcontext():
            progress, evaluation = validate(
                self._model,
                self._source,
                self._progress,
                config=self._config,
                run=self._run,
                evaluating=self._watcher.evaluating,
                stopping=self._stopping,
            )
        if progress == self._progress:
            return False
        self._progress = progress
        if evaluation is not None:
            self._watcher.evaluated(progress.step, evaluation)
        self._save()
        return True

    def _save(self) -> None:
        """Write a checkpoint."""
        self._settle()
        self._run.save_checkpoint(self._learner, self._progress, self._config, self._source)
        self._saved = self._progress


def _accelerator(config: TrainConfig) -> Accelerator:
    """Set up device, precision and the processes that train together.

    Raises:
        ConfigError: There are more processes than GPUs, or the precision is not to be had.
    """
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and processes > gpus:
        raise ConfigError(f"{processes} processes share {gpus} GPU(s): lower --nproc_per_node of torchrun to {gpus}")
    AcceleratorState._reset_state()  # else a second run of this process keeps the precision of the first; no public way
    try:
        accelerator = Accelerator(
            # Without a GPU accelerate would else leave every process of torchrun to train on its own.
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
    """Complain where a step cannot be one CUDA graph.

    Raises:
        ConfigError: There is no GPU, more than one process, or a step of several parts.
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


def _network(config: TrainConfig, *, resumed: bool) -> ToCo:
    """Build the network; where a checkpoint follows, without the pretrained weights that it would replace."""
    scratch = {"pretrained": False, "weights": None}
    model = ToCo(config.model.model_copy(update=scratch) if resumed else config.model)
    model.backbone.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        model.backbone.compile_blocks()
    return model
