"""What makes a step fast changes nothing: it waits for no number, and may compute activations twice or compile."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from tests.train.conftest import tiny_config
from tests.train.small_runs import assert_same_run, give_a_small_projection, make_small, small_shapes, train
from toco_train.backbone import Backbone
from toco_train.data.loading import Batch
from toco_train.model import ToCo
from toco_train.step import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig, TokenContrast

ALL_LOSSES = Phase(from_step=0)


@pytest.fixture(autouse=True)
def _small_projection(monkeypatch):
    give_a_small_projection(monkeypatch)


def objective():
    torch.manual_seed(0)
    return TokenContrast(
        ToCo(tiny_config(decoder_channels=16)),
        cam=CamConfig(),
        contrast=ContrastConfig(num_local_crops=4, local_crop_size=32, negative_ratio=0.9),
        regularization=RegularizationConfig(scale=1e-4),
        weights=LossWeights(),
    ).train()


def batch(max_classes=2):
    draw = torch.Generator().manual_seed(0)
    view1, view2, local = torch.randint(256, (3, 2, 3, 64, 64), generator=draw, dtype=torch.uint8)
    return Batch(
        view1=view1,
        view2=view2,
        local=local,
        boxes=torch.tensor([[0, 64, 0, 64], [5, 50, 3, 64]]),
        image_labels=torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]),
        seeds=torch.tensor([5, 6]),
        names=("first", "second"),
        max_classes=max_classes,
    )


def take_a_step_without_values(max_classes):
    """Take a step on tensors that have shapes but no values: whoever asks for a value gets an error."""
    own, images = objective(), batch(max_classes)
    without_values = FakeTensorMode(allow_non_fake_inputs=True)
    state = {name: without_values.from_tensor(value) for name, value in own.named_parameters()}
    with without_values:
        functional_call(own, state, (images, ALL_LOSSES)).total.backward()
    assert all(value.grad is not None for name, value in state.items() if name.startswith("model.backbone.vit.blocks"))


def test_no_part_of_a_step_waits_for_a_value():
    take_a_step_without_values(max_classes=2)
    with pytest.raises(DataDependentOutputException):  # the check can fail
        take_a_step_without_values(max_classes=None)


def test_the_number_of_classes_that_comes_with_a_batch_changes_no_loss():
    own = objective()
    counted, given = (own(batch(number), ALL_LOSSES).parts for number in (None, 2))
    assert counted == given


def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients_to_the_last_bit():
    plain, again = objective(), objective()
    again.model.backbone.activation_checkpointing = True
    kept, gradients = [], []
    for own in (plain, again):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = own(batch(), ALL_LOSSES).total
        weights = {weight.untyped_storage().data_ptr() for weight in own.parameters()}
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
        total.backward()
        gradients.append({name: weight.grad for name, weight in own.named_parameters() if weight.grad is not None})
    assert kept[1] < 0.5 * kept[0]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.fixture
def graphs(monkeypatch):
    """Compile without a compiler: the graphs are made and counted, and run as they are."""
    compile_blocks = Backbone.compile_blocks
    monkeypatch.setattr(Backbone, "compile_blocks", lambda backbone: compile_blocks(backbone, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


def test_compiled_blocks_share_a_graph_for_each_shape_and_are_compiled_once(graphs):
    own, compiled = objective(), objective()
    compiled.model.backbone.compile_blocks()
    for _ in range(2):
        assert compiled(batch(), ALL_LOSSES).parts == own(batch(), ALL_LOSSES).parts
        assert graphs() == 5  # with gradient: images, local crops; without: their flip at scale 1, scales 0.5 and 1.5


def test_a_compiled_run_is_the_same_run_and_its_evaluations_compile_nothing(graphs, tmp_path, monkeypatch):
    make_small(monkeypatch)
    data = small_shapes(tmp_path / "data")
    assert train(data, tmp_path / "eager") == 0
    assert graphs() == 0
    assert train(data, tmp_path / "compiled", compile=True) == 0
    assert graphs() == 3  # images and local crops with gradient, flipped images without
    assert_same_run(tmp_path / "compiled", tmp_path / "eager")
