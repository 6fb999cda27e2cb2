"""The synthetic data set: its VOC layout, its reproducibility, and the difficulties that it promises."""

import colorsys
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.train.shapes_folder import read_ids, tree_hash
from toco_core.palette import VOC_PALETTE
from toco_train.shapes import voc
from toco_train.shapes.canvas import Canvas
from toco_train.shapes.config import SceneConfig
from toco_train.shapes.objects import CLASS_NAMES, CLASSES, FAMILIES
from toco_train.shapes.plan import SceneObject, plan_objects, visible_objects
from toco_train.shapes.scene import label_map, make_scene, paint_object
from toco_train.shapes.voc import Recipe, make_dataset

NUM_IMAGES = 60
SPLITS = ("train", "val", "trainval")
ONE_WHOLE_OBJECT = SceneConfig(object_count_weights=(1, 0, 0), truncation_probability=0, noise=0)


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def labels_in(mask: np.ndarray) -> set[int]:
    return set(np.unique(mask).tolist())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "data"
    make_dataset(out, Recipe(images=NUM_IMAGES, size=96, seed=0))
    return out


@pytest.fixture(scope="module")
def single_objects():
    """Twelve scenes of each class with one object, whole and in full view, on any backdrop, in its family's colours."""
    config = ONE_WHOLE_OBJECT.model_copy(
        update={
            "context_probability": 0,
            "common_tint_probability": 1,
            "hidden_part_probability": 0,
            "body_hue_jitter": 0.02,
            "body_tone_jitter": 0,
            "exposure": 0,
        }
    )
    return [make_scene(3, index, 96, config) for index in range(12 * len(CLASSES))]


# --- reproducibility ---


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(tmp_path):
    recipe = Recipe(images=voc.POOL_PAYS_FROM, size=32, seed=5)
    make_dataset(tmp_path / "one", recipe, num_workers=1)
    make_dataset(tmp_path / "two", recipe, num_workers=2)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_another_seed_gives_other_images_and_masks(tmp_path):
    for seed in (0, 1):
        make_dataset(tmp_path / str(seed), Recipe(images=10, size=32, seed=seed))
    for name in ("JPEGImages", "SegmentationClass"):
        assert tree_hash(tmp_path / "0" / name) != tree_hash(tmp_path / "1" / name)


def test_a_scene_does_not_depend_on_how_many_images_the_data_set_has(dataset):
    scene = make_scene(0, 41, 96, SceneConfig())
    assert np.array_equal(read_mask(dataset / "SegmentationClass" / "000042.png"), scene.labels)


# --- layout ---


