"""The command ``toco-train`` on a small data set, from the outside."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.train.small_runs import give_a_small_projection, refusal
from toco_core.palette import save_mask
from toco_train.commands.shapes import main as toco_shapes
from toco_train.commands.train import _parse, main
from toco_train.config import load_config
from toco_train.data import opening
from toco_train.runs.load import load_run

SMALL = [
    "--preset", "demo", "--model.backbone", "{image_size: 64, patch_size: 16, width: 48, depth: 4, num_heads: 3}",
    "--model.image_size", "64", "--model.decoder_channels", "16", "--steps", "3", "--batch_size", "4",
    "--data.num_workers", "0", "--evaluation.every", "3", "--log_every", "1", "--phases", "[{from_step: 0}]",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_projection():
    with pytest.MonkeyPatch.context() as monkeypatch:
        give_a_small_projection(monkeypatch)
        yield


def train(data, out, *flags):
    return main([*SMALL, "--data", str(data), "--out", str(out), *flags])


def not_validated(_model, _source, progress, **_):
    return progress.model_copy(update={"evaluated": progress.step}), None


def losses_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if "losses" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on 40 shapes, with its data."""
    folder = tmp_path_factory.mktemp("finished")
    assert toco_shapes([str(folder / "shapes"), "--images", "40", "--size", "64", "--seed", "3"]) == 0
    assert train(folder / "shapes", folder / "run") == 0
    return folder


def test_a_run_folder_holds_weights_configuration_metrics_log_and_images(finished):
    run = finished / "run"
    model = load_run(run)
    assert model.config.classes == ("turtle", "crab", "camera", "gift", "daisy", "grape")
    assert [set(losses) for losses in losses_of(run)] == [{"total", "cls", "aux_cls", "ptc", "ctc", "seg", "reg"}] * 3
    evaluation = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["evaluation"]
    assert evaluation["num_images"] == 8
    assert 0 <= evaluation["seg"]["mean_iou"] <= 1
    assert "step 3: CAM" in (run / "train.log").read_text()
    with Image.open(run / "samples" / "step_000003.png") as image:
        assert image.size[0] > 500


def test_the_total_is_the_weighted_sum_of_the_losses(finished):
    weights = {"cls": 1, "aux_cls": 1, "ptc": 0.5, "ctc": 0.1, "seg": 0.5, "reg": 0.05}
    for losses in losses_of(finished / "run"):
        assert losses["total"] == pytest.approx(sum(weights[name] * losses[name] for name in weights), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, tmp_path):
    data = finished / "shapes"
    assert train(data, tmp_path / "again") == 0
    assert train(data, tmp_path / "other", "--seed", "1") == 0
    first, again, other = (load_file(run / "model.safetensors") for run in
                           (finished / "run", tmp_path / "again", tmp_path / "other"))  # fmt: skip
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_never_opens_a_mask_and_needs_none(finished, tmp_path, monkeypatch):
    data = shutil.copytree(finished / "shapes", tmp_path / "data")
    masks = list((data / "SegmentationClass").iterdir())
    for mask in masks:
        mask.write_bytes(b"not an image")
    monkeypatch.setattr("toco_train.data.mask_tags.refuse_unusable_masks", lambda samples: None)  # validation's masks
    monkeypatch.setattr("toco_train.training.loop.validate", not_validated)
    assert train(data, tmp_path / "unreadable masks") == 0
    shutil.rmtree(data / "SegmentationClass")
    monkeypatch.undo()
    assert train(data, tmp_path / "no masks") == 0
    assert losses_of(tmp_path / "no masks") == losses_of(tmp_path / "unreadable masks") == losses_of(finished / "run")
    assert (tmp_path / "no masks" / "samples" / "step_000003.png").is_file()


