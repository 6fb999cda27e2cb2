"""Every group of the golden file: floats to 1e-5 of the largest magnitude, labels exactly."""

import json

import pytest
import torch
from PIL import Image

from tests.train.conftest import GOLDEN, TINY_VIT, drawn_weights, published_shapes, relative_error, tiny_config
from toco_core.errors import RunError
from toco_train.config import ModelConfig
from toco_train.evaluation.miou import confusion_counts, mean_iou, per_class_iou
from toco_train.inference.predict import Prediction
from toco_train.method.cam import inside_boxes, mask_cam, multi_scale_cam
from toco_train.method.losses import balanced_segmentation_loss, class_token_contrast, patch_token_contrast
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import refine_label, roi_mask, three_way_label, token_affinity
from toco_train.models.published_weights import load_published_weights
from toco_train.models.toco import ToCo
from toco_train.training.schedule import warmup_poly

TOLERANCE = 1e-5
OUTPUTS = ("class_logits", "aux_class_logits", "seg_logits", "cam", "aux_cam", "cls_token", "patch_tokens")


@pytest.fixture(scope="module")
def networks():
    """The two golden networks with their drawn weights."""
    torch.manual_seed(0)
    vit_b = ModelConfig(backbone="vit_base_patch16_224", pretrained=False, classes=tuple(map(str, range(20))))
    models = {"net_tiny": ToCo(tiny_config()).eval(), "net_vit_base_patch16_224": ToCo(vit_b).eval()}
    load_published_weights(models["net_tiny"], drawn_weights(published_shapes(48, 16, 4, 4, 6)))
    load_published_weights(models["net_vit_base_patch16_224"], drawn_weights(published_shapes(768, 16, 14, 12, 21)))
    return models


def view_minor(stacked, batch):
    """Turn rows stacked view-major, ``[V * B, K]``, into ``[B, V, K]``."""
    return stacked.view(-1, batch, stacked.shape[-1]).transpose(0, 1)


def test_token_affinity_equals_the_published_one(golden):
    assert torch.equal(token_affinity(golden["ptc/token_labels"]), golden["ptc/affinity"])


def test_patch_token_contrast_and_its_gradient_equal_the_published_ones(golden):
    features = golden["ptc/features"].clone().requires_grad_()
    loss = patch_token_contrast(features, golden["ptc/affinity"])
    loss.backward()
    assert relative_error(loss, golden["ptc/loss"]) < TOLERANCE
    assert relative_error(features.grad, golden["ptc/grad"]) < TOLERANCE


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_class_token_contrast_and_its_gradient_equal_the_published_ones(golden, temperature):
    student = golden["ctc/student"].clone().requires_grad_()
    teacher, positive = view_minor(golden["ctc/teacher"], 3), golden["ctc/flags"].bool()
    loss = class_token_contrast(view_minor(student, 3), teacher, positive, temperature)
    loss.backward()
    assert relative_error(loss, golden[f"ctc_t{temperature}/loss"]) < TOLERANCE
    assert relative_error(student.grad, golden[f"ctc_t{temperature}/grad"]) < TOLERANCE


def test_balanced_segmentation_loss_equals_the_published_one(golden):
    loss = balanced_segmentation_loss(golden["seg/logits"], golden["seg/labels"])
    assert relative_error(loss, golden["seg/loss"]) < TOLERANCE


def test_labels_from_cams_equal_the_published_ones(golden):
    labels, inside = golden["cam_label/image_labels"], inside_boxes(golden["cam_label/boxes"], 20, 24)
    cam = mask_cam(golden["cam_label/cam"], labels, inside)
    assert torch.equal(cam.maps, golden["cam_label/valid_cam"])
    assert torch.equal(three_way_label(cam, 0.25, 0.7), golden["cam_label/three_way"])
    assert torch.equal(roi_mask(cam, 0.25, 0.7), golden["cam_label/roi"].long())


def test_labels_from_cams_in_evaluation_equal_the_published_ones(golden):
    cams, image_labels, hard = (golden[f"cam_label/{name}"] for name in ("cam", "image_labels", "hard"))
    for cam, known, expected in zip(cams, image_labels.bool(), hard, strict=True):
        prediction = Prediction(
            image=Image.new("RGB", (24, 20)),
            labels=tuple((known.nonzero().flatten() + 1).tolist()),
            cam=cam[known],
            aux_cam=cam[known],
            seg_logits=(),
            class_scores=torch.empty(0),
            aux_class_scores=torch.empty(0),
            token_similarity=0.0,
        )
        assert torch.equal(prediction.cam_mask(prediction.cam, 0.5).long(), expected)


