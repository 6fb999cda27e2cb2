"""Two processes with the same global batch train and count as one process does."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist

from tests.train.conftest import TINY_VIT
from toco_train.commands.train import main
from toco_train.config import DataConfig, ModelConfig
from toco_train.data.opening import open_source
from toco_train.distributed import gathered, global_mean, global_sum, rank, shard, world_size
from toco_train.evaluation.evaluate import Evaluation, evaluate
from toco_train.method.losses import balanced_segmentation_loss, patch_token_contrast
from toco_train.models.toco import ToCo

pytestmark = pytest.mark.slow

WORLD_SIZE = 2
STEPS = 10
PARTS = {"total", "cls", "aux_cls", "ptc", "ctc", "seg", "reg"}
RECIPE = [
    "--preset", "demo", "--model.backbone", "{image_size: 64, patch_size: 8, width: 32, depth: 4, num_heads: 2}",
    "--model.image_size", "64", "--model.decoder_channels", "16", "--contrast.local_crop_size", "24",
    "--contrast.negative_ratio", "0.9", "--regularization.scale", "1e-4", "--batch_size", "4", "--log_every", "1",
    "--optimizer.lr", "3e-4", "--data.num_workers", "0", "--steps", str(STEPS), "--evaluation.every", str(STEPS),
    "--phases", "[{from_step: 0, ptc: false, ctc: false, seg: false, reg: false}, {from_step: 3}]",
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a process has found, of several or alone."""

    losses: dict[str, Tensor]
    evaluation: Evaluation
    shares: dict[int, list[int]]
    gathered: dict[int, list[int]]
    sums: list[Tensor]


@dataclass(frozen=True)
class Outcome:
    """What the processes of a group have found, and what they trained."""

    found: list[Found]
    folder: Path

    @property
    def curve(self) -> list[dict[str, float]]:
        """The losses of each step."""
        lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [metrics["losses"] for metrics in map(json.loads, lines) if "losses" in metrics]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that training left."""
        return load_file(self.folder / "run" / "model.safetensors")


def uneven_losses() -> dict[str, Tensor]:
    """Losses and gradients of a batch whose halves hold very different numbers of pairs and pixels."""
    draw = torch.Generator().manual_seed(0)
    features, logits = torch.randn(4, 8, 3, 3, generator=draw), torch.randn(4, 3, 6, 6, generator=draw)
    affinity, labels = torch.full((4, 9, 9), 255), torch.full((4, 6, 6), 255)
    affinity[0, 0, 1] = affinity[0, 1, 0] = 0
    affinity[2:] = torch.randint(0, 2, (2, 9, 9), generator=draw)
    labels[0, 0, :2], labels[3] = 1, torch.randint(0, 3, (6, 6), generator=draw)  # no background in the first half
    share = 4 // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    found = {}
    for name, loss, values, target in (
        ("patch token contrast", patch_token_contrast, features, affinity),
        ("segmentation", balanced_segmentation_loss, logits, labels),
    ):
        own = values[mine].clone().requires_grad_()
        value = loss(own, target[mine])
        (gradient,) = torch.autograd.grad(value, own)
        found[name] = global_mean(value)
        found[f"gradient of {name}"] = torch.stack(gathered([gradient / world_size()])).flatten(0, 1)
    return found


def work(shapes: Path, folder: Path) -> Found:
    """Do everything that the tests look at as this process; training comes last, as it leaves the group."""
    source = open_source(DataConfig(path=str(shapes)), seed=0)
    torch.manual_seed(0)
    model = ToCo(ModelConfig(backbone=TINY_VIT, pretrained=False, classes=source.classes, image_size=64))
    samples = source.val[:7]
    items = {number: list(shard(range(number))) for number in (0, 1, 7, 8)}
    counts = torch.tensor([[rank() + 1, 0], [0, 10]])
    found = Found(
        losses=uneven_losses(),
        evaluation=evaluate(model, samples, scales=(1.0,), background_threshold=0.5, batch_size=1),
        shares=items,
        gathered={number: gathered([item * item for item in own]) for number, own in items.items()},
        sums=[global_sum(counts), counts, global_mean(torch.tensor([float(rank()), math.nan]))],
    )
    assert main([*RECIPE, "--data", str(shapes), "--out", str(folder / "run")]) == 0
    return found


def process(index: int, shapes: Path, folder: Path) -> None:
    """Be one of several processes, as ``torchrun`` makes them, and leave what was found."""
    torch.set_num_threads(1)
    number = str(WORLD_SIZE)
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=index, world_size=WORLD_SIZE)
    torch.save(work(shapes, folder), folder / f"{index}.pt")


@pytest.fixture(scope="module")
def together(_shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What two processes do together."""
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.spawn(process, args=(_shapes_folder, folder), nprocs=WORLD_SIZE)
    found = [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(WORLD_SIZE)]
    return Outcome(found, folder)


