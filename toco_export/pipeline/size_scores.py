"""What it costs that an export does not serve all of the run's sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from toco_core.errors import TocoError
from toco_core.fitting import Size
from toco_core.manifest import SizeScores
from toco_train.config import TrainConfig, load_config
from toco_train.data.source import Sample, spread, with_masks
from toco_train.evaluation.evaluate import evaluate
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE
from toco_train.runs.source import open_run_source

SCORED_IMAGES = 200


def score_sizes(
    run: Path, model: ToCo, sizes: Sequence[Size], progress: Callable[[str], None] = lambda _: None
) -> SizeScores | str:
    """Score the segmentation on the run's validation images with masks, fitted to some sizes and to all of the run's.

    Args:
        run: The run folder, which names the data.
        model: Its network.
        sizes: Height and width of the sizes that are served.
        progress: Called with what is scored now.

    Returns:
        The scores, of at most ``SCORED_IMAGES`` images; or why there are none, where the data is not here or has no
        masks.
    """
    try:
        config = load_config(None, run / CONFIG_FILE, {})
        source = open_run_source(config, run, None, no_class=None, group_by=None)
        samples = spread(with_masks(source.val), SCORED_IMAGES)
        if not samples:
            return f"no validation image of {source.path} has a mask"
        served = _miou(model, samples, sizes, config, progress)
        return SizeScores(
            served=served, run=_miou(model, samples, model.sizes, config, progress), num_images=len(samples)
        )
    except TocoError as error:
        return str(error)


def _miou(
    model: ToCo,
    samples: Sequence[Sample],
    sizes: Sequence[Size],
    config: TrainConfig,
    progress: Callable[[str], None],
) -> float:
    """Return the mIoU of the segmentation on images fitted to some sizes, on a GPU where there is one."""
    home = next(model.parameters()).device
    try:
        evaluation = evaluate(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            samples,
            scales=(1.0,),
            background_threshold=config.cam.background,
            sizes=sizes,
            batch_size=config.evaluation.batch_size,
            progress=lambda done, total: progress(f"image {done} of {total}, fitted to {len(sizes)} sizes"),
        )
    finally:
        model.to(home)
    return evaluation.seg.mean_iou


def describe_sizes(sizes: Sequence[Size], run_sizes: Sequence[Size], scores: SizeScores | str) -> str:
    """Say in one sentence which of the run's sizes are not served and what that costs."""
    dropped = [size for size in run_sizes if size not in sizes]
    text = f"Not served, of the run's {len(run_sizes)} sizes: {_listed(dropped)}. Images are fitted to {_listed(sizes)}"
    if isinstance(scores, str):
        return f"{text}; the score with these was not computed ({scores})"
    return (
        f"{text}: mIoU of the segmentation {scores.served:.1%}, with all of the run's sizes {scores.run:.1%} "
        f"({scores.num_images} images)"
    )


def _listed(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)
