from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_run import Exported
from torch import nn

from toco_export.graph import ExportedAttention, ServedModel, exported_model
from toco_export.onnx.reduced import InOwnType, product_layers, reduced_model
from toco_export.onnx.value_ranges import FP16_LIMIT, HEADROOM, unsafe_in_fp16, watched_ranges
from toco_export.parity.verification import MIN_AGREEMENT, Candidate, verify
from toco_export.runtimes import InferenceBackend, torch_segmenter
from toco_train.models.toco import ToCo

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def half_graph(exported: Exported) -> tuple[list[onnx.NodeProto], dict[str, int]]:
    """The nodes of the fp16 file, and the type of every value in it."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported.artefacts / "model.fp16.onnx")).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.value_info, *graph.input, *graph.output)
    return list(graph.node), types | {value.name: value.type.tensor_type.elem_type for value in values}


def test_products_are_fp16_and_norms_softmax_and_resizing_are_not(exported: Exported):
    nodes, types = half_graph(exported)
    found = Counter((node.op_type, types[node.input[0]]) for node in nodes)
    assert found["MatMul", HALF] == 6 * 4, "qkv, scores, values, projection and two of the MLP in each block"
    assert found["Conv", HALF] == 4
    assert found["LayerNormalization", FLOAT] == 2 * 4 + 1
    assert found["Resize", FLOAT] == 1, "the logits"
    assert found["Gather", FLOAT] == 2, "the position embedding, along each axis"
    assert found["Exp", FLOAT] == 1, "the confidence"
    for kind, wrong in (("MatMul", FLOAT), ("Conv", FLOAT), ("LayerNormalization", HALF), ("Resize", HALF),
                        ("Gather", HALF), ("Exp", HALF)):  # fmt: skip
        assert found[kind, wrong] == 0


def target(cast: onnx.NodeProto) -> int:
    return next(attribute.i for attribute in cast.attribute if attribute.name == "to")


def test_no_value_is_cast_twice_and_no_cast_undoes_another(exported: Exported):
    nodes, types = half_graph(exported)
    casts = [node for node in nodes if node.op_type == "Cast"]
    made_by = {output: node for node in nodes for output in node.output}
    wanted = Counter((cast.input[0], target(cast)) for cast in casts)
    assert max(wanted.values()) == 1
    assert not [cast for cast in casts if types[cast.input[0]] == target(cast)], "a cast to the same type"
    assert not [cast for cast in casts if getattr(made_by.get(cast.input[0]), "op_type", "") == "Cast"]


def half_segmenter(model: ToCo, keep: Collection[str] = ()) -> InferenceBackend:
    return torch_segmenter(ServedModel(reduced_model(model, "fp16", keep)).eval())


def ranges_of(model: ToCo, images: np.ndarray) -> dict[str, float]:
    copied = exported_model(model)
    with watched_ranges(copied) as ranges:
        torch_segmenter(ServedModel(copied))(images)
    return ranges


def failures(model: ToCo, images: np.ndarray, segment: InferenceBackend) -> tuple[str, ...]:
    expected = [torch_segmenter(ServedModel(model))(images)]
    return verify(
        expected, [Candidate("torch-fp16", "fp16", MIN_AGREEMENT["fp16"], lambda: segment)], [images]
    ).failures


@pytest.mark.parametrize(("precision", "agreement"), [("fp16", 0.997), ("bf16", 0.98)])
def test_the_reduced_network_answers_like_fp32_and_leaves_it_as_it_was(model, images, precision, agreement):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer = torch_segmenter(ServedModel(reduced_model(model, precision)).eval())(images)
    expected = torch_segmenter(ServedModel(model))(images)
    assert np.mean(answer.mask == expected.mask) >= agreement
    assert 0 < np.abs(answer.logits - expected.logits).max() < 0.2, "it must round, but not much"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def scale_decoder(model: ToCo) -> ToCo:
    """The same function: what the first layer of the decoder gains, the other two lose again."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in (("conv6", 30_000), ("conv7", 1 / 200), ("conv8", 1 / 150)):
            scaled.decoder.get_submodule(name).weight.mul_(factor)
    return scaled