def test_the_folder_holds_exactly_the_voc_layout(dataset):
    ids = [f"{number:06d}" for number in range(1, NUM_IMAGES + 1)]
    expected = {f"{folder}/{stem}.{suffix}" for stem in ids for folder, suffix in (
        ("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("Annotations", "xml"))}  # fmt: skip
    expected |= {f"ImageSets/{kind}/{split}.txt" for kind in ("Segmentation", "Main") for split in SPLITS}
    expected |= {f"ImageSets/Main/{name}_{split}.txt" for name in CLASS_NAMES for split in SPLITS}
    expected |= {"classes.yaml", "shapes.json", "contact_sheet.png"}
    assert {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()} == expected


def test_the_splits_hold_80_and_20_percent_and_share_no_image(dataset):
    train, val, trainval = (read_ids(dataset, split) for split in SPLITS)
    assert (len(train), len(val)) == (48, 12)
    assert train + val == trainval == sorted(set(trainval))
    assert all(read_ids(dataset, split, "Main") == read_ids(dataset, split) for split in SPLITS)


def test_every_class_occurs_in_both_splits(dataset):
    for split in ("train", "val"):
        masks = [read_mask(dataset / "SegmentationClass" / f"{stem}.png") for stem in read_ids(dataset, split)]
        assert set().union(*map(labels_in, masks)) == {0, 1, 2, 3, 4, 5, 6, 255}


def test_the_lists_of_each_class_say_which_masks_show_it(dataset):
    for label, name in enumerate(CLASS_NAMES, start=1):
        for line in (dataset / "ImageSets" / "Main" / f"{name}_trainval.txt").read_text().splitlines():
            stem, flag = line[:6], line[6:]
            shown = label in labels_in(read_mask(dataset / "SegmentationClass" / f"{stem}.png"))
            assert flag == ("  1" if shown else " -1")


def test_the_class_file_names_the_labels_in_order(dataset):
    classes = yaml.safe_load((dataset / "classes.yaml").read_text())
    assert classes == {"classes": ["turtle", "crab", "camera", "gift", "daisy", "grape"]}


def test_images_are_rgb_and_masks_are_palette_images_with_the_voc_colours(dataset):
    for path in sorted((dataset / "SegmentationClass").iterdir()):
        mask, image = Image.open(path), Image.open(dataset / "JPEGImages" / f"{path.stem}.jpg")
        assert (mask.mode, mask.size, image.mode, image.size) == ("P", (96, 96), "RGB", (96, 96))
        assert mask.getpalette() == VOC_PALETTE.reshape(-1).tolist()
        assert labels_in(np.asarray(mask)) <= {0, 1, 2, 3, 4, 5, 6, 255}


def test_the_annotation_names_the_classes_of_the_mask(dataset):
    for path in sorted((dataset / "Annotations").iterdir()):
        objects = ET.parse(path).getroot().findall("object")
        labels = labels_in(read_mask(dataset / "SegmentationClass" / f"{path.stem}.png")) - {0, 255}
        assert {item.findtext("name") for item in objects} == {CLASS_NAMES[label - 1] for label in labels}
        assert 1 <= len(objects) <= 3


def test_an_annotation_follows_the_voc_schema():
    scene = make_scene(0, 3, 96, ONE_WHOLE_OBJECT)
    root = ET.fromstring(voc.annotation("000004", scene))
    assert [child.tag for child in root] == ["folder", "filename", "source", "size", "segmented", "object"]
    assert root.findtext("filename") == "000004.jpg"
    assert [child.text for child in root.find("size")] == ["96", "96", "3"]
    thing = root.find("object")
    assert [child.tag for child in thing] == ["name", "pose", "truncated", "difficult", "bndbox"]
    assert (thing.findtext("name"), thing.findtext("truncated"), thing.findtext("difficult")) == ("gift", "0", "0")
    rows, columns = np.nonzero(scene.labels == 4)
    box = {child.tag: int(child.text) for child in thing.find("bndbox")}
    assert box == {
        "xmin": columns.min() + 1, "ymin": rows.min() + 1, "xmax": columns.max() + 1, "ymax": rows.max() + 1
    }  # fmt: skip


def test_the_contact_sheet_shows_four_by_six_scenes_under_a_legend(dataset):
    sheet = Image.open(dataset / "contact_sheet.png")
    assert sheet.size == (4 * (2 * 144 + 14) + 14, 58 + 6 * (144 + 14))


# --- masks ---


def test_a_ring_of_255_lies_around_an_object():
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 2] = True
    labels = label_map((SceneObject(3, mask, mask, truncated=False),), border_px=1)
    assert labels.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 255, 255, 255, 0],
        [0, 255, 3, 255, 0],
        [0, 255, 255, 255, 0],
        [0, 0, 0, 0, 0],
    ]


def test_touching_objects_are_kept_apart_by_255():
    left, right = np.zeros((1, 6), dtype=bool), np.zeros((1, 6), dtype=bool)
    left[0, :3], right[0, 3:] = True, True
    objects = (SceneObject(1, left, left, truncated=True), SceneObject(2, right, right, truncated=True))
    assert label_map(objects, border_px=1)[0].tolist() == [1, 1, 255, 255, 2, 2]


def test_no_two_different_labels_touch_in_any_mask(dataset):
    for path in sorted((dataset / "SegmentationClass").iterdir()):
        mask = read_mask(path)
        for here, there in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]), (mask[1:, 1:], mask[:-1, :-1])):
            assert np.all((here == there) | (here == 255) | (there == 255))


