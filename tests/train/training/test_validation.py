"""What an evaluation in the course of a run reads and draws."""

import shutil

import pytest

from tests.train.small_runs import make_small, small_shapes, train
from toco_train.inference import predict
from toco_train.training.run_folder import RunFolder

EVERY_IMAGE = {"steps": 1, "evaluation__every": 1, "evaluation__max_images": 0}


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def drawn(monkeypatch):
    """Step, number of rows and titles of each grid that a run draws."""
    grids = []
    monkeypatch.setattr(
        RunFolder, "save_samples", lambda _, step, rows, titles, *__: grids.append((step, len(rows), titles))
    )
    return grids


def test_an_evaluation_reads_each_image_once_and_draws_what_it_scored(data, tmp_path, monkeypatch, drawn):
    read, read_image = [], predict.read_image
    monkeypatch.setattr(predict, "read_image", lambda path: read.append(path.name) or read_image(path))
    assert train(data, tmp_path / "run", **EVERY_IMAGE) == 0
    assert len(read) == len(set(read)) == 3
    assert drawn == [(1, 3, ("image", "aux CAM", "CAM", "predicted mask", "truth"))]


def test_images_without_masks_are_drawn_all_the_same(data, tmp_path, drawn):
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / "SegmentationClass")
    assert train(copy, tmp_path / "run", **EVERY_IMAGE) == 0
    assert drawn == [(1, 3, ("image", "aux CAM", "CAM", "predicted mask"))]


def test_of_images_with_and_without_masks_those_with_masks_are_drawn(data, tmp_path, drawn):
    copy = shutil.copytree(data, tmp_path / "data")
    first = (copy / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[0]
    (copy / "SegmentationClass" / f"{first}.png").unlink()
    assert train(copy, tmp_path / "run", **EVERY_IMAGE) == 0
    assert drawn == [(1, 2, ("image", "aux CAM", "CAM", "predicted mask", "truth"))]