def scale_mlp(model: ToCo) -> ToCo:
    """The same function but for a GELU that is nearly ReLU: large numbers between the layers of the first MLP."""
    scaled = copy.deepcopy(model)
    mlp = scaled.backbone.vit.blocks[0].mlp
    with torch.no_grad():
        for parameter in mlp.fc1.parameters():
            parameter.mul_(60_000)
        mlp.fc2.weight.div_(60_000)
    return scaled


def scale_scores(model: ToCo) -> ToCo:
    """Queries and keys so long that their products leave fp16, though they themselves do not."""
    scaled = copy.deepcopy(model)
    qkv = scaled.backbone.vit.blocks[1].attn.qkv
    with torch.no_grad():
        for parameter in qkv.parameters():
            parameter[: 2 * len(parameter) // 3].mul_(600)
    return scaled


@pytest.mark.parametrize(
    ("scale", "kept"),
    [
        (scale_decoder, {"decoder.conv6", "decoder.conv7"}),
        (scale_mlp, {"backbone.vit.blocks.0.mlp.fc1", "backbone.vit.blocks.0.mlp.fc2"}),
        (scale_scores, {"backbone.vit.blocks.1.attn.qkv"}),
    ],
)
def test_naive_fp16_fails_where_numbers_overflow_and_what_the_scan_keeps_in_fp32_passes(model, images, scale, kept):
    scaled = scale(model)
    unsafe = unsafe_in_fp16(ranges_of(scaled, images))
    assert set(unsafe) == kept
    assert failures(scaled, images, half_segmenter(scaled)), "without the scan this fails"
    assert not failures(scaled, images, half_segmenter(scaled, unsafe))


def test_nothing_is_kept_where_nothing_overflows(model: ToCo, images: np.ndarray):
    ranges = ranges_of(model, images)
    assert list(ranges) == [name for name, _ in product_layers(exported_model(model))]
    assert len(ranges) == 4 * 4 + 4
    assert unsafe_in_fp16(ranges) == ()


def test_a_range_is_the_largest_of_input_weights_and_output(model: ToCo, images: np.ndarray):
    with torch.inference_mode():
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(0.0)).float()
        normalised = (pixels - ServedModel(model).mean) / ServedModel(model).std
        projection = model.backbone.vit.patch_embed.proj
        largest = [x.abs().max() for x in (normalised, projection(normalised), *projection.parameters())]
    assert ranges_of(model, images)["backbone.vit.patch_embed.proj"] == pytest.approx(float(max(largest)))


def test_a_layer_is_unsafe_from_a_quarter_of_what_fp16_holds_and_when_it_is_nan():
    assert (HEADROOM, FP16_LIMIT) == (4, 65504 / 4)
    assert unsafe_in_fp16({"a": 16376.0, "b": 16377.0, "c": float("inf")}) == ("b", "c")


def test_only_norms_and_embeddings_stay_fp32_in_what_is_served(model: ToCo):
    half = reduced_model(model, "fp16")
    served = [*half.backbone.named_parameters(), *half.decoder.named_parameters()]
    kept = {name for name, parameter in served if parameter.dtype == torch.float32}
    assert {name for name in kept if "norm" not in name} == {"vit.cls_token", "vit.pos_embed"}
    assert len(kept) == 2 + 2 * (2 * 4 + 1)


def test_a_layer_norm_survives_tokens_whose_squares_overflow_fp16():
    tokens = torch.tensor([[3000.0, -3000.0, 1000.0, -1000.0]])
    norm = InOwnType(nn.LayerNorm(4))
    expected = torch.tensor([[3.0, -3.0, 1.0, -1.0]]) / 5**0.5
    assert (tokens.half() ** 2).isinf().any(), "in fp16 itself this overflows"
    torch.testing.assert_close(norm(tokens.half()).float(), expected, rtol=0, atol=1e-3)


def test_the_exported_attention_is_that_of_timm(model: ToCo):
    tokens = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    theirs, ours = (network.backbone.vit.blocks[0].attn for network in (model, exported_model(model)))
    assert isinstance(ours, ExportedAttention)
    assert not isinstance(theirs, ExportedAttention)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-6)
