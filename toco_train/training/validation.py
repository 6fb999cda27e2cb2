"""Evaluation during a run: scores, sample images, and the best network so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from toco_core.sampling import evenly_spaced
from toco_train.config import TrainConfig
from toco_train.data.source import DataSource, Sample, with_masks
from toco_train.distributed import rank, shard, world_size
from toco_train.evaluation.evaluate import Evaluation, evaluate, evaluation_numbers
from toco_train.inference.predict import Prediction, predict
from toco_train.inference.preview import PREDICTION_TITLES, Row, prediction_row
from toco_train.models.toco import ToCo
from toco_train.training.checkpoint import Progress
from toco_train.training.run_folder import RunFolder

log = logging.getLogger(__name__)

_SAMPLE_ROWS = 6


class _Stopped(Exception):  # noqa: N818  (no error: it ends an evaluation)
    """A stop was requested during an evaluation."""


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
    """Score the validation images that have masks, draw some of them, and save the network if it is the best.

    During the run ``evaluation.max_images`` images are scored, after the last step all of them. The best network has
    the highest segmentation mIoU on the images that every evaluation scores, so that evaluations can be compared.

    Args:
        model: The network.
        source: The data.
        progress: How far the run is.
        config: The configuration of the run.
        run: Where scores and images are written.
        evaluating: Called with the number of images that this process has scored, and has to score.
        stopping: Returns whether to stop; all processes call it equally often and get the same answer.

    Returns:
        How far the run is now, and the scores (None if there are no masks). Unchanged and None if it was stopped.

    Raises:
        DataError: An image or mask cannot be read.
        RunError: The run folder cannot be written.
    """
    if stopping():
        return progress, None
    began = time.perf_counter()
    model.eval()
    try:
        samples = evenly_spaced(source.val, config.evaluation.max_images)
        evaluation = _score_and_draw(
            model, samples, source, progress.step, config=config, run=run, evaluating=evaluating, stopping=stopping
        )
        changes: dict[str, object] = {"evaluated": progress.step}
        if evaluation is not None and evaluation.seg.mean_iou > progress.best_miou:
            run.save_best(model, config)
            changes |= {"best_step": progress.step, "best_miou": evaluation.seg.mean_iou}
        if progress.step == config.steps and len(samples) < len(source.val):
            evaluation = _score(model, with_masks(source.val), config, evaluating=evaluating, stopping=stopping)
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


def _score_and_draw(
    model: ToCo,
    samples: tuple[Sample, ...],
    source: DataSource,
    step: int,
    *,
    config: TrainConfig,
    run: RunFolder,
    evaluating: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> Evaluation | None:
    """Score the samples that have a mask, and draw some of them; where none has, draw some of all."""
    scored = with_masks(samples)
    shown = evenly_spaced(tuple(shard(scored or samples)), _SAMPLE_ROWS) if rank() == 0 else ()
    rows: list[Row] = []

    def draw(sample: Sample, prediction: Prediction) -> None:
        if sample in shown:
            rows.append(prediction_row(sample, prediction, source.class_list.rgb))

    evaluation = _score(model, scored, config, evaluating=evaluating, stopping=stopping, watch=draw)
    if not scored:
        predictions = predict(model, shown, config.cam.scales, config.evaluation.batch_size)
        for sample, prediction in zip(shown, predictions, strict=True):
            draw(sample, prediction)
    if rows:
        run.save_samples(step, rows, PREDICTION_TITLES[: max(map(len, rows))], source.class_list)
    return evaluation


def _score(
    model: ToCo,
    samples: tuple[Sample, ...],
    config: TrainConfig,
    *,
    evaluating: Callable[[int, int], None],
    stopping: Callable[[], bool],
    watch: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Evaluation | None:
    """Score samples that have a mask, if there are any; ``watch`` is called with each and its prediction."""
    in_every_share = len(samples) // world_size()  # after that some processes have no image left to agree at

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
        watch=watch,
    )
