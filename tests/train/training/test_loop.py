"""What a run does from step to step: its losses, phases and teacher, read from what it leaves on disk."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.train.method.literal_step import Settings, literal_losses
from tests.train.small_runs import make_small, metrics, small_shapes, tensors, train
from toco_train.config import LossWeights, load_config
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import training_batches
from toco_train.data.opening import open_source
from toco_train.models.published_weights import _published_name

STEPS = 6
MOMENTUM = 0.8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a phase for every two steps, and the checkpoint of every step."""
    folder = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        status = train(
            small_shapes(folder / "data"),
            folder / "run",
            steps=STEPS,
            phases="[{from_step: 0, pseudo_label: aux_cam}, {from_step: 2}, {from_step: 4, seg: false, ctc: false}]",
            checkpoint__keep=STEPS,
            evaluation__every=STEPS,
            contrast__momentum=MOMENTUM,
            regularization__scale=1e-3,
            optimizer__warmup_steps=0,
        )
    assert status == 0
    return folder / "run"


def model_after(run, step):
    """Return the network's tensors in the checkpoint of a step."""
    checkpoint = tensors(run / "checkpoints" / f"step_{step:07d}.safetensors")
    return {name.removeprefix("model."): value for name, value in checkpoint.items() if name.startswith("model.")}


def test_the_teacher_is_the_moving_average_of_the_student_at_every_step(run):
    for before, after in itertools.pairwise(model_after(run, step) for step in range(1, STEPS + 1)):
        teacher = [name for name in after if name.startswith("teacher_projection.") and "original0" not in name]
        moved = 0
        for name in teacher:
            student = after[name.removeprefix("teacher_")]
            expected = MOMENTUM * before[name] + (1 - MOMENTUM) * student
            torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-8)
            moved += not torch.equal(after[name], before[name])
        assert len(teacher) == moved == 7, "three linear layers and the directions of the last"


def test_the_losses_of_a_run_are_those_of_the_plain_formulae_on_its_weights_and_batches_in_each_phase(run):
    config = load_config(None, run / "config.yaml", {})
    source = open_source(config.data, seed=config.seed)
    batches = training_batches(
        source,
        Augmentation(config.augmentation, config.model.image_size),
        batch_size=config.batch_size,
        num_workers=0,
        seed=config.seed,
        start_step=1,
    )
    logged = {line["step"]: line for line in metrics(run) if "losses" in line}
    off = {5: {"seg", "ctc"}, 6: {"seg", "ctc"}}
    for step, batch in zip(range(2, STEPS + 1), batches, strict=False):
        names = {"cls", "aux_cls", "ptc", "ctc", "seg", "reg"} - off.get(step, set())
        settings = Settings(
            num_heads=2,
            mean=config.model.mean,
            std=config.model.std,
            loss_weights={
                name: getattr(config.weights, name) if name in names else 0.0 for name in LossWeights.model_fields
            },
            **config.contrast.model_dump(exclude={"momentum"}),
            **config.cam.model_dump(include={"scales", "low", "high"}),
            **config.regularization.model_dump(include={"sigma_rgb", "sigma_xy"}),
            energy_scale=config.regularization.scale,
            decoder_dilation=config.model.decoder_dilation,
            seg_from="aux_cam" if step <= 2 else "cam",
        )
        weights = {_published_name(name): value.double() for name, value in model_after(run, step - 1).items()}
        trained = [name for name in weights if not name.startswith("proj_head_t.") and not name.endswith("weight_g")]
        losses = literal_losses({n: v.requires_grad_(n in trained) for n, v in weights.items()}, vars(batch), settings)
        expected = {name: losses[name].item() for name in ("total", *names)}
        assert logged[step]["losses"] == pytest.approx(expected, rel=1e-3), step
        gradients = torch.autograd.grad(losses["total"], [weights[name] for name in trained], allow_unused=True)
        norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
        assert logged[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-3), step
