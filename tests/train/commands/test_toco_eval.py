"""The command ``toco-eval`` on a small run, from the outside."""

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.train.method.test_crf import needs_crf
from toco_core.errors import RunError
from toco_core.palette import save_mask
from toco_train.commands.evaluate import evaluation_table, main
from toco_train.config import SegmentConfig, load_config
from toco_train.data.opening import open_source
from toco_train.evaluation.evaluate import Evaluation, evaluate
from toco_train.evaluation.metrics import ClassScores, Scores
from toco_train.models.toco import ToCo
from toco_train.reports.evaluation_report import EvaluationReport


@pytest.fixture
def run(untrained_run):
    return untrained_run


def refusal(capsys, argv):
    """Run a command that must fail, and return its one sentence."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("toco-eval: error: ")
    return lines[0]


def test_the_report_holds_what_evaluate_finds(run, shapes, capsys):
    assert main([str(run)]) == 0
    assert {path.name for path in (run / "evaluation").iterdir()} == {"val.json", "val.md", "val.png"}
    report = json.loads((run / "evaluation" / "val.json").read_text())
    config = load_config(None, run / "config.yaml", {})
    torch.manual_seed(0)
    expected = evaluate(
        ToCo(config.model), open_source(config.data, seed=0).val, scales=(1.0,), background_threshold=0.5
    )
    for kind in ("cam", "aux_cam", "seg"):
        assert report[kind]["mean_iou"] == pytest.approx(getattr(expected, kind).mean_iou)
        assert np.array(report["confusion"][kind]).shape == (7, 7)
    assert report["num_images"] == 8
    assert report["labels"][:2] == ["background", "turtle"]
    assert report["settings"]["scales"] == [1.0]
    with Image.open(run / "evaluation" / "val.png") as image:
        assert min(image.size) > 300
    shown = capsys.readouterr().out
    text = (run / "evaluation" / "val.md").read_text()
    for mean in (expected.cam.mean_iou, expected.aux_cam.mean_iou, expected.seg.mean_iou):
        assert f"{100 * mean:.1f}" in shown
        assert f"| {100 * mean:.1f} |" in text
    for output in (" ".join(shown.split()), text):
        assert "No tags are given; this is the mask that is exported" in output
        assert "Pixels labelled 255 in the ground truth are ignored" in output


def test_settings_change_the_segmentation_alone_and_stand_beside_each_other(run):
    for flags in ([], ["--scales", "1", "1.5", "--flip"], ["--split", "train"]):
        assert main([str(run), *flags]) == 0
    plain, scaled, train = (
        json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("val", "val-1-1.5-flip", "train")
    )
    assert plain["cam"] == scaled["cam"]
    assert plain["confusion"]["seg"] != scaled["confusion"]["seg"]
    assert train["num_images"] == 32


def test_the_published_protocol_is_own_size_three_scales_and_flips_unless_a_flag_says_otherwise(run, shapes):
    for image in (shapes / "JPEGImages").iterdir():  # lying images, which are seen at another size when served
        Image.open(image).crop((0, 0, 64, 36)).save(image)
    for mask in (shapes / "SegmentationClass").iterdir():
        save_mask(mask, np.array(Image.open(mask))[:36])
    published = ["--protocol", "published"]
    for flags in ([], published, [*published, "--scales", "1", "--flip", "false"]):
        assert main([str(run), *flags]) == 0
    names = ("val", "val-own-size-1-1.25-1.5-flip", "val-own-size")
    served, full, plain = (json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in names)
    settings = [(r["settings"]["own_size"], r["settings"]["scales"], r["settings"]["flip"])
                for r in (served, full, plain)]  # fmt: skip
    assert settings == [(False, [1.0], False), (True, [1.0, 1.25, 1.5], True), (True, [1.0], False)]
    assert served["settings"]["sizes"] == [[16, 64], [32, 64], [48, 64], [64, 16], [64, 32], [64, 48], [64, 64]]
    assert full["settings"]["sizes"] == []
    assert served["confusion"]["seg"] == plain["confusion"]["seg"], "36 rows are 2 patches either way: 32"
    assert full["confusion"]["seg"] != plain["confusion"]["seg"]
    assert any(note.startswith("size: the network saw each image at its own size") for note in full["notes"])
    assert any(note.endswith("(height x width, in pixels): 16x64, 32x64, 48x64, 64x16, 64x32, 64x48, 64x64.")
               for note in served["notes"])  # fmt: skip


@needs_crf
def test_a_crf_changes_the_masks(run, tmp_path):
    out = tmp_path / "elsewhere"
    assert main([str(run), "--out", str(out)]) == 0
    assert main([str(run), "--out", str(out), "--crf"]) == 0
    plain, refined = (json.loads((out / f"{name}.json").read_text()) for name in ("val", "val-crf"))
    assert plain["confusion"]["cam"] != refined["confusion"]["cam"]
    assert any(note.startswith("CRF: all three masks") for note in refined["notes"])
    assert not (run / "evaluation").exists()


def test_a_class_that_no_truth_holds_is_named_and_has_no_number(run, shapes, capsys):
    for mask in (shapes / "SegmentationClass").iterdir():
        labels = np.array(Image.open(mask))
        save_mask(mask, np.where(labels == 1, 255, labels).astype(np.uint8))
    assert main([str(run)]) == 0
    shown = capsys.readouterr().out
    assert "absent: no ground truth here holds turtle." in " ".join(shown.split())
    assert re.search(r"turtle +- +- +- +-", shown)


def test_bad_input_gives_one_sentence_and_status_2(run, shapes, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    other = shutil.copytree(shapes, tmp_path / "other")
    (other / "classes.yaml").write_text((other / "classes.yaml").read_text().replace("crab", "lobster"))
    for annotation in (other / "Annotations").iterdir():
        annotation.write_text(annotation.read_text().replace("crab", "lobster"))
    untrained = shutil.copytree(run, tmp_path / "untrained")
    (untrained / "model.safetensors").unlink()
    imported = shutil.copytree(run, tmp_path / "imported")
    (imported / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(shapes), "''"))
    cases = {
        "is not a finished run: it has no config.yaml": [str(tmp_path / "absent")],
        "is not a finished run: it has no model.safetensors": [str(untrained)],
        "each scale must be between 0.25 and 4 (got [1, 0])": [str(run), "--scales", "1", "0"],
        "each scale must be between 0.25 and 4 (got [1000])": [str(run), "--scales", "1000"],
        "data folder /absent does not exist": [str(run), "--data", "/absent"],
        "has 6 classes and label 2 is 'lobster', but the network was trained on 6 and its label 2 is 'crab'":
            [str(run), "--data", str(other)],
        "does not say which data it was trained on; give --data DIR": [str(imported)],
        f"cannot write {tmp_path / 'file'} (": [str(run), "--out", str(tmp_path / "file")],
    }  # fmt: skip
    for expected, argv in cases.items():
        assert expected in refusal(capsys, argv), expected
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert "install it with 'pip install pydensecrf2'" in refusal(capsys, [str(run), "--crf"])
    assert not (run / "evaluation").exists(), "nothing is written before the input is known to be good"


def test_masks_that_cannot_be_used_are_named(run, shapes, capsys):
    masks = sorted((shapes / "SegmentationClass").iterdir())
    for damage, expected in (
        (lambda mask: mask.write_bytes(mask.read_bytes()[:200]), r"mask \S+/SegmentationClass/\d+\.png cannot be"),
        (lambda mask: save_mask(mask, np.zeros((9, 8), dtype=np.uint8)), r"mask \S+\.png is 8x9 px, but its image"),
        (lambda mask: mask.unlink(), "no image to evaluate has a mask"),
    ):
        for mask in masks:
            damage(mask)
        assert re.search(expected, refusal(capsys, [str(run)]))
    assert not list((run / "evaluation").iterdir())


def _evaluation(num_labels):
    """Return made-up scores of so many labels."""
    scores = Scores((1.0,) * num_labels, 1.0, 1.0, (1.0,) * num_labels, 1.0)
    head = ClassScores((1.0,) * (num_labels - 1), 1.0, (1.0,) * (num_labels - 1), 1.0)
    confusion = torch.eye(num_labels, dtype=torch.int64).repeat(3, 1, 1)
    return Evaluation(scores, scores, scores, head, head, 0.5, 9999, confusion, (1.0,) * 9999)


@pytest.mark.parametrize("num_classes", [20, 80])
def test_the_table_of_many_classes_fits_80_columns(num_classes):
    classes = [f"class [red] with {number:>3}" for number in range(num_classes)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table(_evaluation(num_classes + 1), classes))
    lines = console.export_text().splitlines()
    for name in classes:
        (line,) = [line for line in lines if f" {name} " in line]
        assert line.split()[-6:] == ["100.0"] * 6
    assert max(map(len, lines)) <= 80


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path, monkeypatch):
    report = EvaluationReport(
        _evaluation(3), run=tmp_path, data=tmp_path, split="val", classes=("a", "b|c"), cam_scales=(1.0,),
        background=0.5, segment=SegmentConfig(), sizes=((64, 64),), crf=False,
    )  # fmt: skip
    paths = report.write(tmp_path / "out")
    assert "b\\|c" in paths[1].read_text()
    before = [path.read_bytes() for path in paths]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(RunError, match="No space left on device"):
        report.write(tmp_path / "out")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["val.json", "val.md", "val.png"]
