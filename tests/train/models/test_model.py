"""The network: one contract for every variant, and what it refuses."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.train.conftest import tiny_config
from toco_core.config import dump_yaml
from toco_core.errors import ConfigError, ImageSizeError, RunError
from toco_train.config import ContrastConfig, TrainConfig, ViTSpec
from toco_train.models.toco import ToCo
from toco_train.runs.load import load_run

SMALL_CROPS = ContrastConfig(local_crop_size=32)
VARIANTS = {
    "spec, patch 16": tiny_config(),
    "spec, patch 8": tiny_config(backbone=ViTSpec(image_size=64, patch_size=8, width=32, depth=3, num_heads=2)),
    "timm ViT-Ti": tiny_config(backbone="vit_tiny_patch16_224", aux_block=2),
    "timm DeiT-Ti": tiny_config(backbone="deit_tiny_patch16_224", classes=("one",)),
}


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    torch.manual_seed(0)
    return ToCo(VARIANTS[request.param]).eval()


@pytest.mark.parametrize("size", [(64, 64), (48, 112)])
def test_every_variant_gives_maps_of_its_tokens_and_gradients_everywhere(model, size):
    images = torch.randn(2, 3, *size)
    output = model(images)
    grid = (size[0] // model.patch_size, size[1] // model.patch_size)
    num_classes, width = model.num_classes, model.backbone.width
    assert output.class_logits.shape == output.aux_class_logits.shape == (2, num_classes)
    assert output.cam.shape == output.aux_cam.shape == (2, num_classes, *grid)
    assert output.seg_logits.shape == (2, num_classes + 1, *grid)
    assert output.patch_tokens.shape == (2, width, *grid)
    assert output.cls_token.shape == (2, width)
    assert torch.equal(model.segment(images), output.seg_logits)
    projected = model.projection(output.cls_token)
    loss = output.class_logits.sum() + output.aux_class_logits.sum() + output.seg_logits.sum() + projected.sum()
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.vit.pos_embed" in frozen
    assert all("teacher" in n or n.endswith("original0") or n.endswith("pos_embed") for n in frozen)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_class_token_alone_is_that_of_the_whole_pass_with_its_gradients(model, checkpointing):
    model.double().train()
    model.backbone.activation_checkpointing = checkpointing
    images = torch.randn(2, 3, 32, 48).double()
    direction = torch.randn(2, model.backbone.width).double()
    gradients = []
    for token in (model.backbone(images).cls_token, model.backbone.class_token(images)):
        model.zero_grad()
        (token * direction).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    torch.testing.assert_close(model.backbone.class_token(images), model.backbone(images).cls_token)
    torch.testing.assert_close(*gradients)


def test_every_variant_comes_back_from_a_run_folder(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(dump_yaml(TrainConfig(model=model.config, contrast=SMALL_CROPS)))
    again = load_run(tmp_path)
    assert again.config == model.config
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images).seg_logits, model(images).seg_logits)


def test_a_run_whose_weights_are_in_half_precision_is_loaded_in_fp32(model, tmp_path):
    save_file({name: weight.half() for name, weight in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(dump_yaml(TrainConfig(model=model.config, contrast=SMALL_CROPS)))
    again = load_run(tmp_path).state_dict()
    assert all(torch.equal(again[name], weight.half().float()) for name, weight in model.state_dict().items())
    assert {weight.dtype for weight in again.values()} == {torch.float32}


def test_the_position_embedding_is_untouched_at_its_own_size():
    model = ToCo(tiny_config())
    assert torch.equal(model.backbone.position_embedding(4, 4), model.backbone.vit.pos_embed)


@pytest.mark.parametrize("grid", [(3, 9), (6, 4), (2, 2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_position_embedding_is_resized_as_pytorch_does_also_under_autocast(grid, autocast):
    backbone = ToCo(tiny_config()).backbone
    embedding = backbone.vit.pos_embed
    patches = embedding[:, 1:].transpose(1, 2).reshape(1, -1, 4, 4)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        resized = backbone.position_embedding(*grid)
    torch.testing.assert_close(resized, torch.cat([embedding[:, :1], patches], dim=1), rtol=1e-5, atol=1e-6)


def test_a_size_that_does_not_fit_the_patches_is_refused_with_the_size_that_would():
    with pytest.raises(
        ImageSizeError, match=re.escape("image is 450x64 px; both must be multiples of the patch size 16")
    ):
        ToCo(tiny_config())(torch.zeros(1, 3, 450, 64))


def test_the_teacher_is_the_moving_average_of_the_student():
    model = ToCo(tiny_config())
    student, teacher = model.projection.mlp[0].weight, model.teacher_projection.mlp[0].weight
    assert torch.equal(student, teacher)
    start = teacher.clone()
    with torch.no_grad():
        student.add_(1.0)
    model.update_teacher(momentum=0.9)
    assert torch.allclose(teacher, start + 0.1, atol=1e-6)
    magnitude = model.projection.last_layer.parametrizations.weight.original0
    assert torch.equal(magnitude, torch.ones(1024, 1))
    assert not magnitude.requires_grad


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "vit_base_patch16_225"}, "did you mean 'vit_base_patch16_224'"),
        ({"backbone": "resnet18"}, "'resnet18' is not a plain ViT"),
        ({"aux_block": 9}, "the backbone has 4 blocks"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused(change, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ToCo(tiny_config(**change))


@pytest.mark.parametrize("missing", ["model.safetensors", "config.yaml"])
def test_a_folder_without_weights_or_configuration_is_no_run(tmp_path, missing):
    for name in {"model.safetensors", "config.yaml"} - {missing}:
        (tmp_path / name).touch()
    with pytest.raises(RunError, match=f"is not a finished run: it has no {missing}"):
        load_run(tmp_path)


def test_weights_of_another_network_are_refused_in_one_sentence(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(dump_yaml(TrainConfig(model=tiny_config(), contrast=SMALL_CROPS)))
    with pytest.raises(RunError, match=r"does not fit config\.yaml beside it") as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)
