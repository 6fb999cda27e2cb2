"""What makes a step fast changes nothing: it waits for no number, and may compute activations twice or compile."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from tests.train.method.test_step import batch, objective
from tests.train.small_runs import assert_same_run, give_a_small_projection, make_small, small_shapes, train
from toco_train.config import Phase
from toco_train.method.losses import dense_energy as losses
from toco_train.models.vit import Backbone

ALL_LOSSES = Phase(from_step=0)


@pytest.fixture(autouse=True)
def _small_projection(monkeypatch):
    give_a_small_projection(monkeypatch)


def take_a_step_without_values(max_classes):
    """Take a step on tensors that have shapes but no values: whoever asks for a value gets an error."""
    own, images = objective(), replace(batch(), max_classes=max_classes)
    without_values = FakeTensorMode(allow_non_fake_inputs=True)
    state = {name: without_values.from_tensor(value) for name, value in own.named_parameters()}
    with without_values:
        functional_call(own, state, (images, ALL_LOSSES)).total.backward()
    assert all(value.grad is not None for name, value in state.items() if name.startswith("model.backbone.vit.blocks"))


def test_no_part_of_a_step_waits_for_a_value(monkeypatch):
    monkeypatch.setitem(losses._LARGEST_TILE, "cpu", losses._LARGEST_TILE["cuda"])  # a CPU picks tiles by their values
    take_a_step_without_values(max_classes=2)
    with pytest.raises(DataDependentOutputException):  # the check can fail
        take_a_step_without_values(max_classes=None)


def test_the_number_of_classes_that_comes_with_a_batch_changes_no_loss():
    own, images = objective(), batch()
    counted, given = (own(replace(images, max_classes=number), ALL_LOSSES).parts for number in (None, 2))
    assert counted == given


def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients_to_the_last_bit():
    plain, again, images = objective(), objective(), batch()
    again.model.backbone.activation_checkpointing = True
    kept, gradients = [], []
    for own in (plain, again):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = own(images, ALL_LOSSES).total
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
    own, compiled, images = objective(), objective(), batch()
    compiled.model.backbone.compile_blocks()
    for _ in range(2):
        assert compiled(images, ALL_LOSSES).parts == own(images, ALL_LOSSES).parts
        assert graphs() == 5  # with gradient: images, local crops; without: their flip at scale 1, scales 0.5 and 1.5


def test_a_compiled_run_is_the_same_run_and_its_evaluations_compile_nothing(graphs, tmp_path, monkeypatch):
    make_small(monkeypatch)
    data = small_shapes(tmp_path / "data")
    assert train(data, tmp_path / "eager") == 0
    assert graphs() == 0
    assert train(data, tmp_path / "compiled", compile=True) == 0
    assert graphs() == 3  # images and local crops with gradient, flipped images without
    assert_same_run(tmp_path / "compiled", tmp_path / "eager")
