"""What only a GPU can show: the same numbers as on the CPU, and half precision that does no harm."""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toco_export.config import ExportConfig, resolve_profile
from toco_export.graph import ServedModel, exported_model
from toco_export.onnx.file import export_onnx
from toco_export.onnx.fp16_bf16 import convert
from toco_export.onnx.reduced import reduced_model
from toco_export.tensorrt.builder import build_engine
from toco_train.config import (
    CamConfig,
    ContrastConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    Phase,
    RegularizationConfig,
    ViTSpec,
)
from toco_train.data.loader import Batch
from toco_train.method.losses import dense_energy_loss
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.models.toco import ToCo
from toco_train.training.cuda_graph import GraphedStep
from toco_train.training.optimizer import build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SERVED_CODE = Path(__file__).parents[2] / "triton_models/toco/1/model.py"
SIZE = 64
CONFIG = ModelConfig(
    backbone=ViTSpec(image_size=SIZE, patch_size=8, width=64, depth=4, num_heads=4),
    pretrained=False,
    classes=("a", "b", "c"),
    image_size=SIZE,
    decoder_channels=64,
    decoder_dilation=2,
)
COLOURS = torch.tensor([[128, 128, 128], [220, 40, 40], [40, 200, 40], [50, 60, 230]])


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Turn TF32 off, for products and for convolutions, where it is on by default."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _model() -> ToCo:
    torch.manual_seed(0)
    return ToCo(CONFIG)


def _objective(device: torch.device) -> ToCoObjective:
    objective = ToCoObjective(
        _model(),
        cam=CamConfig(),
        contrast=ContrastConfig(num_local_crops=4, local_crop_size=24, negative_ratio=0.9),
        regularization=RegularizationConfig(scale=1e-4),
        weights=LossWeights(),
    )
    return objective.to(device)


