from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from small_run import Exported
from timm.layers import Attention, LayerScale
from torch import nn

from toco_core.errors import ExportError
from toco_export.graph import ServedModel, exported_model
from toco_export.onnx import file as onnx_file
from toco_export.onnx.file import count_product_types, external_data, save_onnx
from toco_export.onnx.fp16_bf16 import convert, retype
from toco_export.onnx.reduced import Reduced, product_layers, reduced_model
from toco_export.onnx.simplify import simplify
from toco_export.onnx.tracing import OPSET, OPSET_BF16, trace_onnx
from toco_export.onnx.value_ranges import FP16_LIMIT
from toco_export.runtimes import open_onnx, torch_segmenter
from toco_train.models.toco import ToCo

Signature = Counter[tuple[str, tuple[ir.DataType | None, ...], tuple[ir.DataType | None, ...]]]


def signatures(graph: ir.Model) -> Signature:
    """Each operation of a graph with the types of what it takes and gives."""
    return Counter(
        (node.op_type, tuple(value and value.dtype for value in node.inputs), tuple(v.dtype for v in node.outputs))
        for node in graph.graph
    )


def with_norms_and_scales(model: ToCo) -> ToCo:
    """A network as other ViTs are: queries and keys normalised, what attention gives too, branches scaled."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for block in changed.backbone.vit.blocks:
        attention = block.attn
        assert isinstance(attention, Attention)
        attention.q_norm, attention.k_norm = nn.LayerNorm(attention.head_dim), nn.LayerNorm(attention.head_dim)
        width = attention.proj.out_features
        attention.norm = nn.LayerNorm(width)
        block.ls1, block.ls2 = LayerScale(width), LayerScale(width)
        with torch.no_grad():
            for parameter in (attention.q_norm.weight, attention.norm.weight, block.ls1.gamma, block.ls2.gamma):
                parameter.copy_(1 + torch.rand(parameter.shape, generator=generator))
    return changed


@pytest.mark.parametrize("change", [copy.deepcopy, with_norms_and_scales])
@pytest.mark.parametrize(
    "kept", [(), ("backbone.vit.blocks.0.attn.qkv", "backbone.vit.blocks.1.mlp.fc2", "decoder.conv6")]
)
def test_the_types_are_those_of_the_reduced_network_in_pytorch(
    model: ToCo, change: Callable[[ToCo], ToCo], kept: tuple[str, ...]
):
    changed = change(model)
    expected = trace_onnx(ServedModel(reduced_model(changed, "fp16", kept)).eval())
    graph = trace_onnx(ServedModel(exported_model(changed)).eval())
    simplify(expected)
    simplify(graph)
    retype(graph, [name for name, _ in product_layers(changed) if name not in kept], "fp16")
    assert signatures(graph) == signatures(expected)


@pytest.mark.parametrize(("precision", "opset"), [("fp16", OPSET), ("bf16", OPSET_BF16)])
def test_a_converted_file_is_valid_and_says_what_it_is(
    model: ToCo, exported: Exported, tmp_path: Path, precision: Reduced, opset: int
):
    path = tmp_path / "model.onnx"
    convert(model, precision, exported.artefacts / "model.onnx", path, ranges={})
    written = onnx.load(path)
    assert {entry.key: entry.value for entry in written.metadata_props}["precision"] == precision
    assert [entry.version for entry in written.opset_import if not entry.domain] == [opset]
    assert count_product_types(path) == {precision: 4 * 6 + 4}
    assert path.stat().st_size < 0.7 * (exported.artefacts / "model.onnx").stat().st_size


def test_a_converted_file_answers_like_the_reduced_network(model: ToCo, images: np.ndarray, exported: Exported):
    answer = open_onnx(exported.artefacts / "model.fp16.onnx").segment(images)
    expected = torch_segmenter(ServedModel(reduced_model(model, "fp16")).eval())(images)
    assert np.mean(answer.mask == expected.mask) > 0.997
    assert np.abs(answer.logits - expected.logits).max() < 2e-2 * np.abs(expected.logits).max()


def test_what_fp16_cannot_hold_stays_fp32_and_bf16_holds_it(model: ToCo, exported: Exported, tmp_path: Path):
    ranges = {name: 1.0 for name, _ in product_layers(model)} | {"decoder.conv7": 2 * FP16_LIMIT}
    for precision, kept in (("fp16", ("decoder.conv7",)), ("bf16", ())):
        path = tmp_path / f"{precision}.onnx"
        converted = convert(model, precision, exported.artefacts / "model.onnx", path, ranges=ranges)
        assert converted.kept_fp32 == kept
        assert count_product_types(path)["fp32"] == len(kept)


@pytest.mark.parametrize("limit", [100_000, 700_000], ids=["both files too large", "the fp32 file too large"])
def test_weights_that_lie_beside_the_fp32_file_are_converted_too(
    model: ToCo, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE_BYTES", limit)
    save_onnx(ir.load(exported.artefacts / "model.onnx"), tmp_path / "model.onnx")
    convert(model, "fp16", tmp_path / "model.onnx", tmp_path / "model.fp16.onnx", ranges={})
    assert external_data(tmp_path / "model.onnx").exists()
    assert external_data(tmp_path / "model.fp16.onnx").exists() == (limit == 100_000)
    files = (tmp_path / "model.fp16.onnx", exported.artefacts / "model.fp16.onnx")
    assert np.array_equal(*(open_onnx(file).segment(images).logits for file in files))


def test_a_layer_that_the_graph_has_not_is_named(exported: Exported):
    graph = ir.load(exported.artefacts / "model.onnx")
    with pytest.raises(ExportError, match=r"no weight named after decoder.conv9; export without fp16"):
        retype(graph, ["decoder.conv6", "decoder.conv9"], "fp16")
