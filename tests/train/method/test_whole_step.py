"""A whole training step against the plain formulae in float64; switching off any part of it is noticed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.conftest import drawn_weights, published_shapes, relative_error, tiny_config
from tests.train.method import literal_step
from tests.train.method.literal_step import Settings, literal_losses
from toco_train.config import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.method import objective as step_module
from toco_train.method.cam import MaskedCam
from toco_train.method.objective import ToCoObjective
from toco_train.models.published_weights import _published_name, load_published_weights
from toco_train.models.toco import ToCo

SIZE, PATCH, LEARNING_RATE, MOMENTUM = 64, 16, 0.2, 0.7
MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.25, 0.3)
LOSSES = ("cls", "aux_cls", "ptc", "ctc", "seg", "reg")
# Nothing is at its default, so that a setting that is not read is noticed.
WEIGHTS = LossWeights(cls=0.9, aux_cls=1.2, ptc=0.4, ctc=0.6, seg=0.5, reg=0.3)
CAM = CamConfig(scales=(1.0, 0.5, 2.0), low=0.3, high=0.55)
CONTRAST = ContrastConfig(temperature=0.8, momentum=MOMENTUM, num_local_crops=5, local_crop_size=32, negative_ratio=0.9)
ENERGY = RegularizationConfig(sigma_rgb=30.0, sigma_xy=40.0, scale=1e-3)
PHASE = Phase(from_step=0)
SETTINGS = Settings(
    num_heads=3,
    mean=MEAN,
    std=STD,
    loss_weights=WEIGHTS.model_dump(),
    scales=CAM.scales,
    low=CAM.low,
    high=CAM.high,
    temperature=CONTRAST.temperature,
    num_local_crops=CONTRAST.num_local_crops,
    local_crop_size=CONTRAST.local_crop_size,
    negative_ratio=CONTRAST.negative_ratio,
    sigma_rgb=ENERGY.sigma_rgb,
    sigma_xy=ENERGY.sigma_xy,
    energy_scale=ENERGY.scale,
)


def the_batch() -> Batch:
    """Three images: two classes, one class and a border of padding on every side, and no class at all."""
    generator = np.random.default_rng(7)  # no value within 1e-5 of a threshold: rounding moves no label
    coarse = torch.from_numpy(generator.uniform(0, 255, (9, 3, 6, 6)).astype(np.float32))
    noise = torch.from_numpy(generator.normal(0, 4, (9, 3, SIZE, SIZE)).astype(np.float32))
    smooth = F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    views = (smooth + noise).clamp(0, 255).to(torch.uint8).view(3, 3, 3, SIZE, SIZE)
    return Batch(
        *views,
        boxes=torch.tensor([[0, SIZE, 0, SIZE], [5, 61, 3, 59], [0, SIZE, 0, 40]]),
        image_labels=torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 5]),
        seeds=torch.tensor([5, 2**62, 7]),
        names=("two classes", "padded", "no class"),
        max_classes=2,
    )


@functools.cache
def the_weights() -> dict[str, Tensor]:
    return drawn_weights(published_shapes(48, PATCH, 4, 4, 6))


@functools.cache
def the_network() -> ToCo:
    """The tiny network of the golden file."""
    model = ToCo(tiny_config(mean=MEAN, std=STD))
    load_published_weights(model, the_weights())
    return model


def the_objective(**changes: object) -> ToCoObjective:
    parts = {"cam": CAM, "contrast": CONTRAST, "regularization": ENERGY, "weights": WEIGHTS} | changes
    return ToCoObjective(copy.deepcopy(the_network()), **parts).train()


def two_steps(objective: ToCoObjective, batch: Batch, phase: Phase = PHASE) -> dict[str, Tensor]:
    """Return the losses and gradients of a step, and the losses of the next, after a plain move of the weights."""
    model = objective.model
    losses = objective(batch, phase)
    losses.total.backward()
    found = {"total": losses.total.detach(), **losses.parts}
    found |= {f"gradient {_published_name(n)}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(LEARNING_RATE * parameter.grad)
    model.update_teacher(MOMENTUM)
    with torch.no_grad():
        later = objective(batch, phase)
    return found | {f"next {name}": loss for name, loss in {"total": later.total, **later.parts}.items()}


def literal_weights() -> dict[str, Tensor]:
    return {name: value.double() for name, value in the_weights().items()}


def is_trained(name: str) -> bool:
    return not name.startswith(("encoder.head", "proj_head_t.")) and not name.endswith(("pos_embed", "weight_g"))


def two_literal_steps(settings: Settings) -> dict[str, Tensor]:
    weights = {name: value.requires_grad_(is_trained(name)) for name, value in literal_weights().items()}
    fields = vars(the_batch())
    losses = literal_losses(weights, fields, settings)
    losses["total"].backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    found |= {f"gradient {name}": value.grad for name, value in weights.items() if value.requires_grad}
    moved = {
        name: (value - LEARNING_RATE * value.grad if value.requires_grad else value).detach()
        for name, value in weights.items()
    }
    with torch.no_grad():
        later = literal_losses(literal_step.moved_teacher(moved, MOMENTUM), fields, settings)
    return found | {f"next {name}": loss for name, loss in later.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return two_literal_steps(SETTINGS)


def different(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> set[str]:
    """Return the names of the values that differ by more than rounding."""
    return {name for name, value in ours.items() if relative_error(value, expected[name]) > tolerance}


def test_losses_and_gradients_of_two_steps_are_those_of_the_plain_formulae(expected):
    ours = two_steps(the_objective(), the_batch())
    assert ours.keys() == expected.keys()
    assert different(ours, expected) == set()
    assert all(value.abs().max() > 0 for value in expected.values()), "nothing is compared with zero"


def test_the_segmentation_learns_from_the_map_that_the_phase_names():
    settings, phase = replace(SETTINGS, seg_from="aux_cam"), Phase(from_step=0, pseudo_label="aux_cam")
    with torch.no_grad():
        theirs = literal_losses(literal_weights(), vars(the_batch()), settings)
        ours = the_objective()(the_batch(), phase)
    assert different({"total": ours.total, **ours.parts}, theirs) == set()


@dataclass
class Step:
    """A step that a sabotage may change before it is taken."""

    monkeypatch: pytest.MonkeyPatch
    objective: ToCoObjective
    batch: Batch
    phase: Phase = PHASE

    def configure(self, **changes: object) -> None:
        self.objective = the_objective(**changes)

    def feed(self, **changes: object) -> None:
        self.batch = replace(self.batch, **changes)

    def wrap(self, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put something else in the place of a function that the objective calls."""
        self.monkeypatch.setattr(step_module, name, change(getattr(step_module, name)))

    def ignore_boxes_in(self, name: str) -> None:
        """Take all pixels for image in one function that reads the CAM."""

        def change(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Tensor:
                return function(*(replace(a, inside=a.inside | True) if isinstance(a, MaskedCam) else a for a in args))

            return call

        self.wrap(name, change)

    def losses(self) -> dict[str, Tensor]:
        with torch.no_grad():
            losses = self.objective(self.batch, self.phase)
        return {"total": losses.total, **losses.parts}


WHOLE = torch.tensor([[0, SIZE, 0, SIZE]] * 3)
_max_pool = F.max_pool2d
LABELS = {"ptc", "seg", "reg"}  # of the CAM, the local crops see regions alone, and small changes leave these
SABOTAGES: dict[str, tuple[Callable[[Step], None], set[str]]] = {
    # parts of the wiring, and the losses that must change without them
    "normalisation": (lambda s: s.monkeypatch.setattr(ToCoObjective, "normalize", lambda _, x: x / 255), {*LOSSES}),
    "flipped images in the CAM": (lambda s: s.monkeypatch.setattr(Tensor, "flip", lambda x, *_: x), LABELS),
    "scales of the CAM": (lambda s: s.configure(cam=CAM.model_copy(update={"scales": (1.0,)})), LABELS),
    "low threshold": (lambda s: s.configure(cam=CAM.model_copy(update={"low": 0.1})), LABELS | {"ctc"}),
    "high threshold": (lambda s: s.configure(cam=CAM.model_copy(update={"high": 0.9})), LABELS | {"ctc"}),
    "aux CAM for PTC and CTC": (
        lambda s: s.wrap("multi_scale_cam", lambda f: lambda *a, **k: [f(*a, **k)[0]] * 2),
        {"ptc", "ctc"},
    ),
    "CAM for the segmentation": (
        lambda s: s.wrap("multi_scale_cam", lambda f: lambda *a, **k: [f(*a, **k)[1]] * 2),
        {"seg", "reg"},
    ),
    "phase's choice of the CAM": (
        lambda s: setattr(s, "phase", Phase(from_step=0, pseudo_label="aux_cam")),
        {"seg", "reg"},
    ),
    "classes of the tags": (
        lambda s: s.wrap("present_classes", lambda f: lambda labels, _: f(labels.roll(1, 1), 2)),
        LABELS | {"ctc"},
    ),
    "boxes": (lambda s: s.feed(boxes=WHOLE), {"ptc", "seg", "reg"}),
    "boxes in PTC": (lambda s: s.ignore_boxes_in("three_way_label"), {"ptc"}),
    "boxes in the pseudo label": (lambda s: s.ignore_boxes_in("refine_label"), {"seg"}),
    "boxes in the dense energy": (
        lambda s: s.wrap(
            "dense_energy_loss", lambda f: lambda i, p, lab, v, **k: f(i, p, lab, torch.ones_like(v), **k)
        ),
        {"reg"},
    ),
    "boxes in whole tokens": (
        lambda s: s.monkeypatch.setattr(F, "max_pool2d", lambda x, side: -_max_pool(-x, side)),
        {"ptc"},
    ),
    "unknown pairs of PTC": (
        lambda s: s.wrap("token_affinity", lambda f: lambda labels: f(labels).clamp(max=1)),
        {"ptc"},
    ),
    "view 2": (lambda s: s.feed(view2=s.batch.view1), {"ctc"}),
    "rendering of the local crops": (lambda s: s.feed(local=s.batch.view1), {"ctc"}),
    "seeds of the local crops": (lambda s: s.feed(seeds=s.batch.seeds + 1), {"ctc"}),
    "negatives": (
        lambda s: s.wrap("local_crops", lambda f: lambda *a, **k: (f(*a, **k)[0], torch.ones(3, 5, dtype=torch.bool))),
        {"ctc"},
    ),
    "regions of the local crops": (lambda s: s.wrap("roi_mask", lambda f: lambda *a: f(*a) * 0), {"ctc"}),
    "teacher's own weights": (
        lambda s: s.monkeypatch.setattr(s.objective.model, "teacher_projection", s.objective.model.projection),
        {"ctc"},
    ),
    "PAR": (lambda s: s.monkeypatch.setattr(s.objective.refinement, "forward", lambda _, maps: maps), {"seg", "reg"}),
    "size of the logits": (
        lambda s: s.wrap("balanced_segmentation_loss", lambda f: lambda x, y: f(x.roll(1, -1), y)),
        {"seg"},
    ),
    "colours of the dense energy": (
        lambda s: s.wrap("dense_energy_loss", lambda f: lambda i, *a, **k: f(i / 255, *a, **k)),
        {"reg"},
    ),
    "gate of labelled pixels": (
        lambda s: s.wrap("dense_energy_loss", lambda f: lambda i, p, lab, *a, **k: f(i, p, lab * 0 + 255, *a, **k)),
        {"reg"},
    ),
    "gate of pixels labelled 255": (
        lambda s: s.wrap("dense_energy_loss", lambda f: lambda i, p, lab, *a, **k: f(i, p, lab * 0, *a, **k)),
        {"reg"},
    ),
}
for _setting in ("temperature", "num_local_crops", "local_crop_size", "negative_ratio"):
    _default = {_setting: getattr(ContrastConfig(num_local_crops=3, local_crop_size=16), _setting)}
    SABOTAGES[_setting] = (lambda s, d=_default: s.configure(contrast=CONTRAST.model_copy(update=d)), {"ctc"})
for _setting in ("sigma_rgb", "sigma_xy", "scale"):
    _default = {_setting: getattr(RegularizationConfig(), _setting)}
    SABOTAGES[_setting] = (lambda s, d=_default: s.configure(regularization=ENERGY.model_copy(update=d)), {"reg"})


@pytest.mark.parametrize("part", SABOTAGES)
def test_switching_off_a_part_changes_the_losses_that_depend_on_it_and_no_other(part, expected, monkeypatch):
    sabotage, losses = SABOTAGES[part]
    step = Step(monkeypatch, the_objective(), the_batch())
    sabotage(step)
    assert different(step.losses(), expected) == {"total", *losses}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_and_each_weight_is_part_of_the_total(name, expected, monkeypatch):
    step = Step(monkeypatch, the_objective(), the_batch())
    step.configure(weights=WEIGHTS.model_copy(update={name: getattr(LossWeights(), name)}))
    assert different(step.losses(), expected) == {"total"}
    step.configure(weights=WEIGHTS.model_copy(update={name: 0.0}))
    without = step.losses()
    assert different(without, expected) == {"total"}
    assert without.keys() == {"total", *LOSSES} - ({name} - {"cls", "aux_cls"}), "at weight 0 it is not computed"
    if name not in ("cls", "aux_cls"):
        step = Step(monkeypatch, the_objective(), the_batch(), Phase.model_validate({"from_step": 0, name: False}))
        assert step.losses().keys() == {"total", *LOSSES} - {name}, "nor in a phase without it"


def test_a_teacher_that_does_not_follow_the_student_is_noticed_at_the_next_step(expected, monkeypatch):
    monkeypatch.setattr(ToCo, "update_teacher", lambda *_: None)
    assert different(two_steps(the_objective(), the_batch()), expected) == {"next ctc", "next total"}


def test_a_gradient_through_the_teacher_is_noticed(expected, monkeypatch):
    objective, detach = the_objective(), Tensor.detach
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "detach", lambda tensor: tensor)
        losses = objective(the_batch(), PHASE)
    losses.total.backward()
    assert different({"total": detach(losses.total)}, expected) == set()
    gradients = {f"gradient {_published_name(n)}": p.grad for n, p in objective.model.named_parameters()}
    found = different({name: value for name, value in gradients.items() if value is not None}, expected)
    assert "gradient encoder.blocks.0.attn.qkv.weight" in found
    assert not found & {"gradient decoder.conv8.weight", "gradient proj_head.mlp.0.weight"}


