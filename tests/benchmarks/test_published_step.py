"""The schedule that ours is timed against computes the same thing, or the comparison would mean nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases.published_step import PlainTokenContrast, materialise_attention
from tests.train.small_runs import give_a_small_projection
from toco_train.config import CamConfig, ContrastConfig, LossWeights, ModelConfig, Phase, RegularizationConfig, ViTSpec
from toco_train.data.loader import Batch
from toco_train.method.objective import ToCoObjective
from toco_train.models.toco import ToCo

SIZE = 64
STEPS = 20
ALL_ON = Phase(from_step=0)
CONFIGS = {
    "cam": CamConfig(),
    "contrast": ContrastConfig(num_local_crops=4, local_crop_size=24, negative_ratio=0.9),  # some crops are negatives
    "regularization": RegularizationConfig(scale=1e-4),  # so large that an error in this loss would show in the total
    "weights": LossWeights(),
}


@pytest.fixture(autouse=True)
def _small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    give_a_small_projection(monkeypatch)  # the usual one would be most of the work


def _model() -> ToCo:
    torch.manual_seed(0)
    vit = ViTSpec(image_size=SIZE, patch_size=8, width=32, depth=4, num_heads=2)
    config = ModelConfig(
        backbone=vit, pretrained=False, classes=tuple("abcd"), image_size=SIZE, decoder_channels=16, decoder_dilation=2
    )
    return ToCo(config)


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, SIZE, SIZE)
    view1, view2, local = (
        torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in ("view1", "view2", "local")
    )
    return Batch(
        view1=view1,
        view2=view2,
        local=local,
        boxes=torch.tensor([[0, SIZE, 0, SIZE], [5, SIZE - 9, 3, SIZE]]),
        image_labels=torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]),
        seeds=torch.tensor([2 * seed, 2 * seed + 1]),
        names=("first", "second"),
    )


@pytest.mark.parametrize("materialised_attention", [False, True])
def test_the_plain_schedule_gives_our_losses_step_after_step(materialised_attention: bool) -> None:
    model = _model()
    ours = ToCoObjective(copy.deepcopy(model), **CONFIGS)
    plain = PlainTokenContrast(model, **CONFIGS, materialised_attention=materialised_attention)
    seen = {}
    for name, objective in (("ours", ours), ("plain", plain)):
        # not AdamW: where a gradient is all rounding, it would take a full step in a direction of its own
        optimizer = torch.optim.SGD((p for p in objective.model.parameters() if p.requires_grad), lr=1e-2)
        seen[name] = []
        for step in range(STEPS):
            losses = objective(_batch(step), ALL_ON)
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            objective.model.update_teacher(0.9)
            seen[name].append({"total": float(losses.total.detach())} | {k: float(v) for k, v in losses.parts.items()})
    for step in range(STEPS):
        assert set(seen["ours"][step]) == {"total", "cls", "aux_cls", "ptc", "ctc", "seg", "reg"}
        assert all(value != 0 for value in seen["ours"][step].values())
        assert seen["plain"][step] == pytest.approx(seen["ours"][step], rel=1e-5)


def test_the_plain_schedule_gives_our_gradients() -> None:
    model = _model()
    ours, plain = ToCoObjective(copy.deepcopy(model), **CONFIGS), PlainTokenContrast(model, **CONFIGS)
    for objective in (ours, plain):
        objective(_batch(0), ALL_ON).total.backward()
    for (name, own), other in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        if own.grad is None or other.grad is None:
            assert own.grad is other.grad, name
            continue
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name + text)


def test_materialised_attention_scales_the_whole_matrix_as_published_and_mixes_as_ours() -> None:
    model, images = _model().eval(), torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model(images).seg_logits
    materialise_attention(model)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        torch.testing.assert_close(model(images).seg_logits, expected, rtol=1e-4, atol=1e-5)
    tokens, heads, depth = 1 + (SIZE // 8) ** 2, 2, 4
    on_matrices = [event.key for event in seen.key_averages(group_by_input_shape=True)
                   for _ in range(event.count) if event.input_shapes[:1] == [[2, heads, tokens, tokens]]]  # fmt: skip
    assert {name: on_matrices.count(name) for name in ("aten::mul", "aten::softmax")} == {
        "aten::mul": depth, "aten::softmax": depth,
    }  # fmt: skip
    assert "aten::scaled_dot_product_attention" not in {event.key for event in seen.key_averages()}
