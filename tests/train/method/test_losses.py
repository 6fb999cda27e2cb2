"""Losses on values worked out by hand, and where they could break."""

import math

import pytest
import torch
from torch.nn import functional as F

from toco_train.method.losses import (
    balanced_segmentation_loss,
    class_token_contrast,
    classification_loss,
    dense_energy_loss,
    patch_token_contrast,
)
from toco_train.method.losses.dense_energy import _near_tiles


def test_patch_token_contrast_of_three_tokens_by_hand():
    # tokens a = b = (1, 0), c = (0, 1): |cos| is 1 within {a, b} and 0 to c
    features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 1, 3)
    affinity = torch.full((1, 3, 3), 255)
    affinity[0, 0, 1] = affinity[0, 1, 0] = 1  # a, b the same: similarity 2 over (2 + 1)
    affinity[0, 0, 2] = affinity[0, 2, 0] = 0  # a, c different: similarity 0
    assert patch_token_contrast(features, affinity).item() == pytest.approx(0.5 * (1 - 2 / 3))


def test_patch_token_contrast_is_one_half_where_no_pair_is_known():
    assert patch_token_contrast(torch.randn(2, 4, 3, 3), torch.full((2, 9, 9), 255)).item() == 0.5


def finite_gradient(loss, values):
    """The gradient of a loss, seen to be finite."""
    (gradient,) = torch.autograd.grad(loss, values)
    assert torch.isfinite(gradient).all()
    return gradient


@pytest.mark.parametrize(("kind", "expected"), [(255, 0.5), (1, 0.5 * (1 - 162 / 163)), (0, 0.5 + 0.5 * 162 / 163)])
def test_patch_token_contrast_is_finite_whatever_kind_of_pair_is_missing(kind, expected):
    features = torch.ones(2, 4, 3, 3, requires_grad=True)  # 162 pairs of alike tokens
    loss = patch_token_contrast(features, torch.full((2, 9, 9), kind))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    finite_gradient(loss, features)


def test_patch_token_contrast_of_tokens_that_are_zero_has_a_finite_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    loss = patch_token_contrast(features, torch.tensor([0, 1]).repeat(8).view(1, 4, 4))
    assert loss.item() == 0.5
    finite_gradient(loss, features)


def test_classification_loss_of_an_image_without_a_class_by_hand():
    logits = torch.tensor([[0.0, 100.0], [0.0, -100.0]], requires_grad=True)
    loss = classification_loss(logits, torch.zeros(2, 2))
    assert loss.item() == pytest.approx((2 * math.log(2) + 100 + 0) / 4)
    finite_gradient(loss, logits)


def test_class_token_contrast_of_one_negative_by_hand():
    # two global views (positive) and one negative; every dot product is 0, so every exp is 1
    student, teacher = torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)
    positive = torch.tensor([[True, True, False]])
    pull, push = math.log(2 + 1e-4), math.log(2 + 1e-4)
    expected = 2 * (2 * pull + push) / 2 / (2 + 1e-4)
    assert class_token_contrast(student, teacher, positive, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_class_token_contrast_without_a_negative_by_hand():
    # N is 0: -log(1 / (1 + 1e-4)) for each of two views and for the push of each teacher view
    student = torch.zeros(1, 2, 4, requires_grad=True)
    loss = class_token_contrast(student, torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx(2 * 3 * math.log1p(1e-4) / 2 / (2 + 1e-4), rel=1e-4)
    finite_gradient(loss, student)


def test_class_token_contrast_where_every_crop_is_a_negative_by_hand():
    student = torch.zeros(1, 10, 4, requires_grad=True)
    positive = torch.tensor([[True] * 2 + [False] * 8])
    loss = class_token_contrast(student, torch.zeros(1, 2, 4), positive, 0.5)
    assert loss.item() == pytest.approx(2 * 3 * math.log(1 + 8 + 1e-4) / 2 / (2 + 1e-4), rel=1e-5)
    finite_gradient(loss, student)


def test_class_token_contrast_is_finite_where_its_exponentials_are_not():
    # tau 0.005: every exponent is 200 or -200; the pull of a negative as near as the positive is log 2
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    loss = class_token_contrast(student, teacher, torch.tensor([[True, True, False]]), 0.005)
    toward = 2 * math.log(2) + 200  # the teacher view that all three views equal
    away = 2 * (math.log(1e-4) + 200) + 1e-4  # the one that they oppose: N is exp(-200), 1e-4 rules
    assert loss.item() == pytest.approx((toward + away) / 2 / (2 + 1e-4), rel=1e-5)
    finite_gradient(loss, student)


def test_class_token_contrast_sends_no_gradient_to_the_teacher():
    student, teacher = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    class_token_contrast(student, teacher, torch.tensor([[True, True, False]]), 0.5).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_class_token_contrast_falls_when_positives_come_nearer_and_negatives_go_away():
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    positive = torch.tensor([[True, True, True, False]])

    def loss(crop, background):
        views = torch.tensor([[[1.0, 0.0], [1.0, 0.0], crop, background]])
        return class_token_contrast(views, teacher, positive, 0.5)

    good, worse, worst = loss([1.0, 0.0], [-1.0, 0.0]), loss([0.0, 1.0], [-1.0, 0.0]), loss([0.0, 1.0], [1.0, 0.0])
    assert good < worse < worst


def test_balanced_segmentation_loss_weighs_background_and_foreground_alike():
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, 0, 0, 0] = 5.0
    labels = torch.tensor([[[0, 0, 0, 2]]])
    background = F.cross_entropy(logits[..., :3], labels[..., :3])
    foreground = F.cross_entropy(logits[..., 3:], labels[..., 3:])
    loss = balanced_segmentation_loss(logits, labels)
    assert loss.item() == pytest.approx(0.5 * (background + foreground).item())


@pytest.mark.parametrize("label", [255, 0, 1])
def test_segmentation_loss_is_finite_when_one_kind_of_pixel_or_every_pixel_is_missing(label):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = balanced_segmentation_loss(logits, torch.full((2, 4, 4), label))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if label == 255:
        assert loss.item() == 0


def brute_force_energy(images, probabilities, sigma_rgb, sigma_xy):
    """The energy by its definition, with the whole kernel in memory and a gate of 1."""
    height, width = images.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns], dim=-1).view(-1, 2).double()
    total = 0.0
    for image, probability in zip(images.double(), probabilities.double(), strict=True):
        colour = image.flatten(1).T
        kernel = torch.exp(
            -torch.cdist(colour, colour).square() / (2 * sigma_rgb**2)
            - torch.cdist(position, position).square() / (2 * sigma_xy**2)
        )
        s = probability.flatten(1)
        total = total - torch.einsum("ki,ij,kj->", s, kernel, s)
    return total / len(images)


