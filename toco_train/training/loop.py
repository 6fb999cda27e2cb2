"""The training loop: the story of a run."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate.utils import set_seed

from toco_core.errors import DataError
from toco_train.config import Phase, TrainConfig
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import Batch, training_batches
from toco_train.data.source import DataSource
from toco_train.distributed import rank, world_size
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.models.toco import ToCo
from toco_train.training.accelerator import build_accelerator, require_one_gpu
from toco_train.training.callback import TrainingCallback
from toco_train.training.checkpoint import Progress, TrainState
from toco_train.training.cuda_graph import ForwardBackward, GraphedStep
from toco_train.training.nonfinite import PendingStep, measure, raise_if_nonfinite, skip_nonfinite_update
from toco_train.training.optimizer import build_optimizer
from toco_train.training.run_folder import RunFolder
from toco_train.training.schedule import build_schedule
from toco_train.training.signals import StopSignals
from toco_train.training.validation import validate

log = logging.getLogger(__name__)


def train(
    config: TrainConfig, source: DataSource, run: RunFolder, callback: TrainingCallback, stop: StopSignals
) -> Progress:
    """Train a network as configured, from the run folder's last checkpoint if there is one.

    Training reads images and image-level labels; only evaluations open masks, and only if there are any. Under
    ``torchrun`` every process calls this; together they take the steps that one process alone would take.

    Args:
        config: The configuration; the run's own if one is resumed.
        source: The data set that the configuration names.
        run: Where everything is written.
        callback: Is told how the run goes.
        stop: Entered while there is something to save; requests a stop at the end of a step.

    Returns:
        How far the run got. It is finished if ``evaluated`` is ``config.steps``; otherwise a stop was requested.

    Raises:
        DataError: An image cannot be used.
        ConfigError: The backbone cannot be built, or the precision is not available.
        RunError: The checkpoint cannot be resumed, or the run folder cannot be written.
        TrainingError: A loss or gradient is not finite.
    """
    set_seed(config.seed)
    training = _Training(config, source, run, callback, stop)
    progress = training.run()
    training.accelerator.end_training()
    return progress


class _Training:
    """A run in progress."""

    def __init__(
        self, config: TrainConfig, source: DataSource, run: RunFolder, callback: TrainingCallback, stop: StopSignals
    ) -> None:
        self.accelerator = accelerator = build_accelerator(config)
        self._source = source
        checkpoint = run.last_checkpoint()
        filled = {"classes": source.classes, "sizes": () if checkpoint is None else config.model.sizes}
        config = config.model_copy(update={"model": config.model.model_copy(update=filled)})
        self._model = _build_network(config, resumed=checkpoint is not None).to(accelerator.device)
        known = config.model.model_copy(update={"sizes": self._model.sizes})
        self._config = config = config.model_copy(update={"model": known})
        self._run, self._callback, self._stop = run, callback, stop
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
        self._forward_backward: ForwardBackward = self._as_graph() if config.cuda_graph else self._losses_and_gradients
        self._state = TrainState(self._model, self._optimizer, self._schedule, accelerator.scaler)
        self._progress = self._saved = Progress()
        self._pending: PendingStep | None = None
        if checkpoint is not None:
            self._progress = self._saved = self._state.restore(checkpoint, config.model_dump(mode="json"), source)
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
        """Train to the last step, or until a stop is requested."""
        source, progress = self._source, self._progress
        log.info("training on %s from step %d: %d images, classes %s", source.path, progress.step, len(source.train),
                 ", ".join(source.classes))  # fmt: skip
        for notice in source.notices:
            log.info("%s", notice)
        self._callback.started(source, self.accelerator.device, progress)
        self._objective.train()
        with self._stop:
            while self._evaluate_if_due() and self._progress.step < self._config.steps:
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
        """Take one optimiser step."""
        config, accelerator = self._config, self.accelerator
        step, losses = self._progress.step + 1, []
        for batch in micro_batches:
            losses.append(self._forward_backward(batch.to(accelerator.device), config.phase_at(step - 1)))
        pending = PendingStep(
            step=step,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            measurement=measure(accelerator, self._model.parameters(), losses),
            micro_batches=micro_batches,
            losses=losses,
        )
        self._check_pending()  # the step before: its numbers reached the host while the device computed this one
        self._pending = pending
        if accelerator.scaler is None:
            skip_nonfinite_update(self._optimizer.optimizer, pending.measurement)
        else:  # fp16's scaler decides by the gradients alone, so the losses are checked before the update
            self._check_pending()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        self._model.update_teacher(config.contrast.momentum)
        seconds = time.perf_counter() - self._began
        self._progress = self._progress.model_copy(update={"step": step, "seconds": seconds})

    def _losses_and_gradients(self, batch: Batch, phase: Phase) -> Losses:
        """Compute the losses of a micro-batch, detached, and add its gradients to the parameters'."""
        with self.accelerator.accumulate(self._objective):
            losses: Losses = self._objective(batch, phase)
            self.accelerator.backward(losses.total)
        return replace(losses, total=losses.total.detach())

    def _as_graph(self) -> ForwardBackward:
        """Return forward and backward pass as a CUDA graph."""
        require_one_gpu(self._config, self.accelerator)
        graphed = GraphedStep(self._losses_and_gradients, self._model.parameters())
        most = max((len(sample.labels) for sample in self._source.train), default=0)  # one shape for all batches
        return lambda batch, phase: graphed(replace(batch, max_classes=most), phase)

    def _check_pending(self) -> None:
        """Read the numbers of the last step: stop if one is not finite, else log them."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        losses, norm = raise_if_nonfinite(
            pending, scaler=self.accelerator.scaler, run=self._run, class_list=self._source.class_list
        )
        due = pending.step % self._config.log_every == 0 or pending.step in (1, self._config.steps)
        if due:
            self._run.append_metrics({
                "step": pending.step,
                "lr": pending.learning_rate,
                "seconds": time.perf_counter() - self._began,
                "losses": losses,
                "gradient_norm": norm if math.isfinite(norm) else None,  # fp16 overflowed
            })  # fmt: skip
        self._callback.stepped(pending.step, losses if due else None)

    def _fetch(self) -> list[Batch]:
        """Return the micro-batches of a step; fewer if the signal that requests a stop has ended the readers, too."""
        try:
            return list(itertools.islice(self._batches, self._config.gradient_accumulation))
        except DataError:
            if not self._stop.requested:
                raise
            return []

    def _stopping(self) -> bool:
        """Return whether this process or any other was asked to stop; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return self._stop.requested
        if self._stop.requested:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _evaluation_is_due(self) -> bool:
        """Return whether the network is to be evaluated now, and has not been."""
        step, config = self._progress.step, self._config
        return self._progress.evaluated < step and (step % config.evaluation.every == 0 or step == config.steps)

    def _evaluate_if_due(self) -> bool:
        """Evaluate the network if it is time; return False if a stop was requested before the scores were there."""
        if not self._evaluation_is_due():
            return True
        self._check_pending()
        # Evaluation has images of other sizes: compiled blocks would be compiled again for each.
        with torch.compiler.set_stance("force_eager") if self._config.compile else nullcontext():
            progress, evaluation = validate(
                self._model,
                self._source,
                self._progress,
                config=self._config,
                run=self._run,
                evaluating=self._callback.evaluating,
                stopping=self._stopping,
            )
        if progress == self._progress:
            return False
        self._progress = progress
        if evaluation is not None:
            self._callback.evaluated(progress.step, evaluation)
        self._save()
        return True

    def _save(self) -> None:
        """Write a checkpoint."""
        self._check_pending()
        self._run.save_checkpoint(self._state, self._progress, self._config, self._source)
        self._saved = self._progress


def _build_network(config: TrainConfig, *, resumed: bool) -> ToCo:
    """Build the network; without pretrained weights if a checkpoint will replace them."""
    scratch = {"pretrained": False, "weights": None}
    model = ToCo(config.model.model_copy(update=scratch) if resumed else config.model)
    model.backbone.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        model.backbone.compile_blocks()
    return model
