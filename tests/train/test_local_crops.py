"""Local crops: where they are cut and what makes one a negative."""

import torch

from toco_train.local_crops import local_crops


def position_image(size):
    """An image whose channels say row, column and 1."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns, torch.ones_like(rows)]).float()[None]


def test_crops_are_whole_windows_centred_where_the_foreground_is_not_sure():
    torch.manual_seed(0)
    roi = torch.zeros(1, 32, 32, dtype=torch.long)
    roi[:, :, 16:] = 2
    crops, _ = local_crops(position_image(32), roi, num_crops=20, crop_size=8)
    assert crops.shape == (1, 20, 3, 8, 8)
    for crop in crops[0]:
        top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
        assert torch.equal(crop[0, :, 0], torch.arange(top, top + 8).float())
        assert torch.equal(crop[1, 0], torch.arange(left, left + 8).float())
        assert left + 4 < 16, "the centre lies where the mask is at most 1"


def test_centres_are_drawn_without_replacement():
    torch.manual_seed(0)
    crops, _ = local_crops(position_image(12), torch.zeros(1, 12, 12), num_crops=25, crop_size=8)
    corners = {(int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0]}
    assert corners == {(row, column) for row in range(5) for column in range(5)}


def test_where_too_few_pixels_are_uncertain_crops_come_from_anywhere_that_fits():
    torch.manual_seed(0)
    roi = torch.full((1, 32, 32), 2)
    roi[:, 16, 16] = 0
    crops, positive = local_crops(position_image(32), roi, num_crops=8, crop_size=8)
    assert len({(int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0]}) == 8
    assert positive.all()


def test_a_crop_is_negative_up_to_a_mean_of_one_fifth():
    images = position_image(10)
    for filled, is_positive in ((20, False), (21, True)):
        roi = torch.zeros(1, 10, 10, dtype=torch.long)
        roi.view(-1)[:filled] = 1
        _, positive = local_crops(images, roi, num_crops=1, crop_size=10)
        assert positive.item() is is_positive


def test_a_crop_as_large_as_the_image_is_the_image():
    crops, _ = local_crops(position_image(16), torch.zeros(1, 16, 16), num_crops=1, crop_size=16)
    assert torch.equal(crops[0, 0], position_image(16)[0])
