"""What a network makes of images, against the plain way to compute it."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from tests.train.method.test_crf import needs_crf
from toco_train.data.source import Sample
from toco_train.inference.predict import Prediction, SegmentConfig, label_map, mean_token_similarity, predict, resized
from toco_train.method.cam import multi_scale_cam


@pytest.fixture
def samples(tmp_path):
    """Three images of noise, of different sizes, with tags 2 and 4, none, and 1."""
    noise = np.random.default_rng(0)
    found = []
    for name, size, labels in (("a", (30, 45), (2, 4)), ("b", (64, 64), ()), ("c", (81, 20), (1,))):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        found.append(Sample(name=name, image=tmp_path / f"{name}.png", labels=labels))
    return found


def _inputs(model, sample):
    """Return the network's input of an image, [1, 3, 64, 64]."""
    square = Image.open(sample.image).resize((64, 64), resample=Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
    return (pixels - mean) / std


def test_token_similarity_by_hand():
    tokens = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]).view(1, 2, 2, 2)
    # pairs: (a, b) 1, (c, d) |-1|, four of 0
    assert mean_token_similarity(tokens).item() == pytest.approx(2 / 6)


@pytest.mark.parametrize("size", [(61, 97), (3, 5), (4, 300), (200, 1)])
def test_a_label_map_made_in_bands_is_the_argmax_of_resized_scores(monkeypatch, size):
    monkeypatch.setattr("toco_train.inference.predict._BAND_SCORES", 2000)
    torch.manual_seed(0)
    scales = [torch.randn(4, 5, 6), torch.randn(4, 7, 8), torch.randn(4, 1, 1)]
    scores = functools.reduce(torch.maximum, (resized(s, size) for s in scales))
    labels = torch.tensor([0, 7, 254, 3], dtype=torch.uint8)
    made = label_map(scales, labels.tolist(), size)
    assert made.dtype == torch.uint8
    assert torch.equal(made, labels[scores.argmax(dim=0)])


@torch.no_grad()
def test_the_segmentation_at_one_scale_is_the_argmax_of_its_logits_at_the_images_size(tiny_model, samples):
    for sample, prediction in zip(samples, predict(tiny_model, samples, (1.0,), 2), strict=True):
        logits = tiny_model.segment(_inputs(tiny_model, sample))
        expected = F.interpolate(logits, size=prediction.size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
        assert (prediction.seg_mask() == expected).float().mean() > 0.999


@torch.no_grad()
def test_several_scales_with_flips_are_the_largest_of_the_sums_of_flip_pairs(tiny_model, samples):
    config = SegmentConfig(scales=(1.0, 1.25, 1.5), flip=True)
    prediction = next(predict(tiny_model, samples[:1], (1.0,), 1, config))
    images, found = _inputs(tiny_model, samples[0]), []
    for side in (64, 80, 96):
        scaled = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        both = [tiny_model.segment(scaled), tiny_model.segment(scaled.flip(-1))]
        full = [F.interpolate(b, size=(30, 45), mode="bilinear", align_corners=False) for b in both]
        found.append(full[0] + full[1].flip(-1))
    expected = torch.stack(found).amax(dim=0)[0].argmax(dim=0)
    assert (prediction.seg_mask() == expected).float().mean() > 0.999


@torch.no_grad()
def test_the_label_of_a_cam_is_that_of_the_tagged_classes_at_the_images_size(tiny_model, samples):
    for sample, prediction in zip(samples, predict(tiny_model, samples, (1.0, 0.5), 3), strict=True):
        cams = multi_scale_cam(tiny_model, _inputs(tiny_model, sample), (1.0, 0.5))
        tags = torch.zeros(1, 5)
        tags[0, [label - 1 for label in sample.labels]] = 1
        for own, cam in zip((prediction.cam, prediction.aux_cam), cams, strict=True):
            full = F.interpolate(cam, size=prediction.size, mode="bilinear", align_corners=False)
            strongest, index = (full * tags[:, :, None, None])[0].max(dim=0)
            expected = torch.where(strongest <= 0.4, 0, index + 1)
            assert (prediction.cam_mask(own, 0.4) == expected).float().mean() > 0.999
            assert expected.any() == bool(sample.labels)


def test_a_prediction_does_not_depend_on_what_else_is_in_its_batch(tiny_model, samples):
    alone, together = (list(predict(tiny_model, samples, (1.0, 0.5), size)) for size in (1, 3))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.cam, other.cam, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.seg_logits, other.seg_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.class_scores, other.class_scores, atol=1e-4, rtol=1e-4)


def test_class_scores_are_the_probabilities_of_both_heads(tiny_model, samples):
    prediction = next(predict(tiny_model, samples, (1.0,), 1))
    with torch.no_grad():
        output = tiny_model(_inputs(tiny_model, samples[0]))
    torch.testing.assert_close(prediction.class_scores, output.class_logits[0].sigmoid())
    torch.testing.assert_close(prediction.aux_class_scores, output.aux_class_logits[0].sigmoid())


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (1.0, 4.5), (float("nan"),)])
def test_scales_that_make_no_sense_are_refused(scales):
    with pytest.raises(ValidationError):
        SegmentConfig(scales=scales)


def _half_and_half(size, cam, seg_logits):
    """Return a prediction on an image whose left half is dark and whose right half is light."""
    pixels = np.full((*size, 3), 30, dtype=np.uint8)
    pixels[:, size[1] // 2 :] = 220
    return Prediction(
        image=Image.fromarray(pixels), labels=(3,), cam=cam, aux_cam=cam, seg_logits=(seg_logits,),
        class_scores=torch.zeros(5), aux_class_scores=torch.zeros(5), token_similarity=0.0,
    )  # fmt: skip


@needs_crf
@pytest.mark.parametrize("most", [2**20, 600], ids=["at its size", "larger than the CRF takes"])
def test_a_crf_moves_masks_to_the_edge_of_the_image(monkeypatch, most):
    monkeypatch.setattr("toco_train.inference.predict.MAX_CRF_PIXELS", most)
    cam = torch.zeros(1, 8, 16)
    cam[..., 6:] = 1  # the edge is at 8
    logits = torch.full((5, 8, 16), -20.0)
    logits[0, :, :6] = logits[3, :, 6:] = 1
    logits[0, :, 6:] = logits[3, :, :6] = 0
    prediction = _half_and_half((32, 64), cam, logits)
    truth = torch.zeros(32, 64, dtype=torch.uint8)
    truth[:, 32:] = 3
    for plain, refined in (
        (prediction.cam_mask(cam, 0.5), prediction.cam_mask(cam, 0.5, crf=True)),
        (prediction.seg_mask(), prediction.seg_mask(crf=True)),
    ):
        assert (plain != truth).float().mean() > 0.1
        assert (refined != truth).float().mean() < 0.02
