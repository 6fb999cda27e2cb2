"""The pipelines that loading is timed against draw the same views, or the comparison would mean nothing."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data_loading import STAGES, main, variants
from toco_train.config import AugmentationConfig

SIZE = 32
NUM_DRAWS = 250
VARIANTS = tuple(variants(SIZE))


def roughness(view: torch.Tensor) -> torch.Tensor:
    """How much neighbours differ against how much all pixels do: a blur shows in it, a scale less."""
    return view.diff(dim=2).std() / (view.std() + 1)


@cache
def drawn(name: str) -> np.ndarray:
    """Statistics of views of one image, a row each: box, means and roughness of the three renderings."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 48, 3), dtype=np.uint8))
    augment = variants(SIZE)[name]
    torch.manual_seed(0)
    rows = []
    for _ in range(NUM_DRAWS):
        views = augment(image)
        top, bottom, left, right = views.box.tolist()
        renderings = [view.double() for view in (views.view1, views.view2, views.local)]
        assert all(view.shape == (3, SIZE, SIZE) for view in renderings)
        means, rough = ([float(statistic(view)) for view in renderings] for statistic in (torch.mean, roughness))
        rows.append([top, left, bottom - top, right - left, *means, *rough])
    return np.array(rows)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ours"])
def test_every_pipeline_draws_from_our_distribution(name: str) -> None:
    ours, theirs = (drawn(which) for which in ("ours", name))
    error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()


def test_the_report_has_every_variant_and_stage(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process, which has other tests to run
    assert (
        main(
            ["--crop", "32", "--rounds", "2", "--images", "4", "--processes", "2", "--report", str(tmp_path / "report")]
        )
        == 0
    )
    result = json.loads((tmp_path / "report.json").read_text())
    assert set(result["variants"]) == set(VARIANTS)
    assert all(len(row["seconds"]) == row["speed"]["count"] == 2 * 2 for row in result["variants"].values())
    for times in result["stages_ms_per_image"].values():
        assert set(times) == {*STAGES, "rest"}
        assert min(times.values()) >= 0
        assert min(times[stage] for stage in ("decode", "rescale, flip, pad, crop", "blur", "to tensors", "batch")) > 0
    assert (tmp_path / "report.md").read_text() == capsys.readouterr().out
    assert AugmentationConfig().blur_view1 == 1, "so that there is always something to blur"
