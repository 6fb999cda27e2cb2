"""The command ``toco-import``: published checkpoints become run folders."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.train.conftest import GOLDEN, TINY_VIT, drawn_weights, published_shapes, relative_error
from toco_train.commands.import_published import main
from toco_train.commands.label import main as toco_label
from toco_train.config import load_config
from toco_train.data.readers.voc import VOC_CLASSES
from toco_train.runs.import_published import COCO_CLASSES
from toco_train.runs.load import load_run

TINY = ["--backbone", TINY_VIT.model_dump_json()]


def checkpoint(path, num_labels, *, prefix="", change=lambda weights: None):
    """Write a published checkpoint of the tiny network."""
    weights = drawn_weights(published_shapes(48, 16, 4, 4, num_labels))
    change(weights)
    torch.save({f"{prefix}{key}": value for key, value in weights.items()}, path)
    return str(path)


def refusal(capsys, argv):
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("toco-import: error: ")
    return lines[0]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_network_gives_the_golden_outputs_through_the_run_folder(tmp_path, golden, prefix):
    out = tmp_path / "run"
    assert main([checkpoint(tmp_path / "p.pth", 6, prefix=prefix), str(out), *TINY]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["config.yaml", "model.safetensors"]
    with torch.no_grad():
        output = load_run(out)(golden["net_tiny_64x64/input"])
    for name in ("class_logits", "aux_class_logits", "seg_logits", "cam"):
        assert relative_error(getattr(output, name), golden[f"net_tiny_64x64/{name}"]) < 1e-5, name


@pytest.mark.slow
def test_an_imported_vit_b_gives_the_golden_logits_and_needs_no_options(tmp_path, golden, capsys):
    published = json.loads((GOLDEN / "published_state_dict.json").read_text())["vit_base_patch16_224, 21 classes"]
    weights = drawn_weights({key: tuple(shape) for key, shape in published.items()})
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "published.pth")
    out = tmp_path / "run"
    assert main([str(tmp_path / "published.pth"), str(out)]) == 0
    assert "vit_base_patch16_224 with 20 classes (aeroplane, bicycle, bird, ..., tvmonitor)" in capsys.readouterr().out
    model = load_run(out)
    assert model.config.classes == VOC_CLASSES
    for size in ("224x224", "160x288"):
        group = f"net_vit_base_patch16_224_{size}"
        with torch.no_grad():
            output = model(golden[f"{group}/input"])
        for name in ("class_logits", "aux_class_logits", "seg_logits"):
            assert relative_error(getattr(output, name), golden[f"{group}/{name}"]) < 1e-5, (size, name)


@pytest.mark.parametrize(
    ("num_classes", "classes", "background"),
    [
        (20, VOC_CLASSES, 0.5),
        (80, COCO_CLASSES, 0.45),
        (3, ("class_1", "class_2", "class_3"), 0.5),
    ],
)
def test_the_number_of_classes_suggests_their_names_and_the_recipe(tmp_path, num_classes, classes, background):
    assert main([checkpoint(tmp_path / "p.pth", num_classes + 1), str(tmp_path / "run"), *TINY]) == 0
    config = load_config(None, tmp_path / "run" / "config.yaml", {})
    assert config.model.classes == classes
    assert config.model.pretrained is False
    assert config.cam.background == background
    assert len(load_run(tmp_path / "run").decoder.conv8.weight) == num_classes + 1


def test_the_names_of_coco_are_its_eighty_categories():
    assert len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[24], COCO_CLASSES[-1]) == ("person", "backpack", "toothbrush")


def test_class_names_come_from_a_file(tmp_path):
    (tmp_path / "classes.yaml").write_text("classes: [cat, dog]\n")
    argv = [checkpoint(tmp_path / "p.pth", 3), str(tmp_path / "run"), *TINY]
    assert main([*argv, "--classes", str(tmp_path / "classes.yaml")]) == 0
    assert load_run(tmp_path / "run").config.classes == ("cat", "dog")


def test_a_run_is_replaced_only_when_asked_and_anything_else_never(tmp_path, capsys):
    path, out = checkpoint(tmp_path / "p.pth", 3), tmp_path / "run"
    assert main([path, str(out), *TINY]) == 0
    before = (out / "model.safetensors").read_bytes()
    other = checkpoint(tmp_path / "other.pth", 4)
    assert "holds a run already; give another OUT, or --overwrite" in refusal(capsys, [other, str(out), *TINY])
    assert (out / "model.safetensors").read_bytes() == before
    assert main([other, str(out), *TINY, "--overwrite"]) == 0
    assert len(load_run(out).config.classes) == 3
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    argv = [path, str(tmp_path / "photos"), *TINY, "--overwrite"]
    assert "holds something that is not a run" in refusal(capsys, argv)
    assert (tmp_path / "photos" / "me.jpg").exists()


@pytest.mark.parametrize(
    ("change", "flags", "sentence"),
    [
        (lambda w: w.pop("decoder.conv6.weight"), TINY, "1 missing (decoder.conv6.weight)"),
        (lambda w: w.pop("proj_head.last_layer.weight_g"), TINY, "1 missing (proj_head.last_layer.weight_g)"),
        (lambda w: w.update({"encoder.extra": torch.zeros(1)}), TINY, "1 left over (encoder.extra)"),
        (
            lambda w: w.update({"aux_classifier.weight": torch.zeros(9, 48, 1, 1)}),
            TINY,
            "1 of another shape (aux_classifier.weight (9, 48, 1, 1), expected (5, 48, 1, 1))",
        ),
        (lambda w: w.pop("classifier.weight"), TINY, "no checkpoint of the published ToCo: it has no 'classifier"),
        (lambda w: w.update({"a": 3}), TINY, "are not a state dict ('a' is int)"),
        (lambda w: None, [], "no ViT of the usual sizes fits"),
        (lambda w: None, ["--backbone", "vit_tiny_patch16_225"], "did you mean 'vit_tiny_patch16_224'?"),
        (lambda w: None, ["--backbone", "vit_tiny_patch16_224"], "of another shape ("),
        (lambda w: None, ["--backbone", "{width"], "is not a value in YAML"),
        (lambda w: None, ["--backbone", "{depht: 3}"], "did you mean 'depth'?"),
        (lambda w: None, [*TINY, "--classes", "voc"], "--classes voc names 20 classes, but the checkpoint has 5"),
        (
            lambda w: None,
            [*TINY, "--classes", "absent.yaml"],
            "absent.yaml is neither voc nor coco nor a file",
        ),
        (lambda w: None, [*TINY, "--classes", "cocoo"], "a file, did you mean 'coco'?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, capsys, change, flags, sentence):
    path, out = checkpoint(tmp_path / "p.pth", 6, change=change), tmp_path / "run"
    assert sentence in refusal(capsys, [path, str(out), *flags])
    assert [file.name for file in tmp_path.iterdir()] == ["p.pth"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "p.pth").write_bytes(b"hello")
    assert "cannot be read" in refusal(capsys, [str(tmp_path / "p.pth"), str(tmp_path / "run")])
    assert "do not exist" in refusal(capsys, [str(tmp_path / "absent.pth"), str(tmp_path / "run")])


def test_an_imported_run_labels_data_of_its_classes(tmp_path, shapes):
    names = yaml.safe_load((shapes / "classes.yaml").read_text())["classes"]
    (tmp_path / "names.yaml").write_text(yaml.safe_dump({"classes": names}))
    argv = [checkpoint(tmp_path / "p.pth", len(names) + 1), str(tmp_path / "run"), *TINY]
    assert main([*argv, "--classes", str(tmp_path / "names.yaml")]) == 0
    listing = shapes / "ImageSets" / "Segmentation" / "val.txt"
    listing.write_text("\n".join(listing.read_text().split()[:2]))
    argv = [str(tmp_path / "run"), str(shapes), str(tmp_path / "out"), "--split", "val", "--scales", "1"]
    assert toco_label(argv) == 0
    masks = list((tmp_path / "out" / "SegmentationClass").iterdir())
    assert len(masks) == 2
    assert np.array(Image.open(masks[0])).shape == (64, 64)