def test_masks_that_validation_would_stop_at_are_refused_before_the_first_step(finished, tmp_path, capsys):
    data = shutil.copytree(finished / "shapes", tmp_path / "data")
    for mask in (data / "SegmentationClass").iterdir():
        labels = np.asarray(Image.open(mask))
        save_mask(mask, np.where(labels > 0, 255, 0).astype(np.uint8))
    assert train(data, tmp_path / "run") == 2
    assert "masks of tagged images hold nothing but 0 and 255" in capsys.readouterr().err
    for mask in (data / "SegmentationClass").iterdir():
        mask.write_bytes(b"not an image")
    assert train(data, tmp_path / "run") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_data_is_opened_once(finished, tmp_path, monkeypatch):
    opened, read = [], opening.open_voc
    monkeypatch.setattr(opening, "open_voc", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr("toco_train.training.loop.validate", not_validated)
    monkeypatch.setattr("toco_train.commands.train._report", lambda *_: None)
    assert train(finished / "shapes", tmp_path / "run") == 0
    assert opened == [finished / "shapes"]


def test_flags_are_spelled_with_dashes_or_underscores_and_beat_the_file_which_beats_the_preset(finished, tmp_path):
    (tmp_path / "my.yaml").write_text("batch_size: 2\nlog_every: 7\noptimizer: {head_lr_factor: 3}\n")
    config, _ = _parse([
        "--preset", "demo", "--config", str(tmp_path / "my.yaml"), "--data", str(finished), "--out", str(tmp_path),
        "--log-every", "2", "--mixed-precision", "bf16", "--optimizer.weight_decay", "1e-3", "--cuda-graph",
        "--cam.scales", "1", "0.5", "--no-pretrained", "--data.no_class", "Free",
    ])  # fmt: skip
    assert (config.batch_size, config.log_every, config.mixed_precision, config.cuda_graph) == (2, 2, "bf16", True)
    assert (config.optimizer.head_lr_factor, config.optimizer.weight_decay) == (3, 1e-3)
    assert config.optimizer.lr == load_config("demo", None, {}).optimizer.lr
    assert (config.cam.scales, config.data.no_class, config.data.path) == ((1.0, 0.5), "Free", str(finished))
    assert config.model.pretrained is False


def test_the_phase_decides_which_losses_are_computed(finished, tmp_path):
    phases = "[{from_step: 0, ptc: false, ctc: false, seg: false, reg: false}, {from_step: 2, ctc: false, reg: false}]"
    assert train(finished / "shapes", tmp_path / "run", "--phases", phases) == 0
    assert [set(losses) - {"total"} for losses in losses_of(tmp_path / "run")] == [
        {"cls", "aux_cls"},
        {"cls", "aux_cls"},
        {"cls", "aux_cls", "ptc", "seg"},
    ]


def test_bf16_trains_too(finished, tmp_path):
    assert train(finished / "shapes", tmp_path / "run", "--mixed_precision", "bf16") == 0
    assert all(np.isfinite(list(losses.values())).all() for losses in losses_of(tmp_path / "run"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


def test_tagged_photographs_in_folders_train_with_images_of_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("Crack", "Dent", "Free"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (int(rng.integers(20, 90)), int(rng.integers(20, 90))), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tiles" / name / f"{index}.jpg")
    assert train(tmp_path / "tiles", tmp_path / "run", "--no-class", "Free") == 0
    assert load_run(tmp_path / "run").config.classes == ("Crack", "Dent")


def test_a_loss_that_is_not_finite_stops_with_the_images_named(finished, tmp_path, capsys):
    sentence = refusal(
        capsys, [*SMALL, "--data", str(finished / "shapes"), "--out", str(tmp_path / "run"), "--optimizer.lr", "1e30",
                 "--optimizer.warmup_steps", "0"]
    )  # fmt: skip
    assert "a loss is not finite at step" in sentence
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_bad_input_gives_one_sentence_and_status_2(finished, tmp_path, capsys):
    data, out = str(finished / "shapes"), str(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    cases = {
        "does not exist; give a VOC devkit": ["--data", str(tmp_path / "absent"), "--out", out],
        "is no data set: expected a VOC devkit": ["--data", str(tmp_path / "empty"), "--out", out],
        "unknown preset 'demoo', did you mean 'demo'?": ["--preset", "demoo", "--data", data, "--out", out],
        "unknown argument '--optimizer.lrr', did you mean '--optimizer.lr'?":
            ["--data", data, "--out", out, "--optimizer.lrr", "1"],
        "steps: input should be a valid integer": ["--data", data, "--out", out, "--steps", "many"],
        "batch_size 5 cannot be divided over 1 process(es) with 2 micro-batch(es) each":
            [*SMALL, "--data", data, "--out", out, "--batch_size", "5", "--gradient_accumulation", "2"],
        "holds a run already; give another --out, or --resume or --overwrite it":
            [*SMALL, "--data", data, "--out", str(finished / "run")],
    }  # fmt: skip
    for expected, argv in cases.items():
        assert expected in refusal(capsys, argv), expected
    assert not (tmp_path / "run").exists(), "nothing is written before the input is known to be good"


def test_a_run_is_not_overwritten_before_the_input_is_known_to_be_good(finished, tmp_path, capsys):
    run = shutil.copytree(finished / "run", tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    flags = ["--overwrite", "--batch_size", "5", "--gradient_accumulation", "2"]
    assert "cannot be divided" in refusal(
        capsys, [*SMALL, "--data", str(finished / "shapes"), "--out", str(run), *flags]
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    sentence = refusal(capsys, [*SMALL, "--data", str(finished / "shapes"), "--out", str(tmp_path / "file" / "run")])
    assert "cannot write in the run folder" in sentence
    assert "Not a directory" in sentence


def test_a_truncated_image_stops_training_with_its_name(finished, tmp_path, capsys):
    data = shutil.copytree(finished / "shapes", tmp_path / "data")
    for image in (data / "JPEGImages").iterdir():
        image.write_bytes(image.read_bytes()[:600])
    for workers in ("0", "1"):
        argv = [*SMALL, "--data", str(data), "--out", str(tmp_path / f"run{workers}"), "--data.num_workers", workers]
        assert re.search(r"image \S+/JPEGImages/\d+\.jpg cannot be read", refusal(capsys, argv))


def test_missing_arguments_are_refused_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "the following arguments are required: --data, --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", "run", "--resume", "--overwrite"])
    assert "argument --overwrite: not allowed with argument --resume" in capsys.readouterr().err
