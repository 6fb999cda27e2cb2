"""Local crops: where they are cut and what makes one a negative."""

import torch

from tests.train.method.literal_step import split_mix_64
from toco_train.method.local_crops import _random_numbers, local_crops

SEED = torch.tensor([7])


def position_image(size):
    """An image whose channels say row, column and 1."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns, torch.ones_like(rows)]).float()[None]


def test_crops_are_whole_windows_centred_where_the_foreground_is_not_sure():
    roi = torch.zeros(1, 32, 32, dtype=torch.long)
    roi[:, :, 16:] = 2
    crops, _ = local_crops(position_image(32), roi, SEED, num_crops=20, crop_size=8)
    assert crops.shape == (1, 20, 3, 8, 8)
    for crop in crops[0]:
        top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
        assert torch.equal(crop[0, :, 0], torch.arange(top, top + 8).float())
        assert torch.equal(crop[1, 0], torch.arange(left, left + 8).float())
        assert left + 4 < 16, "the centre lies where the mask is at most 1"


def test_centres_are_drawn_without_replacement():
    crops, _ = local_crops(position_image(12), torch.zeros(1, 12, 12), SEED, num_crops=25, crop_size=8)
    corners = {(int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0]}
    assert corners == {(row, column) for row in range(5) for column in range(5)}


def test_the_reference_generator_gives_its_published_first_number():
    assert split_mix_64(1234567, 1) == 6457827717110365317


def test_random_numbers_are_the_upper_62_bits_of_the_generators_own():
    seeds = [0, 1, (1 << 63) - 12345, -7]
    found = _random_numbers(torch.tensor(seeds), 50)
    assert found.tolist() == [[split_mix_64(seed, place + 1) >> 2 for place in range(50)] for seed in seeds]


def test_centres_are_the_candidates_of_the_largest_random_numbers():
    seed = (1 << 63) - 12345
    crops, _ = local_crops(position_image(12), torch.zeros(1, 12, 12), torch.tensor([seed]), num_crops=6, crop_size=8)
    places = sorted(range(25), key=lambda place: split_mix_64(seed, place + 1) >> 2, reverse=True)[:6]
    assert [(int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0]] == [divmod(place, 5) for place in places]


def test_the_crops_of_an_image_depend_on_its_seed_and_not_on_its_batch_or_a_generator():
    images, roi = position_image(32).expand(3, -1, -1, -1), torch.zeros(3, 32, 32, dtype=torch.long)
    roi[1, :, 16:] = 2
    seeds = torch.tensor([3, 4, 3])
    state = torch.get_rng_state()
    together, positive = local_crops(images, roi, seeds, num_crops=8, crop_size=8)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(3):
        alone = local_crops(images[:1], roi[index : index + 1], seeds[index : index + 1], num_crops=8, crop_size=8)
        assert torch.equal(together[index], alone[0][0])
        assert torch.equal(positive[index], alone[1][0])
    assert torch.equal(together[0], together[2])
    other, _ = local_crops(images[:1], roi[:1], seeds[1:2], num_crops=8, crop_size=8)
    assert not torch.equal(together[0], other[0])


def test_every_place_is_as_likely_as_another():
    seeds = torch.arange(5000)
    images, roi = position_image(12).expand(len(seeds), -1, -1, -1), torch.zeros(len(seeds), 12, 12)
    crops, _ = local_crops(images, roi, seeds, num_crops=5, crop_size=8)
    places = crops[:, :, 0, 0, 0] * 5 + crops[:, :, 1, 0, 0]
    counts = torch.bincount(places.flatten().long(), minlength=25).double()
    assert counts.sum() == 25_000
    assert (counts - 1000).abs().max() < 5 * (1000 * 0.8) ** 0.5, "five standard deviations"


def test_where_too_few_pixels_are_uncertain_crops_come_from_anywhere_that_fits():
    roi = torch.full((1, 32, 32), 2)
    roi[:, 16, 16] = 0
    crops, positive = local_crops(position_image(32), roi, SEED, num_crops=8, crop_size=8)
    assert len({(int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0]}) == 8
    assert positive.all()


def test_a_crop_is_negative_up_to_a_mean_of_one_fifth():
    images = position_image(10)
    for filled, is_positive in ((20, False), (21, True)):
        roi = torch.zeros(1, 10, 10, dtype=torch.long)
        roi.view(-1)[:filled] = 1
        _, positive = local_crops(images, roi, SEED, num_crops=1, crop_size=10)
        assert positive.item() is is_positive


def test_a_crop_as_large_as_the_image_is_the_image():
    crops, _ = local_crops(position_image(16), torch.zeros(1, 16, 16), SEED, num_crops=1, crop_size=16)
    assert torch.equal(crops[0, 0], position_image(16)[0])


def test_too_few_uncertain_pixels_count_for_nothing():
    roi = torch.full((1, 32, 32), 2)
    nowhere, _ = local_crops(position_image(32), roi, SEED, num_crops=8, crop_size=8)
    roi[:, 16, 10:17] = 1
    seven, _ = local_crops(position_image(32), roi, SEED, num_crops=8, crop_size=8)
    assert torch.equal(seven, nowhere)
    roi[:, 16, 17] = 1
    eight, _ = local_crops(position_image(32), roi, SEED, num_crops=8, crop_size=8)
    assert sorted((int(c[0, 0, 0]) + 4, int(c[1, 0, 0]) + 4) for c in eight[0]) == [(16, x) for x in range(10, 18)]


def test_images_that_are_not_square_are_cut_within_their_sides():
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(14), indexing="ij")
    image = torch.stack([rows, columns, torch.ones_like(rows)]).float()[None]
    crops, _ = local_crops(image, torch.zeros(1, 9, 14), SEED, num_crops=3 * 8, crop_size=7)
    corners = sorted((int(c[0, 0, 0]), int(c[1, 0, 0])) for c in crops[0])
    assert corners == [(row, column) for row in range(3) for column in range(8)]


def test_the_centre_of_an_odd_crop_is_its_middle_pixel():
    roi = torch.full((1, 20, 20), 2)
    roi[0, 9, 13] = 1
    crops, _ = local_crops(position_image(20), roi, SEED, num_crops=1, crop_size=5)
    assert crops[0, 0, :2, 2, 2].tolist() == [9, 13]


def test_a_crop_of_sure_foreground_alone_is_positive_and_the_limit_can_be_moved():
    roi = torch.full((1, 10, 10), 2)
    assert local_crops(position_image(10), roi, SEED, num_crops=1, crop_size=10)[1].item()
    roi = torch.ones(1, 10, 10, dtype=torch.long)
    for ratio, is_positive in ((0.9, True), (1.0, False)):
        _, positive = local_crops(position_image(10), roi, SEED, num_crops=1, crop_size=10, negative_ratio=ratio)
        assert positive.item() is is_positive
