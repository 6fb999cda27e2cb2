"""What it costs that an export does not serve all of the run's sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from toco_core.fitting import Size
from toco_core.manifest import SizeScores
from toco_core.sampling import evenly_spaced
from toco_train.config import TrainConfig, load_config
from toco_train.data.source import Sample, with_masks
from toco_train.evaluation.evaluate import evaluate
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE
from toco_train.runs.load import best_device
from toco_train.runs.source import open_run_source

SCORED_IMAGES = 200


def score_sizes(run: Path, model: ToCo, sizes: Sequence[Size], progress: Callable[[str], None]) -> SizeScores:
    """Score the segmentation on the run's validation images with masks, fitted to some sizes and to all of the run's.

    Args:
        run: The run folder, which names the data.
        model: Its network.
        sizes: Height and width of the sizes that are served.
        progress: Called with what is scored now.

    Returns:
        The scores of at most ``SCORED_IMAGES`` images, evenly spread.

    Raises:
        ConfigError: The run names no data.
        DataError: The data is not here, is of other classes, cannot be read or has no masks.
    """
    config = load_config(None, run / CONFIG_FILE, {})
    source = open_run_source(config, run, {})
    samples = evenly_spaced(with_masks(source.val), SCORED_IMAGES)
    served, own = (_miou(model, samples, chosen, config, progress) for chosen in (sizes, model.sizes))
    return SizeScores(served=served, run=own, num_images=len(samples))


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
            model.to(best_device()),
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


def describe_sizes(sizes: Sequence[Size], run_sizes: Sequence[Size], scores: SizeScores | None) -> str:
    """Say in one sentence which of the run's sizes are not served and what that costs; nothing where all are."""
    dropped = [size for size in run_sizes if size not in sizes]
    if not dropped:
        return ""
    text = f"Not served, of the run's {len(run_sizes)} sizes: {_named(dropped)}; images are fitted to {_named(sizes)}"
    if scores is None:
        return f"{text}, and the score with these was not computed: it needs the run's data, with masks."
    return (
        f"{text}: mIoU of the segmentation {scores.served:.1%}, with all of the run's sizes {scores.run:.1%} "
        f"({scores.num_images} images)."
    )


def _named(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)