def outputs(golden: dict[str, Tensor], group: str) -> Callable[[str], Tensor]:
    return lambda name: golden[f"{group}/{name}"].double()


@pytest.mark.parametrize("group", ["net_tiny_64x64", "net_tiny_96x160"])
def test_the_formulae_give_the_published_outputs_of_the_network(golden, group):
    published, weights = outputs(golden, group), literal_weights()
    settings = replace(SETTINGS, scales=(1.0, 0.5, 1.5))
    with torch.no_grad():
        images = published("input")
        cls_token, final, _ = literal_step.vit(weights, images, settings)
        cam, aux_cam = literal_step.multi_scale_cams(weights, images, settings)
        ours = {
            "cls_token": cls_token,
            "patch_tokens": final,
            "seg_logits": literal_step.decoder(weights, final, settings),
            "proj_student": literal_step.project(weights, "proj_head", cls_token[0])[None],
            "proj_teacher": literal_step.project(weights, "proj_head_t", cls_token[0])[None],
            "ms_cam": cam,
            "ms_aux_cam": aux_cam,
        }
    assert different(ours, {name: published(name) for name in ours}) == set()


def test_the_formulae_give_the_published_losses_and_labels(golden):
    ptc, seg, refine = (outputs(golden, name) for name in ("ptc", "seg", "refine"))
    labels = golden["ptc/token_labels"]
    assert torch.equal(literal_step.token_affinity(labels), golden["ptc/affinity"])
    assert relative_error(literal_step.patch_token_contrast(ptc("features"), labels), ptc("loss")) < 1e-5
    flags = golden["ctc/flags"].bool().tolist()
    student, teacher = (
        golden[f"ctc/{name}"].double().unflatten(0, (-1, 3)).transpose(0, 1) for name in ("student", "teacher")
    )
    for temperature in (0.5, 1.0):
        loss = literal_step.class_token_contrast(student, teacher, flags, temperature)
        assert relative_error(loss, golden[f"ctc_t{temperature}/loss"]) < 1e-5
    assert relative_error(literal_step.segmentation_loss(seg("logits"), golden["seg/labels"]), seg("loss")) < 1e-5
    settings = replace(SETTINGS, low=0.25, high=0.7)
    for index, box in enumerate(golden["refine/boxes"].tolist()):
        present = golden["refine/image_labels"][index].nonzero().flatten().tolist()
        image, cam = refine("images")[index], refine("valid_cam")[index]
        label = literal_step.refined_label(image, cam, present, box, settings)
        assert torch.equal(label, golden["refine/label"][index].long())
