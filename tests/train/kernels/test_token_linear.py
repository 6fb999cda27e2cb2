"""The linear layers of the ViT: a convolution where that is faster, nn.Linear elsewhere, the same values everywhere."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from toco_train.config import ModelConfig
from toco_train.kernels import token_linear
from toco_train.kernels.token_linear import TokenLinear, use_token_linear
from toco_train.models.toco import ToCo

TOKENS = (2, 5, 16)


class Operations(TorchDispatchMode):
    """Writes down what PyTorch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*arguments, **(keywords or {}))


@pytest.fixture
def layers(monkeypatch):
    """A layer of PyTorch and ours with the same weights, so small that only a lower bound makes ours convolve."""
    monkeypatch.setattr(token_linear, "_LEAST_PRODUCT", TOKENS[0] * TOKENS[1] * 16 * 24)
    torch.manual_seed(0)
    theirs = nn.Linear(16, 24)
    ours = nn.Linear(16, 24)
    ours.load_state_dict(theirs.state_dict())
    use_token_linear(ours)
    return theirs, ours


def convolves(layer, tokens):
    with Operations() as operations:
        layer(tokens)
    return "convolution" in operations.names


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(monkeypatch, bias):
    torch.manual_seed(0)
    theirs = nn.Linear(768, 1024, bias=bias)
    ours = TokenLinear(768, 1024, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for layer in (theirs, ours):
        tokens = torch.randn(3, 100, 768, generator=torch.Generator().manual_seed(1), requires_grad=True)
        result = layer(tokens)
        result.square().mean().backward()
        found.append([result, tokens.grad, *(weight.grad for weight in layer.parameters())])
    assert convolves(ours, tokens)
    assert not convolves(theirs, tokens)
    assert found[1][0].is_contiguous()
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_tokens_that_do_not_lie_one_after_another_are_taken_as_they_are_meant(layers):
    theirs, ours = layers
    tokens = torch.randn(16, 5, 2).permute(2, 1, 0)
    assert convolves(ours, tokens)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_only_large_float32_products_of_maps_of_tokens_on_a_cpu_are_convolved(layers):
    _, ours = layers
    tokens = torch.randn(TOKENS)
    assert convolves(ours, tokens)
    assert not convolves(ours, tokens[:, :4]), "too small a product"
    assert not convolves(ours, tokens.flatten(0, 1)), "class tokens alone"
    assert not convolves(ours.to("meta"), tokens.to("meta"))
    ours = TokenLinear(16, 24)
    assert not convolves(ours.double(), tokens.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolves(ours.float(), tokens)
    ours.convolves = False
    assert not convolves(ours, tokens)


def test_a_graph_shows_a_linear_layer_and_no_convolution(layers):
    _, ours = layers
    tokens = torch.randn(TOKENS)
    assert convolves(ours, tokens)
    batch = torch.export.Dim("batch")
    program = torch.export.export(ours, (tokens,), dynamic_shapes=({0: batch},))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.linear.default"]
    seen = []

    def look(graph, _):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(ours, backend=look)(tokens)
    assert seen == [torch._C._nn.linear]


def test_a_network_has_them_in_its_blocks_under_the_names_of_timm():
    model = ToCo(ModelConfig(backbone="vit_tiny_patch16_224", pretrained=False, classes=("cat",)))
    layers = {name: layer for name, layer in model.backbone.vit.named_modules() if isinstance(layer, nn.Linear)}
    assert len(layers) == 4 * 12
    assert all(type(layer) is TokenLinear and name.startswith("blocks.") for name, layer in layers.items())
    assert "backbone.vit.blocks.11.mlp.fc2.weight" in model.state_dict()
