"""The network's heads on its tokens: which give a gradient, and what a backbone may be."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from tests.train.conftest import TINY_VIT, tiny_config
from toco_core.errors import ConfigError, ImageSizeError, RunError
from toco_train.models.pretrained import describe_misfit, load_backbone_weights
from toco_train.models.toco import ToCo
from toco_train.models.vit import Backbone, build_backbone


def test_image_logits_are_the_class_maps_of_the_largest_values_of_each_channel(tiny_model):
    images = torch.randn(2, 3, 32, 48)
    output, tokens = tiny_model(images), tiny_model.backbone(images)
    for logits, found, head in (
        (output.class_logits, tokens.patch_tokens, tiny_model.classifier),
        (output.aux_class_logits, tokens.aux_tokens, tiny_model.aux_classifier),
    ):
        torch.testing.assert_close(logits, found.amax(dim=(2, 3)) @ head.weight.flatten(1).T)
    for cam, found, head in (
        (output.cam, tokens.patch_tokens, tiny_model.classifier),
        (output.aux_cam, tokens.aux_tokens, tiny_model.aux_classifier),
    ):
        torch.testing.assert_close(cam, torch.einsum("cd,bdhw->bchw", head.weight.flatten(1), found))


def test_maps_carry_no_gradient_and_the_pass_for_them_alone_keeps_no_activations(tiny_model):
    images = torch.randn(1, 3, 32, 32)
    output = tiny_model(images)
    assert not output.cam.requires_grad
    assert not output.aux_cam.requires_grad
    assert output.class_logits.requires_grad
    with_gradient = []
    hook = tiny_model.backbone.register_forward_hook(lambda *_: with_gradient.append(torch.is_grad_enabled()))
    maps = tiny_model.activation_maps(images)
    hook.remove()
    assert with_gradient == [False]
    torch.testing.assert_close(maps, (output.cam, output.aux_cam))


def test_auxiliary_tokens_are_those_after_the_auxiliary_block_without_the_final_norm(tiny_model):
    images = torch.randn(1, 3, 32, 32)
    by_block = list(tiny_model.backbone.patch_tokens_by_block(images))
    assert len(by_block) == 4 + 1
    tokens = tiny_model.backbone(images)
    assert tiny_model.backbone.aux_block == range(4)[tiny_model.config.aux_block]
    torch.testing.assert_close(tokens.aux_tokens, by_block[tiny_model.backbone.aux_block])
    torch.testing.assert_close(tokens.patch_tokens, by_block[-1])
    assert not by_block[0].requires_grad


@pytest.mark.parametrize("frozen", [True, False])
def test_the_position_embedding_learns_unless_it_is_frozen(frozen):
    model = ToCo(tiny_config(freeze_position_embedding=frozen))
    assert model.backbone.vit.pos_embed.requires_grad is not frozen
    assert not any(weight.requires_grad for weight in model.teacher_projection.parameters())
    assert model.projection.mlp[0].weight.requires_grad


def test_a_network_needs_the_names_of_its_classes():
    with pytest.raises(ValueError, match="classes is empty"):
        ToCo(tiny_config(classes=()))


@pytest.mark.parametrize(("height", "width", "padded"), [(32, 33, "32x48"), (17, 32, "32x32"), (1, 31, "16x32")])
def test_either_side_that_does_not_fit_the_patches_is_refused(tiny_model, height, width, padded):
    with pytest.raises(ImageSizeError, match=f"image is {height}x{width} px; .* pad it to {padded}"):
        tiny_model(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("grid", [(2, 3), (4, 3), (3, 5)])
def test_the_position_embedding_of_a_grid_that_is_not_square_is_resized_side_by_side(grid):
    vit = VisionTransformer(img_size=(32, 48), patch_size=16, embed_dim=4, depth=1, num_heads=1, num_classes=0)
    backbone = Backbone(vit, aux_block=-1)
    assert backbone.grid_size == (2, 3)
    patches = vit.pos_embed[:, 1:].transpose(1, 2).reshape(1, 4, 2, 3)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    expected = torch.cat([vit.pos_embed[:, :1], patches], dim=1)
    torch.testing.assert_close(backbone.position_embedding(*grid), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [-4, -1, 0, 3])
def test_an_auxiliary_block_may_be_counted_from_either_end(block):
    assert build_backbone(TINY_VIT, pretrained=False, aux_block=block).aux_block == block % 4


@pytest.mark.parametrize("block", [-5, 4])
def test_an_auxiliary_block_beyond_either_end_is_refused(block):
    with pytest.raises(ConfigError, match=f"aux_block {block} does not exist: the backbone has 4 blocks"):
        build_backbone(TINY_VIT, pretrained=False, aux_block=block)


def test_a_backbone_given_by_numbers_has_them_and_no_head():
    backbone = build_backbone(TINY_VIT, pretrained=False, aux_block=-1)
    assert (backbone.patch_size, backbone.width, backbone.grid_size) == (16, 48, (4, 4))
    assert len(backbone.vit.blocks) == 4
    assert {block.attn.num_heads for block in backbone.vit.blocks} == {3}
    assert not any(name.startswith("head") for name in backbone.vit.state_dict())


def test_a_misfit_names_what_is_missing_left_over_and_of_another_shape():
    def tensors(**shapes):
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    expected = tensors(same=(2, 3), wider=(2, 3), narrower=(2, 3), gone=(1,), absent=(1,))
    found = tensors(same=(2, 3), wider=(2, 4), narrower=(2, 2), extra=(1,))
    assert describe_misfit(expected, found) == (
        "2 missing (absent, gone); 1 left over (extra); "
        "2 of another shape (narrower (2, 2), expected (2, 3), wider (2, 4), expected (2, 3))"
    )
    assert not describe_misfit(expected, expected)
    many = tensors(**{f"k{number:02d}": (1,) for number in range(12)})
    ten = ", ".join(f"k{number:02d}" for number in range(10))
    assert describe_misfit(many, {}) == f"12 missing ({ten} and 2 more)"
    assert describe_misfit({name: many[name] for name in list(many)[:10]}, {}) == f"10 missing ({ten})"


def test_weights_of_another_width_are_refused_and_the_backbone_is_left_as_it_was(tmp_path):
    torch.manual_seed(0)
    wide = build_backbone(TINY_VIT.model_copy(update={"width": 96}), pretrained=False, aux_block=-1).vit
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    own = build_backbone(TINY_VIT, pretrained=False, aux_block=-1).vit
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(RunError, match=r"wide.pth .*fit"):
        load_backbone_weights(own, tmp_path / "wide.pth")
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
