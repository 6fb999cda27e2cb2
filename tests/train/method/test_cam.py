"""Pseudo labels: thresholds, boxes, affinities, refinement; multi-scale maps."""

import pytest
import torch

from tests.train.conftest import tiny_config
from toco_train.method.cam import inside_boxes, mask_cam, multi_scale_cam, present_classes
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import agree, refine_label, roi_mask, three_way_label, token_affinity
from toco_train.models.toco import ToCo


def test_thresholds_of_labels_and_regions_at_their_very_values():
    cam = mask_cam(torch.tensor([0.25, 0.26, 0.5, 0.51, 0.7, 0.71]).view(1, 1, 1, 6), torch.ones(1, 1))
    assert three_way_label(cam, 0.25, 0.7).flatten().tolist() == [0, 255, 255, 255, 255, 1]
    assert roi_mask(cam, 0.25, 0.7).flatten().tolist() == [0, 1, 1, 1, 2, 2]


def test_a_class_that_the_image_label_does_not_name_never_shows():
    cam = torch.tensor([0.9, 0.8]).view(1, 2, 1, 1)
    assert three_way_label(mask_cam(cam, torch.tensor([[0.0, 1.0]])), 0.25, 0.7).item() == 2
    assert three_way_label(mask_cam(cam, torch.tensor([[0.0, 0.0]])), 0.25, 0.7).item() == 0


def test_a_label_is_the_class_of_its_map_and_padding_has_none():
    maps, classes = torch.tensor([0.1, 0.9, 0.2, 0.3]).view(1, 2, 1, 2), torch.tensor([[4, 7]])
    inside = torch.tensor([[[True, False]]])
    cam = mask_cam(maps.flip(-1), torch.ones(1, 2), inside, classes=classes)
    assert three_way_label(cam, 0.25, 0.7).tolist() == [[[5, 255]]]


