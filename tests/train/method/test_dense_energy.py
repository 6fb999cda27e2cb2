"""The dense energy on few pixels, by its formula: its gate, its size, its defaults, its tiles."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from toco_train.method.losses import dense_energy_loss
from toco_train.method.losses.dense_energy import _in_tiles, _kernel_features, _near_tiles

UNLABELLED = 255


def energy(images, probabilities, labels, valid, *, sigma_rgb, sigma_xy):
    """The energy as its docstring states it, pixel by pixel in float64, at the size of the images."""
    total = 0.0
    for image, scores, label, inside in zip(
        *(each.double() for each in (images, probabilities, labels, valid)), strict=True
    ):
        for i in product(*map(range, label.shape)):
            gate = 1.0 if label[i] == UNLABELLED else max(0.0, float(inside[i] - scores[:, i[0], i[1]].max()))
            for j in product(*map(range, label.shape)):
                colour = (image[:, i[0], i[1]] - image[:, j[0], j[1]]).square().sum().item()
                place = (i[0] - j[0]) ** 2 + (i[1] - j[1]) ** 2
                weight = math.exp(-colour / (2 * sigma_rgb**2) - place / (2 * sigma_xy**2))
                agree = (scores[:, i[0], i[1]] * scores[:, j[0], j[1]]).sum().item()
                total -= gate * weight * agree * float(inside[i] * inside[j])
    return total / len(images)


@pytest.fixture
def batch():
    """Two images of 6 x 10 pixels, some unlabelled, some padding."""
    torch.manual_seed(3)
    images = torch.randint(0, 60, (2, 3, 6, 10)).float()
    probabilities = torch.randn(2, 3, 6, 10).softmax(1)
    labels = torch.tensor([0, 1, UNLABELLED])[torch.randint(3, (2, 6, 10))]
    valid = torch.ones(2, 6, 10)
    valid[0, :, 7:] = 0
    valid[1, :2] = 0
    return images, probabilities, labels, valid


def test_the_energy_is_that_of_its_formula_with_labels_and_padding(batch):
    ours = dense_energy_loss(*batch, sigma_rgb=20, sigma_xy=3, scale=1.0)
    assert ours.item() == pytest.approx(energy(*batch, sigma_rgb=20, sigma_xy=3), rel=1e-5)


def test_at_half_size_pixels_are_dropped_probabilities_blended_and_distances_halved(batch):
    images, probabilities, labels, valid = batch
    blended = F.avg_pool2d(probabilities, 2)  # at half size bilinear weights are one quarter each
    small = (images[..., ::2, ::2], blended, labels[:, ::2, ::2], valid[:, ::2, ::2])
    ours = dense_energy_loss(*batch, sigma_rgb=20, sigma_xy=6, scale=0.5)
    assert ours.item() == pytest.approx(energy(*small, sigma_rgb=20, sigma_xy=3), rel=1e-5)


def test_by_default_the_widths_are_15_and_100_at_half_size(batch):
    explicit = dense_energy_loss(*batch, sigma_rgb=15.0, sigma_xy=100.0, scale=0.5)
    assert dense_energy_loss(*batch).item() == explicit.item()


def test_the_gradient_is_minus_two_gate_kernel_scores_over_the_images(batch):
    images, probabilities, labels, valid = batch
    scores = probabilities.clone().requires_grad_()
    (3 * dense_energy_loss(images, scores, labels, valid, sigma_rgb=20, sigma_xy=3, scale=1.0)).backward()
    points = _kernel_features(images, sigma_rgb=20, sigma_xy=3).double()
    kernel = torch.exp(-torch.cdist(points, points).square() / 2)
    inside = valid[:, None].double()
    unlabelled = labels[:, None] == UNLABELLED
    gate = torch.where(unlabelled, 1.0, inside - probabilities.amax(1, keepdim=True)).clamp(min=0)
    filtered = ((probabilities * inside).flatten(2) @ kernel).view_as(probabilities)
    torch.testing.assert_close(scores.grad.double(), 3 * -2 * gate * filtered * inside / 2, rtol=1e-4, atol=1e-6)


def test_the_point_of_a_pixel_is_its_colour_and_place_in_standard_deviations():
    images = torch.tensor([[0.0, 30.0], [10.0, 10.0], [20.0, 0.0]]).view(1, 3, 1, 2)
    points = _kernel_features(images, sigma_rgb=10, sigma_xy=2)
    assert points.shape == (1, 2, 5)
    torch.testing.assert_close(points[0, 1] - points[0, 0], torch.tensor([3.0, 0.0, -2.0, 0.0, 0.5]))
    torch.testing.assert_close(points.mean(dim=1), torch.zeros(1, 5))
    assert points.dtype == images.dtype
    rows = _kernel_features(torch.zeros(2, 3, 3, 2), sigma_rgb=10, sigma_xy=2)
    torch.testing.assert_close(rows[1, :, 3] - rows[1, 0, 3], torch.tensor([0.0, 0, 0.5, 0.5, 1, 1]))


def test_tiles_halve_the_points_along_their_widest_axis():
    points = torch.zeros(8, 5)
    points[:, 1] = torch.tensor([7.0, 0, 6, 1, 5, 2, 4, 3])
    points[:, 2] = torch.arange(8.0) / 10
    whole, halves, quarters = (_in_tiles(points, halvings) for halvings in (0, 1, 2))
    assert whole.tolist() == [list(range(8))]
    assert [set(tile) for tile in halves.tolist()] == [{1, 3, 5, 7}, {6, 4, 2, 0}]
    assert [set(tile) for tile in quarters.tolist()] == [{1, 3}, {5, 7}, {6, 4}, {2, 0}]


def test_the_pairs_of_tiles_are_those_whose_boxes_come_nearer_than_the_reach():
    boxes = torch.tensor([[0.0, 1.0], [4.0, 5.0], [5.5, 9.0], [-9.0, -2.0]])  # along one axis
    tiles = torch.zeros(4, 2, 5)
    tiles[:, :, 3] = boxes
    assert _near_tiles(tiles, reach=3.0) == [(0, 0), (0, 3), (1, 1), (1, 2), (2, 2), (3, 3)]
    assert _near_tiles(tiles, reach=3.01) == [(0, 0), (0, 1), (0, 3), (1, 1), (1, 2), (2, 2), (3, 3)]
    tiles[1, :, 0] = 4.0  # 3 along one axis and 4 along another: 5 apart
    assert (0, 1) not in _near_tiles(tiles, reach=5.0)
    assert (0, 1) in _near_tiles(tiles, reach=5.01)