@pytest.fixture(scope="module")
def alone(_shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What one process does alone."""
    folder = tmp_path_factory.mktemp("alone")
    return Outcome([work(_shapes_folder, folder)], folder)


def test_two_processes_have_the_loss_curve_of_one(alone: Outcome, together: Outcome) -> None:
    ours, theirs = together.curve, alone.curve
    assert [set(losses) for losses in ours] == [{"total", "cls", "aux_cls"}] * 3 + [PARTS] * (STEPS - 3)
    assert all(loss != 0 for losses in ours for loss in losses.values())
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-5)


def test_two_processes_end_with_the_weights_of_one(alone: Outcome, together: Outcome) -> None:
    ours, theirs = together.weights, alone.weights
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # the median: AdamW takes whole steps, 3e-4 either way, where a gradient is nothing but rounding
        assert (ours[name] - weight).abs().median() < 1e-6, name


@pytest.mark.parametrize("name", ["patch token contrast", "segmentation"])
def test_losses_divide_by_the_counts_of_all_processes(alone: Outcome, together: Outcome, name: str) -> None:
    expected, gradient = (alone.found[0].losses[key] for key in (name, f"gradient of {name}"))
    for found in together.found:
        assert found.losses[name].item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(found.losses[f"gradient of {name}"], gradient, rtol=1e-5, atol=1e-8)


def test_an_evaluation_counts_each_image_once(alone: Outcome, together: Outcome) -> None:
    expected = alone.found[0].evaluation
    assert expected.num_images == 7
    assert expected.confusion[0].sum() > 0
    for found in together.found:
        assert torch.equal(found.evaluation.confusion, expected.confusion)
        assert found.evaluation.image_iou == pytest.approx(expected.image_iou, rel=1e-12, nan_ok=True)
        assert found.evaluation.seg.iou == pytest.approx(expected.seg.iou, rel=1e-12, nan_ok=True)
        assert found.evaluation.cls.average_precision == pytest.approx(expected.cls.average_precision, nan_ok=True)
        assert found.evaluation.token_similarity == pytest.approx(expected.token_similarity, rel=1e-6)


def test_shares_are_uneven_rather_than_padded(alone: Outcome, together: Outcome) -> None:
    assert alone.found[0].shares[7] == [0, 1, 2, 3, 4, 5, 6]
    assert [found.shares[7] for found in together.found] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [found.shares[1] for found in together.found] == [[0], []]
    assert [found.shares[0] for found in together.found] == [[], []]


def test_results_of_shares_come_back_in_order(alone: Outcome, together: Outcome) -> None:
    squares = {number: [item * item for item in range(number)] for number in (0, 1, 7, 8)}
    assert [found.gathered for found in alone.found + together.found] == [squares] * 3


def test_sums_are_over_all_processes_and_leave_what_was_given(alone: Outcome, together: Outcome) -> None:
    assert [found.sums[0].tolist() for found in together.found] == [[[3, 0], [0, 20]]] * 2
    assert [found.sums[1].tolist() for found in together.found] == [[[1, 0], [0, 10]], [[2, 0], [0, 10]]]
    assert alone.found[0].sums[0].tolist() == [[1, 0], [0, 10]]


def test_a_number_that_is_not_finite_anywhere_is_seen_everywhere(together: Outcome) -> None:
    for found in together.found:
        assert found.sums[2][0] == 0.5
        assert found.sums[2][1].isnan()
