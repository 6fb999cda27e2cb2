"""A training step is a function of weights and batch, and of nothing else."""

import copy
from dataclasses import replace

import torch

from tests.train.conftest import tiny_config
from toco_train.config import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.method.objective import ToCoObjective
from toco_train.models.toco import ToCo


def objective():
    torch.manual_seed(0)
    return ToCoObjective(
        ToCo(tiny_config(decoder_channels=16)),
        cam=CamConfig(),
        contrast=ContrastConfig(num_local_crops=4, local_crop_size=32, negative_ratio=0.9),
        regularization=RegularizationConfig(scale=1e-4),
        weights=LossWeights(),
    ).train()


def batch():
    view1, view2, local = torch.randint(256, (3, 2, 3, 64, 64), dtype=torch.uint8)
    return Batch(
        view1=view1,
        view2=view2,
        local=local,
        boxes=torch.tensor([[0, 64, 0, 64], [5, 50, 3, 64]]),
        image_labels=torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]),
        seeds=torch.tensor([5, 6]),
        names=("first", "second"),
    )


def test_a_step_reads_no_generator_and_leaves_none_changed():
    images, first = batch(), objective()
    second = copy.deepcopy(first)
    found = []
    for seed, own in enumerate((first, second)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        losses = own(images, Phase(from_step=0))
        losses.total.backward()
        assert torch.equal(torch.get_rng_state(), state)
        gradients = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
        found.append({"total": losses.total.detach()} | losses.parts | gradients)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_seeds_of_a_batch_decide_its_local_crops_and_nothing_else():
    images, step = batch(), objective()
    ours, others = (step(own, Phase(from_step=0)).parts for own in (images, replace(images, seeds=images.seeds + 9)))
    assert ours["ctc"] != others["ctc"]
    assert all(torch.equal(ours[name], others[name]) for name in ours.keys() - {"ctc"})