def _batch(device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    view1, view2, local = torch.randint(256, (3, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[0, SIZE, 0, SIZE], [5, SIZE - 9, 3, SIZE]])
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    batch = Batch(
        view1, view2, local, boxes=boxes, image_labels=labels, seeds=torch.arange(2), names=("first", "second")
    )
    return batch.to(device)


def _numbers(losses: Losses) -> dict[str, float]:
    return {"total": float(losses.total.detach())} | {name: float(loss) for name, loss in losses.parts.items()}


def _colour_blocks(generator: torch.Generator, number: int) -> tuple[Tensor, Tensor]:
    """Noisy blocks of four colours, uint8 ``[B, H, W, 3]``, and the colour of each pixel, int64 ``[B, H, W]``."""
    labels = torch.randint(len(COLOURS), (number, SIZE // 16, SIZE // 16), generator=generator)
    labels = labels.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    noise = 12 * torch.randn((number, SIZE, SIZE, 3), generator=generator)
    return (COLOURS[labels] + noise).clamp(0, 255).to(torch.uint8).to(GPU), labels.to(GPU)


def _fit_to_colours() -> ToCo:
    """Teach a network that the label is the colour, so that its classes are not tied as those of random weights."""
    generator, model = torch.Generator().manual_seed(0), _model().to(GPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mean, std = (torch.tensor(values, device=GPU).view(1, 3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    for _ in range(80):
        images, labels = _colour_blocks(generator, 8)
        logits = model.segment((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)
        loss = F.cross_entropy(F.interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5, f"the network of this test did not learn: {loss.item()}"
    return model.eval()


def test_a_step_on_the_gpu_gives_the_losses_of_the_cpu() -> None:
    on_cpu, on_gpu = (_numbers(_objective(device)(_batch(device), Phase(from_step=0))) for device in (CPU, GPU))
    assert set(on_gpu) == {"total", "cls", "aux_cls", "ptc", "ctc", "seg", "reg"}
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_a_step_does_not_make_the_host_wait_for_the_gpu() -> None:
    objective, batch = _objective(GPU), replace(_batch(GPU), max_classes=2)
    optimizer = build_optimizer(objective.model, OptimizerConfig())

    def step() -> None:
        objective(batch, Phase(from_step=0)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.model.update_teacher(0.9)

    step()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_is_replayed_as_a_graph_gives_losses_and_weights_of_one_that_is_not() -> None:
    phases = [Phase(from_step=0, seg=False, reg=False)] * 3 + [Phase(from_step=3)] * 4
    taken: dict[bool, Any] = {False: [], True: []}
    weights = {}
    for graphed, numbers in taken.items():
        objective = _objective(GPU)
        optimizer = build_optimizer(objective.model, OptimizerConfig())

        def take(batch: Batch, phase: Phase, objective: ToCoObjective = objective) -> Losses:
            losses = objective(batch, phase)
            losses.total.backward()
            return replace(losses, total=losses.total.detach())

        step = GraphedStep(take, objective.model.parameters()) if graphed else take
        for number, phase in enumerate(phases):
            batch = _batch(GPU)
            batch = replace(batch, view1=batch.view1.roll(number, dims=-1), max_classes=2)
            losses = step(batch, phase)
            optimizer.step()
            optimizer.zero_grad()
            objective.model.update_teacher(0.9)
            numbers.append(losses)
        taken[graphed] = [_numbers(losses) for losses in numbers]  # read last: a later step must not change them
        weights[graphed] = {name: value.clone() for name, value in objective.model.state_dict().items()}
    for plain, replayed in zip(taken[False], taken[True], strict=True):
        assert replayed == pytest.approx(plain, rel=1e-4)
    assert len({numbers["total"] for numbers in taken[True]}) == len(phases)
    torch.testing.assert_close(weights[True], weights[False], rtol=1e-3, atol=1e-5)


def test_a_step_in_bf16_leaves_finite_losses_and_weights() -> None:
    objective = _objective(GPU)
    optimizer = build_optimizer(objective.model, OptimizerConfig())
    before = copy.deepcopy(objective.model.state_dict())
    with torch.autocast("cuda", torch.bfloat16):
        losses = objective(_batch(GPU), Phase(from_step=0))
    losses.total.backward()
    optimizer.step()
    assert all(torch.isfinite(torch.tensor(value)) for value in _numbers(losses).values())
    after = objective.model.state_dict()
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_the_fp16_graph_gives_the_labels_of_fp32() -> None:
    model = _fit_to_colours()
    full, half = ServedModel(model).to(GPU), ServedModel(reduced_model(model, "fp16")).to(GPU)
    images, labels = _colour_blocks(torch.Generator().manual_seed(1), 16)
    with torch.inference_mode():
        (mask, confidence), (half_mask, half_confidence) = full(images), half(images)
    assert (mask == labels).float().mean() > 0.8  # it has learnt something to agree on
    assert (mask == half_mask).float().mean() >= 0.99
    assert (confidence.int() - half_confidence.int()).abs().float().mean() < 2


@pytest.mark.skipif(
    torch.cuda.is_available() and "RTX" not in torch.cuda.get_device_name(), reason="TensorRT-RTX is for RTX GPUs"
)
def test_the_served_model_answers_by_its_rtx_engine_what_pytorch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _fit_to_colours()
    images, _ = _colour_blocks(torch.Generator().manual_seed(1), 6)
    with torch.inference_mode():
        expected = [tensor.cpu().numpy() for tensor in ServedModel(model)(images)]
    onnx_file, engine = tmp_path / "model.fp16.onnx", tmp_path / "model.fp16.rtx"
    fp32_file = tmp_path / "model.onnx"
    export_onnx(ServedModel(exported_model(model.cpu())).eval(), fp32_file)
    convert(model, "fp16", fp32_file, onnx_file, ranges={})
    profile, _ = resolve_profile(ExportConfig(), model.patch_size, model.sizes)
    build_engine(onnx_file, engine, profile, target="tensorrt-rtx", progress=lambda _: None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    session = runpy.run_path(str(SERVED_CODE))["RtxSession"](engine, 0)
    for batch in (slice(0, 1), slice(0, 6), slice(3, 5)):
        mask, confidence = session.run(("mask", "confidence"), {"image": images[batch].cpu().numpy()})
        assert (mask == expected[0][batch]).mean() >= 0.99
        assert np.abs(confidence.astype(int) - expected[1][batch]).mean() < 2


def test_the_dense_energy_and_its_gradient_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand((2, 3, SIZE, SIZE), generator=generator)
    probabilities = torch.randn((2, 4, SIZE, SIZE), generator=generator).softmax(dim=1)
    labels = torch.randint(2, (2, SIZE, SIZE), generator=generator) * 255
    valid = torch.ones(2, SIZE, SIZE)
    valid[1, :, 40:] = 0
    energies, gradients = [], []
    for device in (CPU, GPU):
        leaf = probabilities.to(device).detach().requires_grad_()
        energy = dense_energy_loss(images.to(device), leaf, labels.to(device), valid.to(device))
        energy.backward()
        assert leaf.grad is not None
        energies.append(energy.item())
        gradients.append(leaf.grad.cpu())
    assert energies[1] == pytest.approx(energies[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


def test_the_refinement_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand((2, 3, 40, 56), generator=generator), torch.rand((2, 5, 40, 56), generator=generator)
    refinement = PixelAdaptiveRefinement()
    on_cpu = refinement(images, maps)
    on_gpu = refinement.to(GPU)(images.to(GPU), maps.to(GPU)).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)
