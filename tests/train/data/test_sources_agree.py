"""One set of Shapes scenes as a VOC devkit, as COCO and as a folder: the same labels, masks and losses."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from contourpy import contour_generator
from PIL import Image
from pycocotools import mask as coco_mask

from tests.train.conftest import tiny_config
from toco_core.palette import IGNORE_INDEX, save_mask
from toco_train.config import (
    AugmentationConfig,
    CamConfig,
    ContrastConfig,
    DataConfig,
    LossWeights,
    OptimizerConfig,
    Phase,
    RegularizationConfig,
)
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import training_batches
from toco_train.data.opening import open_source
from toco_train.data.source import read_mask, with_masks
from toco_train.method.objective import ToCoObjective
from toco_train.models.toco import ToCo
from toco_train.shapes.config import SceneConfig
from toco_train.shapes.objects import CLASS_NAMES
from toco_train.shapes.scene import make_scene
from toco_train.shapes.voc import annotation
from toco_train.training.optimizer import build_optimizer

NUM_SCENES, SIZE, STEPS = 24, 96, 4
CATEGORY_IDS = dict(zip(CLASS_NAMES, (2, 3, 5, 7, 11, 90), strict=True))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The three data sets, opened; VOC and COCO are given the split that the folder draws."""
    root = tmp_path_factory.mktemp("three")
    scenes = {f"{index:06d}": make_scene(5, index, SIZE, SceneConfig()) for index in range(NUM_SCENES)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        write_folder(root / "folder", scenes)
        folder = open_source(DataConfig(path=str(root / "folder")), seed=0)
        ids = {"train": [s.name for s in folder.train], "val": [s.name for s in folder.val]}
        write_voc(root / "voc", root / "folder", scenes, ids)
        write_coco(root / "coco", root / "folder", scenes, ids)
        others = {kind: open_source(DataConfig(path=str(root / kind)), seed=0) for kind in ("voc", "coco")}
        yield {"folder": folder, **others}


def write_folder(path, scenes):
    (path / "images").mkdir(parents=True)
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(path / "images" / f"{name}.jpg", quality=95)
        save_mask(path / "masks" / f"{name}.png", scene.labels)
    with (path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([f"{name}.jpg", *{o.name for o in scene.objects}] for name, scene in scenes.items())
    (path / "classes.yaml").write_text(f"classes: {list(CLASS_NAMES)}")


def write_voc(path, folder, scenes, ids):
    for name in ("Annotations", "ImageSets/Segmentation"):
        (path / name).mkdir(parents=True)
    shutil.copytree(folder / "images", path / "JPEGImages")
    shutil.copytree(folder / "masks", path / "SegmentationClassAug")
    shutil.copy(folder / "classes.yaml", path)
    for name, scene in scenes.items():
        (path / "Annotations" / f"{name}.xml").write_text(annotation(name, scene))
    (path / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(ids["val"]))


def write_coco(path, folder, scenes, ids):
    (path / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for name, number in reversed(CATEGORY_IDS.items())]
    for split, names in ids.items():
        (path / f"{split}2017").mkdir()
        images, objects = [], []
        for name in names:
            shutil.copy(folder / "images" / f"{name}.jpg", path / f"{split}2017")
            images.append({"id": 7 * int(name) + 1, "file_name": f"{name}.jpg", "height": SIZE, "width": SIZE})
            for item in scenes[name].objects:
                outline = (polygons, compressed, runs)[len(objects) % 3](item.mask)
                one = {"image_id": images[-1]["id"], "category_id": CATEGORY_IDS[item.name], "segmentation": outline}
                objects.append({"id": len(objects), "iscrowd": 0, **one})
        content = {"images": images, "annotations": objects, "categories": categories}
        (path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def polygons(mask):
    """The outlines of a mask as an annotator would draw them: COCO polygons, corners between pixels."""
    lines = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    return [(line - 0.5).ravel().tolist() for line in lines]


def compressed(mask):
    """A mask as compressed run lengths."""
    return {
        "size": list(mask.shape),
        "counts": coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode(),
    }


def runs(mask):
    """A mask as plain run lengths down the columns, background first."""
    lengths = [(value, len(list(group))) for value, group in itertools.groupby(mask.ravel(order="F").tolist())]
    return {"size": list(mask.shape), "counts": [0] * bool(lengths[0][0]) + [length for _, length in lengths]}


def test_three_layouts_of_the_same_images_give_the_same_splits_and_image_labels(sources):
    assert [source.kind for source in sources.values()] == ["folder", "VOC", "COCO"]
    assert {source.classes for source in sources.values()} == {tuple(CLASS_NAMES)}
    seen = [
        {split: [(s.name, s.labels) for s in getattr(source, split)] for split in ("train", "val")}
        for source in sources.values()
    ]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]["train"]) + len(seen[0]["val"]) == NUM_SCENES
    assert {label for _, labels in seen[0]["train"] for label in labels} == {1, 2, 3, 4, 5, 6}


def test_masks_agree_wherever_the_ground_truth_does_not_say_ignore(sources):
    samples = {kind: with_masks(source.train + source.val) for kind, source in sources.items()}
    agreeing = known = 0
    for folder, voc, coco in zip(*samples.values(), strict=True):
        truth, drawn = read_mask(voc), read_mask(coco)
        assert (read_mask(folder) == truth).all()
        assert IGNORE_INDEX in truth
        assert IGNORE_INDEX not in drawn, "COCO has no border of 255"
        agreeing += (truth == drawn)[truth != IGNORE_INDEX].sum()
        known += (truth != IGNORE_INDEX).sum()
    assert known > 0.9 * NUM_SCENES * SIZE * SIZE
    assert agreeing >= 0.999 * known


def losses_of(source):
    """The losses of a few steps of a tiny network."""
    torch.manual_seed(0)
    objective = ToCoObjective(
        ToCo(tiny_config(classes=source.classes)),
        cam=CamConfig(scales=(1.0,)),
        contrast=ContrastConfig(num_local_crops=2, local_crop_size=32),
        regularization=RegularizationConfig(),
        weights=LossWeights(),
    )
    optimizer = build_optimizer(objective.model, OptimizerConfig(lr=1e-3))
    batches = training_batches(source, Augmentation(AugmentationConfig(), 64), batch_size=4, num_workers=0, seed=1)
    values = []
    for batch in itertools.islice(batches, STEPS):
        losses = objective(batch, Phase(from_step=0))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(losses.total.item())
    return values


def test_three_layouts_of_the_same_images_train_to_the_same_losses(sources):
    losses = {kind: losses_of(source) for kind, source in sources.items()}
    assert losses["voc"] == losses["folder"]
    assert losses["coco"] == losses["folder"]
    assert len(set(losses["folder"])) == STEPS
    assert np.isfinite(losses["folder"]).all()
