from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toco_core.errors import ImageSizeError
from toco_export.graph import ServedModel
from toco_train.models.toco import ToCo


def training_logits(model: ToCo, images: np.ndarray) -> torch.Tensor:
    """Logits at full size as the training package evaluates them: normalise, segment, upsample."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.config.mean, model.config.std))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return F.interpolate(model.segment(pixels), size=images.shape[1:3], mode="bilinear", align_corners=False)


@torch.inference_mode()
def test_the_served_mask_is_exactly_the_prediction_of_the_training_package(model: ToCo, images: np.ndarray):
    mask, _ = ServedModel(model)(torch.from_numpy(images))
    expected = training_logits(model, images).argmax(dim=1)
    assert mask.dtype == torch.uint8
    assert set(expected.unique().tolist()) == {0, 1, 2, 3}, "the test would prove little on fewer labels"
    assert torch.equal(mask.long(), expected)


@torch.inference_mode()
def test_the_served_confidence_is_255_times_the_softmax_of_the_winner(model: ToCo, images: np.ndarray):
    _, confidence = ServedModel(model)(torch.from_numpy(images))
    expected = (training_logits(model, images).softmax(dim=1).amax(dim=1) * 255).round()
    assert confidence.dtype == torch.uint8
    assert len(confidence.unique()) > 50
    assert torch.equal(confidence.float(), expected)


def test_the_first_operation_makes_floats_and_the_last_ones_make_bytes(model: ToCo, images: np.ndarray):
    graph = torch.export.export(ServedModel(model), (torch.from_numpy(images),)).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    image = next(node for node in graph.nodes if node.op == "placeholder" and node.name == "image")
    readers = [node for node in image.users if not str(node.target).startswith("aten.sym_size")]
    assert {node.target for node in readers} == {torch.ops.aten._assert_tensor_metadata.default, calls[1].target}
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    assert [output.meta["val"].dtype for output in outputs] == [torch.uint8, torch.uint8]
    assert all(output.target is torch.ops.aten.to.dtype for output in outputs)


def test_an_image_that_does_not_fit_the_patches_is_refused_in_words(model: ToCo):
    with pytest.raises(ImageSizeError, match="image is 60x64 px; both must be multiples of the patch size 8"):
        ServedModel(model)(torch.zeros(1, 60, 64, 3, dtype=torch.uint8))
