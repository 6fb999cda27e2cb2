"""Scores on masks worked out by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from toco_core.errors import DataError
from toco_core.palette import save_mask
from toco_train.data.masks import LabelMask
from toco_train.data.source import Sample
from toco_train.evaluation.boundary_iou import boundary_counts, boundary_width
from toco_train.evaluation.evaluate import evaluate, evaluation_numbers
from toco_train.evaluation.metrics import class_scores, mask_scores
from toco_train.evaluation.miou import confusion_counts, mean_iou, per_class_iou
from toco_train.inference.predict import predict


def test_iou_by_hand():
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    prediction = torch.tensor([0, 0, 1, 1, 0, 2])
    counts = confusion_counts(prediction, truth, 3)
    assert counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert per_class_iou(counts).tolist() == pytest.approx([2 / 4, 1 / 3, 1.0])
    assert mean_iou(counts) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)


def test_miou_ignores_label_255():
    counts = confusion_counts(torch.tensor([1, 1, 0]), torch.tensor([1, 255, 255]), 2)
    assert counts.tolist() == [[0, 0], [0, 1]]
    assert mean_iou(counts) == 1.0


def test_a_class_without_truth_does_not_count_but_its_false_positives_do():
    counts = confusion_counts(torch.tensor([0, 2]), torch.tensor([0, 0]), 3)
    iou = per_class_iou(counts).tolist()
    assert iou[0] == 0.5
    assert math.isnan(iou[1])
    assert math.isnan(iou[2])
    assert mean_iou(counts) == 0.5


def test_pixel_accuracy_by_hand():
    counts = torch.tensor([[2, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert mask_scores(counts, torch.zeros(4, 4)).pixel_accuracy == pytest.approx(3 / 5)


def test_boundary_width_is_two_per_cent_of_the_diagonal():
    assert boundary_width(300, 400) == 10
    assert boundary_width(10, 10) == 1


def test_boundary_iou_by_hand():
    truth, prediction = torch.zeros(2, 8, 8, dtype=torch.uint8)
    truth[1:6, 1:6] = 1  # 25 pixels, 16 of them at the edge
    prediction[1:6, 2:7] = 1  # one column to the right: 4 pixels of the upper and lower side stay
    counts = boundary_counts(prediction, truth, 2)
    rings = (truth == 1) & ~_eroded(truth == 1), (prediction == 1) & ~_eroded(prediction == 1)
    both, either = (rings[0] & rings[1]).sum(), (rings[0] | rings[1]).sum()
    assert (both, either) == (8, 24)
    assert per_class_iou(counts)[1] == pytest.approx(8 / 24)
    assert counts.sum() == 64


def _eroded(region):
    """Erode by a 3 x 3 square; what lies outside of the image is not in the region."""
    padded = np.pad(region.numpy(), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return torch.from_numpy(windows.all(axis=(2, 3)))


def test_boundary_iou_is_that_of_regions_and_their_erosions():
    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    height, width = 90, 120  # boundary width 3
    truth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].argmax(0).to(torch.uint8)
    prediction = truth.roll(2, dims=1)
    found = per_class_iou(boundary_counts(prediction, truth, 4))
    for label in range(4):
        rings = []
        for region in (truth == label, prediction == label):
            core = region
            for _ in range(boundary_width(height, width)):
                core = _eroded(core)
            rings.append(region & ~core)
        assert found[label] == pytest.approx((rings[0] & rings[1]).sum() / (rings[0] | rings[1]).sum())


def test_pixels_of_unknown_truth_move_no_boundary():
    truth = torch.zeros(40, 40, dtype=torch.uint8)
    truth[10:30, 10:30] = 255
    truth[13:27, 13:27] = 1
    prediction = torch.where(truth == 255, 0, truth)
    generous = torch.where(truth == 255, 1, truth)
    for one in (prediction, generous):
        counts = boundary_counts(one, truth, 2)
        assert counts.sum() == 40 * 40 - (20 * 20 - 14 * 14)
        assert per_class_iou(counts)[:2].tolist() == [1, 1]


def test_f1_and_average_precision_by_hand():
    probabilities = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.4, 0.9], [0.7, 0.8, 0.2]])
    tags = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    scores = class_scores(probabilities, tags)
    # class 1: all three taken for it, two rightly: precision 2/3, recall 1; class 2: two taken, one of two found
    assert scores.f1[:2] == pytest.approx((0.8, 0.5))
    # ranks of what is right: class 1: 1 and 3; class 2: 1 and 3
    assert scores.average_precision[:2] == pytest.approx(((1 + 2 / 3) / 2, (1 + 2 / 3) / 2))
    assert math.isnan(scores.f1[2])
    assert math.isnan(scores.average_precision[2])
    assert scores.mean_f1 == pytest.approx(0.65)
    assert scores.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_class_heads_without_any_tag_have_no_score():
    scores = class_scores(torch.rand(3, 2), torch.zeros(3, 2))
    assert math.isnan(scores.mean_f1)
    assert math.isnan(scores.mean_average_precision)


def _samples(folder, labels):
    Image.new("RGB", (40, 30), "red").save(folder / "a.jpg")
    save_mask(folder / "a.png", np.full((30, 40), labels, dtype=np.uint8))
    return [Sample(name="a", image=folder / "a.jpg", labels=(1,), mask=LabelMask(folder / "a.png"))]


def test_evaluation_counts_every_pixel_at_the_size_of_the_mask(tiny_model, tmp_path):
    evaluation = evaluate(tiny_model, _samples(tmp_path, 1), scales=(1.0,), background_threshold=0.5)
    assert evaluation.num_images == 1
    assert 0 <= evaluation.cam.mean_iou <= 1
    assert math.isnan(evaluation.seg.iou[0]), "the truth has no background"
    assert 0 <= evaluation.token_similarity <= 1


def test_each_image_has_the_iou_of_its_own_labels_in_the_order_of_those_with_a_mask(tiny_model, tmp_path):
    (known,) = _samples(tmp_path, 1)
    for name, labels in (("unknown", 255), ("nothing", 0)):
        save_mask(tmp_path / f"{name}.png", np.full((30, 40), labels, dtype=np.uint8))
    unknown, nothing = (replace(known, name=name, mask=LabelMask(tmp_path / f"{name}.png"))
                        for name in ("unknown", "nothing"))  # fmt: skip
    samples = [known, replace(known, mask=None), unknown, nothing]
    evaluation = evaluate(tiny_model, samples, scales=(1.0,), background_threshold=0.5, batch_size=2)
    taken = next(predict(tiny_model, [known], (1.0,), 1)).seg_mask()
    shares = [float((taken == label).float().mean()) for label in (1, 0)]
    assert evaluation.image_iou == (pytest.approx(shares[0]), pytest.approx(math.nan, nan_ok=True),
                                    pytest.approx(shares[1]))  # fmt: skip


def test_evaluation_leaves_the_network_in_the_mode_that_it_was_in(tiny_model, tmp_path):
    tiny_model.train()
    evaluate(tiny_model, _samples(tmp_path, 1), scales=(1.0,), background_threshold=0.5)
    assert tiny_model.training


def test_a_mask_with_a_label_that_the_network_does_not_know_is_refused(tiny_model, tmp_path):
    with pytest.raises(DataError, match="holds the label 9, expected 0 to 5 or 255"):
        evaluate(tiny_model, _samples(tmp_path, 9), scales=(1.0,), background_threshold=0.5)


def test_masks_that_disagree_with_the_tags_are_counted_and_masks_of_0_and_255_are_refused(tiny_model, tmp_path, caplog):
    (sample,) = _samples(tmp_path, 2)
    with caplog.at_level("WARNING"):
        evaluate(tiny_model, [replace(sample, labels=(1,))], scales=(1.0,), background_threshold=0.5)
    assert "of 1 masks 1 have no pixel of a class that the image is tagged with; 1 have pixels" in caplog.text
    labels = np.zeros((30, 40), dtype=np.uint8)
    labels[:20] = 255
    save_mask(tmp_path / "m.png", labels)
    binary = replace(sample, labels=(1,), mask=LabelMask(tmp_path / "m.png"))
    with pytest.raises(DataError, match="1 of 1 masks of tagged images hold nothing but 0 and 255"):
        evaluate(tiny_model, [binary], scales=(1.0,), background_threshold=0.5)


def test_evaluation_without_any_mask_is_refused(tiny_model):
    with pytest.raises(DataError, match="evaluation needs masks, training does not"):
        evaluate(tiny_model, [], scales=(1.0,), background_threshold=0.5)


def test_a_mask_of_another_size_than_its_image_is_refused(tiny_model, tmp_path):
    samples = _samples(tmp_path, 1)
    Image.new("RGB", (41, 30)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.png is 40x30 px, but its image .*a\.jpg is 41x30 px upright"):
        evaluate(tiny_model, samples, scales=(1.0,), background_threshold=0.5)


def test_scores_are_plain_numbers_in_json_and_none_where_there_is_no_score(tiny_model, tmp_path):
    evaluation = evaluate(tiny_model, _samples(tmp_path, 1), scales=(1.0,), background_threshold=0.5)
    numbers = json.loads(json.dumps(evaluation_numbers(evaluation), allow_nan=False))
    assert set(numbers) == {"cam", "aux_cam", "seg", "cls", "aux_cls", "token_similarity", "num_images"}
    assert numbers["seg"]["iou"] == [None, pytest.approx(evaluation.seg.iou[1]), None, None, None, None]
    assert numbers["cls"]["average_precision"] == [1.0, None, None, None, None]
    assert evaluation.confusion.sum(dim=(1, 2)).tolist() == [1200, 1200, 1200]
