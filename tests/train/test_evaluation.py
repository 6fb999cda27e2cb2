"""Scores on masks worked out by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from toco.errors import DataError
from toco.palette import save_mask
from toco_train.data.source import Sample
from toco_train.evaluation import confusion_counts, evaluate, mean_iou, mean_token_similarity, per_class_iou


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


def test_token_similarity_by_hand():
    tokens = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]).view(1, 2, 2, 2)
    # pairs: (a, b) 1, (c, d) |-1|, four of 0
    assert mean_token_similarity(tokens).item() == pytest.approx(2 / 6)


def _samples(folder, labels):
    Image.new("RGB", (40, 30), "red").save(folder / "a.jpg")
    save_mask(folder / "a.png", np.full((30, 40), labels, dtype=np.uint8))
    return [Sample(name="a", image=folder / "a.jpg", labels=(1,), mask=folder / "a.png")]


def test_evaluation_counts_every_pixel_at_the_size_of_the_mask(tiny_model, tmp_path):
    evaluation = evaluate(tiny_model, _samples(tmp_path, 1), scales=(1.0,), background_threshold=0.5)
    assert evaluation.num_images == 1
    assert 0 <= evaluation.cam.mean_iou <= 1
    assert math.isnan(evaluation.seg.iou[0]), "the truth has no background"
    assert 0 <= evaluation.token_similarity <= 1


def test_evaluation_leaves_the_network_in_the_mode_that_it_was_in(tiny_model, tmp_path):
    tiny_model.train()
    evaluate(tiny_model, _samples(tmp_path, 1), scales=(1.0,), background_threshold=0.5)
    assert tiny_model.training


def test_a_mask_with_a_label_that_the_network_does_not_know_is_refused(tiny_model, tmp_path):
    with pytest.raises(DataError, match="holds the label 9, expected 0 to 5 or 255"):
        evaluate(tiny_model, _samples(tmp_path, 9), scales=(1.0,), background_threshold=0.5)


def test_evaluation_without_any_mask_is_refused(tiny_model):
    with pytest.raises(DataError, match="evaluation needs masks, training does not"):
        evaluate(tiny_model, [], scales=(1.0,), background_threshold=0.5)
