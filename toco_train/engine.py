"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from toco.errors import TrainingError
from toco_train.config import TrainConfig
from toco_train.data.augment import Augmentation
from toco_train.data.loading import training_batches
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource, Sample, with_masks
from toco_train.evaluation import Evaluation, evaluate, predict
from toco_train.model import ToCo
from toco_train.optimization import build_optimizer, build_schedule
from toco_train.pictures import PREDICTION_TITLES, prediction_row, save_grid
from toco_train.run_folder import RunFolder
from toco_train.step import Losses, TokenContrast

log = logging.getLogger(__name__)

_SAMPLE_ROWS = 6


class Watcher(Protocol):
    """Who is told how a run goes: the command shows it, a test may ignore it."""

    def started(self, source: DataSource, device: torch.device) -> None:
        """Training is about to begin."""

    def stepped(self, step: int, losses: dict[str, float] | None) -> None:
        """A step is done; its losses come every ``log_every`` steps."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has done so many images."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation is done."""


def train(config: TrainConfig, run: RunFolder, watcher: Watcher) -> ToCo:
    """Train a network as the configuration says and leave it in the run folder.

    Training reads images and image-level labels; masks are opened by the evaluations alone, and only if they exist.

    Returns:
        The trained network, on the training device.

    Raises:
        DataError: The data set or an image cannot be used.
        ConfigError: The backbone cannot be built.
        TrainingError: A loss is not finite.
    """
    set_seed(config.seed)
    AcceleratorState._reset_state()  # else a second run of this process keeps the precision of the first
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    source = open_source(config.data, seed=config.seed)
    config = config.model_copy(update={"model": config.model.model_copy(update={"classes": source.classes})})
    model = ToCo(config.model)
    objective = TokenContrast(
        model,
        cam=config.cam,
        contrast=config.contrast,
        regularization=config.regularization,
        weights=config.weights,
    )
    optimizer = build_optimizer(model, config.optimizer)
    schedule = build_schedule(optimizer, config.optimizer, config.steps)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    batches = training_batches(
        source,
        Augmentation(config.augmentation, config.model.image_size),
        batch_size=config.batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
    )
    run.save_config(config)
    log.info("training on %s: %d images, classes %s", source.path, len(source.train), ", ".join(source.classes))
    watcher.started(source, accelerator.device)

    objective.train()
    began = time.perf_counter()
    for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
        with accelerator.autocast():
            losses: Losses = objective(batch.to(accelerator.device), config.phase_at(step - 1))
        accelerator.backward(losses.total)
        due = step % config.log_every == 0 or step in (1, config.steps)
        numbers = _finite_numbers(losses, step, batch.names) if due else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_teacher(config.contrast.momentum)
        if numbers is not None:
            rate = optimizer.param_groups[0]["lr"]
            run.append_metrics({"step": step, "lr": rate, "seconds": time.perf_counter() - began, "losses": numbers})
        schedule.step()
        watcher.stepped(step, numbers)
        if step % config.evaluation.every == 0 or step == config.steps:
            run.save_weights(model)
            _evaluate(model, source, step, config=config, run=run, watcher=watcher)
    return model


def _finite_numbers(losses: Losses, step: int, names: tuple[str, ...]) -> dict[str, float]:
    """Bring the losses to the host, and stop before the weights are touched if one is not finite."""
    values = torch.stack([losses.total.detach(), *losses.parts.values()]).tolist()
    numbers = dict(zip(("total", *losses.parts), values, strict=True))
    if not all(math.isfinite(value) for value in values):
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        raise TrainingError(
            f"a loss is not finite at step {step} ({shown}; images {', '.join(names)}); the weights of the last "
            "evaluation are kept: lower optimizer.lr or look at these images"
        )
    return numbers


def _evaluate(
    model: ToCo, source: DataSource, step: int, *, config: TrainConfig, run: RunFolder, watcher: Watcher
) -> None:
    """Score the validation split where it has masks, and draw some of its images."""
    last = step == config.steps
    samples = source.val if last else spread(source.val, config.evaluation.max_images)
    if not samples:
        return
    shown = spread(samples, _SAMPLE_ROWS)
    predictions = predict(model, shown, config.cam.scales, config.evaluation.batch_size)
    rows = [prediction_row(sample, prediction) for sample, prediction in zip(shown, predictions, strict=True)]
    titles = PREDICTION_TITLES[: max(map(len, rows))]
    save_grid(run.sample_picture(step), rows, titles, source.classes, caption=f"step {step}")
    if not with_masks(samples):
        return
    evaluation = evaluate(
        model,
        samples,
        scales=config.cam.scales,
        background_threshold=config.cam.background,
        batch_size=config.evaluation.batch_size,
        progress=watcher.evaluating,
    )
    run.append_metrics({"step": step, "evaluation": evaluation_numbers(evaluation)})
    log.info("step %d: CAM %.4f, aux CAM %.4f, seg %.4f mIoU", step, evaluation.cam.mean_iou,
             evaluation.aux_cam.mean_iou, evaluation.seg.mean_iou)  # fmt: skip
    watcher.evaluated(step, evaluation)


def evaluation_numbers(evaluation: Evaluation) -> dict[str, object]:
    """Return an evaluation as plain numbers for JSON, with None for an IoU that does not exist."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {key: plain(value) for key, value in asdict(evaluation).items()}


def spread(samples: tuple[Sample, ...], number: int) -> tuple[Sample, ...]:
    """Return so many samples, evenly spread over all; all of them if ``number`` is 0 or too large."""
    if number == 0 or number >= len(samples):
        return samples
    return tuple(samples[index] for index in np.linspace(0, len(samples) - 1, number).round().astype(int))
