"""Evaluation in the course of a run: scores, images, and the best network so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from toco_core.sampling import evenly_spaced
from toco_train.config import TrainConfig
from toco_train.data.source import DataSource, Sample, with_masks
from toco_train.distributed import rank, world_size
from toco_train.evaluation.evaluate import Evaluation, evaluate, evaluation_numbers
from toco_train.inference.predict import predict
from toco_train.inference.preview import PREDICTION_TITLES, prediction_row
from toco_train.models.toco import ToCo
from toco_train.training.checkpoint import Progress
from toco_train.training.run_folder import RunFolder

log = logging.getLogger(__name__)

_SAMPLE_ROWS = 6


class _Stopped(Exception):  # noqa: N818  (no error: it ends an evaluation)
    """A stop was asked for in the midst of an evaluation."""


def validate(
    model: ToCo,
    source: DataSource,
    progress: Progress,
    *,
    config: TrainConfig,
    run: RunFolder,
    evaluating: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> tuple[Progress, Evaluation | None]:
    """Score the validation split where it has masks, draw some of its images, and keep the network if it is the best.

    On the way ``evaluation.max_images`` are scored, after the last step all. The best network is that with the highest
    mIoU of the segmentation on the images that are scored on the way, so that every evaluation can be it.

    Args:
        model: The network.
        source: The data.
        progress: How far the run is.
        config: The configuration of the run.
        run: Where scores and images go.
        evaluating: Called with the images that this process has done and has to do.
        stopping: Whether to stop; every process calls it as often as the others, and gets the same answer.

    Returns:
        How far the run is now, and the scores: None where there is no mask. As before and None if it was stopped.

    Raises:
        DataError: An image or mask cannot be read.
        RunError: The run folder cannot be written.
    """

    def score(samples: tuple[Sample, ...]) -> Evaluation | None:
        return _score(model, with_masks(samples), config, evaluating=evaluating, stopping=stopping)

    if stopping():
        return progress, None
    began = time.perf_counter()
    model.eval()
    try:
        samples = evenly_spaced(source.val, config.evaluation.max_images)
        _draw(model, samples, source, progress.step, config=config, run=run)
        evaluation = score(samples)
        changes: dict[str, object] = {"evaluated": progress.step}
        if evaluation is not None and evaluation.seg.mean_iou > progress.best_miou:
            run.save_best(model, config)
            changes |= {"best_step": progress.step, "best_miou": evaluation.seg.mean_iou}
        if progress.step == config.steps and len(samples) < len(source.val):
            evaluation = score(source.val)
    except _Stopped:
        return progress, None
    finally:
        model.train()
    if evaluation is not None:
        run.append_metrics({
            "step": progress.step,
            "evaluation_s": time.perf_counter() - began,
            "evaluation": evaluation_numbers(evaluation),
        })  # fmt: skip
        log.info("step %d: CAM %.4f, aux CAM %.4f, seg %.4f mIoU", progress.step, evaluation.cam.mean_iou,
                 evaluation.aux_cam.mean_iou, evaluation.seg.mean_iou)  # fmt: skip
    return progress.model_copy(update=changes), evaluation


def _draw(
    model: ToCo, samples: tuple[Sample, ...], source: DataSource, step: int, *, config: TrainConfig, run: RunFolder
) -> None:
    """Draw the predictions of some samples, in the first process."""
    shown = evenly_spaced(samples, _SAMPLE_ROWS)
    if not shown or rank() != 0:
        return
    predictions = predict(model, shown, config.cam.scales, config.evaluation.batch_size)
    palette = source.class_list.rgb
    rows = [prediction_row(sample, prediction, palette) for sample, prediction in zip(shown, predictions, strict=True)]
    run.save_samples(step, rows, PREDICTION_TITLES[: max(map(len, rows))], source.class_list)


def _score(
    model: ToCo,
    samples: tuple[Sample, ...],
    config: TrainConfig,
    *,
    evaluating: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> Evaluation | None:
    """Score samples that have a mask, if there are any."""
    in_every_share = len(samples) // world_size()  # only while all processes have work can they agree to stop

    def progress(done: int, total: int) -> None:
        evaluating(done, total)
        if done <= in_every_share and stopping():
            raise _Stopped

    if not samples:
        return None
    return evaluate(
        model,
        samples,
        scales=config.cam.scales,
        background_threshold=config.cam.background,
        batch_size=config.evaluation.batch_size,
        progress=progress,
    )