def test_a_token_is_image_where_all_of_its_pixels_are():
    boxes = torch.tensor([[0, 8, 0, 8], [1, 8, 0, 7], [0, 4, 5, 8], [0, 0, 0, 0]])
    cam = mask_cam(torch.rand(4, 1, 8, 8), torch.ones(4, 1), inside_boxes(boxes, 8, 8)).at_tokens(4)
    assert cam.maps.shape == (4, 1, 2, 2)
    assert cam.inside.int().tolist() == [[[1, 1], [1, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]


def test_cautious_and_generous_labels_agree_on_classes_and_on_background():
    cautious, generous = torch.tensor([2, 1, 0, 0], dtype=torch.uint8), torch.tensor([2, 3, 4, 0], dtype=torch.uint8)
    assert agree(cautious, generous).tolist() == [2, 1, 255, 0]


def test_boxes_are_top_bottom_left_right_with_ends_excluded():
    inside = inside_boxes(torch.tensor([[1, 3, 0, 2]]), 4, 4)
    assert inside[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_affinity_knows_nothing_of_a_token_and_itself_or_of_unknown_tokens():
    assert token_affinity(torch.tensor([[[1, 1, 0, 255]]]))[0].tolist() == [
        [255, 1, 0, 255],
        [1, 255, 0, 255],
        [0, 0, 255, 255],
        [255, 255, 255, 255],
    ]


def test_refinement_keeps_a_constant_map_up_to_the_weight_of_position():
    images = torch.rand(1, 3, 20, 24)
    refined = PixelAdaptiveRefinement(num_iterations=3)(images, torch.ones(1, 2, 20, 24))
    assert torch.allclose(refined, torch.full_like(refined, 1.01**3), rtol=1e-5)


def test_refinement_moves_a_blurred_border_to_the_edge_of_the_image():
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1.0
    ramp = torch.linspace(0, 1, 32).roll(-6).clamp(0, 1)
    ramp[-6:] = 1
    blurred = ramp.expand(1, 1, 32, 32)
    refined = PixelAdaptiveRefinement()(image + 0.02 * torch.rand_like(image), blurred)[0, 0]
    step_at_edge = (refined[:, 16] - refined[:, 15]).mean()
    assert step_at_edge > 5 * (blurred[0, 0, :, 16] - blurred[0, 0, :, 15]).mean()


def test_the_refined_label_is_the_same_whatever_other_images_are_in_the_batch():
    torch.manual_seed(0)
    images, cam = torch.rand(3, 3, 32, 32), torch.rand(3, 4, 32, 32)
    labels = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    inside = inside_boxes(torch.tensor([[0, 32, 0, 32], [0, 32, 0, 32], [4, 30, 2, 20]]), 32, 32)
    par = PixelAdaptiveRefinement((1, 2), 3)
    together = refine_label(images, mask_cam(cam, labels, inside), 0.25, 0.7, par)
    for index in range(3):
        one = slice(index, index + 1)
        alone = refine_label(images[one], mask_cam(cam[one], labels[one], inside[one]), 0.25, 0.7, par)
        assert torch.equal(together[one], alone)
    assert set(together[1].unique().tolist()) == {0}, "an image with nothing in it is background"
    assert (together[2][:4] == 255).all(), "outside the box is ignored"


def test_a_mirrored_image_has_the_mirrored_cam(tiny_model):
    images = torch.randn(1, 3, 64, 64)
    cam, aux_cam = multi_scale_cam(tiny_model, images)
    mirrored, aux_mirrored = multi_scale_cam(tiny_model, images.flip(-1))
    assert torch.allclose(cam, mirrored.flip(-1), atol=1e-4)
    assert torch.allclose(aux_cam, aux_mirrored.flip(-1), atol=1e-4)


def test_present_classes_come_first_and_the_busiest_image_says_how_many():
    labels = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    for known in (None, 2):
        classes, present = present_classes(labels, known)
        assert present.tolist() == [[True, True], [True, False], [False, False]]
        assert classes[0].tolist() == [1, 3]
        assert classes[1, 0] == 2
    classes, present = present_classes(labels[2:])
    assert classes.shape == (1, 1), "an image with nothing in it still has a map, for the code that takes a maximum"
    assert not present.any()


def test_the_maps_of_present_classes_are_those_among_all_and_give_the_same_labels(tiny_model):
    torch.manual_seed(0)
    images, labels = torch.randn(3, 3, 64, 96), torch.tensor([[0.0, 1, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    classes, present = present_classes(labels)
    for every, some in zip(
        multi_scale_cam(tiny_model, images), multi_scale_cam(tiny_model, images, classes=classes), strict=True
    ):
        for image in range(3):
            torch.testing.assert_close(some[image], every[image, classes[image]])
        every, some = mask_cam(every, labels), mask_cam(some, present, classes=classes)  # noqa: PLW2901
        assert torch.equal(roi_mask(every, 0.25, 0.7), roi_mask(some, 0.25, 0.7))
        assert torch.equal(three_way_label(every, 0.25, 0.7), three_way_label(some, 0.25, 0.7))
        par = PixelAdaptiveRefinement((1, 2), 3)
        expected, refined = (refine_label(images.sigmoid(), cam, 0.25, 0.7, par) for cam in (every, some))
        assert torch.equal(refined, expected)
        assert {2, 5, 4} <= set(expected.unique().tolist()), "all classes that there are can be seen"


def test_cams_lie_in_zero_to_one_and_carry_no_gradient(tiny_model):
    for cam in multi_scale_cam(tiny_model, torch.randn(2, 3, 64, 96)):
        assert cam.shape == (2, 5, 64, 96)
        assert cam.min() >= 0
        assert cam.max() <= 1
        assert not cam.requires_grad


@pytest.mark.parametrize("side", [48, 80])
def test_sides_at_every_scale_stay_multiples_of_the_patch(side):
    sides = []

    class Recorder(ToCo):
        def activation_maps(self, images):
            sides.extend(images.shape[-2:])
            return super().activation_maps(images)

    multi_scale_cam(Recorder(tiny_config()), torch.randn(1, 3, side, side), (1.0, 0.5, 1.5))
    assert sides
    assert all(value % 16 == 0 for value in sides)
