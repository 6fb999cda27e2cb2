"""The command ``toco-analyze`` on small networks, from the outside."""

import csv
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from toco_train.commands.analyze import main
from toco_train.models.vit import build_backbone

FILES = {f"{stem}{suffix}" for stem in ("token_similarity", "patch_similarity") for suffix in (".png", ".svg", ".csv")}
TIMM = "vit_tiny_patch16_224"


@pytest.fixture
def run(untrained_run):
    return untrained_run


def refusal(capsys, argv):
    """Run a command that must fail, and return its one sentence."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as error:
        status = error.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("toco-analyze: error: ")
    return lines[0]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_runs_and_a_plain_backbone_stand_side_by_side(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other" / "run")
    argv = [str(run), str(other), TIMM, "--no-pretrained", "--size", "64", "--images", "3"]
    assert main(argv) == 0
    folder = run / "analysis"
    assert {path.name for path in folder.iterdir()} == FILES
    for stem in ("token_similarity", "patch_similarity"):
        with Image.open(folder / f"{stem}.png") as image:
            assert image.size[0] > 500
    blocks = rows(folder / "token_similarity.csv")
    assert [row["network"] for row in blocks] == [str(run)] * 5 + [str(other)] * 5 + [TIMM] * 13
    assert {row["images"] for row in blocks} == {"3"}
    assert all(0 < float(row["mean"]) < 1 for row in blocks)
    assert [row["mean"] for row in blocks[:5]] == [row["mean"] for row in blocks[5:10]]
    tokens = rows(folder / "patch_similarity.csv")
    assert len(tokens) == 4 * (16 + 16 + 16)
    assert {(row["network"] == TIMM, row["cam"] == "") for row in tokens} == {(True, True), (False, False)}
    shown = capsys.readouterr().out
    assert "3 images" in shown
    assert all(name in shown for name in FILES)


def test_images_places_names_and_split_can_be_chosen(run, tmp_path, shapes):
    name = (shapes / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    out = tmp_path / "out"
    argv = [str(run), "--split", "train", "--show", name, f"{name}@0.1,0.95", "--names", "mine", "--out", str(out)]
    assert main([*argv, "--images", "0"]) == 0
    assert {row["images"] for row in rows(out / "token_similarity.csv")} == {"32"}
    tokens = rows(out / "patch_similarity.csv")
    assert {(row["network"], row["image"]) for row in tokens} == {("mine", name)}
    chosen = [row for row in tokens if (row["x"], row["y"]) == ("0.1000", "0.9500")]
    assert [float(row["similarity"]) for row in chosen if (row["row"], row["column"]) == ("3", "0")] == [1.0]
    assert not (run / "analysis").exists()


def test_a_backbone_alone_needs_data_and_a_folder(shapes, tmp_path):
    argv = [TIMM, "--no-pretrained", "--size", "32", "--data", str(shapes), "--out", str(tmp_path / "out")]
    assert main([*argv, "--images", "2"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_plain_backbone_has_the_weights_of_a_file_or_the_same_random_ones_each_time(shapes, tmp_path):
    def analysed(name, *flags):
        argv = [TIMM, "--size", "32", "--data", str(shapes), "--images", "1", "--out", str(tmp_path / name), *flags]
        assert main(argv) == 0
        return (tmp_path / name / "patch_similarity.csv").read_text()

    random = analysed("random", "--no-pretrained")
    assert analysed("again", "--no-pretrained") == random
    torch.manual_seed(0)
    backbone = build_backbone(TIMM, pretrained=False, aux_block=-1).vit
    save_file(backbone.state_dict(), tmp_path / "same.safetensors")
    save_file({name: value * 1.5 for name, value in backbone.state_dict().items()}, tmp_path / "other.safetensors")
    assert analysed("same", "--weights", str(tmp_path / "same.safetensors")) == random
    assert analysed("other", "--weights", str(tmp_path / "other.safetensors")) != random


def test_bad_input_gives_one_sentence_and_status_2(run, shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    one = str(run)
    cases = {
        "'vit_tiny_patch16_22' is neither a folder nor a model of timm": ["vit_tiny_patch16_22"],
        "did you mean 'vit_tiny_patch16_224'?": ["vit_tiny_patch16_22"],
        "is not a finished run: it has no config.yaml": [str(tmp_path / "empty")],
        "a plain backbone has no data of its own: give --data DIR": [TIMM, "--no-pretrained"],
        "there is no run to put the figures in: give --out DIR": [TIMM, "--no-pretrained", "--data", str(shapes)],
        "--weights is for one plain backbone, and 0 are given": [one, "--weights", "x"],
        "image size 60 px is not a multiple of the patch size 16": [one, TIMM, "--no-pretrained", "--size", "60"],
        "--names gives 1 names for 2 networks": [one, one, "--names", "a"],
        "'a@2,0' is not IMAGE@X,Y with X and Y from 0 to 1": [one, "--show", "a@2,0"],
        "no image of the split is called '999'": [one, "--show", "999"],
        "'-3' is not a whole number from 0 up": [one, "--images=-3"],
        "data folder /absent does not exist": [one, "--data", "/absent"],
        f"cannot write {tmp_path / 'file'} (": [one, "--out", str(tmp_path / "file")],
    }  # fmt: skip
    for expected, argv in cases.items():
        assert expected in refusal(capsys, argv), expected
    assert not (run / "analysis").exists(), "nothing is written before the input is known to be good"


def test_a_full_disk_leaves_the_figures_that_were_there(run, capsys, monkeypatch):
    argv = [str(run), "--images", "2"]
    assert main(argv) == 0
    before = {path.name: path.read_bytes() for path in (run / "analysis").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert "No space left on device" in refusal(capsys, argv)
    assert {path.name: path.read_bytes() for path in (run / "analysis").iterdir()} == before
