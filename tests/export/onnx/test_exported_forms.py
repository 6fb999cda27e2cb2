"""The forms that are traced give the numbers of the forms that are trained."""

from __future__ import annotations

import pytest
import torch
from small_run import CONFIG
from timm.layers import Attention
from torch import nn
from torch.nn import functional as F

from toco_export.graph import (
    ExportedAttention,
    ExportedBackbone,
    ServedModel,
    _cubic,
    answer,
    exported_model,
    is_plain_attention,
)
from toco_train.models.toco import ToCo
from toco_train.models.vit import Backbone


def test_label_and_confidence_of_one_pixel_by_hand():
    logits = torch.tensor([0.0, 2.0, 1.0]).log1p().view(1, 3, 1, 1)  # softmax 1/6, 3/6, 2/6
    mask, confidence = answer(logits, (2, 3))
    assert mask.tolist() == [[[1, 1, 1], [1, 1, 1]]]
    assert confidence.tolist() == [[[128, 128, 128], [128, 128, 128]]], "255 / 2, rounded to the even neighbour"


def test_logits_at_the_patches_stride_are_those_of_the_network_on_normalised_colours():
    model = ToCo(CONFIG.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}))
    image = torch.tensor([255, 51, 0], dtype=torch.uint8).expand(1, 16, 16, 3)
    channels = torch.tensor([(1 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0 - 0.3) / 2.0]).view(1, 3, 1, 1)
    expected = model.segment(channels.expand(1, 3, 16, 16))
    assert expected.shape == (1, 4, 2, 2)
    torch.testing.assert_close(ServedModel(model).logits(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 8), (3, 13), (16, 5), (1, 2), (11, 24)])
def test_the_exported_position_embedding_is_that_of_training_at_every_grid(grid: tuple[int, int]):
    torch.manual_seed(0)
    model = ToCo(CONFIG)
    expected = model.backbone.position_embedding(*grid)
    resized = exported_model(model).backbone.position_embedding(*grid)
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3, "an embedding of zeros would prove nothing"


@pytest.mark.parametrize(("number", "size"), [(4, 9), (9, 4), (5, 5), (3, 100), (1, 3), (7, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_one_axis_is_resized_bicubically_as_pytorch_does(axis: int, number: int, size: int):
    torch.manual_seed(0)
    shape, target = ((number, 6), (size, 6)) if axis == 0 else ((6, number), (6, size))
    values = torch.randn(*shape, 2)
    expected = F.interpolate(values.permute(2, 0, 1)[None], size=target, mode="bicubic", align_corners=False)
    torch.testing.assert_close(_cubic(values, axis, size), expected[0].permute(1, 2, 0), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_exported_attention_is_timms_with_and_without_norms_of_queries_and_keys():
    for qk_norm in (False, True):
        torch.manual_seed(0)
        attention = Attention(24, num_heads=3, qkv_bias=True, qk_norm=qk_norm, norm_layer=nn.LayerNorm).eval()
        for weight in attention.parameters():
            weight.normal_(std=0.5)
        tokens = torch.randn(2, 7, 24)
        expected = attention(tokens)
        attention.__class__ = ExportedAttention
        torch.testing.assert_close(attention(tokens), expected, rtol=0, atol=1e-5)


def test_only_plain_attention_is_exported_in_another_form():
    attention, block = Attention(24, num_heads=3), nn.Linear(24, 24)
    assert is_plain_attention(attention)
    assert not is_plain_attention(block)
    assert not is_plain_attention(type("Windowed", (Attention,), {})(24, num_heads=3))
    attention.gate = block
    assert not is_plain_attention(attention)


def test_the_exported_network_shares_its_weights_and_leaves_the_network_as_it_was():
    model = ToCo(CONFIG)
    copied = exported_model(model)
    for (name, ours), theirs in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr(), name
        assert ours.requires_grad == theirs.requires_grad, name
    assert type(copied.backbone) is ExportedBackbone
    assert {type(block.attn) for block in copied.backbone.vit.blocks} == {ExportedAttention}
    assert type(model.backbone) is Backbone
    assert {type(block.attn) for block in model.backbone.vit.blocks} == {Attention}


def test_a_network_with_another_attention_keeps_it_in_the_export():
    model = ToCo(CONFIG)
    other = type("Windowed", (Attention,), {})
    model.backbone.vit.blocks[1].attn.__class__ = other
    kinds = [type(block.attn) for block in exported_model(model).backbone.vit.blocks]
    assert kinds == [ExportedAttention, other, ExportedAttention, ExportedAttention]