def test_dense_energy_and_its_gradient_equal_the_definition_where_every_pixel_is_unlabelled():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 9, 7)).float()
    probabilities = torch.randn(2, 4, 9, 7).softmax(1).requires_grad_()
    labels, valid = torch.full((2, 9, 7), 255), torch.ones(2, 9, 7)
    ours = dense_energy_loss(images, probabilities, labels, valid, sigma_rgb=60, sigma_xy=4, scale=1.0, tile=10)
    (gradient,) = torch.autograd.grad(ours, probabilities)
    definition = brute_force_energy(images, probabilities, 60, 4)
    (expected,) = torch.autograd.grad(definition, probabilities)
    assert ours.item() == pytest.approx(definition.item(), rel=1e-5)
    assert torch.allclose(gradient, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tile", "threads"), [(16, 2), (100, 1), (100, 3), (1000, 100)])
def test_dense_energy_leaves_out_only_tiles_that_weigh_nothing(tile, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 32, 30)).float()
    probabilities = torch.randn(1, 4, 32, 30).softmax(1).requires_grad_()
    labels, valid = torch.full((1, 32, 30), 255), torch.ones(1, 32, 30)
    ours = dense_energy_loss(images, probabilities, labels, valid, sigma_rgb=15, sigma_xy=8, scale=1.0, tile=tile)
    (gradient,) = torch.autograd.grad(ours, probabilities)
    definition = brute_force_energy(images, probabilities, 15, 8)
    (expected,) = torch.autograd.grad(definition, probabilities)
    assert ours.item() == pytest.approx(definition.item(), rel=1e-6)
    assert torch.allclose(gradient, expected.float(), rtol=1e-4, atol=1e-6)


def test_dense_energy_looks_at_no_pair_of_tiles_that_are_far_apart():
    near, far = torch.zeros(8, 5), torch.full((8, 5), 3.0)  # sqrt(5) * 3 = 6.7 standard deviations
    assert _near_tiles(torch.stack([near, far, far + 1]), reach=6.0) == [(0, 0), (1, 1), (1, 2), (2, 2)]


def test_dense_energy_leaves_confident_pixels_alone_and_counts_no_padding():
    images = torch.full((1, 3, 8, 8), 128.0)
    sure = torch.zeros(1, 2, 8, 8)
    sure[:, 0] = 1
    labelled, unlabelled = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 255)
    everywhere, nowhere = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    assert dense_energy_loss(images, sure, labelled, everywhere).item() == 0
    assert dense_energy_loss(images, sure, unlabelled, everywhere).item() < 0
    assert dense_energy_loss(images, sure, unlabelled, nowhere).item() == 0


def test_dense_energy_of_images_that_are_all_padding_is_zero_and_so_is_its_gradient():
    probabilities = torch.full((2, 3, 8, 8), 1 / 3, requires_grad=True)
    labels = torch.full((2, 8, 8), 255)
    loss = dense_energy_loss(torch.zeros(2, 3, 8, 8), probabilities, labels, torch.zeros(2, 8, 8))
    assert loss.item() == 0
    assert finite_gradient(loss, probabilities).abs().max() == 0


def test_dense_energy_prefers_one_label_on_pixels_of_one_colour():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 255.0
    labels, valid = torch.full((1, 8, 8), 255), torch.ones(1, 8, 8)

    def energy(mask):
        return dense_energy_loss(images, torch.stack([mask, 1 - mask])[None], labels, valid, scale=1.0)

    along_the_edge, across_it = torch.zeros(8, 8), torch.zeros(8, 8)
    along_the_edge[:, 4:] = 1
    across_it[4:] = 1
    assert energy(along_the_edge) < energy(across_it)


def test_losses_stay_in_full_precision_under_autocast():
    torch.manual_seed(0)
    features, affinity = torch.randn(1, 8, 4, 4), torch.randint(0, 2, (1, 16, 16))
    images, probabilities = torch.randint(0, 256, (1, 3, 8, 8)).float(), torch.randn(1, 3, 8, 8).softmax(1)
    student, teacher = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    positive = torch.tensor([[True, True, True, False]])
    losses = {
        "patch": lambda: patch_token_contrast(features, affinity),
        "class": lambda: class_token_contrast(student, teacher, positive, 0.5),
        "energy": lambda: dense_energy_loss(images, probabilities, torch.full((1, 8, 8), 255), torch.ones(1, 8, 8)),
    }
    plain = {name: loss() for name, loss in losses.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {name: loss() for name, loss in losses.items()} == plain
