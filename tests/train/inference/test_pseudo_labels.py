"""Pseudo labels: what mask and confidence say of each pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from toco_train.config import LabelConfig
from toco_train.inference.predict import Prediction
from toco_train.inference.pseudo_labels import Labeller
from toco_train.method.cam import mask_cam
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import refine_label


def prediction(cam=(), tags=(), seg_logits=None, size=(64, 64), image=None):
    """Return a prediction with the given activation maps of its tags."""
    maps = torch.stack([*cam]) if len(cam) else torch.zeros(0, 4, 4)
    logits = torch.zeros(3, 4, 4) if seg_logits is None else seg_logits
    image = image or Image.new("RGB", size[::-1], "grey")
    return Prediction(image, tuple(tags), maps, maps, (logits,), torch.zeros(2), torch.zeros(2), 0.0)


@pytest.fixture
def made(tiny_model):
    """Return a function from a prediction and settings to its pseudo label."""

    def make(given, **settings):
        config = LabelConfig(**{"scales": (1.0,), "refine": "none", "low": 0.25, "high": 0.7, **settings})
        return Labeller(tiny_model, config).label(given)

    return make


def test_a_cam_gives_background_unsure_and_class_by_the_thresholds_and_its_activation_as_confidence(made):
    strengths = torch.tensor([0.0, 0.2, 0.3, 0.69, 0.71, 1.0]).expand(6, 6)
    label = made(prediction([strengths], tags=[4], size=(6, 6)), low=0.25, high=0.7)
    assert label.mask.dtype == label.confidence.dtype == np.uint8
    assert label.mask.tolist() == [[0, 0, 255, 255, 4, 4]] * 6
    assert label.confidence[0].tolist() == [255, 204, 0, 0, 181, 255]


def test_of_two_tags_the_stronger_gives_the_label_and_the_strongest_what_speaks_against_background(made):
    cam = torch.tensor([[0.9, 0.8, 0.2, 0.0], [0.8, 0.9, 0.0, 0.1]])[:, None].expand(2, 4, 4)
    label = made(prediction(cam, tags=[2, 5], size=(4, 4)))
    assert label.mask[0].tolist() == [2, 5, 0, 0]
    assert label.confidence[0].tolist() == [round(255 * x) for x in (0.9, 0.9, 0.8, 0.9)]


@pytest.mark.parametrize("refine", ["none", "par", "crf"])
def test_an_image_without_tags_is_background_for_sure(made, refine):
    label = made(prediction(size=(5, 7)), refine=refine)
    assert np.array_equal(label.mask, np.zeros((5, 7)))
    assert np.array_equal(label.confidence, np.full((5, 7), 255))


@pytest.mark.parametrize("refine", ["none", "par"])
def test_where_a_tagged_class_has_no_activation_nothing_is_background(made, refine):
    cam = torch.zeros(2, 16, 16)
    cam[0, :, :8] = 1
    image = Image.fromarray(np.uint8(cam[0].repeat(3, 1, 1).permute(1, 2, 0).numpy() * 255))
    label = made(prediction(cam, tags=[1, 2], image=image), refine=refine)
    assert label.mask[8, [0, -1]].tolist() == [1, 255]
    assert label.confidence[8, [0, -1]].tolist() == [255, 0]


def test_refined_by_par_a_label_is_the_one_that_training_learns_from(made):
    torch.manual_seed(0)
    pil_image = torch.rand(3, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    cam = torch.rand(1, 2, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = (pil_image * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    valid = mask_cam(cam, torch.ones(1, 2))
    theirs = refine_label(pixels[None] / 255, valid, 0.25, 0.7, PixelAdaptiveRefinement())[0]
    ours = made(prediction(cam[0], tags=[1, 2], image=image), refine="par", low=0.25, high=0.7).mask
    assert set(np.unique(ours)) == {0, 1, 2, 255} & set(theirs.unique().tolist())
    assert len(theirs.unique()) >= 3, "the test must have something to tell apart"
    assert np.array_equal(ours, theirs.numpy())


def test_the_segmentation_gives_its_winner_and_255_where_it_is_less_probable_than_asked(made):
    logits = torch.zeros(3, 2, 2)
    logits[1, :, 0] = 8  # the sum of a flip pair: 4 each, probability 1 / (1 + 2 exp(-4)) = 0.9647
    logits[2, :, 1] = 2  # 1 / (1 + 2 exp(-1)) = 0.5761
    halves = Image.fromarray(np.repeat([[[0, 0, 0], [255, 255, 255]]], 16, 0).repeat(8, 1).astype(np.uint8))
    given = prediction(seg_logits=logits.repeat_interleave(8, 1).repeat_interleave(8, 2), image=halves)
    sure = made(given, maps="seg", min_confidence=0.5)
    assert sure.mask[0, [0, -1]].tolist() == [1, 2]
    assert sure.confidence[0, [0, -1]].tolist() == [246, 147]
    unsure = made(given, maps="seg", min_confidence=0.7)
    assert unsure.mask[0, [0, -1]].tolist() == [1, 255]
    assert unsure.confidence[0, [0, -1]].tolist() == [246, 0]
    assert made(given, maps="seg", refine="par", min_confidence=0.5).mask[0, [0, -1]].tolist() == [1, 2]


def test_a_large_photograph_is_refined_small_and_labelled_at_its_own_size(made, monkeypatch):
    seen = []
    whole = PixelAdaptiveRefinement.forward
    monkeypatch.setattr(
        PixelAdaptiveRefinement, "forward", lambda *a: seen.append([m.shape for m in a[1:]]) or whole(*a)
    )
    label = made(prediction([torch.eye(8)], tags=[1], size=(300, 2000)), refine="par")
    assert label.mask.shape == label.confidence.shape == (300, 2000)
    assert seen == [[(1, 3, 77, 512), (1, 4, 77, 512)]]


@pytest.mark.parametrize("maps", ["cam", "seg"])
def test_a_crf_refines_labels(made, maps):
    pytest.importorskip("pydensecrf")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    cam = torch.zeros(1, 32, 32)
    cam[:, :, 14:] = 1.0  # two columns too many
    logits = torch.stack([1 - cam[0], cam[0], torch.full((32, 32), -9.0)]) * 2
    given = prediction(cam, tags=[1], seg_logits=logits, image=Image.fromarray(pixels))
    assert (made(given, maps=maps, refine="none", min_confidence=0.5).mask[:, 14] == 1).all()
    refined = made(given, maps=maps, refine="crf", min_confidence=0.5).mask
    assert (refined[:, 14] != 1).all(), "the crf moves the edge to that of the image"
    assert (refined[:, 17:] == 1).all()