@pytest.mark.parametrize("label", range(1, 7))
def test_the_mask_holds_exactly_the_pixels_whose_centre_the_object_covers(label):
    """The same object over black and over white: where the centre samples agree, the object hides the ground."""
    plans, footprints = plan_objects(np.random.default_rng(7), first_label=label, size=96, config=ONE_WHOLE_OBJECT)
    black, white = Canvas(96, 3), Canvas(96, 3)
    white.samples[:] = 1
    for canvas in (black, white):
        paint_object(canvas, plans[0], light=1.0, config=ONE_WHOLE_OBJECT)
    covered = np.all(black.samples[:, 1::3, 1::3] == white.samples[:, 1::3, 1::3], axis=0)
    assert np.array_equal(covered, footprints[0].whole)


# --- what makes the scenes hard ---


def test_occlusion_happens_and_leaves_every_object_and_part_recognisable():
    config = SceneConfig(object_count_weights=(0, 0, 1))
    hidden = 0
    for index in range(40):
        plans, footprints = plan_objects(np.random.default_rng(index), first_label=1, size=96, config=config)
        for seen, footprint in zip(visible_objects(plans, footprints), footprints, strict=True):
            assert seen.mask.sum() >= 0.6 * footprint.whole_area
            assert seen.part.sum() >= 0.75 * footprint.part_area
            hidden += seen.mask.sum() < footprint.whole.sum()
    assert hidden >= 20


def test_truncated_objects_occur_and_reach_the_image_border():
    config = SceneConfig(object_count_weights=(1, 0, 0), truncation_probability=1, truncation_reach=0.5)
    objects = [make_scene(0, index, 32, config).objects[0] for index in range(40)]
    truncated = [item for item in objects if item.truncated]
    assert len(truncated) >= 10
    for item in truncated:
        assert item.mask[0].any() or item.mask[-1].any() or item.mask[:, 0].any() or item.mask[:, -1].any()


def test_an_image_holds_one_to_three_objects_and_mostly_one_or_two_classes():
    scenes = [
        plan_objects(np.random.default_rng(i), first_label=1, size=32, config=SceneConfig())[0] for i in range(200)
    ]
    counts = np.bincount([len(plans) for plans in scenes], minlength=4)
    assert counts[0] == 0
    assert len(counts) == 4
    assert all(counts[1:] >= 20)
    assert np.mean([len({plan.label for plan in plans}) <= 2 for plans in scenes]) > 0.85


def test_each_body_is_shared_by_two_classes_with_different_parts():
    pairs = [[kind.name for kind in CLASSES if kind.family is family] for family in FAMILIES]
    assert pairs == [["turtle", "crab"], ["camera", "gift"], ["daisy", "grape"]]
    assert len({kind.part for kind in CLASSES}) == 6


def mean_looks(scenes, pixels_of):
    """Mean RGB in [0, 1] and mean step between neighbours along a row, of some pixels, per label: float [C, 4]."""
    looks = {label: [] for label in range(1, len(CLASSES) + 1)}
    for scene in scenes:
        image = scene.image / 255
        steps = np.abs(np.diff(image.mean(axis=2), axis=1, append=0))
        chosen = pixels_of(scene.objects[0])
        looks[scene.objects[0].label].append([*image[chosen].mean(axis=0), steps[chosen].mean()])
    return np.array([np.mean(rows, axis=0) for rows in looks.values()])


def test_bodies_in_the_common_tint_look_alike_within_a_family_and_different_between_families(single_objects):
    looks = mean_looks(single_objects, lambda item: item.mask & ~item.part)
    for first, second in itertools.combinations(range(len(CLASSES)), 2):
        apart = np.linalg.norm(looks[first, :3] - looks[second, :3])
        if CLASSES[first].family is CLASSES[second].family:
            assert apart < 0.06
            assert abs(looks[first, 3] - looks[second, 3]) < 0.02
        else:
            assert apart > 0.15


def tint_towards_its_class(plan):
    """How far a body's hue lies from its family's, towards the side to which its own class leans."""
    shift = (colorsys.rgb_to_hsv(*plan.body_colour)[0] - plan.kind.family.colour[0] + 0.5) % 1 - 0.5
    return plan.kind.twin * shift


