"""Batches that hold nothing to learn from, through a whole training step: every number stays finite."""

import pytest
import torch

from tests.train.conftest import tiny_config
from tests.train.small_runs import make_small
from toco_train.config import CamConfig, ContrastConfig, LossWeights, OptimizerConfig, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.method.objective import ToCoObjective
from toco_train.models.toco import ToCo
from toco_train.training.optimizer import build_optimizer

SIZE = 64
WHOLE = [[0, SIZE, 0, SIZE]] * 2
NOTHING = [[0, 0, 0, 0]] * 2
EVERYTHING = Phase(from_step=0)
ALL_LOSSES = {"cls", "aux_cls", "ptc", "ctc", "seg", "reg"}


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        yield


def objective_of(classes="abcde", **cam):
    torch.manual_seed(0)
    return ToCoObjective(
        ToCo(tiny_config(classes=tuple(classes))),
        cam=CamConfig(**cam),
        contrast=ContrastConfig(num_local_crops=3, local_crop_size=32),
        regularization=RegularizationConfig(scale=1e-4),
        weights=LossWeights(),
    )


def batch_of(labels, boxes=WHOLE, pixels=None):
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(256, (3, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    if pixels is not None:
        views = torch.full_like(views, pixels)
    return Batch(*views, torch.tensor(boxes), torch.tensor(labels), torch.tensor([5, 6]), ("first", "second"))


def take_a_step(objective, batch, phase=EVERYTHING, autocast=False):
    """Train one step; check that losses, gradients and weights are finite, and return the losses."""
    optimizer = build_optimizer(objective.model, OptimizerConfig(lr=1e-3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = objective(batch, phase)
    losses.total.backward()
    optimizer.step()
    assert set(losses.parts) == ALL_LOSSES
    assert all(loss.isfinite() for loss in (losses.total, *losses.parts.values())), losses
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert all(weight.isfinite().all() for weight in objective.state_dict().values())
    return {name: float(loss) for name, loss in losses.parts.items()}


FIVE = [[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]]
NO_CLASS = [[0.0] * 5] * 2
CASES = {
    "all padding": (FIVE, NOTHING, 0),
    "no class at all": (NO_CLASS, WHOLE, None),
    "no class and all padding": (NO_CLASS, NOTHING, 0),
    "one image of padding, one without a class": (
        [[0.0, 1.0, 0.0, 0.0, 1.0], [0.0] * 5],
        [[0, 0, 0, 0], WHOLE[0]],
        None,
    ),
    "every class": ([[1.0] * 5] * 2, WHOLE, None),
    "one pixel of image": (FIVE, [[5, 6, 7, 8]] * 2, 0),
    "pixels all alike": (FIVE, WHOLE, 128),
}


@pytest.mark.parametrize("pseudo_label", ["cam", "aux_cam"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_step_on_images_with_little_to_learn_from_is_finite(case, autocast, pseudo_label):
    labels, boxes, pixels = CASES[case]
    phase = Phase(from_step=0, pseudo_label=pseudo_label)
    parts = take_a_step(objective_of(), batch_of(labels, boxes, pixels), phase, autocast)
    if "padding" in case and "one image" not in case:
        assert parts["seg"] == 0, "no pixel has a label"
        assert parts["ptc"] == 0.5, "no pair of tokens is known"


def test_a_data_set_of_one_class_is_finite():
    take_a_step(objective_of(classes="a"), batch_of([[1.0], [1.0]]))
    take_a_step(objective_of(classes="a"), batch_of([[1.0], [0.0]]))


def test_no_foreground_above_the_threshold_is_finite():
    take_a_step(objective_of(low=0.25, high=1.0), batch_of(FIVE))


def test_crops_in_which_every_pixel_is_ignored_are_finite(monkeypatch):
    ignored = torch.full((2, SIZE, SIZE), 255)
    monkeypatch.setattr("toco_train.method.objective.refine_label", lambda *_, **__: ignored)
    monkeypatch.setattr(
        "toco_train.method.objective.three_way_label", lambda *_: torch.full((2, SIZE // 16, SIZE // 16), 255)
    )
    parts = take_a_step(objective_of(), batch_of(FIVE))
    assert parts["seg"] == 0
    assert parts["ptc"] == 0.5
