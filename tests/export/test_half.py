from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_run import Exported
from torch import nn

from toco_export.graph import ServedModel
from toco_export.half import FloatLayerNorm, half_body, half_served_model
from toco_export.parity import Candidate, ParityError, measure_parity, require_parity, torch_segmenter
from toco_train.model import ToCo

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
    assert found["Resize", FLOAT] == 2
    final_softmax = [node for node in nodes if node.op_type == "Softmax"][-1]
    assert types[final_softmax.input[0]] == FLOAT
    for kind, wrong in (("MatMul", FLOAT), ("Conv", FLOAT), ("LayerNormalization", HALF), ("Resize", HALF)):
        assert found[kind, wrong] == 0


def test_no_value_is_cast_twice_and_no_cast_undoes_another(exported: Exported):
    nodes, types = half_graph(exported)
    casts = [node for node in nodes if node.op_type == "Cast"]
    made_by = {output: node for node in nodes for output in node.output}
    wanted = Counter((cast.input[0], cast.attribute[0].i) for cast in casts)
    assert max(wanted.values()) == 1
    assert not [cast for cast in casts if types[cast.input[0]] == cast.attribute[0].i], "a cast to the same type"
    assert not [cast for cast in casts if getattr(made_by.get(cast.input[0]), "op_type", "") == "Cast"]


def test_the_fp16_network_answers_like_the_fp32_one_and_leaves_it_as_it_was(model: ToCo, images: np.ndarray):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask, confidence = torch_segmenter(half_served_model(model).eval())(images)
    expected_mask, expected_confidence = torch_segmenter(ServedModel(model))(images)
    assert np.mean(mask == expected_mask) >= 0.995
    assert np.abs(confidence.astype(int) - expected_confidence).max() <= 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_overflow_in_fp16_shows_in_the_masks_of_the_torch_stand_in(model: ToCo, images: np.ndarray):
    scaled = copy.deepcopy(model)  # the same function: what the first layer gains, the other two lose again
    with torch.no_grad():
        for conv, factor in (
            (scaled.decoder.conv6, 30_000),
            (scaled.decoder.conv7, 1 / 200),
            (scaled.decoder.conv8, 1 / 150),
        ):
            conv.weight.mul_(factor)
    reference = torch_segmenter(ServedModel(scaled))
    assert np.mean(reference(images)[0] == torch_segmenter(ServedModel(model))(images)[0]) > 0.9999
    candidates = [Candidate("torch-fp16", "fp16", lambda: torch_segmenter(half_served_model(scaled).eval()))]
    with pytest.raises(ParityError, match="overflows in fp16 or its classes are tied: export without --fp16"):
        require_parity(measure_parity(reference, candidates, [images]), candidates)


def test_only_norms_and_embeddings_stay_fp32_in_what_is_served(model: ToCo):
    half = half_body(model)
    served = [*half.backbone.named_parameters(), *half.decoder.named_parameters()]
    kept = {name for name, parameter in served if parameter.dtype == torch.float32}
    assert {name for name in kept if "norm" not in name} == {"vit.cls_token", "vit.pos_embed"}
    assert len(kept) == 2 + 2 * (2 * 4 + 1)


def test_a_layer_norm_survives_tokens_whose_squares_overflow_fp16():
    tokens = torch.tensor([[3000.0, -3000.0, 1000.0, -1000.0]])
    norm = FloatLayerNorm(nn.LayerNorm(4))
    expected = torch.tensor([[3.0, -3.0, 1.0, -1.0]]) / 5**0.5
    assert (tokens.half() ** 2).isinf().any(), "in fp16 itself this overflows"
    assert norm(tokens).dtype == torch.float16
    torch.testing.assert_close(norm(tokens).float(), expected, rtol=0, atol=1e-3)