def test_the_tint_tells_most_classes_the_part_most_others_and_every_object_has_one_of_the_two():
    config = SceneConfig()
    plans = [
        plan_objects(np.random.default_rng(i), first_label=1 + i % len(CLASSES), size=32, config=config)[0][0]
        for i in range(100 * len(CLASSES))
    ]
    tints = np.array([tint_towards_its_class(plan) for plan in plans])
    own_tint = tints > config.body_lean - config.body_hue_jitter
    shows_part = np.array([plan.shows_part for plan in plans])
    assert np.all(own_tint | shows_part)
    assert np.mean(own_tint) == pytest.approx(1 - config.common_tint_probability, abs=0.04)
    assert np.mean(shows_part) == pytest.approx(1 - config.hidden_part_probability, abs=0.05)
    assert tints[own_tint].mean() == pytest.approx(config.body_lean, abs=0.01)
    assert tints[~own_tint].mean() == pytest.approx(0, abs=0.01)  # to neither side: half of them look like the twin


def test_an_object_whose_part_does_not_show_is_a_body_alone():
    config = ONE_WHOLE_OBJECT.model_copy(update={"common_tint_probability": 0, "hidden_part_probability": 1})
    hidden = make_scene(3, 1, 96, config).objects[0]
    shown = make_scene(3, 1, 96, config.model_copy(update={"hidden_part_probability": 0})).objects[0]
    assert hidden.part.sum() == 0
    assert shown.part.sum() > 0
    assert not np.any(hidden.mask & ~shown.mask)


def test_the_part_tells_the_two_classes_of_a_family_apart(single_objects):
    looks = mean_looks(single_objects, lambda item: item.part)
    for first in (0, 2, 4):
        assert np.linalg.norm(looks[first, :3] - looks[first + 1, :3]) > 0.25


def test_the_part_covers_6_to_11_percent_of_its_object(single_objects):
    shares = [scene.objects[0].part.sum() / scene.objects[0].mask.sum() for scene in single_objects]
    assert min(shares) > 0.06
    assert max(shares) < 0.11


def test_objects_cover_the_area_that_the_scale_states(single_objects):
    low, high = SceneConfig().object_scale
    for scene in single_objects:
        diameter = np.sqrt(scene.objects[0].mask.sum() / np.pi) * 2 / 96
        assert (
            0.98 * low * 0.95 < diameter < 1.1 * high
        )  # the aspect and a part that sticks out change the area a little


@pytest.mark.parametrize(("probability", "low", "high"), [(1.0, 1.0, 1.0), (0.7, 0.70, 0.85), (0.0, 0.17, 0.33)])
def test_the_backdrop_goes_with_the_first_object(probability, low, high):
    """Own backdrop: the stated probability, plus a quarter of the rest, which any of four backdrops may take."""
    config = ONE_WHOLE_OBJECT.model_copy(update={"context_probability": probability, "supersample": 1})
    scenes = [make_scene(0, index, 32, config) for index in range(240)]
    own = np.mean([scene.backdrop == CLASSES[scene.objects[0].label - 1].family.backdrop for scene in scenes])
    assert low <= own <= high


def test_bodies_stand_out_from_their_own_backdrop(single_objects):
    config = ONE_WHOLE_OBJECT.model_copy(update={"context_probability": 1})
    scenes = [make_scene(4, index, 96, config) for index in range(4 * len(CLASSES))]
    bodies = mean_looks(scenes, lambda item: item.mask & ~item.part)
    backdrops = mean_looks(scenes, lambda item: ~item.mask)
    assert np.linalg.norm(bodies[:, :3] - backdrops[:, :3], axis=1).min() > 0.2


def test_a_pixel_is_the_mean_of_its_samples():
    canvas = Canvas(size=2, supersample=3)
    canvas.samples[0, :3, :3] = np.arange(9, dtype=np.float32).reshape(3, 3) / 9
    assert canvas.pixels()[0, 0].tolist() == pytest.approx([4 / 9, 0, 0])
    assert canvas.pixels()[1, 1].tolist() == [0, 0, 0]
