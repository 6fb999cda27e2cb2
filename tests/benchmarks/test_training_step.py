"""The benchmark of a step measures what it says."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from benchmarks import training_step
from benchmarks.cases.training_run import TrainingRun, Variant, noise_batch, phase_flops
from benchmarks.harness.provenance import provenance
from tests.train.small_runs import give_a_small_projection
from toco_core.memory import peak_memory
from toco_train.config import TrainConfig, ViTSpec
from toco_train.kernels.token_linear import TokenLinear
from toco_train.models.toco import ToCo

CPU = torch.device("cpu")
PHASES = {"forward", "CAM", "PAR and label", "dense energy", "other losses", "backward", "optimiser"}


def _small() -> TrainConfig:
    recipe = training_step.recipe("demo", size=64, batch=2)
    vit = ViTSpec(image_size=32, patch_size=8, width=24, depth=3, num_heads=2)
    model = recipe.model.model_copy(update={"backbone": vit, "decoder_channels": 8, "image_size": 32})
    contrast = recipe.contrast.model_copy(update={"local_crop_size": 16, "num_local_crops": 2})
    return recipe.model_copy(update={"model": model, "contrast": contrast})


def test_the_phases_hold_every_operation_of_a_step_and_ours_has_fewer_than_the_plain_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_a_small_projection(monkeypatch)
    config = _small()
    model, batch = ToCo(config.model), noise_batch(config, CPU)
    ours, plain = (phase_flops(schedule, config, model, batch) for schedule in ("ours", "plain"))
    assert set(ours) == PHASES
    assert ours["CAM"] > 0
    assert 1.5 < ours["backward"] / ours["forward"] < 2.5  # each product has two in its gradient
    assert ours["optimiser"] == 0
    assert sum(ours.values()) < sum(plain.values())


def test_a_step_changes_weights_and_teacher_and_the_variant_is_what_it_says() -> None:
    config = _small()
    run = TrainingRun(Variant("ours", "fp32", activation_checkpointing=True), config, ToCo(config.model),
                      noise_batch(config, CPU))  # fmt: skip
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.step()
    run.step()  # the teacher follows a student that has moved
    after = run.model.state_dict()
    assert run.model.backbone.activation_checkpointing
    for name in ("classifier.weight", "backbone.vit.blocks.0.mlp.fc1.weight", "teacher_projection.mlp.0.weight"):
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(("name", "convolves"), [
    ("plain-fp32", False), ("plain-materialised-fp32", False), ("plain-fp32-onednn", True), ("ours-fp32", True),
])  # fmt: skip
def test_only_what_is_called_plain_alone_has_the_linear_layers_of_pytorch(name: str, convolves: bool) -> None:
    config = _small()
    run = TrainingRun(training_step.VARIANTS[name], config, ToCo(config.model), noise_batch(config, CPU))
    layers = [layer for layer in run.model.modules() if isinstance(layer, TokenLinear)]
    assert len(layers) == 4 * 3
    assert {layer.convolves for layer in layers} == {convolves}


def test_every_device_gets_rows_that_differ_on_it() -> None:
    on_cpu, on_gpu = (
        {name for name, variant in training_step.VARIANTS.items() if variant.suits(torch.device(device))}
        for device in ("cpu", "cuda")
    )
    assert "ours-bf16" not in on_cpu
    assert on_cpu - on_gpu == {"plain-fp32-onednn"}


def test_the_report_holds_every_variant_and_phase() -> None:
    names = ["plain-fp32", "ours-fp32"]
    result = training_step.measure(names, _small(), CPU, repeats=2, processes=2)
    assert list(result["variants"]) == names
    assert not result["left_out"]
    for found in result["variants"].values():
        assert len(found["seconds"]) == found["speed"]["count"] == 2 * 2
        assert found["time_s"]["low"] <= found["time_s"]["median"] <= found["time_s"]["high"]
        assert 2**26 < found["memory_bytes"] < 2**34  # a process with PyTorch, and not the bytes of one in kilobytes
    assert result["variants"]["plain-fp32"]["speed"]["median"] == 1
    assert set(result["phases"]) == {"ours-fp32"}
    assert set(result["phases"]["ours-fp32"]) == PHASES
    assert result["images_per_second_per_loading_process"] > 0
    text = training_step.as_markdown(result | {"provenance": provenance(CPU, "benchmarks.x", [])})
    for word in ("| plain-fp32 |", "| ours-fp32 |", "phase of ours-fp32", "PAR and label", "images a second"):
        assert word in text


def test_a_child_does_not_count_what_its_parent_held() -> None:
    held = np.ones(2**27)  # 1 GiB
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        alone = pool.apply(peak_memory)
    assert held.nbytes / 2 < peak_memory() - alone
