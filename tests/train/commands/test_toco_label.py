"""The command ``toco-label``: what it writes, continues and refuses."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.train.conftest import tiny_config
from toco_core.config import dump_yaml
from toco_core.palette import VOC_PALETTE
from toco_train.commands import label as label_cli
from toco_train.commands.label import main
from toco_train.config import ContrastConfig, TrainConfig
from toco_train.inference import label_folder
from toco_train.inference.pseudo_labels import Labeller
from toco_train.models.toco import ToCo
from toco_train.models.vit import Backbone

CLASSES = ("turtle", "crab", "camera", "gift", "daisy", "grape")


def save_run(folder, classes=CLASSES):
    """Write a run of a tiny network with seeded weights."""
    folder.mkdir()
    torch.manual_seed(0)
    model = ToCo(tiny_config(classes=classes, decoder_channels=16, decoder_dilation=1))
    with torch.no_grad():
        model.backbone.vit.pos_embed.normal_(std=0.5)  # so that maps differ from place to place
    save_file(model.state_dict(), folder / "model.safetensors")
    config = TrainConfig(model=model.config, contrast=ContrastConfig(local_crop_size=32))
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder


@pytest.fixture
def no_sheet(monkeypatch):
    """Leave out the contact sheet, which takes longer than all else."""
    monkeypatch.setattr(label_folder.LabelFolder, "save_sheet", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("label") / "run")


def label(run, data, out, *flags):
    return main([str(run), str(data), str(out), "--split", "val", "--scales", "1", *flags])


def refusal(capsys, *argv):
    assert main(list(map(str, argv))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("toco-label: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def masks(out):
    return {file.name: file.read_bytes() for file in (out / "SegmentationClass").rglob("*.png")}


def test_out_is_laid_out_as_masks_of_voc_with_confidence_classes_lists_and_a_sheet(run, shapes, tmp_path, capsys):
    out = tmp_path / "out"
    assert label(run, shapes, out) == 0
    names = (shapes / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert sorted(masks(out)) == sorted(f"{name}.png" for name in names)
    assert (out / "ImageSets" / "Segmentation" / "val.txt").read_text().split() == names
    total = np.zeros(256, int)
    for name in names:
        with Image.open(out / "SegmentationClass" / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette() == VOC_PALETTE.ravel().tolist()
            pixels = np.array(mask)
        assert pixels.shape == (64, 64)
        total += np.bincount(pixels.ravel(), minlength=256)
        with Image.open(out / "Confidence" / f"{name}.png") as confidence:
            assert (confidence.mode, confidence.size) == ("L", (64, 64))
            assert (np.array(confidence)[pixels == 255] == 0).all()
    classes = yaml.safe_load((out / "classes.yaml").read_text())
    assert classes["classes"] == list(CLASSES)
    assert classes["palette"] == VOC_PALETTE[:7].tolist()
    assert json.loads((out / "labels.json").read_text())["settings"]["refine"] == "par"
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 300
    shown = " ".join(capsys.readouterr().out.split())
    assert f"8 pseudo labels: {total[0] / total.sum():.1%} background" in shown
    assert f"{total[255] / total.sum():.2%}" in shown


def test_the_colours_of_the_data_are_those_of_masks_classes_and_sheet(run, shapes, tmp_path):
    out = tmp_path / "out"
    colours = [[0, 0, 0], *([label, 255 - label, 250] for label in range(1, 7))]
    (shapes / "classes.yaml").write_text(yaml.safe_dump({"classes": list(CLASSES), "palette": colours}))
    assert label(run, shapes, out) == 0
    assert yaml.safe_load((out / "classes.yaml").read_text())["palette"] == colours
    for file in (out / "SegmentationClass").rglob("*.png"):
        with Image.open(file) as mask:
            assert mask.getpalette() == [*np.ravel(colours).tolist(), *VOC_PALETTE[7:].ravel().tolist()]
    with Image.open(out / "contact_sheet.png") as sheet:
        shown = set(map(tuple, np.asarray(sheet.convert("RGB")).reshape(-1, 3).tolist()))
    assert {tuple(colour) for colour in colours[1:]} <= shown, "the legend's squares"


@pytest.mark.usefixtures("no_sheet")
@pytest.mark.parametrize("maps", ["cam", "seg"])
def test_a_label_takes_one_pass_for_each_scale_and_flip(run, shapes, tmp_path, monkeypatch, maps):
    passes, forward = [], Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, images: passes.extend(images) or forward(self, images))
    flags = ["--split", "val", "--from", maps, "--refine", "none"]
    assert main([str(run), str(shapes), str(tmp_path / "out"), *flags]) == 0
    assert len(passes) == 6 * 8, "three scales, each with its flip, of 8 images"


@pytest.mark.usefixtures("no_sheet")
def test_thresholds_are_the_runs_and_a_flag_beats_them(run, shapes, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["cam"] |= {"low": 0.3, "high": 0.45}
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copyfile(run / "model.safetensors", own / "model.safetensors")
    assert label(own, shapes, tmp_path / "out", "--high", "0.6") == 0
    settings = json.loads((tmp_path / "out" / "labels.json").read_text())["settings"]
    assert (settings["low"], settings["high"]) == (0.3, 0.6)


@pytest.mark.usefixtures("no_sheet")
def test_labels_at_other_sizes_are_not_mixed(run, shapes, tmp_path, capsys):
    out = tmp_path / "out"
    assert label(run, shapes, out) == 0
    record = json.loads((out / "labels.json").read_text())
    assert record["sizes"] == [[16, 64], [32, 64], [48, 64], [64, 16], [64, 32], [64, 48], [64, 64]]
    (out / "labels.json").write_text(json.dumps(record | {"sizes": [[64, 64]]}))
    assert "holds labels made with sizes [[64, 64]], not [[16, 64]" in refusal(
        capsys, run, shapes, out, "--split", "val", "--scales", "1"
    )


@pytest.mark.usefixtures("no_sheet")
def test_a_second_start_makes_only_what_is_missing_or_broken(run, shapes, tmp_path, monkeypatch):
    out, made = tmp_path / "out", []
    assert label(run, shapes, out) == 0
    before = masks(out)
    first, second, third = sorted(before)[:3]
    (out / "SegmentationClass" / first).unlink()
    (out / "SegmentationClass" / second).write_bytes(before[second][:60])
    (out / "Confidence" / third).unlink()
    (out / "SegmentationClass" / f".{first}.abc.png").write_bytes(b"left by a kill")
    call = Labeller.__call__
    monkeypatch.setattr(Labeller, "__call__", lambda self, sample: made.append(sample.name) or call(self, sample))
    assert label(run, shapes, out) == 0
    assert sorted(f"{name}.png" for name in made) == [first, second, third]
    assert masks(out) == before


def test_a_label_outlives_its_image(run, shapes, tmp_path):
    assert label(run, shapes, tmp_path / "out") == 0
    before = masks(tmp_path / "out")
    (shapes / "JPEGImages" / sorted(before)[0]).with_suffix(".jpg").write_bytes(b"no image")
    assert label(run, shapes, tmp_path / "out") == 0
    assert masks(tmp_path / "out") == before


@pytest.mark.usefixtures("no_sheet")
def test_an_interrupted_start_leaves_whole_files_and_the_next_one_goes_on(run, shapes, tmp_path, monkeypatch):
    out, made = tmp_path / "out", []
    call = Labeller.__call__

    def interrupted(self, sample):
        made.append(sample.name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return call(self, sample)

    monkeypatch.setattr(Labeller, "__call__", interrupted)
    assert label(run, shapes, out) == 130
    assert sorted(masks(out)) == sorted(f"{name}.png" for name in made[:3])
    assert label(run, shapes, out) == 0
    assert len(masks(out)) == 8
    assert len(made) == 4 + 5


@pytest.mark.usefixtures("no_sheet")
def test_labels_of_other_settings_or_weights_are_never_mixed(run, shapes, tmp_path, capsys):
    out, other = tmp_path / "out", save_run(tmp_path / "other")
    assert label(run, shapes, out) == 0
    before = masks(out)
    argv = (run, shapes, out, "--split", "val", "--scales", "1")
    assert "made with refine par, not none: give another OUT, or --overwrite" in refusal(
        capsys, *argv, "--refine", "none"
    )
    assert "made with scales [1.0], not [0.5]" in refusal(capsys, run, shapes, out, "--scales", "0.5")
    model = ToCo(tiny_config(classes=CLASSES, decoder_channels=16, decoder_dilation=1))
    save_file(model.state_dict(), other / "model.safetensors")
    assert "made with other weights" in refusal(capsys, other, *argv[1:])
    assert masks(out) == before
    assert label(run, shapes, out, "--low", "0", "--high", "0", "--refine", "none", "--overwrite") == 0
    assert masks(out).keys() == before.keys()
    assert masks(out) != before


@pytest.mark.usefixtures("no_sheet")
def test_train_and_val_come_into_one_folder(run, shapes, tmp_path):
    out = tmp_path / "out"
    assert label(run, shapes, out, "--refine", "none") == 0
    assert label(run, shapes, out, "--refine", "none", "--split", "all") == 0
    assert len(masks(out)) == 40
    lists = {file.stem: len(file.read_text().split()) for file in (out / "ImageSets" / "Segmentation").iterdir()}
    assert lists == {"train": 32, "val": 8}


@pytest.mark.usefixtures("no_sheet")
def test_unreadable_images_are_named_at_the_end_and_the_others_are_labelled(run, shapes, tmp_path, capsys):
    names = (shapes / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    for name in names[:2]:
        (shapes / "JPEGImages" / f"{name}.jpg").write_bytes(b"no image")
    assert label(run, shapes, tmp_path / "out") == 1
    complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no label: ")]
    assert [names[0] in complaints[0], names[1] in complaints[1], len(complaints)] == [True, True, 2]
    assert len(masks(tmp_path / "out")) == 6
    listed = (tmp_path / "out" / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert listed == names[2:]


@pytest.mark.usefixtures("no_sheet")
def test_a_folder_of_ones_own_is_labelled_with_its_sub_folders(tmp_path):
    data = tmp_path / "photos"
    for kind in ("cat", "dog", "nothing"):
        (data / kind).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (50 + index, 70), "teal").save(data / kind / f"{index}.jpg")
    run = save_run(tmp_path / "run", classes=("cat", "dog"))
    out = tmp_path / "out"
    assert main([str(run), str(data), str(out), "--split", "all", "--no-class", "nothing", "--scales", "1"]) == 0
    found = sorted(file.relative_to(out / "SegmentationClass") for file in (out / "SegmentationClass").rglob("*.png"))
    assert list(map(str, found)) == [f"{kind}/{index}.png" for kind in ("cat", "dog", "nothing") for index in range(3)]
    for index in range(3):
        assert not np.array(Image.open(out / "SegmentationClass" / "nothing" / f"{index}.png")).any()
        assert Image.open(out / "SegmentationClass" / "cat" / f"{index}.png").size == (50 + index, 70)


@pytest.mark.usefixtures("no_sheet")
def test_the_run_s_own_data_is_opened_with_its_settings(tmp_path, capsys):
    data = tmp_path / "photos"
    for kind in ("cat", "dog", "nothing"):
        (data / kind).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (64, 64), "teal").save(data / kind / f"{index}.jpg")
    run = save_run(tmp_path / "run", classes=("cat", "dog"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"].update(path=str(data), no_class="nothing")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert label(run, data, tmp_path / "out") == 0
    moved = shutil.move(data, tmp_path / "moved")
    sentence = refusal(capsys, run, moved, tmp_path / "out2")
    assert "3 classes and label 3 is 'nothing', but the network was trained on 2 and has no label 3" in sentence
    assert "(the run was trained with --no-class nothing)" in sentence


@pytest.mark.usefixtures("no_sheet")
def test_a_full_disk_is_said_and_leaves_whole_files(run, shapes, tmp_path, capsys, monkeypatch):
    saved = []

    def full(path, mask, palette):
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        real(path, mask, palette)

    real = label_folder.save_mask
    monkeypatch.setattr(label_folder, "save_mask", full)
    assert "(No space left on device); make room" in refusal(
        capsys, run, shapes, tmp_path / "out", "--split", "val", "--scales", "1"
    )
    assert len(masks(tmp_path / "out")) == 2


def test_wrong_input_gives_one_sentence_and_writes_nothing(run, shapes, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").touch()
    other = save_run(tmp_path / "other", classes=("cat",))
    cases = {
        "is not a finished run: it has no config.yaml": (tmp_path / "empty", shapes, out),
        "does not exist; give a VOC devkit": (run, tmp_path / "absent", out),
        "has 6 classes and label 1 is 'turtle', but the network was trained on 1 and its label 1 is 'cat'": (
            other,
            shapes,
            out,
        ),
        "lies inside SOURCE": (run, shapes, shapes / "labels"),
        "holds something that is no folder of labels": (run, shapes, tmp_path / "notes"),
        "is a file, expected a folder for the labels": (run, shapes, tmp_path / "file"),
        "scales: each scale must be between 0.25 and 4": (run, shapes, out, "--scales", "99"),
        "the low threshold 0.8 is above the high one 0.7": (run, shapes, out, "--low", "0.8", "--high", "0.7"),
        "high: input should be less than or equal to 1": (run, shapes, out, "--high", "2"),
        "min_confidence: input should be": (run, shapes, out, "--min-confidence", "-1"),
    }
    for sentence, argv in cases.items():
        assert sentence in refusal(capsys, *argv), sentence
    (shapes / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    assert "has no image in the split 'val'" in refusal(capsys, run, shapes, out, "--split", "val")
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf", None)
    assert "the dense CRF needs pydensecrf" in refusal(capsys, run, shapes, out, "--refine", "crf")
    assert not out.exists()
    assert not (shapes / "labels").exists()
    with pytest.raises(SystemExit) as caught:
        label_cli.main([])
    assert caught.value.code == 2
