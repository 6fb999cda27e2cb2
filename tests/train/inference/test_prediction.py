"""What a network makes of images, against the plain way to compute it."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from tests.train.method.test_crf import needs_crf
from toco_train.config import PROTOCOLS, SegmentConfig
from toco_train.data.source import Sample
from toco_train.inference.predict import Prediction, label_map, mean_token_similarity, predict, resized
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


FITTED = {"a": (48, 64), "b": (64, 64), "c": (64, 16)}  # of 16, 32, 48 and 64 px beside 64: 1.5 is nearest to 4/3


def _inputs(model, sample, size=None):
    """Return the network's input of an image, [1, 3, h, w], at the size that it is fitted to or another."""
    height, width = size or FITTED[sample.name]
    fitted = Image.open(sample.image).resize((width, height), resample=Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None] / 255
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
    for size in ((48, 64), (64, 80), (64, 96)):  # 1.25 and 1.5 times the fitted size, rounded to patches of 16
        scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
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


@pytest.fixture
def batches(tiny_model, monkeypatch):
    """Sizes of the batches that the backbone is asked for, each ``(B, H, W)``, in order."""
    asked = []
    forward = type(tiny_model.backbone).forward
    monkeypatch.setattr(
        type(tiny_model.backbone),
        "forward",
        lambda self, images: asked.append((len(images), *images.shape[2:])) or forward(self, images),
    )
    return asked


def test_images_of_one_size_run_together_and_come_back_in_order(tiny_model, samples, batches):
    mixed = [samples[index] for index in (0, 1, 0, 2, 1, 0)]
    found = list(predict(tiny_model, mixed, (), 5))
    assert batches == [(2, 48, 64), (2, 64, 64), (1, 64, 16), (1, 48, 64)]
    assert [prediction.size for prediction in found] == [(30, 45), (64, 64), (30, 45), (81, 20), (64, 64), (30, 45)]
    torch.testing.assert_close(found[0].class_scores, found[5].class_scores, atol=1e-5, rtol=1e-4)
    assert not torch.equal(found[0].class_scores, found[1].class_scores)


def test_maps_have_the_fitted_size_and_masks_the_images_own(tiny_model, samples):
    for sample, prediction in zip(samples, predict(tiny_model, samples, (1.0, 0.5), 3), strict=True):
        height, width = FITTED[sample.name]
        assert prediction.cam.shape == prediction.aux_cam.shape == (len(sample.labels), height, width)
        assert prediction.seg_logits[0].shape == (6, height // 16, width // 16)
        masks = (prediction.seg_mask(), prediction.cam_mask(prediction.cam, 0.5))
        assert {tuple(mask.shape) for mask in masks} == {prediction.size}


def test_without_scales_no_cam_is_made(tiny_model, samples, batches):
    prediction = next(predict(tiny_model, samples[:1], (), 1))
    assert prediction.cam.shape == prediction.aux_cam.shape == (0, 48, 64)
    assert batches == [(1, 48, 64)]


def test_the_sizes_of_a_run_are_used_and_others_may_be_given(tiny_model, samples):
    tiny_model.config = tiny_model.config.model_copy(update={"sizes": ((32, 64), (64, 32))})
    shapes = [prediction.cam.shape[1:] for prediction in predict(tiny_model, samples, (1.0,), 3)]
    assert shapes == [(32, 64), (32, 64), (64, 32)]
    assert next(predict(tiny_model, samples, (1.0,), 1, sizes=[(64, 64)])).cam.shape[1:] == (64, 64)


@torch.no_grad()
def test_the_published_protocol_sees_images_at_their_own_size_at_three_scales_with_flips(tiny_model, samples, batches):
    prediction = next(predict(tiny_model, samples[:1], (), 1, PROTOCOLS["published"]))
    own = [(32, 48), (32, 64), (48, 64)]  # of 30 x 45: 32 x 48 and 1.25 and 1.5 times that, rounded to patches of 16
    assert sorted(batches) == sorted((1, *size) for size in own for _ in range(2))
    images, found = _inputs(tiny_model, samples[0], (32, 48)), []
    for size in own:
        scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        both = [tiny_model.segment(scaled), tiny_model.segment(scaled.flip(-1))]
        full = [F.interpolate(b, size=(30, 45), mode="bilinear", align_corners=False) for b in both]
        found.append(full[0] + full[1].flip(-1))
    expected = torch.stack(found).amax(dim=0)[0].argmax(dim=0)
    assert (prediction.seg_mask() == expected).float().mean() > 0.999


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