def test_pixel_adaptive_refinement_equals_the_published_one(golden):
    refined = PixelAdaptiveRefinement()(golden["par/images"], golden["par/masks"])
    assert relative_error(refined, golden["par/refined"]) < TOLERANCE


def test_refined_labels_equal_the_published_ones(golden):
    label = refine_label(
        golden["refine/images"],
        mask_cam(
            golden["refine/valid_cam"], golden["refine/image_labels"], inside_boxes(golden["refine/boxes"], 64, 80)
        ),
        0.25,
        0.7,
        PixelAdaptiveRefinement(),
    )
    assert torch.equal(label, golden["refine/label"].long())


@pytest.mark.parametrize(
    "group",
    [
        "net_tiny_64x64",
        "net_tiny_96x160",
        "net_vit_base_patch16_224_224x224",
        "net_vit_base_patch16_224_160x288",
    ],
)
def test_the_network_gives_the_published_outputs(golden, networks, group):
    model = networks[group.rpartition("_")[0]]
    with torch.no_grad():
        output = model(golden[f"{group}/input"])
    compared = [name for name in OUTPUTS if f"{group}/{name}" in golden]
    assert len(compared) >= 6
    for name in compared:
        assert relative_error(getattr(output, name), golden[f"{group}/{name}"]) < TOLERANCE, name


@pytest.mark.parametrize("group", ["net_tiny_64x64", "net_tiny_96x160"])
def test_projections_and_multi_scale_cams_equal_the_published_ones(golden, networks, group):
    model, images = networks["net_tiny"], golden[f"{group}/input"]
    with torch.no_grad():
        output = model(images)
        assert relative_error(model.projection(output.cls_token), golden[f"{group}/proj_student"]) < TOLERANCE
        assert relative_error(model.teacher_projection(output.cls_token), golden[f"{group}/proj_teacher"]) < TOLERANCE
    for reused in (None, (output.cam, output.aux_cam)):
        cam, aux_cam = multi_scale_cam(model, images, (1.0, 0.5, 1.5), scale_one=reused)
        assert relative_error(cam, golden[f"{group}/ms_cam"]) < TOLERANCE
        assert relative_error(aux_cam, golden[f"{group}/ms_aux_cam"]) < TOLERANCE


def test_learning_rates_equal_the_published_ones(golden):
    factors = [warmup_poly(s, steps=2000, warmup_steps=150, warmup_ratio=1e-6, power=0.9) for s in range(2000)]
    ours = torch.tensor(factors, dtype=torch.float64)[:, None] * torch.tensor([6e-5, 6e-4], dtype=torch.float64)
    assert relative_error(ours, golden["lr/backbone_and_heads"]) < 1e-9


def test_scores_equal_the_published_ones(golden):
    truth, prediction = golden["metrics/gt"], golden["metrics/pred"]
    counts = confusion_counts(prediction, truth, 5)
    iou, theirs = per_class_iou(counts), golden["metrics/iou"]
    present = torch.tensor([0, 1, 2, 3])
    assert relative_error(iou[present], theirs[present]) < 1e-9
    assert torch.isnan(iou[4]), "class 4 is absent from the ground truth"
    assert mean_iou(counts) == pytest.approx(float(golden["metrics/miou"]), rel=1e-9)
    accuracy = counts.diagonal().sum() / counts.sum()
    assert float(accuracy) == pytest.approx(float(golden["metrics/pixel_acc"]), rel=1e-6)


def test_the_published_state_dict_is_the_one_that_we_spell_out():
    published = json.loads((GOLDEN / "published_state_dict.json").read_text())["vit_base_patch16_224, 21 classes"]
    assert {k: tuple(v) for k, v in published.items()} == published_shapes(768, 16, 14, 12, 21)


def test_published_weights_load_with_and_without_the_data_parallel_prefix(golden):
    weights = drawn_weights(published_shapes(48, 16, 4, 4, 6))
    plain, prefixed = ToCo(tiny_config()), ToCo(tiny_config())
    load_published_weights(plain, weights)
    load_published_weights(prefixed, {f"module.{key}": value for key, value in weights.items()})
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), prefixed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("classifier.weight"), r"1 missing \(classifier.weight\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 left over \(extra\)"),
        (
            lambda w: w.update({"decoder.conv8.weight": torch.zeros(9, 512, 1, 1)}),
            r"\(9, 512, 1, 1\), expected \(6, 512",
        ),
    ],
)
def test_a_published_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, sentence):
    model = ToCo(tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = drawn_weights(published_shapes(48, 16, 4, TINY_VIT.depth, 6))
    change(weights)
    with pytest.raises(RunError, match=sentence):
        load_published_weights(model, weights)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
